"""Tokens from one grid to another, without parameters. Legend: M images, N tokens, D width, H/W grid."""

import torch.nn.functional as F
from torch import Tensor

MAX_FACTOR = 4


def to_grid(tokens: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """(M, H*W, D) on `grid` to (M, H'*W', D) on `target`, float32, positions row-major in both.

    Whole multiples are averaged; otherwise bilinear, with smoothing where it shrinks.
    """
    assert tokens.shape[1] == grid[0] * grid[1], f"{tokens.shape[1]} tokens cannot lie on a grid of {grid}"
    tokens = tokens.float()
    if grid == target:
        return tokens
    maps = tokens.transpose(1, 2).unflatten(-1, grid)  # (M, D, H, W)
    if all(have % want == 0 for have, want in zip(grid, target, strict=True)):
        maps = F.avg_pool2d(maps, (grid[0] // target[0], grid[1] // target[1]))
    else:
        shrinks = grid[0] > target[0] or grid[1] > target[1]
        maps = F.interpolate(maps, target, mode="bilinear", align_corners=False, antialias=shrinks)
    return maps.flatten(2).transpose(1, 2)


def unshuffle_factor(grid: tuple[int, int], target: tuple[int, int]) -> int:
    """How many tokens per side of `grid` belong to one of `target`: at least 1, at most MAX_FACTOR."""
    return max(1, min(grid[0] // target[0], grid[1] // target[1], MAX_FACTOR))


def unshuffle(tokens: Tensor, grid: tuple[int, int], factor: int) -> Tensor:
    """(M, H*W, D) to (M, H*W / factor**2, factor**2 * D): each block of tokens becomes one, row by row inside."""
    height, width = grid[0] // factor, grid[1] // factor
    blocks = tokens.unflatten(1, (height, factor, width, factor))  # (M, H', f, W', f, D)
    return blocks.permute(0, 1, 3, 2, 4, 5).flatten(3, 5).flatten(1, 2)
