"""Tile geometry: which canvas suits a picture, how it is cut into tiles, and how padding is undone afterwards.

Pure functions of sizes, PIL images and feature maps. Sizes are (width, height), as PIL gives them;
shapes of feature maps are (height, width), as torch gives them. Nothing here knows a model or a processor.
"""

import ast
import math
import re
from collections.abc import Sequence

from PIL import Image
from torch import Tensor

Size = tuple[int, int]
Pinpoints = str | Sequence[Sequence[int]]


def parse_grid_pinpoints(grid_pinpoints: Pinpoints, tile_size: int) -> list[Size]:
    """The canvases a picture may be laid on, as (width, height) in pixels.

    Accepts a list of [w, h], the literal text of one, or a range of grids in tiles, "(1x1),...,(6x6)":
    every (i, j) between the first and the last pair, multiplied by `tile_size`.
    Raises ValueError when the text is neither, or names no canvas.
    """
    candidates = grid_pinpoints
    if isinstance(candidates, str):
        candidates = _parse_range(candidates, tile_size) if "x" in candidates else _parse_literal(candidates)
    sizes = [(int(width), int(height)) for width, height in candidates]
    if not sizes or min(min(size) for size in sizes) < 1:
        raise ValueError(f"image_grid_pinpoints {grid_pinpoints!r} names no canvas; give e.g. [[336, 672], [672, 336]]")
    return sizes


def _parse_range(text: str, tile_size: int) -> list[Size]:
    pairs = [(int(wide), int(high)) for wide, high in re.findall(r"\((\d+)x(\d+)\)", text.replace(" ", ""))]
    if not pairs:
        raise ValueError(f"image_grid_pinpoints {text!r} is not a range of grids; write it as (1x1),...,(6x6)")
    (first_wide, first_high), (last_wide, last_high) = pairs[0], pairs[-1]
    return [
        (wide * tile_size, high * tile_size)
        for wide in range(first_wide, last_wide + 1)
        for high in range(first_high, last_high + 1)
    ]


def _parse_literal(text: str) -> list[Size]:
    try:
        return [(width, height) for width, height in ast.literal_eval(text)]
    except (ValueError, SyntaxError, TypeError) as error:
        raise ValueError(
            f"image_grid_pinpoints {text!r} is not a list of [width, height] pairs; "
            f"write [[336, 672], ...] or (1x1),...,(6x6)"
        ) from error


def select_best_resolution(original_size: Size, possible_resolutions: Sequence[Sequence[int]]) -> Size:
    """The canvas that keeps most pixels of a picture; ties go to the one that wastes less, then to the first."""

    def usefulness(canvas: Sequence[int]) -> tuple[int, int]:
        scale = min(canvas[0] / original_size[0], canvas[1] / original_size[1])
        shown = int(original_size[0] * scale) * int(original_size[1] * scale)
        kept = min(shown, original_size[0] * original_size[1])
        return kept, kept - canvas[0] * canvas[1]

    width, height = max(possible_resolutions, key=usefulness)
    return width, height


def get_anyres_image_grid_shape(image_size: Size, grid_pinpoints: Pinpoints, patch_size: int) -> Size:
    """(columns, rows) of tiles of side `patch_size` that a picture of `image_size` is cut into."""
    width, height = select_best_resolution(image_size, parse_grid_pinpoints(grid_pinpoints, patch_size))
    return width // patch_size, height // patch_size


def fit_size(original_size: Size, target: Size) -> Size:
    """The size of a picture scaled to touch `target` from inside; the side that does not touch is rounded up."""
    scale_width, scale_height = target[0] / original_size[0], target[1] / original_size[1]
    if scale_width < scale_height:
        return target[0], min(math.ceil(original_size[1] * scale_width), target[1])
    return min(math.ceil(original_size[0] * scale_height), target[0]), target[1]


def resize_and_pad_image(image: Image.Image, target_resolution: Size) -> Image.Image:
    """`image` centered on a black RGB canvas of `target_resolution`, its aspect ratio kept."""
    size = fit_size(image.size, target_resolution)
    canvas = Image.new("RGB", target_resolution, (0, 0, 0))
    left, top = (target_resolution[0] - size[0]) // 2, (target_resolution[1] - size[1]) // 2
    canvas.paste(image.resize(size), (left, top))
    return canvas


def divide_to_patches(image: Image.Image, patch_size: int) -> list[Image.Image]:
    """Tiles of side `patch_size`, row by row; a tile that reaches over the edge is black there."""
    width, height = image.size
    return [
        image.crop((left, top, left + patch_size, top + patch_size))
        for top in range(0, height, patch_size)
        for left in range(0, width, patch_size)
    ]


