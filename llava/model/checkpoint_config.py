"""From a checkpoint's config.json to the configuration and model class to build, by its content and never by a
folder's name. The one place where a raw JSON dict of any published dialect becomes one of our config objects.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import llava.model.language_model  # noqa: F401 (registers our model types)
from llava.model.checkpoint_io import CheckpointError, find_file, read_json
from llava.model.checkpoint_names import CLIP_MOLE
from llava.model.llava_arch import LlavaMetaForCausalLM
from llava.model.multimodal_encoder.move_kd.config import MoLEConfig
from llava.model.multimodal_resampler.builder import RESAMPLERS_BUILT

# A plain language model's type -> the LLaVA type that lets it see.
BACKBONES = {
    "llama": "llava_llama",
    "mistral": "llava_mistral",
    "qwen2": "llava_qwen",
    "gemma": "llava_gemma",
    "mixtral": "llava_mixtral",
    "mpt": "llava_mpt",
    "qwen2_moe": "llava_qwen_moe",
}
HF_NATIVE_TYPES = ("llava", "llava_next", "llava_clip_mole", "llava_next_clip_mole")  # the last two: `llava.export hf`
NATIVE_TOWERS = ("clip_vision_model", "siglip_vision_model", CLIP_MOLE)
ORIGINAL_TYPES = ("llava", *BACKBONES.values(), "move_llava_llama")
HF_NEXT_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """config.json of a directory or hub repository. Raises CheckpointError if there is none or it is not JSON."""
    file = find_file(path, "config.json")
    if file is None:
        raise CheckpointError(f"{path} has no config.json, so nothing says which model it holds. Copy that file too.")
    return read_json(file)


def is_hf_native(raw: Mapping[str, Any]) -> bool:
    """Whether config.json describes transformers' own LLaVA classes rather than the original format."""
    return raw.get("model_type") in HF_NATIVE_TYPES and "text_config" in raw


def is_multimodal(raw: Mapping[str, Any]) -> bool:
    """Whether config.json describes a model that sees."""
    return is_hf_native(raw) or original_type(raw) is not None


def original_type(raw: Mapping[str, Any]) -> str | None:
    """The LLaVA model type that an original-format config.json means; None for a plain language model.

    Published llava-v1.5 and v1.6 still say `llava`, as transformers' own class does; there the architecture decides.
    """
    model_type = raw.get("model_type")
    architecture = next(iter(raw.get("architectures") or []), "")
    if model_type == "llava" and "text_config" not in raw:
        return type_of_architecture(architecture) or "llava_llama"
    if is_llava_type(model_type):
        return model_type
    if "mm_vision_tower" in raw:
        return type_of_architecture(architecture) or BACKBONES.get(model_type or "")
    return None


def type_of_architecture(architecture: str) -> str | None:
    """`LlavaQwenForCausalLM` -> `llava_qwen`; None for a class that we do not have."""
    architecture = architecture.removeprefix("Eval")
    named = (model_type for model_type in ORIGINAL_TYPES if is_llava_type(model_type))
    return next((model_type for model_type in named if model_class_of(model_type).__name__ == architecture), None)


def has_model_class(model_type: str) -> bool:
    return model_type in CONFIG_MAPPING and CONFIG_MAPPING[model_type] in AutoModelForCausalLM._model_mapping


def model_class_of(model_type: str) -> type[PreTrainedModel]:
    """The causal language model registered for a model type."""
    classes: Any = AutoModelForCausalLM._model_mapping
    return classes[CONFIG_MAPPING[model_type]]


def is_llava_type(model_type: str | None) -> bool:
    return model_type is not None and has_model_class(model_type) and _sees(model_class_of(model_type))


def _sees(model_class: type) -> bool:
    return issubclass(model_class, LlavaMetaForCausalLM)


def student_config(
    raw: Mapping[str, Any], path: str | os.PathLike[str], overwrite: Mapping[str, Any] | None = None
) -> PreTrainedConfig:
    """The configuration of one of our LLaVA classes from any config.json that can be read as one.

    A plain language model's config becomes the LLaVA class of its backbone, without vision unless `overwrite` adds it.
    Raises CheckpointError for a type that has no LLaVA class here.
    """
    raw = from_hf_native(raw, path) if is_hf_native(raw) else dict(raw)
    model_type = original_type(raw) or BACKBONES.get(raw.get("model_type") or "")
    if model_type is None:
        raise CheckpointError(
            f"config.json of {path} has model_type {raw.get('model_type')!r} and architectures "
            f"{raw.get('architectures')}, for which there is no LLaVA class here. There are: "
            f"{', '.join(ORIGINAL_TYPES)}, and the plain language models {', '.join(BACKBONES)}."
        )
    return build_config(raw | {"model_type": model_type}, path, overwrite)


def build_config(
    raw: Mapping[str, Any], path: str | os.PathLike[str], overwrite: Mapping[str, Any] | None = None
) -> PreTrainedConfig:
    """The config object of `raw["model_type"]`. Raises CheckpointError for a value that the class refuses."""
    settings = dict(raw) | dict(overwrite or {})
    if "rope_scaling" in (overwrite or {}) and isinstance(raw.get("rope_parameters"), dict):
        # transformers would take the default theta with a new scaling; the checkpoint's own must stay.
        settings.pop("rope_parameters")
        settings.setdefault("rope_theta", raw["rope_parameters"].get("rope_theta"))
    if (quantization := settings.pop("quantization_config", None)) is not None:
        raise CheckpointError(
            f"{path} was saved quantized ({quantization.get('quant_method')}). "
            "Load the original weights with load_4bit or load_8bit instead."
        )
    if settings.get("mm_resampler_type") not in RESAMPLERS_BUILT:
        raise CheckpointError(
            f"config.json of {path} asks for mm_resampler_type {settings['mm_resampler_type']!r}, "
            "which is not built here: only checkpoints without a resampler load."
        )
    try:
        config_class = CONFIG_MAPPING[settings["model_type"]]
        return config_class.from_dict(settings | {"model_type": config_class.model_type})
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"config.json of {path} cannot be used: {error}. Correct that value.") from error


