"""Pictures of what a vision encoder sees: attention, experts and features as colors, laid over the picture.

Pure functions of tensors and PIL images, for the demo and for reports. Nothing here knows a model or a web page.
Legend: N tokens, D width, H and W grid, E experts. Colors are (..., 3) float32 in 0 .. 1.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Colors = NDArray[np.float32]
Grid = tuple[int, int]

# From dark to bright, equally spaced; readable in print and by the color-blind.
HEAT = (
    (0.00, 0.00, 0.02),
    (0.23, 0.06, 0.44),
    (0.55, 0.16, 0.51),
    (0.87, 0.29, 0.41),
    (0.99, 0.62, 0.43),
    (0.99, 0.99, 0.75),
)
# Told apart by the color-blind as well; more experts than colors go around again, darker.
PALETTE = (
    (0.90, 0.62, 0.00),
    (0.34, 0.71, 0.91),
    (0.00, 0.62, 0.45),
    (0.94, 0.89, 0.26),
    (0.00, 0.45, 0.70),
    (0.84, 0.37, 0.00),
    (0.80, 0.47, 0.65),
)


def pca_colors(features: Tensor, grid: Grid) -> Colors:
    """(H, W, 3): the first three principal components of (N, D) features as red, green and blue.

    The sign of a component, which is arbitrary, is set so that its largest entry is positive. Each component is
    stretched from its 2nd to its 98th percentile; one without variance is 0.5.
    """
    _check_grid(features.shape[0], grid)
    centered = features.detach().float().cpu()
    centered = centered - centered.mean(dim=0)
    left, values, right = torch.linalg.svd(centered, full_matrices=False)
    count = min(3, len(values))
    directions = right[:count]
    signs = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True)).sign()
    components = left[:, :count] * values[:count] * signs.t()  # (N, 3)
    significant = values[:count] > 1e-4 * values[0].clamp(min=1e-12)
    colors = torch.full((len(centered), 3), 0.5)
    for index in range(count):
        if significant[index] and values[index] > 1e-6:
            colors[:, index] = _stretch(components[:, index])
    return colors.reshape(*grid, 3).numpy()


def _stretch(values: Tensor) -> Tensor:
    low, high = torch.quantile(values, torch.tensor([0.02, 0.98]))
    if high <= low:
        return torch.full_like(values, 0.5)
    return ((values - low) / (high - low)).clamp(0, 1)


def heat_colors(values: Tensor, grid: Grid) -> Colors:
    """(H, W, 3): (N,) values from their smallest (dark) to their largest (bright)."""
    _check_grid(values.shape[0], grid)
    flat = values.detach().float().cpu()
    low, high = flat.min(), flat.max()
    scaled = ((flat - low) / (high - low).clamp(min=1e-12)).numpy() * (len(HEAT) - 1)
    anchors = np.asarray(HEAT, dtype=np.float32)
    below = np.minimum(scaled.astype(int), len(HEAT) - 2)
    share = (scaled - below)[:, None]
    colors = anchors[below] * (1 - share) + anchors[below + 1] * share
    return colors.reshape(*grid, 3).astype(np.float32)


def expert_color(expert: int) -> tuple[float, float, float]:
    red, green, blue = PALETTE[expert % len(PALETTE)]
    shade = 0.6 ** (expert // len(PALETTE))
    return red * shade, green * shade, blue * shade


def css_color(color: Sequence[float]) -> str:
    return "#" + "".join(f"{round(channel * 255):02x}" for channel in color)


def expert_colors(choice: Tensor, grid: Grid, experts: int) -> Colors:
    """(H, W, 3): each patch in the color of its expert. choice: (N,) without the class token."""
    _check_grid(choice.shape[0], grid)
    palette = np.asarray([expert_color(expert) for expert in range(experts)], dtype=np.float32)
    return palette[choice.detach().cpu().numpy()].reshape(*grid, 3)


def expert_load(choice: Tensor, experts: int) -> list[float]:
    """The share of tokens that each expert got."""
    counts = torch.bincount(choice.detach().flatten().cpu(), minlength=experts)
    return (counts.double() / max(1, choice.numel())).tolist()


def pixels_to_image(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """What the encoder was given, (3, S, S) standardized, as a picture."""
    scale, shift = torch.tensor(std).view(3, 1, 1), torch.tensor(mean).view(3, 1, 1)
    values = (pixels.detach().float().cpu() * scale + shift).clamp(0, 1)
    return Image.fromarray((values.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


def colors_to_image(colors: Colors, side: int, is_smooth: bool = False) -> Image.Image:
    """(H, W, 3) scaled up so that its longer side is `side`; patches stay squares unless `is_smooth`."""
    height, width = colors.shape[:2]
    image = Image.fromarray((np.clip(colors, 0, 1) * 255).round().astype(np.uint8))
    scale = side / max(width, height)
    method = Image.Resampling.BICUBIC if is_smooth else Image.Resampling.NEAREST
    return image.resize((round(width * scale), round(height * scale)), method)


def overlay(image: Image.Image, colors: Colors, opacity: float = 0.55, is_smooth: bool = False) -> Image.Image:
    """`colors` over a gray version of `image`, so that hues belong to the colors alone."""
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be from 0 to 1, got {opacity}")
    side = max(image.size)
    layer = colors_to_image(colors, side, is_smooth).resize(image.size)
    return Image.blend(image.convert("L").convert("RGB"), layer, opacity)


def _check_grid(tokens: int, grid: Grid) -> None:
    if tokens != grid[0] * grid[1]:
        raise ValueError(f"{tokens} tokens do not fill a grid of {grid[0]} x {grid[1]}")
