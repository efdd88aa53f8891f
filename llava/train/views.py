"""Which part of a picture each student tile shows, so that every teacher is shown the same.

The student's own pixels are made by `mm_utils.process_images`, in training as in inference; a view is the region of
the original picture behind one of its tiles, at native resolution, for teachers to resize as they need.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image

from llava.anyres import Size, fit_size, parse_grid_pinpoints, select_best_resolution
from llava.model.multimodal_encoder.move_kd.types import Fit, View
from llava.train.data_config import DataConfig


@dataclass(frozen=True)
class StudentGeometry:
    """tile_size: side of a tile in pixels. base_size: side to which the processor resizes.
    fit: how the processor makes a picture square that nobody else did."""

    tile_size: int
    base_size: int
    fit: Fit


class TileView(NamedTuple):
    """tile: position among the tiles of the picture."""

    tile: int
    view: View


def read_geometry(processor: Any) -> StudentGeometry:
    """What the student's image processor does to a picture. Raises ValueError for one that leaves it oblong."""
    size = processor.size
    if isinstance(size, tuple | list):
        size = {"height": size[0], "width": size[1]}
    crops = bool(getattr(processor, "do_center_crop", False))
    if crops:
        base = size["shortest_edge"] if "shortest_edge" in size else size["height"]
        return StudentGeometry(processor.crop_size["height"], base, "crop")
    if "shortest_edge" in size or size["height"] != size["width"]:
        raise ValueError(f"the image processor gives no squares: size {dict(size)} without center crop")
    return StudentGeometry(size["height"], size["height"], "squash")


def check_views(config: DataConfig) -> None:
    """Raises ValueError for a layout whose tiles cannot be shown to teachers."""
    layout = config.image_aspect_ratio
    if layout == "crop_split" or (layout == "highres" and config.distill_views == "all"):
        raise ValueError(
            f"image_aspect_ratio {layout!r} with distill_views {config.distill_views!r}: teachers cannot be shown "
            "these tiles; use pad or anyres, or highres with distill_views 'base'"
        )


def student_views(
    image: Image.Image, config: DataConfig, geometry: StudentGeometry, content: bytes = b""
) -> list[TileView]:
    """The distilled views of one picture: the first tile's, or with `distill_views="all"` every tile's.

    content: the picture's file, which with the region makes the view's key. Tiles that show nothing but padding
    have no view.
    """
    digest = content_digest(content)
    if not config.is_anyres:
        fits: dict[str | None, Fit] = {"pad": "pad", "highres": "squash"}
        return [TileView(0, whole(image, fits.get(config.image_aspect_ratio, geometry.fit), digest))]
    views = [TileView(0, whole(image, "squash", digest))]
    if config.distill_views == "base":
        return views
    assert config.image_grid_pinpoints is not None  # as DataConfig has made sure
    canvas = select_best_resolution(image.size, parse_grid_pinpoints(config.image_grid_pinpoints, geometry.base_size))
    for tile, box in enumerate(tile_boxes(image.size, canvas, geometry.tile_size), start=1):
        if box is not None:
            key = f"{digest}#{','.join(map(str, box))}"
            views.append(TileView(tile, View(image.crop(box), "squash", key)))
    return views


def content_digest(content: bytes) -> str:
    """Of a picture's file: the first part of the keys of its views."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def whole(image: Image.Image, fit: Fit, digest: str) -> View:
    return View(image, fit, f"{digest}#{fit}")


def tile_boxes(size: Size, canvas: Size, tile_size: int) -> list[tuple[int, int, int, int] | None]:
    """For each tile of the canvas on which a picture of `size` is centered, the box in the picture's own pixels.

    A box reaches outside the picture where the tile shows padding (a crop is black there, as the canvas is);
    None for a tile that shows none of the picture.
    """
    width, height = fit_size(size, canvas)
    left, top = (canvas[0] - width) // 2, (canvas[1] - height) // 2
    columns = [(x, x + tile_size) for x in range(0, canvas[0], tile_size)]
    rows = [(y, y + tile_size) for y in range(0, canvas[1], tile_size)]
    horizontal = [native_span(span, left, width, size[0]) for span in columns]
    vertical = [native_span(span, top, height, size[1]) for span in rows]
    return [
        None if across is None or down is None else (across[0], down[0], across[1], down[1])
        for down in vertical
        for across in horizontal
    ]


def native_span(span: tuple[int, int], offset: int, shown: int, original: int) -> tuple[int, int] | None:
    """A span of the canvas in pixels of the picture, whose `original` pixels are shown as `shown` from `offset` on."""
    start, end = ((edge - offset) * original / shown for edge in span)
    if end <= 0 or start >= original:
        return None
    return round(start), max(round(end), round(start) + 1)
