"""How long a prompt is with its pictures, before anything is computed. Knows layouts, not weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.packing import PackConfig, pack_image
from llava.model.vision_inputs import tiles_of


def count_tokens(model: Any, inputs: Mapping[str, Any]) -> int:
    """Length of the longest prompt of a batch with its pictures, whatever tiles they were cut into.

    inputs: as for `model.generate`; a prompt without a picture in a batch that has some comes with a stand-in.
    """
    pictures = (inputs["inputs"] == IMAGE_TOKEN_INDEX).sum(dim=1).tolist()
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    if not any(pictures):
        return max(lengths)
    tokens = iter(image_tokens(model, inputs["images"], inputs["image_sizes"]))
    totals = []
    for length, count in zip(lengths, pictures, strict=True):
        taken = [next(tokens) for _ in range(max(1, count))]
        totals.append(length - count + sum(taken[:count]))
    return max(totals)


def image_tokens(model: Any, images: Tensor | Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]) -> list[int]:
    """How many tokens each picture becomes, found by packing features of width 1 instead of the tower's."""
    tower = model.get_vision_tower()
    per_tile = tower.num_patches + int(tower.has_class_token and tower.select_feature.endswith("cls_patch"))
    tiles, counts = tiles_of(images)
    if counts is None:
        return [per_tile] * len(tiles)
    config, newline, side = PackConfig.of(model.config), torch.zeros(1), tower.image_size
    groups = (torch.zeros(count, per_tile, 1) for count in counts)
    return [
        len(pack_image(group, config, image_size=size, tile_size=side, newline=newline))
        for group, size in zip(groups, image_sizes, strict=True)
    ]
