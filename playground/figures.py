"""Pictures of a playground run: curves of every training loss, and a contact sheet of questions and answers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

Answers = Sequence[Mapping[str, Any]]
Curve = tuple[list[int], list[float]]
GOOD, BAD = "#1a7f37", "#b3261e"


def playground_curve(log: Path) -> Curve:
    """Steps and losses of the playground's own trainings."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [row["step"] for row in rows], [row["loss"] for row in rows]


def trainer_curve(run: Path, key: str = "loss") -> Curve:
    """Steps and values of a LLaVA training run, from its trainer_state.json."""
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    rows = [row for row in history if key in row]
    return [row["step"] for row in rows], [float(row[key]) for row in rows]


def loss_curves(panels: Mapping[str, Mapping[str, Curve]], target: Path) -> None:
    """One panel per title, one line per name in it."""
    figure, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.2), squeeze=False)
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for name, (steps, values) in lines.items():
            axis.plot(steps, values, label=name, linewidth=1.6, marker="o" if len(steps) < 3 else "")
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("step")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            axis.legend(frameon=False, fontsize=9)
    axes[0][0].set_ylabel("loss")
    figure.tight_layout()
    figure.savefig(target, dpi=140)
    plt.close(figure)


def contact_sheet(
    answers: Sequence[Mapping[str, Any]], images: Path, target: Path, columns: int = 5, rows: int = 3
) -> None:
    """Held-out pictures, each with all its questions: the answer, and the truth where the answer is wrong."""
    by_image: dict[str, list[Mapping[str, Any]]] = {}
    for answer in answers:
        by_image.setdefault(answer["image"], []).append(answer)
    chosen = list(by_image.items())[: columns * rows]
    figure, axes = plt.subplots(rows, columns, figsize=(2.9 * columns, 4.9 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, asked) in zip(axes.flat, chosen, strict=False):
        with Image.open(images / name) as picture:
            axis.imshow(picture.convert("RGB"), interpolation="nearest")
        for place, line in enumerate(asked):
            _write(axis, place, line)
    figure.subplots_adjust(left=0.02, right=0.98, top=0.98, bottom=0.44 / rows + 0.02, wspace=0.12, hspace=0.85)
    figure.savefig(target, dpi=110)
    plt.close(figure)


def _write(axis: Any, place: int, line: Mapping[str, Any]) -> None:
    good = line["prediction"].strip().lower() == line["answer"]
    height = -0.09 - 0.075 * place
    axis.text(0, height, f"{line['text']}?", transform=axis.transAxes, fontsize=8.5, color="#444")
    said = line["prediction"] if good else f"{line['prediction'] or '(nothing)'} ({line['answer']})"
    axis.text(1, height, said, transform=axis.transAxes, fontsize=8.5, ha="right", color=GOOD if good else BAD)


def accuracy_bars(scores: Mapping[str, Sequence[Any]], target: Path) -> None:
    """Accuracy by kind of question for each model, with standard errors, over the prior."""
    names = list(scores)
    kinds = [item.kind for item in scores[names[0]]]
    figure, axis = plt.subplots(figsize=(1.1 * len(kinds) + 2, 3.6))
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        x = [i + (place - (len(names) - 1) / 2) * width for i in range(len(kinds))]
        errors = [100 * item.error for item in scores[name]]
        axis.bar(x, [100 * item.accuracy for item in scores[name]], width, yerr=errors, label=name, capsize=2)
    for i, item in enumerate(scores[names[0]]):
        axis.hlines(100 * item.prior, i - 0.45, i + 0.45, colors="black", linestyles="dotted")
    axis.plot([], [], "k:", label="without looking")
    axis.set_xticks(range(len(kinds)), kinds)
    axis.set_ylabel("accuracy, percent")
    axis.set_ylim(0, 104)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, ncols=len(names) + 1, loc="upper center", bbox_to_anchor=(0.5, 1.16))
    figure.tight_layout()
    figure.savefig(target, dpi=140)
    plt.close(figure)
