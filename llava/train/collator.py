"""Samples to a batch: padding of the text, order of the tiles, and weights that keep blanks out of every loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.multimodal_encoder.move_kd.types import stack


@dataclass(frozen=True)
class Collator:
    """pad_token_id: None pads with 0. padding_side: "right" or "left". model_max_length: longer texts are cut first.
    is_tiled: the layout cuts pictures into tiles; all are a list then, so that those of one tile are packed as well.

    Gives input_ids, labels and attention_mask (B, L), and `ids`, the names of the samples. With pictures also images,
    (T, 3, H, W) if all are single tiles of one shape, else a list; image_sizes; modalities; and `distill`:
    views {source key: stack of M results of Source.prepare}, empty without teachers, tile_index (M,) into the T tiles
    of the batch in reading order, weight (M,) and tile_weight (T,), float and 0 for blanks.
    """

    pad_token_id: int | None = None
    padding_side: str = "right"
    model_max_length: int | None = None
    is_tiled: bool = False

    def __post_init__(self) -> None:
        if self.padding_side not in ("right", "left"):
            raise ValueError(f"padding_side {self.padding_side!r} must be 'right' or 'left'")

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        ids = [self._cut(item["input_ids"], item) for item in items]
        labels = [item["labels"][: self.model_max_length] for item in items]
        # From the lengths, not from the pad id: that may be a token of the text, such as <unk>.
        masks = [torch.ones(len(row), dtype=torch.bool) for row in ids]
        batch: dict[str, Any] = {
            "input_ids": self._pad(ids, 0 if self.pad_token_id is None else self.pad_token_id),
            "labels": self._pad(labels, IGNORE_INDEX),
            "attention_mask": self._pad(masks, False),
        }
        if "id" in items[0]:
            batch["ids"] = [item["id"] for item in items]
        if "image" in items[0]:
            images = [image for item in items for image in item["image"]]
            batch["images"] = images if self.is_tiled else stack_images(images)
            batch["image_sizes"] = [size for item in items for size in item["image_sizes"]]
            batch["modalities"] = [modality for item in items for modality in item["modalities"]]
            batch["distill"] = collate_views(items)
        return batch

    def _cut(self, ids: Tensor, item: Mapping[str, Any]) -> Tensor:
        kept = ids[: self.model_max_length]
        shown, given = int((kept == IMAGE_TOKEN_INDEX).sum()), int((ids == IMAGE_TOKEN_INDEX).sum())
        if "image" in item and shown != given:
            raise ValueError(
                f"sample {item.get('id')!r}: cutting to {self.model_max_length} tokens leaves {shown} of {given} "
                "<image>; give the dataset the same model_max_length"
            )
        return kept

    def _pad(self, rows: Sequence[Tensor], value: int | bool) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(
            list(rows), batch_first=True, padding_value=value, padding_side=self.padding_side
        )


def stack_images(images: list[Tensor]) -> Tensor | list[Tensor]:
    if all(image.ndim == 3 and image.shape == images[0].shape for image in images):
        return torch.stack(images)
    return images


def collate_views(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    tile_index: list[int] = []
    weight: list[float] = []
    tile_weight: list[float] = []
    for item in items:
        real = 0.0 if item["blank"] else 1.0
        tile_index += [len(tile_weight) + tile for tile in item["tile_of_view"]]
        weight += [real] * len(item["tile_of_view"])
        tile_weight += [real] * sum(1 if image.ndim == 3 else len(image) for image in item["image"])
    views = {key: stack([view for item in items for view in item["views"][key]]) for key in items[0]["views"]}
    return {
        "views": views,
        "tile_index": torch.tensor(tile_index, dtype=torch.long),
        "weight": torch.tensor(weight, dtype=torch.float32),
        "tile_weight": torch.tensor(tile_weight, dtype=torch.float32),
    }
