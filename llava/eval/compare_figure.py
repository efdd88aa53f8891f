"""The figure of `llava.eval.compare`: one panel a benchmark, a dot and its interval a checkpoint, a ring a seed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from llava.eval.compare import Column, cell

COLORS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860")


def draw(columns: Sequence[Column], path: str | Path) -> None:
    names = list(columns[0].values)
    height = 1.2 + 0.45 * len(names)
    figure = Figure(figsize=(1.5 + 2.6 * len(columns), height), layout="constrained")
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axis, column in zip(axes, columns, strict=True):
        for row, name in enumerate(names):
            found = cell(column, name)
            color = COLORS[row % len(COLORS)]
            low, high = (100 * end for end in found.over_questions)
            axis.plot([low, high], [row, row], color=color, linewidth=2.5, solid_capstyle="round", alpha=0.5)
            seeds = 100 * column.values[name].mean(axis=1)
            if len(seeds) > 1:
                axis.plot(seeds, np.full(len(seeds), row + 0.22), "o", mfc="none", mec=color, markersize=5)
            axis.plot(100 * found.mean, row, "o", color=color, markersize=7)
        axis.set_title(f"{column.benchmark} (n = {column.questions})", fontsize=10)
        axis.set_xlabel("percent")
        axis.grid(axis="x", alpha=0.3)
        axis.set_yticks(range(len(names)), names)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    figure.supxlabel("dot: mean; bar: 95 % over questions; ring: one seed", fontsize=8, color="gray")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
