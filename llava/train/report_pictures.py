"""Pictures of a training report: what the encoder and its teachers made of some. Knows no model and no trainer.

Legend: N tokens, D width, E experts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from matplotlib.patches import Patch
from PIL import Image
from torch import Tensor

from llava.train.report_figures import save_figure
from llava.visualize import css_color, expert_color, expert_colors, heat_colors, overlay, pca_colors

SHOWN_LAYERS = 4
TEACHERS_ABREAST = 4


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


def chosen_layers(count: int) -> list[int]:
    """At most SHOWN_LAYERS layers from the first to the last, evenly."""
    return sorted({round(index) for index in np.linspace(0, count - 1, min(count, SHOWN_LAYERS))})


class Cell(NamedTuple):
    image: Image.Image
    caption: str = ""


def draw_encoder(looks: Sequence[Look], target: Path) -> None:
    """A row per picture: itself, where the class token looks, which expert each patch goes to, the features."""
    rows = []
    for look in looks:
        cells = {"picture": Cell(look.picture)}
        if look.attention is not None:
            share = look.attention / look.attention.sum()
            caption = f"at most {share.max():.2g} (even: {1 / len(share):.2g})"
            cells["class token looks at"] = Cell(overlay(look.picture, heat_colors(share, look.grid)), caption)
        for layer in chosen_layers(len(look.choices)) if look.choices else []:
            colors = expert_colors(look.choices[layer], look.grid, look.experts)
            cells[f"experts, layer {layer}"] = Cell(overlay(look.picture, colors, 0.6))
        cells["features"] = Cell(image_of(pca_colors(look.patches, look.grid)))
        rows.append(cells)
    draw_grid(rows, target, experts=max(look.experts for look in looks))


def draw_teachers(looks: Sequence[Look], target: Path) -> None:
    """A row per picture: the student's features, and each teacher beside the student's prediction of it. The two of a
    pair share their colors, so equal colors mean equal features; colors of different pairs mean nothing together."""
    names = list(dict.fromkeys(name for look in looks for name in look.teachers))
    bands = [names[start : start + TEACHERS_ABREAST] for start in range(0, len(names), TEACHERS_ABREAST)]
    draw_grid([_beside_teachers(look, band) for band in bands for look in looks], target)


def _beside_teachers(look: Look, names: Sequence[str]) -> dict[str, Cell]:
    cells = {"picture": Cell(look.picture), "student": Cell(image_of(pca_colors(look.patches, look.grid)))}
    for name in names:
        features, prediction, grid = look.teachers[name]
        if prediction is None:
            cells[name] = Cell(image_of(pca_colors(features, grid)))
            continue
        both = pca_colors(torch.cat([features, prediction]), (2 * grid[0], grid[1]))
        cosine = F.cosine_similarity(features, prediction, dim=-1).mean()
        cells[name] = Cell(image_of(both[: grid[0]]))
        cells[f"student as {name}"] = Cell(image_of(both[grid[0] :]), f"cosine {cosine:.2f}")
    return cells


def image_of(colors: np.ndarray) -> Image.Image:
    return Image.fromarray((np.clip(colors, 0, 1) * 255).round().astype(np.uint8))


def draw_grid(rows: Sequence[Mapping[str, Cell]], target: Path, experts: int = 0) -> None:
    """Pictures in rows, titles where they change from row to row, captions below each. experts: so many have a color to
    explain."""
    columns = max(len(row) for row in rows)
    height = 2.1 * len(rows) + 0.3 + 0.3 * (experts > 0)
    figure, axes = plt.subplots(len(rows), columns, figsize=(1.75 * columns, height), squeeze=False)
    above: list[str] = []
    for index, row in enumerate(rows):
        for axis, (title, (image, caption)) in zip(axes[index], row.items(), strict=False):
            smooth_small = "nearest" if image.width < 64 else "antialiased"
            axis.imshow(np.asarray(image), interpolation=smooth_small)
            axis.text(0.5, -0.03, caption, transform=axis.transAxes, ha="center", va="top", fontsize=7.5)
            if list(row) != above:
                axis.set_title(title, fontsize=8.5)
        above = list(row)
    for axis in axes.flat:
        axis.axis("off")
    if experts:
        handles = [Patch(color=css_color(expert_color(index)), label=f"expert {index}") for index in range(experts)]
        figure.legend(handles=handles, loc="lower center", ncols=min(experts, 8), frameon=False, fontsize=8)
    save_figure(figure, target, pad=0.9, bottom=0.3 / height if experts else 0.0)
