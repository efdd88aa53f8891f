"""Figures of a training report, drawn from the log and from what the encoder saw; knows no model and no trainer.

Legend: N tokens, D width, E experts.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava.visualize import css_color, expert_color, expert_colors, heat_colors, overlay, pca_colors

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Curve = tuple[list[float], list[float]]  # steps, values

# Metrics by the start of their name; whatever else is logged and is not transformers' own is a term of the loss.
METRIC_PANELS = {
    "residual": "error of each teacher, unweighted",
    "cosine": "cosine of prediction and target",
    "cka": "CKA of student and teacher",
    "weight": "share of each teacher",
    "token_entropy": "entropy of the token weights (nats)",
    "images_per_second": "images per second",
    "teacher_share": "share of the time that teachers take",
}
PER_LAYER = ("expert_load", "routing_entropy")
TRAINERS_OWN = ("step", "epoch", "loss", "total_flos", "learning_rate", "grad_norm")
SHOWN_LAYERS = 4


@dataclass(frozen=True)
class Look:
    """What one picture became. patches: (N, D) of the student on `grid`. attention: (N,) of its class token.
    choices: for each layer with experts, the expert of each patch, (N,). teachers: by name the target and the
    student's prediction of it, on the student's grid, or the teacher's own features alone (then the second is None)."""

    picture: Image.Image
    grid: tuple[int, int]
    patches: Tensor
    attention: Tensor | None
    choices: tuple[Tensor, ...] = ()
    experts: int = 0
    teachers: Mapping[str, tuple[Tensor, Tensor | None, tuple[int, int]]] = field(default_factory=dict)


def curve(history: Sequence[Mapping[str, Any]], name: str) -> Curve:
    """Steps and finite values of one logged name."""
    rows = [(row["step"], float(row[name])) for row in history if isinstance(row.get(name), int | float)]
    rows = [(step, value) for step, value in rows if math.isfinite(value)]
    return [float(step) for step, _ in rows], [value for _, value in rows]


def is_term(name: str) -> bool:
    """Whether a logged name is a summand of the loss."""
    head = name.partition("/")[0]
    known = (*METRIC_PANELS, *PER_LAYER, *TRAINERS_OWN)
    return head not in known and not name.startswith(("eval_", "train_"))


def panels_of(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Curve]]:
    """By title, the curves of a panel by label. Terms that share the part before the slash share a panel."""
    names = list(dict.fromkeys(name for row in history for name in row))
    panels: dict[str, dict[str, Curve]] = {}

    def add(title: str, label: str, name: str) -> None:
        found = curve(history, name)
        if found[0]:
            panels.setdefault(title, {})[label] = found

    for label, name in (("all terms", "loss"), ("language model", "lm"), ("validation", "eval_loss"),
                        ("validation, language model", "eval_lm")):  # fmt: skip
        add("loss", label, name)
    for name in names:
        if is_term(name) and name != "lm":
            head, _, label = name.partition("/")
            add(f"{head}, as it is in the loss", label or head, name)
    for head, title in METRIC_PANELS.items():
        for name in names:
            if name == head or name.startswith(f"{head}/"):
                add(title, name.partition("/")[2] or head, name)
    add("learning rate", "learning rate", "learning_rate")
    add("gradient norm", "gradient norm", "grad_norm")
    return panels


