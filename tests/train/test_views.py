"""A teacher sees the region that the student's tile shows."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from llava.mm_utils import process_images
from llava.model.multimodal_encoder.move_kd.types import ImageSpec
from llava.model.multimodal_encoder.siglip_encoder import SigLipImageProcessor
from llava.train.data_config import DataConfig
from llava.train.views import StudentGeometry, check_views, read_geometry, student_views, tile_boxes
from tests.pixels import standardized

SIDE = 28
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28]]
SIZES = [(100, 100), (120, 60), (60, 120), (33, 90), (301, 47), (57, 29)]


def smooth(width: int, height: int) -> Image.Image:
    """Slow color waves, so that the order of cutting and resizing hardly matters."""
    x, y = np.linspace(0, 3, width), np.linspace(0, 3, height)[:, None]
    channels = [np.sin(x + y), np.cos(x - 0.5 * y), np.sin(0.5 * x) * np.cos(y)]
    return Image.fromarray(((np.stack(channels, axis=-1) + 1) * 127).astype(np.uint8))


def processor(mean: float = 0.5) -> CLIPImageProcessorPil:
    stats = {"image_mean": [mean] * 3, "image_std": [0.5] * 3}
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, **stats)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("layout", ["pad", "square", "anyres", "anyres_max_3"])
def test_a_teacher_like_the_student_gets_the_students_pixels(layout: str, size: tuple[int, int]) -> None:
    config = DataConfig(image_aspect_ratio=layout, image_grid_pinpoints=PINPOINTS, distill_views="all")
    image = smooth(*size)
    tiles = process_images([image], processor(), config)[0]
    tiles = tiles if tiles.ndim == 4 else tiles[None]
    views = student_views(image, config, read_geometry(processor()))
    spec = ImageSpec(SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert [tile for tile, _ in views] == sorted({tile for tile, _ in views})
    for tile, view in views:
        difference = (standardized(spec.prepare(view)[None], spec)[0] - tiles[tile]).abs()
        # Padding begins at a whole pixel of the canvas for the student, of the picture for the teacher.
        assert difference.median() < 0.05
        assert difference.mean() < 0.12
    shown = {tile for tile, _ in views}
    for tile in set(range(len(tiles))) - shown:
        assert tiles[tile].max() == tiles[tile].min() == -1  # black: nothing but padding


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (5, 1), (2, 150)], ids=str)
def test_tiny_pictures_have_views_too(size: tuple[int, int]) -> None:
    config = DataConfig(image_aspect_ratio="anyres", image_grid_pinpoints=PINPOINTS, distill_views="all")
    for _, view in student_views(smooth(*size), config, read_geometry(processor())):
        assert ImageSpec(SIDE, (0.5,) * 3, (0.5,) * 3).prepare(view).shape == (3, SIDE, SIDE)


def test_base_views_are_the_first_tile_alone() -> None:
    config = DataConfig(image_aspect_ratio="anyres", image_grid_pinpoints=PINPOINTS)
    [view] = student_views(smooth(100, 50), config, read_geometry(processor()))
    assert (view.tile, view.view.fit, view.view.image.size) == (0, "squash", (100, 50))


def test_tiles_of_nothing_but_padding_have_no_view() -> None:
    boxes = tile_boxes((100, 10), (84, 84), SIDE)
    assert [box is not None for box in boxes] == [False] * 3 + [True] * 3 + [False] * 3
    assert boxes[3][0] == 0
    assert boxes[5][2] == 100


def test_boxes_cover_the_whole_picture_at_native_resolution() -> None:
    boxes = tile_boxes((640, 480), (672, 672), 336)
    assert boxes == [(0, -80, 320, 240), (320, -80, 640, 240), (0, 240, 320, 560), (320, 240, 640, 560)]


def test_key_names_content_and_region() -> None:
    config = DataConfig(image_aspect_ratio="anyres", image_grid_pinpoints=PINPOINTS, distill_views="all")
    geometry = read_geometry(processor())
    keys = [
        view.key
        for content, layout in itertools.product((b"a", b"b"), ("anyres", "pad"))
        for _, view in student_views(smooth(100, 50), config if layout == "anyres" else DataConfig(), geometry, content)
    ]
    assert len(set(keys)) == len(keys) == 8
    again = student_views(smooth(100, 50), config, geometry, b"a")
    assert [view.key for _, view in again] == keys[:3]


def test_geometry_of_the_processors_there_are() -> None:
    assert read_geometry(processor()) == StudentGeometry(SIDE, SIDE, "crop")
    assert read_geometry(SigLipImageProcessor(42)) == StudentGeometry(42, 42, "squash")
    with pytest.raises(ValueError, match="no squares"):
        read_geometry(CLIPImageProcessorPil(do_center_crop=False))


@pytest.mark.parametrize(("layout", "views"), [("crop_split", "base"), ("highres", "all")])
def test_tiles_that_teachers_cannot_be_shown_are_refused(layout: str, views: str) -> None:
    settings = {"image_grid_pinpoints": "56", "image_crop_resolution": 56, "image_split_resolution": 28}
    with pytest.raises(ValueError, match="teachers cannot be shown"):
        check_views(DataConfig(image_aspect_ratio=layout, distill_views=views, **settings))
    [view] = student_views(
        smooth(60, 30), DataConfig(image_aspect_ratio="highres", **settings), read_geometry(processor())
    )
    assert view.view.fit == "squash"
    assert torch.is_tensor(ImageSpec(8, (0.5,) * 3, (0.5,) * 3).prepare(view.view))
