"""Flags about the model and the data, as HfArgumentParser reads them. Only `arguments.py` looks at these objects."""

from dataclasses import dataclass, field
from typing import Any


def option(default: Any, text: str, **parser_settings: Any) -> Any:
    """A dataclass field that HfArgumentParser turns into a flag with this help text."""
    metadata = {"help": text, **parser_settings}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelArguments:
    model_name_or_path: str | None = option(None, "language model or LLaVA checkpoint to start from")
    version: str = option("v0", "conversation template; an unknown name means vicuna_v1")
    vision_tower: str | None = option(None, "CLIP or SigLIP checkpoint; without it the language model alone trains")
    vision_tower_pretrained: str | None = option(None, "recorded in config.json")
    mm_vision_select_layer: int = option(-1, "which hidden state of the tower the projector sees")
    mm_vision_select_feature: str = option("patch", "patch (no class token) or cls_patch")
    mm_projector_type: str = option("linear", "linear, mlpNx_gelu or identity")
    mm_patch_merge_type: str = option("flat", "flat, spatial or spatial_unpad (several tiles to one sequence)")
    mm_use_im_start_end: bool = option(False, "wrap images in <im_start> and <im_end>")
    mm_use_im_patch_token: bool = option(True, "add the token <im_patch>")
    mm_resampler_type: str | None = option(None, "must be left out: no resampler is built")
    mm_spatial_pool_stride: int | None = option(None, "pooling of video frames")
    mm_spatial_pool_mode: str = option("bilinear", "average, max or bilinear")
    mm_newline_position: str = option("grid", "newlines in video features: grid, frame, one_token or no_token")
    s2: bool = option(False, "multi-scale CLIP tower")
    s2_scales: str = option("336,672,1008", "image sides of the multi-scale tower")
    delay_load: bool = option(True, "recorded in config.json: build the tower before its weights are read")
    rope_scaling_factor: float | None = option(None, "stretch of the rotary position embedding")
    rope_scaling_type: str | None = option(None, "linear, dynamic, yarn, ...")
    init_from: str | None = option(None, "stage-1 directory: loads every part file that is in it")
    pretrain_mm_mlp_adapter: str | None = option(None, "mm_projector.bin of stage 1")
    pretrain_mole_encoder: str | None = option(None, "mole_encoder.bin of stage 1")
    pretrain_encoder_adapter: str | None = option(None, "encoder_adapter.bin of stage 1")
    mm_tunable_parts: str | None = option(
        None, "comma list of mm_mlp_adapter, mm_vision_tower, mm_language_model; replaces the older switches"
    )
    tune_mm_mlp_adapter: bool = option(False, "of projector and language model train the projector alone")
    tune_mm_vision_resampler: bool = option(False, "the resampler belongs to the projector part")
    freeze_backbone: bool = option(False, "keep the language model, head included, as it is")
    unfreeze_mm_vision_tower: bool = option(False, "train the vision tower too")
    unfreeze_language_model: bool = option(False, "train the language model even with tune_mm_mlp_adapter")


@dataclass
class DataArguments:
    data_path: str | None = option(None, "JSON, JSONL, parquet, a{b,c}.json or a YAML mixture")
    eval_data_path: str | None = option(None, "records of the validation split, in the same forms")
    eval_split: float = option(0.0, "share of data_path kept for validation instead (below 1), or a number of samples")
    image_folder: str | None = option(None, "joined with the image of every record")
    video_folder: str | None = option(None, "joined with the video of every record")
    image_aspect_ratio: str = option("square", "square, pad, anyres, anyres_max_N, highres or crop_split")
    image_grid_pinpoints: str | None = option(
        None, "list of [width, height], or a range such as (1x1),...,(6x6); sides of highres"
    )
    image_crop_resolution: int | None = option(None, "for crop_split")
    image_split_resolution: int | None = option(None, "for crop_split")
    early_mix_text: bool = option(False, "text samples count as multimodal when batches are grouped")
    video_fps: float = option(1, "frames per second taken from a video")
    frames_upbound: int = option(0, "most frames of a video; 0 means no limit")
    add_time_instruction: bool = option(False, "tell the model the time of each frame")
    force_sample: bool = option(False, "always take frames_upbound frames, evenly spaced")
    on_bad_sample: str = option("skip", "skip and count samples that cannot be read or labeled, or stop at the first")
    bad_sample_limit: float = option(0.01, "share of bad samples above which the run stops")
