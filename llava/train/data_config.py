"""Settings of the data side of a run, validated when they are made."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llava.mm_utils import highres_side

LAYOUTS = "square, pad, anyres, anyres_max_N, highres, crop_split"


@dataclass(frozen=True)
class DataConfig:
    """data_path, eval_data_path: what `sources.open_records` takes. eval_split: share (below 1) or number of the
    records of data_path that are kept for validation. is_multimodal: False for a language model by itself.
    image_aspect_ratio, image_grid_pinpoints, image_crop_resolution, image_split_resolution: how a picture is laid
    out, with the names of config.json. early_mix_text: text-only samples are grouped with those that have pictures.
    video_fps: frames taken per second; frames_upbound: at most so many (0: no limit), and exactly so many with
    force_sample. add_time_instruction: tell the model when the frames were taken.
    model_max_length: tokens kept of a sample, before pictures take their place; None keeps all.
    distill_views: "base" gives teachers one view per picture, "all" one per tile.
    on_bad_sample: "skip" puts the next good sample in place of a bad one, "stop" raises at the first.
    bad_sample_limit: share of bad samples above which the run stops even so. bad_sample_log: JSONL file that names
    them. cache_dir: where parquet files are copied to. seed: of everything that is drawn.
    """

    data_path: str | None = None
    eval_data_path: str | None = None
    eval_split: float = 0.0
    image_folder: str | None = None
    video_folder: str | None = None
    is_multimodal: bool = True
    image_aspect_ratio: str | None = "square"
    image_grid_pinpoints: str | Sequence[Sequence[int]] | None = None
    image_crop_resolution: int | None = None
    image_split_resolution: int | None = None
    mm_use_im_start_end: bool = False
    early_mix_text: bool = False
    video_fps: float = 1
    frames_upbound: int = 0
    add_time_instruction: bool = False
    force_sample: bool = False
    model_max_length: int | None = None
    distill_views: Literal["base", "all"] = "base"
    on_bad_sample: Literal["skip", "stop"] = "skip"
    bad_sample_limit: float = 0.01
    bad_sample_log: str | None = None
    cache_dir: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_layout()
        self._check_numbers()
        for name, value, choices in (
            ("distill_views", self.distill_views, ("base", "all")),
            ("on_bad_sample", self.on_bad_sample, ("skip", "stop")),
        ):
            if value not in choices:
                raise ValueError(f"{name} {value!r} is unknown; use {' or '.join(choices)}")
        for name, folder in (("image_folder", self.image_folder), ("video_folder", self.video_folder)):
            if folder and not os.path.isdir(folder):
                raise ValueError(f"--{name} {folder} is not a folder (working directory {os.getcwd()})")

    def _check_layout(self) -> None:
        layout = self.image_aspect_ratio
        known = ("square", "original", "pad", "anyres", "highres", "crop_split")
        if layout is not None and layout not in known and not re.fullmatch(r"anyres_max_[1-9]\d*", layout):
            raise ValueError(f"image_aspect_ratio {layout!r} is unknown; there are {LAYOUTS}")
        if self.is_anyres and not self.image_grid_pinpoints:
            raise ValueError(
                f"image_aspect_ratio {layout!r} needs image_grid_pinpoints, such as '[[336, 672], [672, 336]]'"
            )
        if layout == "highres":
            highres_side(self.image_grid_pinpoints)  # raises for unusable ones
        if layout == "crop_split" and not (self.image_crop_resolution and self.image_split_resolution):
            raise ValueError("image_aspect_ratio 'crop_split' needs image_crop_resolution and image_split_resolution")

    def _check_numbers(self) -> None:
        if self.eval_split < 0 or not 0 <= self.bad_sample_limit <= 1:
            raise ValueError(
                f"eval_split must not be negative and bad_sample_limit must be in [0, 1]: "
                f"got {self.eval_split} and {self.bad_sample_limit}"
            )
        if self.eval_split and self.eval_data_path:
            raise ValueError("give eval_data_path or eval_split, not both")
        if self.video_fps <= 0 or self.frames_upbound < 0:
            raise ValueError(
                f"video_fps {self.video_fps} must be positive and frames_upbound {self.frames_upbound} not negative"
            )
        if self.force_sample and not self.frames_upbound:
            raise ValueError("force_sample takes exactly frames_upbound frames; set frames_upbound")
        if self.model_max_length is not None and self.model_max_length < 1:
            raise ValueError(f"model_max_length {self.model_max_length} must be at least 1")

    @property
    def is_anyres(self) -> bool:
        return self.image_aspect_ratio is not None and self.image_aspect_ratio.startswith("anyres")
