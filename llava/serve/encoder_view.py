"""What the vision encoder makes of one picture: attention, experts, features, and the teachers' beside them.

Computes with the model's own tower and draws with `llava.visualize`. Knows no web page. T tiles, N patches, E experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from llava.inference import Chat
from llava.mm_utils import image_layout, process_images
from llava.model.vision_inputs import tiles_of
from llava.visualize import Colors, Grid, expert_colors, expert_load, heat_colors, overlay, pca_colors, pixels_to_image

MAP_SIDE = 512  # pixels of a drawn map's longer side


@dataclass(frozen=True)
class Tile:
    """One tile as the encoder was given it. attention: None where there is no class token. teachers: those that can
    be shown this tile. choices: for each layer with experts the expert of each patch, (N,)."""

    image: Image.Image
    attention: Colors | None
    features: Colors
    choices: tuple[Tensor, ...] = ()
    teachers: Mapping[str, Colors] = field(default_factory=dict)


@dataclass(frozen=True)
class EncoderView:
    """tiles: in the order in which the model reads them; the first shows the whole picture. missing: sentences that
    say what this checkpoint does not have to show."""

    tiles: tuple[Tile, ...]
    grid: Grid
    experts: int
    missing: tuple[str, ...]

    @property
    def layers(self) -> int:
        """How many layers have experts."""
        return len(self.tiles[0].choices)

    def expert_map(self, tile: int, layer: int) -> Image.Image:
        """layer: from 1 on."""
        shown = self.tiles[tile]
        return overlay(shown.image, expert_colors(shown.choices[layer - 1], self.grid, self.experts), 0.65)

    def loads(self, tile: int) -> list[list[float]]:
        """For each layer the share of the tile's patches that each expert got."""
        return [expert_load(choice, self.experts) for choice in self.tiles[tile].choices]


@torch.inference_mode()
def look(chat: Chat, image: Image.Image, teachers: Mapping[str, Any] | None = None) -> EncoderView:
    """Runs the tower, and the teachers, on one picture. Raises ValueError for a model without a tower."""
    tower = chat.model.get_vision_tower() if chat.sees else None
    if tower is None:
        raise ValueError(f"{chat.name} is a language model without a vision tower: there is nothing to look at")
    pixels, _ = tiles_of(process_images([image], chat.image_processor, chat.model.config))
    tiles = pixels.to(chat.model.device, chat.model.dtype)
    missing: list[str] = []
    try:
        vision = tower.encode(tiles, with_cls_attention=True)
    except ValueError as error:  # the tower says what it lacks
        missing.append(f"No attention map: {error}.")
        vision = tower.encode(tiles)
    if not vision.routing:
        missing.append("No expert map: this checkpoint's encoder has no experts (it is not a MoVE-KD student).")
    grid = (tower.num_patches_per_side, tower.num_patches_per_side)
    beside, reason = _teacher_maps(chat, image, teachers or {})
    missing += reason
    processor = chat.image_processor
    shown = tuple(
        Tile(
            image=_sized(pixels_to_image(pixels[index], processor.image_mean, processor.image_std)),
            attention=None if vision.cls_attention is None else heat_colors(vision.cls_attention[index], grid),
            features=pca_colors(vision.patches[index], grid),
            choices=tuple(routing.choice[index, 1:].cpu() for routing in vision.routing),
            teachers=beside.get(index, {}),
        )
        for index in range(len(tiles))
    )
    experts = vision.routing[0].probs.shape[-1] if vision.routing else 0
    return EncoderView(shown, grid, experts, tuple(missing))


def _sized(image: Image.Image) -> Image.Image:
    scale = MAP_SIDE / max(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def _teacher_maps(
    chat: Chat, image: Image.Image, teachers: Mapping[str, Any]
) -> tuple[dict[int, dict[str, Colors]], list[str]]:
    """By tile and teacher the colors of the teacher's features, and what is missing of them."""
    if not teachers:
        return {}, ["No teachers: start the demo with --teachers to see their features beside the student's."]
    # Only with teachers: their views belong to training, which a demo without them need not have.
    from llava.train.data_config import DataConfig
    from llava.train.views import check_views, read_geometry, student_views

    layout = image_layout(chat.model.config)
    try:
        config = DataConfig(
            image_aspect_ratio=layout.aspect_ratio or "square",
            image_grid_pinpoints=layout.grid_pinpoints,
            image_crop_resolution=layout.crop_resolution,
            image_split_resolution=layout.split_resolution,
            distill_views="all" if layout.is_anyres else "base",
        )
        check_views(config)
        views = student_views(image, config, read_geometry(chat.image_processor))
    except ValueError as error:
        return {}, [f"No teachers: {error}."]
    maps: dict[int, dict[str, Colors]] = {}
    for tile, view in views:
        maps[tile] = {}
        for name, teacher in teachers.items():
            features = teacher(teacher.source.prepare(view)[None].to(chat.model.device))
            maps[tile][name] = pca_colors(features.patches[0], features.grid)
    return maps, []
