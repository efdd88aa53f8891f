"""Rows of the lab as pictures, all of one world: scores, differences between arms, and what training looked like."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from llava.eval.intervals import t_interval
from playground.lab.results import VISUAL, Row, differences, points
from playground.lab.tables import Arms
from playground.questions import KINDS

# Okabe and Ito's colors, which color-blind readers can tell apart; yellow is left out, too light for a line.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
ORDINALS = ("most used", "second", "third", "fourth", "fifth", "sixth", "seventh")
DOTTED: dict[str, Any] = {"colors": "black", "linestyles": "dotted", "linewidth": 1.4, "zorder": 1}
LAST_LOGS = 5  # averaged for what holds at the end: one log is one batch


class Band(NamedTuple):
    """A curve over the seeds of an arm: at each step that all of them logged."""

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def band(rows: Sequence[Row], arm: str, curve: str) -> Band | None:
    """None if no run of the arm logged the curve."""
    runs = [dict(row.curves[curve]) for row in rows if row.arm == arm and curve in row.curves]
    if not runs:
        return None
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    values = [[run[step] for run in runs] for step in steps]
    return Band(steps, [fmean(v) for v in values], [min(v) for v in values], [max(v) for v in values])


def curve_ends(rows: Sequence[Row], names: Sequence[str], prefix: str) -> list[str]:
    """What follows `prefix` in the names of curves that some run of these arms logged, sorted."""
    logged = {curve for row in rows if row.arm in names for curve in row.curves}
    return sorted(curve.removeprefix(prefix) for curve in logged if curve.startswith(prefix))


def expert_shares(row: Row) -> list[list[float]]:
    """[layer][place]: the share of tokens at the end, from the most to the least used expert of each layer. Experts
    have no names that two runs share."""
    layers: dict[int, list[float]] = {}
    for name, curve in row.curves.items():
        if name.startswith("expert_load/"):
            layer = int(name.split("/")[1])
            layers.setdefault(layer, []).append(fmean(value for _, value in curve[-LAST_LOGS:]))
    return [sorted(layers[layer], reverse=True) for layer in sorted(layers)]


# -- the pictures


def accuracy_by_kind(
    rows: Sequence[Row],
    names: Sequence[str],
    arms: Arms,
    priors: Mapping[str, float],
    target: Path,
    split: str = "heldout",
) -> None:
    """Mean of each arm with its 95 % interval over seeds; dotted, what the best answer without looking gets."""
    figure, axis = plt.subplots(figsize=(9, 4.2), layout="constrained")
    for place, (name, (color, marker)) in enumerate(_styles(names).items()):
        for index, kind in enumerate(KINDS):
            x = index + 0.7 * ((place + 0.5) / len(names) - 0.5)
            values = list(points(rows, name, kind, split).values())
            if len(values) > 1:
                axis.vlines(x, *t_interval(values), color=color, linewidth=1.8)
            axis.plot(x, fmean(values), marker, color=color, markersize=5, label=arms[name].title)
    for index, kind in enumerate(KINDS):
        ends = index - 0.42, index + 0.42
        axis.hlines(100 * priors[kind], *ends, **DOTTED, label="without looking")
    axis.set_xticks(range(len(KINDS)), KINDS)
    axis.tick_params(axis="x", length=0)
    axis.set_xlim(-0.5, len(KINDS) - 0.5)
    axis.set_ylim(0, 102)
    axis.grid(axis="y", alpha=0.25)
    axis.set_ylabel("right answers, percent")
    _save(figure, target)


def forest(rows: Sequence[Row], names: Sequence[str], arms: Arms, target: Path, split: str = "heldout") -> None:
    """Each arm's score above that of the arm it is compared with, paired by seed: mean, 95 % interval; a light dot
    below for each seed. Arms with one reference stand together."""
    found = {
        name: list(differences(rows, name, against, VISUAL, split).values())
        for name in names
        if (against := arms[name].against) is not None
    }
    ordered = sorted((str(arms[name].against), fmean(values), name) for name, values in found.items() if values)
    figure, axis = plt.subplots(figsize=(8, 1.0 + 0.52 * len(ordered)), layout="constrained")
    for place, (_, mean, name) in enumerate(ordered):
        values = found[name]
        if len(values) > 1:
            axis.hlines(place, *t_interval(values), color=COLORS[0], linewidth=1.8)
        axis.plot(values, [place - 0.25] * len(values), "o", color=COLORS[5], markersize=4, markeredgewidth=0)
        axis.plot(mean, place, "D", color=COLORS[0], markersize=5.5)
    axis.axvline(0, color="#666", linewidth=1)
    axis.set_yticks(
        range(len(ordered)), [f"{arms[name].title}\nto: {arms[against].title}" for against, _, name in ordered]
    )
    axis.set_ylim(-0.6, len(ordered) - 0.4)
    axis.tick_params(axis="y", length=0, labelsize=8)
    axis.grid(axis="x", alpha=0.25)
    axis.set_xlabel("visual score, points above the arm compared with", loc="right")
    _save(figure, target)


def learning_curves(rows: Sequence[Row], names: Sequence[str], arms: Arms, target: Path) -> None:
    """The language model's loss in both stages."""
    _bands(rows, names, arms, {"stage 1": "stage1/lm", "stage 2": "lm"}, "loss of the language model", target)


