"""From the projected features of a picture's tiles to the sequence of tokens that the language model reads.

Tile 0 shows the whole picture, the others are a mosaic of it, row by row; a video's tiles are its frames. Pure
functions of features, sizes and a frozen config. Letters: P tiles, N tokens of a tile, D width, H and W grid.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from llava.anyres import Pinpoints, Size, get_anyres_image_grid_shape, unpad_image

PoolMode = Literal["average", "max", "bilinear"]
NewlinePosition = Literal["grid", "frame", "one_token", "no_token"]
RESIZE_ABOVE = 1.1  # anyres_max_N shrinks a mosaic only if its side is more than this factor too long


@dataclass(frozen=True)
class PackConfig:
    """merge_type: `flat`, or a name that contains `spatial`, and `unpad`, `maxpool2x2`, `nobase` as wanted."""

    merge_type: str = "flat"
    aspect_ratio: str | None = None
    grid_pinpoints: Pinpoints | None = None
    pool_mode: PoolMode = "average"
    pool_stride: int = 2
    newline_position: NewlinePosition = "one_token"

    def __post_init__(self) -> None:
        for key, value, allowed in (
            ("mm_spatial_pool_mode", self.pool_mode, get_args(PoolMode)),
            ("mm_newline_position", self.newline_position, get_args(NewlinePosition)),
        ):
            if value not in allowed:
                raise ValueError(f"{key} {value!r} is not known; use one of {', '.join(allowed)}")
        if self.merge_type != "flat" and "spatial" not in self.merge_type:
            raise ValueError(f"mm_patch_merge_type {self.merge_type!r} is not known; use flat or spatial[_unpad]")

    @classmethod
    def of(cls, config: Any) -> "PackConfig":
        """From a LLaVA config, at its present values: clients change them between calls."""
        if getattr(config, "add_faster_video", False):
            raise ValueError("add_faster_video needs the slow-fast token, which no released model has; set it to false")
        return cls(
            merge_type=getattr(config, "mm_patch_merge_type", None) or "flat",
            aspect_ratio=getattr(config, "image_aspect_ratio", None),
            grid_pinpoints=getattr(config, "image_grid_pinpoints", None),
            pool_mode=getattr(config, "mm_spatial_pool_mode", None) or "average",
            pool_stride=getattr(config, "mm_spatial_pool_stride", None) or 2,
            newline_position=getattr(config, "mm_newline_position", None) or "one_token",
        )

    @property
    def has_newline(self) -> bool:
        return "unpad" in self.merge_type

    @property
    def max_tiles(self) -> int | None:
        """The N of anyres_max_N."""
        match = re.search(r"anyres_max_(\d+)", self.aspect_ratio or "")
        return int(match[1]) if match else None


def pack_image(
    features: Tensor, config: PackConfig, *, image_size: Size | None, tile_size: int, newline: Tensor | None
) -> Tensor:
    """(P, N, D) features of one picture to (L, D).

    image_size: the original (width, height). tile_size: pixels of a tile's side. newline: (D,), the model's
    image_newline. Raises ValueError if the tiles do not fit the grid that the config chooses for that size.
    """
    if config.merge_type == "flat":
        return features.flatten(0, 1)
    if len(features) == 1:
        return torch.cat([features[0], _row(newline)]) if config.has_newline else features[0]
    base, tiles = features[0], features[1:]
    columns, rows = _grid(len(tiles), config, image_size, tile_size)
    side = math.isqrt(tiles.shape[1])
    mosaic = tiles.unflatten(0, (rows, columns)).unflatten(2, (side, side))
    mosaic = mosaic.permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2)  # (D, rows * side, columns * side)
    packed = _pack_mosaic(mosaic, side, config, image_size, newline)
    return packed if "nobase" in config.merge_type else torch.cat([base, packed])


def _grid(num_tiles: int, config: PackConfig, image_size: Size | None, tile_size: int) -> Size:
    """(columns, rows) of the mosaic."""
    if config.aspect_ratio is None or "anyres" not in config.aspect_ratio:
        if num_tiles == 4:  # highres and crop_split cut a square into two by two
            return 2, 2
        raise ValueError(
            f"a picture came as 1 + {num_tiles} tiles, but with image_aspect_ratio {config.aspect_ratio!r} only "
            "1 + 4 have an order; set image_aspect_ratio to anyres (and image_grid_pinpoints), or "
            "mm_patch_merge_type to flat"
        )
    if image_size is None or config.grid_pinpoints is None:
        missing = "image_sizes" if image_size is None else "image_grid_pinpoints in the config"
        raise ValueError(f"a picture came as {1 + num_tiles} anyres tiles: pass {missing} to tell how they lie")
    columns, rows = get_anyres_image_grid_shape(image_size, config.grid_pinpoints, tile_size)
    if columns * rows != num_tiles:
        raise ValueError(
            f"a picture of {image_size[0]} x {image_size[1]} px is cut into {columns} x {rows} tiles by "
            f"image_grid_pinpoints, but {num_tiles} came; prepare it with the same image_grid_pinpoints"
        )
    return columns, rows


def _pack_mosaic(
    mosaic: Tensor, side: int, config: PackConfig, image_size: Size | None, newline: Tensor | None
) -> Tensor:
    """mosaic: (D, H, W). Returns (L, D), row by row."""
    if "maxpool2x2" in config.merge_type:
        return F.max_pool2d(mosaic, 2).flatten(1).t()
    if not config.has_newline:
        return mosaic.flatten(1).t()
    if image_size is None:
        raise ValueError(f"mm_patch_merge_type {config.merge_type!r} needs image_sizes, the original (width, height)")
    mosaic = unpad_image(mosaic, image_size)
    if config.max_tiles is not None:
        height, width = mosaic.shape[1:]
        excess = math.sqrt(height * width / (config.max_tiles * side**2))
        if excess > RESIZE_ABOVE:
            size = (int(height // excess), int(width // excess))
            mosaic = F.interpolate(mosaic[None], size, mode="bilinear")[0]
    return _with_row_ends(mosaic, newline).flatten(1).t()


def pack_video(features: Tensor, config: PackConfig, *, newline: Tensor | None) -> Tensor:
    """(P, N, D) features of P frames to (L, D): pooled, with newlines where `mm_newline_position` puts them."""
    frames = pool_frames(features, config)  # (P, D, H, W)
    if config.merge_type == "flat":
        return frames.flatten(2).transpose(1, 2).flatten(0, 1)
    if config.newline_position == "grid":
        return _with_row_ends(frames, newline).flatten(2).transpose(1, 2).flatten(0, 1)
    tokens = frames.flatten(2).transpose(1, 2)  # (P, H * W, D)
    if config.newline_position == "frame":
        ends = _row(newline).expand(len(tokens), 1, -1)
        return torch.cat([tokens, ends], dim=1).flatten(0, 1)
    tokens = tokens.flatten(0, 1)
    if config.newline_position == "one_token" and config.has_newline:
        return torch.cat([tokens, _row(newline)])
    return tokens


def pool_frames(features: Tensor, config: PackConfig) -> Tensor:
    """(P, N, D) on a square grid to (P, D, H, W), smaller by `pool_stride`; bilinear rounds the side up."""
    side = math.isqrt(features.shape[1])
    maps = features.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    if config.pool_mode == "average":
        return F.avg_pool2d(maps, config.pool_stride)
    if config.pool_mode == "max":
        return F.max_pool2d(maps, config.pool_stride)
    smaller = math.ceil(side / config.pool_stride)
    return F.interpolate(maps, (smaller, smaller), mode="bilinear")


def _with_row_ends(maps: Tensor, newline: Tensor | None) -> Tensor:
    """(..., D, H, W) with the newline as one more column."""
    column = _row(newline)[0][:, None, None].expand(*maps.shape[:-1], 1)
    return torch.cat([maps, column], dim=-1)


def _row(newline: Tensor | None) -> Tensor:
    """(1, D)"""
    if newline is None:
        raise ValueError(
            "the features need newline vectors, but the model has no image_newline; "
            "it is built when mm_patch_merge_type contains 'unpad'"
        )
    return newline[None]
