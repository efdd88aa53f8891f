import pytest
import torch
from PIL import Image

from llava.anyres import (
    anyres_tiles,
    auto_pad_images,
    extract_patches,
    fit_size,
    get_anyres_image_grid_shape,
    parse_grid_pinpoints,
    resize_and_pad_image,
    select_best_resolution,
    unpad_image,
    unpad_margins,
)

NEXT_GRID = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]

# (width, height), canvas, grid, (rows, columns) left of the mosaic at 24 x 24 patches a tile
GEOMETRY = [
    ((336, 336), (336, 672), (1, 2), (24, 24)),
    ((224, 224), (336, 672), (1, 2), (24, 24)),
    ((640, 480), (672, 672), (2, 2), (36, 48)),
    ((480, 640), (672, 672), (2, 2), (48, 36)),
    ((899, 1024), (672, 672), (2, 2), (48, 42)),
    ((1000, 100), (1008, 336), (3, 1), (8, 72)),
    ((1920, 1080), (672, 672), (2, 2), (28, 48)),
    ((3000, 2000), (672, 672), (2, 2), (32, 48)),
]


@pytest.mark.parametrize(("size", "canvas", "grid", "kept"), GEOMETRY)
def test_geometry_of_llava_next(size, canvas, grid, kept) -> None:
    assert select_best_resolution(size, NEXT_GRID) == canvas
    assert get_anyres_image_grid_shape(size, NEXT_GRID, 336) == grid
    columns, rows = grid
    assert unpad_image(torch.zeros(1, rows * 24, columns * 24), size).shape[1:] == kept


@pytest.mark.parametrize(
    ("size", "canvas", "kept"),
    [
        ((336, 336), (384, 384), (27, 27)),
        ((1000, 100), (1152, 384), (9, 81)),
        ((1920, 1080), (1920, 1152), (75, 135)),
        ((3000, 2000), (2304, 1536), (108, 162)),
    ],
)
def test_geometry_of_a_range_of_grids(size, canvas, kept) -> None:
    assert select_best_resolution(size, parse_grid_pinpoints("(1x1),...,(6x6)", 384)) == canvas
    columns, rows = get_anyres_image_grid_shape(size, "(1x1),...,(6x6)", 384)
    assert unpad_image(torch.zeros(1, rows * 27, columns * 27), size).shape[1:] == kept


def test_pinpoints_are_read_from_lists_text_and_ranges() -> None:
    assert parse_grid_pinpoints([[4, 8], (8, 4)], 4) == [(4, 8), (8, 4)]
    assert parse_grid_pinpoints("[[4, 8], [8, 4]]", 4) == [(4, 8), (8, 4)]
    assert parse_grid_pinpoints(" (1x1), ... ,(2x3)", 10) == [
        (10, 10),
        (10, 20),
        (10, 30),
        (20, 10),
        (20, 20),
        (20, 30),
    ]


@pytest.mark.parametrize("pinpoints", ["", "[]", [], "[[0, 4]]", "336", "1x1", "(3x3),...,(1x1)", "[[1, 2"])
def test_pinpoints_without_a_canvas_are_refused(pinpoints) -> None:
    with pytest.raises(ValueError, match="image_grid_pinpoints"):
        parse_grid_pinpoints(pinpoints, 4)


def test_thinnest_picture_still_gets_a_canvas_and_a_pixel() -> None:
    assert select_best_resolution((10000, 1), NEXT_GRID) in [(672, 336), (1008, 336), (336, 672)]
    assert fit_size((10000, 1), (672, 336)) == (672, 1)
    assert resize_and_pad_image(Image.new("RGB", (10000, 1)), (672, 336)).size == (672, 336)


def test_first_tile_is_the_squashed_picture_and_the_rest_run_row_by_row() -> None:
    picture = Image.new("RGB", (8, 16))
    picture.paste((255, 0, 0), (0, 8, 8, 16))
    base, top, bottom = anyres_tiles(picture, [[8, 16]], tile_size=8, base_size=8)
    assert base.size == (8, 8)
    assert top.getpixel((4, 0)) == (0, 0, 0)
    assert bottom.getpixel((4, 7)) == (255, 0, 0)


def test_margins_cut_rows_or_columns_but_never_both() -> None:
    assert unpad_margins((24, 24), (640, 480)) == (3, 0)
    assert unpad_margins((24, 24), (480, 640)) == (0, 3)
    assert unpad_margins((24, 24), (100, 100)) == (0, 0)


def test_patches_may_overlap_and_a_small_picture_is_refused() -> None:
    picture = Image.new("RGB", (10, 8))
    assert len(extract_patches(picture, 4, 0)) == 4
    assert len(extract_patches(picture, 4, 0.5)) == 4 * 3
    with pytest.raises(ValueError, match="holds no patch of side 9"):
        extract_patches(picture, 9, 0)
    with pytest.raises(ValueError, match="overlap_ratio"):
        extract_patches(picture, 4, 1)


def test_auto_padding_takes_the_canvas_of_the_closest_shape() -> None:
    assert auto_pad_images(Image.new("RGB", (20, 10)), [8, 16]).size == (16, 8)
    assert auto_pad_images(Image.new("RGB", (9, 10)), [8, 16]).size == (8, 8)