def residual_curves(rows: Sequence[Row], names: Sequence[str], arms: Arms, target: Path) -> None:
    """Per teacher, what the student still misses of it in stage 2: recipes differ in the scale of their targets, so
    each run is drawn as a share of what it missed at first."""
    panels = {name: f"residual/{name}" for name in curve_ends(rows, names, "residual/")}
    relative = [
        replace(row, curves={curve: shrunk(row, curve) for curve in panels.values() if curve in row.curves})
        for row in rows
    ]
    _bands(relative, names, arms, panels, "residual in stage 2, of the first one", target)


def shrunk(row: Row, curve: str) -> list[tuple[int, float]]:
    """The curve of stage 2 divided by the first value that was logged, in stage 1 if it is there."""
    first = row.curves.get(f"stage1/{curve}", row.curves[curve])[0][1]
    return [(step, value / first) for step, value in row.curves[curve]]


def expert_use(rows: Sequence[Row], names: Sequence[str], arms: Arms, target: Path) -> None:
    """Share of tokens by layer at the end, one mark a seed, of at most the seven most used experts; dotted, equal use.
    Arms without experts are left out."""
    shares = {name: [found for row in rows if row.arm == name and (found := expert_shares(row))] for name in names}
    chosen = [name for name in names if shares[name]]
    figure, axes = plt.subplots(
        1, len(chosen), figsize=(max(2.6 * len(chosen), 4.5), 3.4), squeeze=False, sharey=True, layout="constrained"
    )
    for axis, name in zip(axes[0], chosen, strict=True):
        layers = len(shares[name][0])
        for layer in range(layers):
            experts = len(shares[name][0][layer])
            axis.hlines(100 / experts, layer - 0.42, layer + 0.42, **DOTTED, label="equal use")
            for place, (label, (color, marker)) in enumerate(_styles(ORDINALS[:experts]).items()):
                values = [100 * found[layer][place] for found in shares[name]]
                x = layer + 0.7 * ((place + 0.5) / experts - 0.5)
                axis.plot([x] * len(values), values, marker, color=color, markersize=5, alpha=0.7, label=label)
        axis.set_xticks(range(layers), [f"layer {layer + 1}" for layer in range(layers)])
        axis.set_ylim(0, 100)
        axis.grid(axis="y", alpha=0.25)
        axis.set_title(textwrap.fill(arms[name].title, 24), fontsize=10)
    axes[0][0].set_ylabel("tokens of an expert, percent")
    _save(figure, target)


# -- shared by them


def _styles(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Color and marker of each name, the same in every picture."""
    if len(names) > len(COLORS):
        raise ValueError(f"{len(names)} things in one picture, but only {len(COLORS)} can be told apart: {names}")
    return dict(zip(names, zip(COLORS, MARKERS, strict=True), strict=False))


def _bands(
    rows: Sequence[Row], names: Sequence[str], arms: Arms, panels: Mapping[str, str], label: str, target: Path
) -> None:
    """A panel per title; in it a line per arm that logged the curve, in a band from the lowest to the highest seed."""
    shown = {title: curve for title, curve in panels.items() if any(band(rows, name, curve) for name in names)}
    size = max(3.1 * len(shown), 7.5), 3.6
    figure, axes = plt.subplots(1, len(shown), figsize=size, squeeze=False, layout="constrained")
    for axis, (title, curve) in zip(axes[0], shown.items(), strict=True):
        for name, (color, _) in _styles(names).items():
            if (found := band(rows, name, curve)) is not None:
                axis.fill_between(found.steps, found.low, found.high, color=color, alpha=0.18, linewidth=0)
                axis.plot(found.steps, found.mean, color=color, linewidth=1.6, label=arms[name].title)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("step")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel(label)
    _save(figure, target)


def _save(figure: Any, target: Path) -> None:
    """With one legend for all panels, above them."""
    labelled: dict[str, Any] = {}
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        handles, labels = axis.get_legend_handles_labels()
        labelled |= dict(zip(labels, handles, strict=True))
    if len(labelled) > 1:
        columns = max(1, int(figure.get_figwidth() // (0.5 + 0.075 * max(map(len, labelled)))))  # inches
        figure.legend(labelled.values(), labelled, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)
    figure.savefig(target, dpi=140)
    plt.close(figure)
