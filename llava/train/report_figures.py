"""Curves of a training report, drawn from the log alone. Legend: S logged steps, E experts."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from llava.visualize import css_color, expert_color

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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
SHARES = ("cosine", "cka", "weight", "teacher_share")  # 1 is the most there is
PER_LAYER = ("expert_load", "routing_entropy")
TRAINERS_OWN = ("step", "epoch", "loss", "total_flos", "learning_rate", "grad_norm")


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
    """A panel per quantity; a teacher has one color in all of them."""
    panels = panels_of(history)
    several = dict.fromkeys(label for title, lines in panels.items() if title != "loss" and len(lines) > 1
                            for label in lines)  # fmt: skip
    colors = {label: f"C{index % 10}" for index, label in enumerate(several)}
    columns = min(3, max(1, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    figure, axes = plt.subplots(rows, columns, figsize=(4.3 * columns, 3.1 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=False):
        _draw_panel(axis, title, lines, colors)
    save_figure(figure, target)


def _draw_panel(axis: Axes, title: str, lines: Mapping[str, Curve], colors: Mapping[str, str]) -> None:
    before: list[Curve] = []
    for label, (steps, values) in lines.items():
        color = colors.get(label, "0.6" if "language model" in label else "0.15")
        hides = label.startswith("validation") or (steps, values) in before  # a dash shows the curve below
        style: dict[str, Any] = {"color": color, "linestyle": (0, (4, 4)) if hides else "-"}
        named = f"{label}  {values[-1]:.3g}" if len(lines) > 1 else label
        if len(values) < 20:
            axis.plot(steps, values, label=named, linewidth=1.6, marker="o" if len(values) < 3 else None,
                      markersize=3, **style)  # fmt: skip
        else:
            axis.plot(steps, smooth(values), label=named, linewidth=1.6, **style)
            axis.plot(steps, values, color=color, linewidth=0.6, alpha=0.3)
        before.append((steps, values))
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("step", fontsize=8)
    axis.ticklabel_format(axis="y", useOffset=False)
    _set_scale(axis, title, min(min(values) for _, values in lines.values()))
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        axis.legend(frameon=False, fontsize=8)


def _set_scale(axis: Axes, title: str, lowest: float) -> None:
    """From 0, and to 1 for a share, so that what hardly moves does not look as if it did. An entropy, whose 0 is far
    away, is shown close by."""
    if title == METRIC_PANELS["token_entropy"]:
        low, high = axis.get_ylim()
        room = max(0.0, 0.05 * high - (high - low)) / 2
        axis.set_ylim(low - room, high + room)
    elif lowest >= 0:
        axis.set_ylim(bottom=0, top=1.02 if title in {METRIC_PANELS[name] for name in SHARES} else None)


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
    save_figure(figure, target)
    return True


def _draw_loads(axis: Axes, loads: np.ndarray) -> None:
    """loads: (layers, E)."""
    left = np.zeros(len(loads))
    for expert in range(loads.shape[1]):
        color = css_color(expert_color(expert))
        axis.barh(range(len(loads)), loads[:, expert], left=left, color=color, label=f"expert {expert}", height=0.85)
        left += loads[:, expert]
    axis.set_title("share of tokens that each expert gets, at the end", fontsize=10, pad=22)
    axis.set_xlabel("share", fontsize=8)
    axis.set_xlim(0, 1)
    axis.set_ylim(len(loads) - 0.5, -0.5)
    _name_layers(axis)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(ncols=loads.shape[1], frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0),
                handlelength=1)  # fmt: skip


def _name_layers(axis: Axes) -> None:
    axis.set_ylabel("layer", fontsize=8)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.tick_params(labelsize=8)


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
    _name_layers(axis)
    figure.colorbar(image, ax=axis, fraction=0.05, pad=0.02).ax.tick_params(labelsize=8)


def save_figure(figure: Figure, target: Path, pad: float = 1.0, bottom: float = 0.0) -> None:
    """bottom: share of the height to leave free there."""
    figure.tight_layout(pad=pad, rect=(0, bottom, 1, 1))
    figure.savefig(target, dpi=130)
    plt.close(figure)