def anyres_tiles(image: Image.Image, grid_pinpoints: Pinpoints, tile_size: int, base_size: int) -> list[Image.Image]:
    """The whole picture squashed to `base_size`, then the tiles of its padded canvas: 1 + columns * rows images."""
    canvas = select_best_resolution(image.size, parse_grid_pinpoints(grid_pinpoints, base_size))
    tiles = divide_to_patches(resize_and_pad_image(image, canvas), tile_size)
    return [image.resize((base_size, base_size)), *tiles]


def expand2square(pil_img: Image.Image, background_color: tuple[int, ...] | int) -> Image.Image:
    """The picture in the middle of a square of its longer side, in its own mode; a square one is returned as it is."""
    width, height = pil_img.size
    if width == height:
        return pil_img
    side = max(width, height)
    square = Image.new(pil_img.mode, (side, side), background_color)
    square.paste(pil_img, ((side - width) // 2, (side - height) // 2))
    return square


def unpad_margins(shape: tuple[int, int], original_size: Size) -> tuple[int, int]:
    """(rows, columns) of padding on each side of a map of `shape` (H, W) that shows a picture of `original_size`."""
    height, width = shape
    original_width, original_height = original_size
    if original_width / original_height > width / height:
        return (height - int(original_height * (width / original_width))) // 2, 0
    return 0, (width - int(original_width * (height / original_height))) // 2


def unpad_image(tensor: Tensor, original_size: Size) -> Tensor:
    """(C, H, W) without the rows or columns that padding to the canvas added; a view, not a copy."""
    height, width = tensor.shape[1:]
    rows, columns = unpad_margins((height, width), original_size)
    return tensor[:, rows : height - rows, columns : width - columns]


def resize_and_center_crop(image: Image.Image, shortest_edge_length: int) -> Image.Image:
    """The centered square of side `shortest_edge_length` after scaling the shorter side to it."""
    side, ratio = shortest_edge_length, image.width / image.height
    width, height = (int(side * ratio), side) if ratio > 1 else (side, int(side / ratio))
    left, top = (width - side) / 2, (height - side) / 2
    resized = image.resize((width, height), Image.Resampling.LANCZOS)
    return resized.crop((left, top, left + side, top + side))  # type: ignore[arg-type]


def auto_pad_images(image: Image.Image, grid_params: Sequence[int]) -> Image.Image:
    """The picture on the black canvas, of sides out of `grid_params`, that is closest in aspect ratio, then in size."""
    if not grid_params:
        raise ValueError("auto_pad_images needs at least one side length in grid_params")
    width, height = image.size
    ratio = width / height
    canvases = [(wide, high) for wide in grid_params for high in grid_params]
    closest = min((wide / high for wide, high in canvases), key=lambda candidate: abs(ratio - candidate))
    canvases = [(wide, high) for wide, high in canvases if abs(wide / high - closest) < 1e-3]
    target = min(canvases, key=lambda canvas: abs(max(width, height) / max(canvas) - 1))
    size = (target[0], int(target[0] / ratio)) if width > height else (int(target[1] * ratio), target[1])
    padded = Image.new("RGB", target, (0, 0, 0))
    resized = image.resize(size, Image.Resampling.LANCZOS)
    padded.paste(resized, ((target[0] - size[0]) // 2, (target[1] - size[1]) // 2))
    return padded


def extract_patches(image: Image.Image, patch_size: int, overlap_ratio: float) -> list[Image.Image]:
    """Overlapping squares of side `patch_size`, row by row, centered on the picture so that both margins are equal."""
    if patch_size < 1 or not 0 <= overlap_ratio < 1:
        raise ValueError(f"patch_size must be positive and overlap_ratio in [0, 1): got {patch_size}, {overlap_ratio}")
    width, height = image.size
    if min(width, height) < patch_size:
        raise ValueError(f"a picture of {width}x{height} holds no patch of side {patch_size}; resize it first")
    stride = int(patch_size * (1 - overlap_ratio))
    columns, rows = (width - patch_size) // stride, (height - patch_size) // stride  # steps, one less than patches
    left, top = (width - columns * stride - patch_size) // 2, (height - rows * stride - patch_size) // 2
    return [
        image.crop((x, y, x + patch_size, y + patch_size))
        for y in range(top, top + rows * stride + 1, stride)
        for x in range(left, left + columns * stride + 1, stride)
    ]
