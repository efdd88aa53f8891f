"""One training sample: token ids and labels, the student's pixels, and what each teacher needs to see.

All reading, decoding and resizing happens here, that is in the data workers. A sample that cannot be used raises
BadSample; what then happens is the config's choice.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from llava.anyres import parse_grid_pinpoints
from llava.conversation import Conversation
from llava.mm_utils import image_layout, process_images
from llava.model.multimodal_encoder.move_kd.types import Source
from llava.train.bad_samples import BadSamples
from llava.train.collator import Collator
from llava.train.data_config import DataConfig
from llava.train.images import load_picture
from llava.train.labeling import Labeler
from llava.train.record_files import RecordSource
from llava.train.records import BadSample, DataError, Record
from llava.train.sources import open_records, read_record, split_records
from llava.train.video import Frames, load_frames, with_time_instruction
from llava.train.views import StudentGeometry, TileView, check_views, read_geometry, student_views

__all__ = ["DataConfig", "SupervisedDataset", "make_data_module"]

IMAGE_WORDS = 128  # what a picture adds to a sample's length when batches are grouped


class SupervisedDataset(Dataset[dict[str, Any]]):
    """records with their pictures, as items for the Collator.

    image_processor: the student's; None for a language model by itself. sources: by teacher; those with equal keys
    are prepared once.

    An item holds id, input_ids (L,) and labels (L,), and, if multimodal: image, a list of (3, H, W), or (P, 3, H, W)
    for tiles or frames, one per `<image>`; image_sizes [(w, h)]; modalities; blank; views {source key: [prepared]};
    tile_of_view, the tile within the sample that each view shows. A sample without picture has one blank image.
    """

    def __init__(
        self,
        records: RecordSource,
        tokenizer: PreTrainedTokenizerBase,
        config: DataConfig,
        image_processor: Any | None,
        template: Conversation,
        sources: Mapping[str, Source] | None = None,
    ) -> None:
        if config.is_multimodal and image_processor is None:
            raise ValueError(
                "multimodal data needs the vision tower's image processor; pass it, or is_multimodal=False"
            )
        self.records = records
        self.config = config
        self.image_processor: Any = image_processor
        self.labeler = Labeler(tokenizer, template, config.model_max_length, config.mm_use_im_start_end)
        self.sources = {source.key: source for source in (sources or {}).values()}
        self.several_config = replace(config, image_aspect_ratio="pad")
        self.video_config = replace(config, image_aspect_ratio="square")
        self._geometry = read_geometry(image_processor) if config.is_multimodal else None
        if self.sources:
            check_views(config)
        if self._geometry is not None and config.is_anyres and config.image_grid_pinpoints is not None:
            parse_grid_pinpoints(config.image_grid_pinpoints, self._geometry.base_size)  # raises for unusable ones
        self.bad = BadSamples(config.bad_sample_limit, len(records), config.bad_sample_log)
        self._words: np.ndarray | None = None

    @property
    def geometry(self) -> StudentGeometry:
        assert self._geometry is not None, "there is no geometry without a vision tower"
        return self._geometry

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample, or with on_bad_sample "skip" the next good one: the same one in every run."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        self.bad.seen += 1
        for step in range(len(self)):
            position = (index + step) % len(self)
            try:
                return self.load(position)
            except BadSample as error:
                if self.config.on_bad_sample == "stop":
                    raise
                self.bad.record(position, error)
        raise DataError(f"none of the {len(self)} samples can be used: {self.bad.summary()}")

    def load(self, index: int) -> dict[str, Any]:
        """The sample at a position. Raises BadSample, whatever the config says about skipping."""
        record = read_record(self.records, index)
        if not self.config.is_multimodal:
            if record.is_visual:
                raise BadSample(f"{record.where}: has a picture, but there is no vision tower; pass --vision_tower")
            return self._text(index, record, record.turns)
        if record.video is not None:
            return self._video_item(index, record, record.video)
        return self._image_item(index, record)

    def _image_item(self, index: int, record: Record) -> dict[str, Any]:
        if not record.images:
            return self._text(index, record, record.turns) | self._blank()
        item = self._text(index, record, record.turns)
        pictures = [load_picture(image, self.config.image_folder, record.where) for image in record.images]
        config = self.config if len(pictures) == 1 else self.several_config
        images = [process_images([picture.image], self.image_processor, config)[0] for picture in pictures]
        views: list[TileView] = []
        tiles = 0
        for picture, pixels in zip(pictures, images, strict=True):
            if self.sources:
                shown = student_views(picture.image, config, self.geometry, picture.data)
                views += [TileView(tiles + view.tile, view.view) for view in shown]
            tiles += count_tiles(pixels)
        return item | {
            "image": images,
            "image_sizes": [picture.image.size for picture in pictures],
            "modalities": ["image"] * len(images),
            "blank": False,
            **self._prepared(views),
        }

    def _video_item(self, index: int, record: Record, video: str | tuple[str, ...]) -> dict[str, Any]:
        frames = load_frames(video, self.config, record.where)
        turns = record.turns
        if self.config.add_time_instruction:
            first = next(position for position, turn in enumerate(turns) if turn["from"] == "human")
            told = turns[first] | {"value": with_time_instruction(turns[first]["value"], frames)}
            turns = (*turns[:first], told, *turns[first + 1 :])
        item = self._text(index, record, turns)
        pixels = self.image_processor.preprocess(frames.images, return_tensors="pt")["pixel_values"]
        return item | {
            "image": [pixels],
            "image_sizes": [frames.images[0].size],
            "modalities": ["video"],
            "blank": False,
            **self._prepared(self._frame_views(frames)),
        }

    def _frame_views(self, frames: Frames) -> list[TileView]:
        """Every frame is a tile; with distill_views "base" teachers are shown the middle one."""
        if not self.sources:
            return []
        middle = len(frames.images) // 2
        shown = range(len(frames.images)) if self.config.distill_views == "all" else [middle]
        views = []
        for frame in shown:
            image = frames.images[frame]
            [view] = student_views(image, self.video_config, self.geometry, image.tobytes())
            views.append(TileView(frame, view.view))
        return views

    def _blank(self) -> dict[str, Any]:
        """The stand-in that lets every module run on every rank; the collator gives it weight 0."""
        size = self.geometry.tile_size
        return {
            "image": [torch.zeros(3, size, size)],
            "image_sizes": [(size, size)],
            "modalities": ["text"],
            "blank": True,
            "views": {key: [source.blank()] for key, source in self.sources.items()},
            "tile_of_view": [0] if self.sources else [],
        }

    def _prepared(self, views: list[TileView]) -> dict[str, Any]:
        return {
            "views": {key: [source.prepare(view.view) for view in views] for key, source in self.sources.items()},
            "tile_of_view": [view.tile for view in views],
        }

    def _text(self, index: int, record: Record, turns: tuple[dict[str, str], ...]) -> dict[str, Any]:
        text = self.labeler.label(record, turns)
        if text.num_lost:
            self.bad.note(index, "truncated_answer", self.labeler.loss_message(record, text))
        return {"id": record.id, "input_ids": text.input_ids, "labels": text.labels}

    @property
    def lengths(self) -> list[int]:
        """Words of each sample, and 128 for its pictures."""
        words = self._counted_words()
        return (np.abs(words) + IMAGE_WORDS * (words > 0)).tolist()

    @property
    def modality_lengths(self) -> list[int]:
        """Words of each sample, negative without a picture (unless early_mix_text)."""
        words = self._counted_words()
        return (np.abs(words) if self.config.early_mix_text else words).tolist()

    def _counted_words(self) -> np.ndarray:
        """(N,) int32: words, negative without a picture, never 0. A record that cannot be read counts one word."""
        if self._words is None:
            words = np.full(len(self), -1, dtype=np.int32)
            for index in tqdm(range(len(self)), desc="count words", delay=2, leave=False):
                try:
                    words[index] = signed_words(self.records[index])
                except BadSample:
                    continue  # met again, and counted, when it is its turn
            self._words = words
        return self._words


def signed_words(raw: Any) -> int:
    turns = raw.get("conversations") if isinstance(raw, Mapping) else None
    if not isinstance(turns, list):
        return -1
    texts = [turn.get("value", turn.get("content")) for turn in turns if isinstance(turn, Mapping)]
    words = max(sum(len(text.split()) for text in texts if isinstance(text, str)), 1)
    return words if raw.get("image") or raw.get("video") else -words


def count_tiles(pixels: Tensor) -> int:
    return 1 if pixels.ndim == 3 else len(pixels)


def make_data_module(
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    image_processor: Any | None,
    template: Conversation,
    sources: Mapping[str, Source] | None = None,
) -> dict[str, Any]:
    """train_dataset, eval_dataset (None without a validation split) and data_collator, as the Trainer takes them."""
    records = open_records(config.data_path, config.seed, config.cache_dir)
    held_out: RecordSource | None = None
    if config.eval_data_path:
        held_out = open_records(config.eval_data_path, config.seed, config.cache_dir)
    elif config.eval_split:
        records, held_out = split_records(records, config.eval_split)
    parts = [
        None if part is None else SupervisedDataset(part, tokenizer, config, image_processor, template, sources)
        for part in (records, held_out)
    ]
    collator = Collator(
        pad_token_id=tokenizer.pad_token_id,
        padding_side=tokenizer.padding_side,
        model_max_length=config.model_max_length,
        is_tiled=image_layout(config).is_tiled,
    )
    return {"train_dataset": parts[0], "eval_dataset": parts[1], "data_collator": collator}