def language_model_config(raw: Mapping[str, Any], path: str | os.PathLike[str]) -> PreTrainedConfig:
    """The configuration of a plain language model. Raises CheckpointError for a type that transformers lacks."""
    model_type = raw.get("model_type")
    if model_type is None or not has_model_class(model_type):
        raise CheckpointError(
            f"config.json of {path} has model_type {model_type!r}, which is neither a LLaVA type "
            f"({', '.join(ORIGINAL_TYPES)}) nor a language model that the installed transformers knows."
        )
    return build_config(raw, path)


def customized_config_dict(config: PreTrainedConfig | Mapping[str, Any] | str) -> dict[str, Any]:
    """The raw form of `customized_config`: an object, a dict, or the path of a JSON file or directory."""
    if isinstance(config, PreTrainedConfig):
        return config.to_dict()
    if isinstance(config, Mapping):
        return dict(config)
    return read_json(Path(config)) if Path(config).is_file() else read_config(config)


def _own_directory(path: str | os.PathLike[str]) -> str:
    """A checkpoint's directory here; of a hub repository its cached copy, with the image processor fetched."""
    files = [find_file(path, name) for name in ("config.json", "preprocessor_config.json", "processor_config.json")]
    return str(next(file for file in files if file is not None).parent)


def _check_native(raw: Mapping[str, Any], vision: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    kind = vision.get("model_type", "clip_vision_model")
    if kind not in NATIVE_TOWERS:
        raise CheckpointError(f"the vision tower of {path} is a {kind!r}; here it can be {', '.join(NATIVE_TOWERS)}.")
    is_whole = kind == "siglip_vision_model" and vision.get("vision_use_head", True)
    if is_whole or (kind == "siglip_vision_model" and raw.get("vision_feature_layer") != -1):
        raise CheckpointError(
            f"the SigLIP tower of {path} gives other features than LLaVA's, which end one layer early and have no head."
        )
    if isinstance(raw.get("vision_feature_layer", -2), list) or raw.get("projector_hidden_act", "gelu") != "gelu":
        raise CheckpointError(
            f"{path} uses vision_feature_layer {raw.get('vision_feature_layer')} and projector_hidden_act "
            f"{raw.get('projector_hidden_act')!r}; here a tower gives one layer and a projector has gelu."
        )


def native_experts(vision: Mapping[str, Any]) -> MoLEConfig:
    """The experts that a ClipMoleVisionConfig describes; how they were drawn it does not say."""
    return MoLEConfig(
        experts=vision["num_experts"],
        rank=vision["expert_rank"],
        alpha=vision["expert_scale"] * vision["expert_rank"],
        gate=vision["expert_gate"],
        dropout=vision["expert_dropout"],
        layers="all" if vision["num_expert_layers"] == vision["num_hidden_layers"] else "used",
    )


def from_hf_native(raw: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """config.json of LlavaForConditionalGeneration or LlavaNextForConditionalGeneration, or of what `llava.export`
    makes of a MoVE-KD student, in our terms.

    The directory itself stands in as `mm_vision_tower`: it holds the tower's configuration and image processor.
    """
    text, vision = dict(raw["text_config"]), dict(raw.get("vision_config") or {})
    backbone = BACKBONES.get(text.get("model_type", "llama"))
    if backbone is None:
        raise CheckpointError(
            f"the language model of {path} is of type {text.get('model_type')!r}; there are {', '.join(BACKBONES)}."
        )
    _check_native(raw, vision, path)
    settings = text | {
        "model_type": backbone,
        "architectures": [model_class_of(backbone).__name__],
        "tie_word_embeddings": bool(raw.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        "mm_vision_tower": _own_directory(path),
        "mm_hidden_size": vision.get("hidden_size", 1024),
        "mm_vision_select_layer": raw.get("vision_feature_layer", -2),
        "mm_vision_select_feature": "cls_patch" if raw.get("vision_feature_select_strategy") == "full" else "patch",
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "image_aspect_ratio": raw.get("image_aspect_ratio") or "pad",
        "image_token_index": raw.get("image_token_index", raw.get("image_token_id")),
        "dtype": raw.get("dtype", raw.get("torch_dtype")),
        **{name: raw[name] for name in ("conversation_template", "mm_use_im_start_end") if name in raw},
    }
    if vision.get("model_type") == CLIP_MOLE:
        settings["moe"] = native_experts(vision).to_dict()
    if backbone == "llava_gemma":
        settings["scales_pictures"] = False  # the scale is in the weights
    if "next" in raw["model_type"]:
        # HF stores (height, width); the published list is symmetric, a custom one need not be.
        pinpoints = [[width, height] for height, width in raw.get("image_grid_pinpoints") or HF_NEXT_PINPOINTS]
        settings |= {
            "image_aspect_ratio": "anyres",
            "mm_patch_merge_type": "spatial_unpad",
            "image_grid_pinpoints": pinpoints,
        }
    return settings
