"""Packing of tiles and frames into token sequences, on counts that can be checked by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from llava.model.packing import PackConfig, pack_image, pack_video

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
NEWLINE = torch.full((2,), -1.0)


def packed(config: PackConfig, tiles: int, size: tuple[int, int] | None = (640, 480), side: int = 24) -> Tensor:
    features = torch.arange(float(tiles))[:, None, None].expand(tiles, side * side, 2)
    return pack_image(features, config, image_size=size, tile_size=336, newline=NEWLINE)


def anyres(merge_type: str, **options: Any) -> PackConfig:
    return PackConfig(merge_type=merge_type, **({"aspect_ratio": "anyres", "grid_pinpoints": PINPOINTS} | options))


@pytest.mark.parametrize(
    ("size", "tiles", "tokens"),
    [((336, 336), 3, 1176), ((640, 480), 5, 2340), ((480, 640), 5, 2352), ((1000, 100), 4, 1160)],
)
def test_unpadded_token_counts_of_llava_next(size: tuple[int, int], tiles: int, tokens: int) -> None:
    assert len(packed(anyres("spatial_unpad"), tiles, size)) == tokens


def test_the_mosaic_is_read_row_by_row_across_tiles() -> None:
    result = packed(anyres("spatial"), 3, size=(672, 336), side=2)[:, 0]
    assert result.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 1, 1, 2, 2]


def test_nobase_leaves_the_whole_picture_out() -> None:
    assert len(packed(anyres("spatial_nobase"), 3, size=(672, 336), side=2)) == 8


def test_maxpool_keeps_a_quarter_of_the_mosaic() -> None:
    assert len(packed(anyres("spatial_maxpool2x2"), 3, size=(672, 336), side=2)) == 4 + 2


def test_anyres_max_shrinks_only_what_is_too_large() -> None:
    large = packed(anyres("spatial_unpad", aspect_ratio="anyres_max_1"), 5, (672, 672))
    kept = packed(anyres("spatial_unpad", aspect_ratio="anyres_max_4"), 5, (672, 672))
    assert len(large) == 576 + 24 * 25
    assert len(kept) == 576 + 48 * 49


def test_flat_joins_all_tiles_whatever_their_number() -> None:
    assert len(packed(PackConfig(), 3, size=None, side=2)) == 12


def test_a_single_tile_ends_with_a_newline_if_rows_do() -> None:
    assert packed(anyres("spatial_unpad"), 1, side=2)[:, 0].tolist() == [0, 0, 0, 0, -1]
    assert len(packed(anyres("spatial"), 1, side=2)) == 4


@pytest.mark.parametrize(
    ("config", "tiles", "size", "message"),
    [
        (anyres("spatial"), 4, (640, 480), "cut into 2 x 2 tiles by image_grid_pinpoints, but 3 came"),
        (anyres("spatial"), 5, None, "pass image_sizes"),
        (anyres("spatial", grid_pinpoints=None), 5, (640, 480), "image_grid_pinpoints in the config"),
        (PackConfig(merge_type="spatial", aspect_ratio="square"), 4, (640, 480), "only 1 \\+ 4 have an order"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(
    config: PackConfig, tiles: int, size: tuple[int, int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        packed(config, tiles, size)


def test_four_tiles_without_anyres_are_two_by_two() -> None:
    config = PackConfig(merge_type="spatial", aspect_ratio="highres")
    result = packed(config, 5, size=None, side=1)[:, 0]
    assert result.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("position", "tokens"), [("grid", 3 * 2 * 3), ("frame", 3 * 5), ("one_token", 3 * 4 + 1), ("no_token", 3 * 4)]
)
def test_newlines_of_a_video(position: Any, tokens: int) -> None:
    config = PackConfig(merge_type="spatial_unpad", newline_position=position)
    assert len(pack_video(torch.ones(3, 16, 2), config, newline=NEWLINE)) == tokens


@pytest.mark.parametrize(("mode", "side"), [("average", 2), ("max", 2), ("bilinear", 3)])
def test_pooling_of_an_odd_grid(mode: Any, side: int) -> None:
    config = PackConfig(pool_mode=mode)
    assert len(pack_video(torch.ones(1, 25, 2), config, newline=None)) == side**2


def test_a_pool_stride_in_the_config_is_used() -> None:
    config = PackConfig.of(SimpleNamespace(mm_spatial_pool_stride=4, mm_spatial_pool_mode="bilinear"))
    assert len(pack_video(torch.ones(1, 64, 2), config, newline=None)) == 4


def test_newlines_without_a_newline_vector_are_refused() -> None:
    config = PackConfig(merge_type="spatial", newline_position="grid")
    with pytest.raises(ValueError, match="no image_newline"):
        pack_video(torch.ones(1, 4, 2), config, newline=None)


@pytest.mark.parametrize(
    "settings",
    [{"mm_patch_merge_type": "diagonal"}, {"mm_spatial_pool_mode": "min"}, {"mm_newline_position": "row"}],
)
def test_unknown_settings_are_refused(settings: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="is not known"):
        PackConfig.of(SimpleNamespace(**settings))
