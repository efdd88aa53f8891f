"""What clients import to prepare a prompt and its pictures; thin over `anyres`, tokenizer and image processor."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from llava.anyres import (
    Pinpoints,
    anyres_tiles,
    auto_pad_images,
    divide_to_patches,
    expand2square,
    extract_patches,
    get_anyres_image_grid_shape,
    resize_and_center_crop,
    resize_and_pad_image,
    select_best_resolution,
)
from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX

__all__ = [
    "ImageLayout",
    "KeywordsStoppingCriteria",
    "auto_pad_images",
    "divide_to_patches",
    "expand2square",
    "extract_patches",
    "get_anyres_image_grid_shape",
    "get_model_name_from_path",
    "image_layout",
    "load_image_from_base64",
    "process_anyres_image",
    "process_highres_image",
    "process_highres_image_crop_split",
    "process_images",
    "resize_and_center_crop",
    "resize_and_pad_image",
    "select_best_resolution",
    "tokenizer_image_token",
]


@dataclass(frozen=True)
class ImageLayout:
    """How a checkpoint wants its pictures laid out: the image settings of its config."""

    aspect_ratio: str | None = None
    grid_pinpoints: Any = None
    crop_resolution: int | None = None
    split_resolution: int | None = None

    @property
    def is_anyres(self) -> bool:
        return self.aspect_ratio is not None and (self.aspect_ratio == "anyres" or "anyres_max" in self.aspect_ratio)

    @property
    def is_tiled(self) -> bool:
        return self.is_anyres or self.aspect_ratio in ("highres", "crop_split")


def image_layout(model_cfg: Any) -> ImageLayout:
    """Reads the image settings of a model config; a setting that the config lacks is None."""
    return ImageLayout(
        aspect_ratio=getattr(model_cfg, "image_aspect_ratio", None),
        grid_pinpoints=getattr(model_cfg, "image_grid_pinpoints", None),
        crop_resolution=getattr(model_cfg, "image_crop_resolution", None),
        split_resolution=getattr(model_cfg, "image_split_resolution", None),
    )


def process_images(images: Sequence[Image.Image], image_processor: Any, model_cfg: Any) -> Tensor | list[Tensor]:
    """Pictures as the model's config lays them out; the config is read at each call, so it may change between calls.

    Returns (N, 3, H, W) for `pad` and for every layout without tiles (None, `square`, `original`).
    For the tiled layouts (`anyres`, `anyres_max_*`, `highres`, `crop_split`) each picture gives (P, 3, H, W):
    stacked to (N, P, 3, H, W) when all P agree, a list otherwise.
    """
    layout = image_layout(model_cfg)
    pictures = [image if image.mode == "RGB" else image.convert("RGB") for image in images]
    if layout.is_anyres:
        tiles = [process_anyres_image(picture, image_processor, layout.grid_pinpoints) for picture in pictures]
    elif layout.aspect_ratio == "highres":
        tiles = [process_highres_image(picture, image_processor, layout.grid_pinpoints) for picture in pictures]
    elif layout.aspect_ratio == "crop_split":
        tiles = [process_highres_image_crop_split(picture, model_cfg, image_processor) for picture in pictures]
    elif layout.aspect_ratio == "pad":
        return _pixels([expand2square(picture, _background(image_processor)) for picture in pictures], image_processor)
    else:
        return _pixels(pictures, image_processor)
    return torch.stack(tiles) if all(item.shape == tiles[0].shape for item in tiles) else tiles


def process_anyres_image(image: Image.Image, processor: Any, grid_pinpoints: Pinpoints) -> Tensor:
    """(1 + columns * rows, 3, H, W): the whole picture squashed to one tile, then the tiles of its padded canvas."""
    if grid_pinpoints is None:
        raise ValueError("image_aspect_ratio is anyres, but the config has no image_grid_pinpoints; add them")
    tiles = anyres_tiles(image, grid_pinpoints, processor.crop_size["height"], _base_size(processor))
    return _pixels(tiles, processor)


def process_highres_image(image: Image.Image, processor: Any, grid_pinpoints: str) -> Tensor:
    """(1 + n * n, 3, H, W): the squashed picture, then the tiles of its padded square at the largest side listed."""
    side, base = highres_side(grid_pinpoints), _base_size(processor)
    square = expand2square(image, _background(processor)).resize((side, side))
    return _pixels([image.resize((base, base)), *extract_patches(square, base, 0)], processor)


def highres_side(grid_pinpoints: Any) -> int:
    """The largest of side lengths in pixels, "448,672". Raises ValueError for anything else."""
    try:
        return max(int(length) for length in grid_pinpoints.split(","))
    except (AttributeError, ValueError):
        raise ValueError(
            "image_aspect_ratio 'highres' needs image_grid_pinpoints to list sides in pixels, such as '448,672', not "
            f"{grid_pinpoints!r}"
        ) from None


def process_highres_image_crop_split(image: Image.Image, data_args: Any, processor: Any = None) -> Tensor:
    """(n * n, 3, H, W): the centered square of side `image_crop_resolution`, cut at `image_split_resolution`.

    processor: None takes `data_args.image_processor`.
    """
    layout = image_layout(data_args)
    if layout.crop_resolution is None or layout.split_resolution is None:
        raise ValueError("crop_split needs image_crop_resolution and image_split_resolution in the config")
    square = resize_and_center_crop(image, layout.crop_resolution)
    return _pixels(extract_patches(square, layout.split_resolution, 0), processor or data_args.image_processor)


def _pixels(pictures: Sequence[Image.Image], processor: Any) -> Tensor:
    return processor.preprocess(list(pictures), return_tensors="pt")["pixel_values"]


def _background(processor: Any) -> tuple[int, ...]:
    return tuple(int(channel * 255) for channel in processor.image_mean)


def _base_size(processor: Any) -> int:
    size = processor.size
    if isinstance(size, tuple | list):
        return min(size)
    return size["shortest_edge"] if "shortest_edge" in size else min(size["height"], size["width"])


def load_image_from_base64(image: str | bytes) -> Image.Image:
    """The picture in its own mode."""
    return Image.open(BytesIO(base64.b64decode(image)))


def get_model_name_from_path(model_path: str) -> str:
    """The last part of a path, with its parent in front when it is a training checkpoint: "run_checkpoint-500"."""
    parts = model_path.strip("/").split("/")
    return "_".join(parts[-2:]) if parts[-1].startswith("checkpoint-") else parts[-1]


def tokenizer_image_token(
    prompt: str,
    tokenizer: PreTrainedTokenizerBase,
    image_token_index: int = IMAGE_TOKEN_INDEX,
    return_tensors: str | None = None,
) -> list[int] | Tensor:
    """Ids of a prompt with one `image_token_index` for each `<image>`.

    The text between two `<image>` is tokenized by itself. A tokenizer that starts every text with its BOS gives one
    BOS, at the front. Nothing is truncated. Returns a list, or for "pt" an int64 tensor (L,).
    """
    pieces = [tokenizer(piece).input_ids for piece in prompt.split(DEFAULT_IMAGE_TOKEN)]
    skip = int(pieces[0][:1] == [tokenizer.bos_token_id])
    ids = list(pieces[0])
    for piece in pieces[1:]:
        ids += [image_token_index, *piece[skip:]]
    if return_tensors is None:
        return ids
    if return_tensors == "pt":
        return torch.tensor(ids, dtype=torch.long)
    raise ValueError(f"Unsupported tensor type: {return_tensors}")


class KeywordsStoppingCriteria(StoppingCriteria):
    """Ends generation once every row has written one of `keywords`.

    input_ids: (B, L), the prompt. Generation from embeddings reports new tokens only, generation from ids repeats
    the prompt first; both are recognized. A keyword counts when the row ends with its ids, or when the text of the
    last few new tokens contains it (as many tokens as the longest keyword can take, one byte each).
    """

    def __init__(self, keywords: Sequence[str], tokenizer: PreTrainedTokenizerBase, input_ids: Tensor) -> None:
        self.keywords = list(keywords)
        self.tokenizer = tokenizer
        self.start_len = input_ids.shape[1]
        self.prompt = input_ids[:1]
        self.keyword_ids = [self._ids(keyword) for keyword in self.keywords]
        lengths = [len(ids) for ids in self.keyword_ids] + [len(keyword.encode()) for keyword in self.keywords]
        self.window = max(lengths, default=0)

    def _ids(self, keyword: str) -> list[int]:
        ids = self.tokenizer(keyword).input_ids
        return ids[1:] if len(ids) > 1 and ids[0] == self.tokenizer.bos_token_id else ids

    def __call__(self, output_ids: Tensor, scores: Tensor | None, **kwargs: Any) -> bool:
        rows = output_ids[:, self.start_len :] if self._repeats_prompt(output_ids) else output_ids
        return all(self._has_stopped(row) for row in rows)

    def _repeats_prompt(self, output_ids: Tensor) -> bool:
        start = output_ids[:1, : self.start_len]
        return start.shape == self.prompt.shape and torch.equal(start, self.prompt.to(output_ids.device))

    def _has_stopped(self, row: Tensor) -> bool:
        new = row[-self.window :].tolist() if self.window else []
        if any(ids and new[-len(ids) :] == ids for ids in self.keyword_ids):
            return True
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        return any(keyword in text for keyword in self.keywords)