def smooth(values: Sequence[float]) -> list[float]:
    """A running mean over a twentieth of the curve, shorter at its ends."""
    reach = max(1, len(values) // 40)
    return [statistics.fmean(values[max(0, index - reach) : index + reach + 1]) for index in range(len(values))]


def draw_curves(history: Sequence[Mapping[str, Any]], target: Path) -> None:
    panels = panels_of(history)
    columns = min(3, max(1, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    figure, axes = plt.subplots(rows, columns, figsize=(4.3 * columns, 3.1 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=False):
        _draw_panel(axis, title, lines)
    _save(figure, target)


def _draw_panel(axis: Axes, title: str, lines: Mapping[str, Curve]) -> None:
    for label, (steps, values) in lines.items():
        if len(values) < 20:
            axis.plot(steps, values, label=label, linewidth=1.6, marker="o" if len(values) < 3 else None, markersize=3)
            continue
        [drawn] = axis.plot(steps, smooth(values), label=label, linewidth=1.6)
        axis.plot(steps, values, color=drawn.get_color(), linewidth=0.6, alpha=0.3)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("step", fontsize=8)
    axis.ticklabel_format(axis="y", useOffset=False)
    low, high = axis.get_ylim()
    if high - low < 0.02 * max(abs(low), abs(high)):  # what hardly moves should not look as if it did
        middle = (low + high) / 2
        axis.set_ylim(middle - 0.05 * abs(middle), middle + 0.05 * abs(middle))
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        axis.legend(frameon=False, fontsize=8)


def layer_table(history: Sequence[Mapping[str, Any]], head: str) -> tuple[list[float], np.ndarray]:
    """Steps (S,), and the values of `head`/LAYER or `head`/LAYER/EXPERT as (S, layers) or (S, layers, E)."""
    rows = [row for row in history if any(name.startswith(f"{head}/") for name in row)]
    if not rows:
        return [], np.zeros((0, 0))
    keys = [tuple(int(part) for part in name.split("/")[1:]) for name in rows[0] if name.startswith(f"{head}/")]
    shape = tuple(1 + max(column) for column in zip(*keys, strict=True))
    values = np.full((len(rows), *shape), np.nan)
    for index, row in enumerate(rows):
        for key in keys:
            values[(index, *key)] = row.get("/".join((head, *map(str, key))), np.nan)
    return [float(row["step"]) for row in rows], values


def draw_experts(history: Sequence[Mapping[str, Any]], target: Path) -> bool:
    """Load of the experts by layer at the end, and how it and the routers' entropy got there. False without experts."""
    steps, loads = layer_table(history, "expert_load")
    if not steps:
        return False
    _, entropies = layer_table(history, "routing_entropy")
    height = max(2.6, 0.22 * loads.shape[1] + 1.4)
    figure, axes = plt.subplots(1, 3, figsize=(13, height), gridspec_kw={"width_ratios": [1.1, 1, 1]})
    _draw_loads(axes[0], np.nanmean(loads[-max(1, len(loads) // 10) :], axis=0))
    _draw_over_time(figure, axes[1], steps, loads.max(axis=2), "largest expert's share", (1 / loads.shape[2], 1.0))
    _draw_over_time(figure, axes[2], steps, entropies, "entropy of the routers (1: undecided)", (0.0, 1.0))
    _save(figure, target)
    return True


def _draw_loads(axis: Axes, loads: np.ndarray) -> None:
    """loads: (layers, E)."""
    left = np.zeros(len(loads))
    for expert in range(loads.shape[1]):
        color = css_color(expert_color(expert))
        axis.barh(range(len(loads)), loads[:, expert], left=left, color=color, label=str(expert), height=0.85)
        left += loads[:, expert]
    axis.set_title("share of tokens that each expert gets, at the end", fontsize=10, pad=22)
    axis.set_ylabel("layer", fontsize=8)
    axis.set_xlim(0, 1)
    axis.set_ylim(len(loads) - 0.5, -0.5)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(
        title=None, ncols=loads.shape[1], frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0),
        handlelength=1,
    )  # fmt: skip


def _draw_over_time(
    figure: Figure, axis: Axes, steps: Sequence[float], values: np.ndarray, title: str, limits: tuple[float, float]
) -> None:
    """values: (S, layers)."""
    extent = (steps[0], max(steps[-1], steps[0] + 1), values.shape[1] - 0.5, -0.5)
    low, high = limits
    image = axis.imshow(
        values.T, aspect="auto", extent=extent, vmin=low, vmax=high, cmap="magma", interpolation="nearest"
    )
    axis.set_title(title, fontsize=10, pad=22)
    axis.set_xlabel("step", fontsize=8)
    axis.tick_params(labelsize=8)
    figure.colorbar(image, ax=axis, fraction=0.05, pad=0.02).ax.tick_params(labelsize=8)


def chosen_layers(count: int) -> list[int]:
    """At most SHOWN_LAYERS layers from the first to the last, evenly."""
    return sorted({round(index) for index in np.linspace(0, count - 1, min(count, SHOWN_LAYERS))})


def draw_encoder(looks: Sequence[Look], target: Path) -> None:
    """A row per picture: itself, where the class token looks, which expert each patch goes to, the features."""
    rows = []
    for look in looks:
        cells = {"picture": look.picture}
        if look.attention is not None:
            cells["class token looks at"] = overlay(look.picture, heat_colors(look.attention, look.grid))
        for layer in chosen_layers(len(look.choices)) if look.choices else []:
            colors = expert_colors(look.choices[layer], look.grid, look.experts)
            cells[f"experts, layer {layer}"] = overlay(look.picture, colors, 0.6)
        cells["features"] = image_of(pca_colors(look.patches, look.grid))
        rows.append(cells)
    draw_grid(rows, target)


def draw_teachers(looks: Sequence[Look], target: Path) -> None:
    """A row per picture: the student's features, and each teacher beside the student's prediction of it. The two of a
    pair share their colors, so equal colors mean equal features; colors of different pairs mean nothing together."""
    rows = []
    for look in looks:
        cells = {"picture": look.picture, "student": image_of(pca_colors(look.patches, look.grid))}
        for name, (features, prediction, grid) in look.teachers.items():
            if prediction is None:
                cells[name] = image_of(pca_colors(features, grid))
                continue
            both = pca_colors(torch.cat([features, prediction]), (2 * grid[0], grid[1]))
            cells[name] = image_of(both[: grid[0]])
            cells[f"student as {name}"] = image_of(both[grid[0] :])
        rows.append(cells)
    draw_grid(rows, target)


def image_of(colors: np.ndarray) -> Image.Image:
    return Image.fromarray((np.clip(colors, 0, 1) * 255).round().astype(np.uint8))


def draw_grid(rows: Sequence[Mapping[str, Image.Image]], target: Path) -> None:
    """Pictures in rows, the titles over the first."""
    columns = max(len(row) for row in rows)
    figure, axes = plt.subplots(len(rows), columns, figsize=(1.75 * columns, 1.78 * len(rows) + 0.3), squeeze=False)
    for index, row in enumerate(rows):
        for axis, (title, image) in zip(axes[index], row.items(), strict=False):
            smooth_small = "nearest" if image.width < 64 else "antialiased"
            axis.imshow(np.asarray(image), interpolation=smooth_small)
            if index == 0:
                axis.set_title(title, fontsize=8.5)
    for axis in axes.flat:
        axis.axis("off")
    _save(figure, target, pad=0.4)


def _save(figure: Figure, target: Path, pad: float = 1.0) -> None:
    figure.tight_layout(pad=pad)
    figure.savefig(target, dpi=130)
    plt.close(figure)
