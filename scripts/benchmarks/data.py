"""Pictures for the benchmarks: JPEG files in memory, of the sizes that photographs in the training sets have."""

import io
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.mm_utils import process_images
from llava.model.multimodal_encoder.move_kd.types import Source, View
from llava.train.data_config import DataConfig
from llava.train.views import read_geometry, student_views

PICTURE_SIZES = ((640, 480), (480, 640), (640, 427), (500, 375))
TEXT_TOKENS = 64


@cache
def photographs(count: int, seed: int = 0) -> tuple[bytes, ...]:
    """Smooth pictures with noise, so that decoding them costs what a photograph costs (about 100 KB each)."""
    draw = np.random.default_rng(seed)
    files = []
    for index in range(count):
        width, height = PICTURE_SIZES[index % len(PICTURE_SIZES)]
        smooth = Image.fromarray(draw.integers(0, 255, (15, 20, 3), dtype=np.uint8))
        pixels = np.asarray(smooth.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32)
        noisy = pixels + draw.normal(0, 8, pixels.shape)
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return tuple(files)


def conversation(index: int, vocabulary: int) -> dict[str, Tensor]:
    """TEXT_TOKENS ids, one of them the picture's placeholder; the second half is the answer."""
    generator = torch.Generator().manual_seed(index)
    ids = torch.randint(3, vocabulary, (TEXT_TOKENS,), generator=generator)
    ids[1] = IMAGE_TOKEN_INDEX
    labels = ids.clone()
    labels[: TEXT_TOKENS // 2] = IGNORE_INDEX
    return {"input_ids": ids, "labels": labels}


class Photographs(Dataset[dict[str, Any]]):
    """`length` samples over a few files. Samples hold what the collator takes: with `processor` the student's pixels
    and each source's view, as ours are prepared in the workers; without it the decoded picture, as released."""

    def __init__(
        self, length: int, vocabulary: int, processor: Any | None = None, sources: Mapping[str, Source] | None = None
    ) -> None:
        self.length, self.vocabulary = length, vocabulary
        self.files = photographs(16)
        self.processor = processor
        self.sources = {source.key: source for source in (sources or {}).values()}
        self.config = DataConfig(image_aspect_ratio="pad")

    def __len__(self) -> int:
        return self.length

    def views(self) -> list[View]:
        """What a teacher is shown of each sample."""
        return [self._view(self.picture(index), index) for index in range(self.length)]

    def picture(self, index: int) -> Image.Image:
        return Image.open(io.BytesIO(self.files[index % len(self.files)])).convert("RGB")

    def _view(self, picture: Image.Image, index: int) -> View:
        data = self.files[index % len(self.files)]
        [shown] = student_views(picture, self.config, read_geometry(self.processor), data)
        return shown.view

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture = self.picture(index)
        item: dict[str, Any] = {"id": str(index), **conversation(index, self.vocabulary)}
        if self.processor is None:
            return item | {"picture": picture}
        shown = self._view(picture, index)
        return item | {
            "image": [process_images([picture], self.processor, self.config)[0]],
            "image_sizes": [picture.size],
            "modalities": ["image"],
            "blank": False,
            "views": {key: [source.prepare(shown)] for key, source in self.sources.items()},
            "tile_of_view": [0] if self.sources else [],
        }
