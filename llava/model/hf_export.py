"""A student as transformers' own LlavaForConditionalGeneration or LlavaNextForConditionalGeneration, which servers
such as vLLM take. Written in the file format that every transformers release converts for itself.
"""

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import (
    LlavaConfig,
    LlavaImageProcessor,
    LlavaNextConfig,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.model.checkpoint import gather_state_dict, grow_vocabulary
from llava.model.checkpoint_check import as_in_files
from llava.model.checkpoint_config import BACKBONES
from llava.model.checkpoint_io import CheckpointError, write_json, write_safetensors
from llava.model.checkpoint_save import write_generation_config

PAD_TOKEN = "<pad>"
ROWS = 64  # vocabularies are padded to a multiple of this
PREFIXES = (
    ("model.vision_tower.vision_tower.", "vision_tower."),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("model.image_newline", "image_newline"),
    ("model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)


def native_name(name: str) -> str:
    """An original name in transformers' file format."""
    return next(new + name.removeprefix(old) for old, new in PREFIXES if name.startswith(old))


def check_exportable(config: dict[str, Any]) -> None:
    """Raises CheckpointError for what transformers' classes cannot express."""
    moe = config.get("moe") or {}
    reasons = {
        "experts in the vision tower (their routing depends on the picture)": moe.get("moe_encoder"),
        "a projector other than mlp2x_gelu": config.get("mm_projector_type") != "mlp2x_gelu",
        "a multi-scale tower (s2)": config.get("s2"),
        "sliced features": config.get("mm_vision_select_feature", "patch") not in ("patch", "cls_patch"),
        "tiles packed otherwise than spatial_unpad with anyres": _is_next(config)
        and (config.get("image_aspect_ratio"), config.get("mm_patch_merge_type")) != ("anyres", "spatial_unpad"),
    }
    found = [reason for reason, applies in reasons.items() if applies]
    if found:
        raise CheckpointError(f"this model cannot become a class of transformers: it has {'; '.join(found)}.")


def _is_next(config: dict[str, Any]) -> bool:
    flat = config.get("mm_patch_merge_type") in (None, "flat")
    return not flat or "anyres" in (config.get("image_aspect_ratio") or "")


def export_hf(student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: str | os.PathLike[str]) -> Path:
    """Write `student` with its tower, tokenizer (with `<image>` and a pad token) and processor to `directory`.

    Raises CheckpointError for experts, SigLIP and other things that transformers' classes lack.
    """
    settings = student.config.to_dict()
    check_exportable(settings)
    tower: Any = student.get_vision_tower()  # type: ignore[operator]
    if tower is None or tower.config.model_type != "clip_vision_model":
        raise CheckpointError("only a model with a CLIP vision tower can become a class of transformers.")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.add_tokens([DEFAULT_IMAGE_TOKEN], special_tokens=True)
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.unk_token:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    rows = -(-max(len(tokenizer), settings["vocab_size"]) // ROWS) * ROWS
    state = _native_state(student, rows)
    write_safetensors(state, directory)
    write_generation_config(student.generation_config, directory)
    config = native_config(student, tower.config, tokenizer, rows)
    _processor(config, tower.image_processor, tokenizer).save_pretrained(directory)
    write_json(json.loads(config.to_json_string()), directory / "config.json")
    return directory


def _native_state(student: PreTrainedModel, rows: int) -> dict[str, Tensor]:
    tied = student.all_tied_weights_keys
    own = {name: tensor for name, tensor in as_in_files(student, student.state_dict()).items() if name not in tied}
    return {native_name(name): tensor for name, tensor in grow_vocabulary(gather_state_dict(own), rows).items()}


def native_config(student: PreTrainedModel, vision: Any, tokenizer: PreTrainedTokenizerBase, rows: int) -> Any:
    """The config of transformers' class, with the language model's and the tower's own inside."""
    settings = student.config.to_dict()
    backbone = next(name for name, ours in BACKBONES.items() if ours == settings["model_type"])
    text_class = CONFIG_MAPPING[backbone]
    keeps_class_token = settings.get("mm_vision_select_feature") == "cls_patch"
    known = text_class().to_dict().keys() - {"model_type", "architectures"}
    text = text_class(**({name: value for name, value in settings.items() if name in known} | {"vocab_size": rows}))
    common = {
        "text_config": text,
        "vision_config": vision,
        "image_token_index": tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN),
        "pad_token_id": tokenizer.pad_token_id,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": settings.get("mm_vision_select_layer", -2),
        "vision_feature_select_strategy": "full" if keeps_class_token else "default",
        "tie_word_embeddings": settings["tie_word_embeddings"],
        "dtype": str(student.dtype).removeprefix("torch."),
    }
    if _is_next(settings):
        pinpoints = [[height, width] for width, height in settings["image_grid_pinpoints"]]
        config: Any = LlavaNextConfig(**common, image_grid_pinpoints=pinpoints)
        config.use_image_newline_parameter = True
        config.architectures = ["LlavaNextForConditionalGeneration"]
    else:
        config = LlavaConfig(**common)
        config.architectures = ["LlavaForConditionalGeneration"]
    config.image_aspect_ratio = settings.get("image_aspect_ratio")
    return config


def _processor(config: Any, clip: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Prepares pictures as LLaVA does: padded to a square on the mean color where the model was trained so."""
    settings = clip.to_dict()
    pixels = {name: settings[name] for name in ("size", "crop_size", "image_mean", "image_std")}
    text = {
        "tokenizer": tokenizer,
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": 1,  # the class token, which `default` takes off again
    }
    if isinstance(config, LlavaNextConfig):
        pixels["image_grid_pinpoints"] = config.image_grid_pinpoints
        return LlavaNextProcessor(image_processor=LlavaNextImageProcessor(**pixels), **text)
    pixels["do_pad"] = config.image_aspect_ratio == "pad"
    return LlavaProcessor(image_processor=LlavaImageProcessor(**pixels), **text)
