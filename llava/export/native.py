"""A student as transformers' LlavaForConditionalGeneration or LlavaNextForConditionalGeneration, or, where its tower
has experts, as a subclass of them that is shipped beside the weights.

Plain models are written in the file format that every transformers release converts for itself; transformers converts
nothing for shipped code, so there the files have the modules' own names.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaNextConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipVisionConfig,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llava.anyres import parse_grid_pinpoints
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.model.checkpoint import gather_state_dict, grow_vocabulary
from llava.model.checkpoint_check import as_in_files
from llava.model.checkpoint_config import BACKBONES
from llava.model.checkpoint_io import CheckpointError, write_json, write_safetensors
from llava.model.checkpoint_names import NEWLINE, PROJECTOR
from llava.model.multimodal_encoder.move_kd.config import MoLEConfig
from llava.model.multimodal_encoder.move_kd.student import num_used_layers

ROWS = 64  # vocabularies are padded to a multiple of this
SHIPPED = Path(__file__).parent / "modeling_clip_mole.py"
WITHOUT_HF_CLASS = ("mpt",)
PLAIN_PREFIXES = (
    ("model.vision_tower.vision_tower.", "vision_tower."),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("model.image_newline", "image_newline"),
    ("model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)
SHIPPED_PREFIXES = (
    ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower."),
    ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
    ("model.image_newline", "model.image_newline"),
    ("model.", "model.language_model."),
    ("lm_head.", "lm_head."),
)
ENGINES = "vLLM, SGLang, llama.cpp and Ollama"
ROUTED_NOTE = (
    f"{ENGINES} cannot serve this model: they know vision towers of CLIP's kind only, and the experts here are chosen "
    "per patch of each picture, so they cannot be folded into CLIP's weights."
)


@dataclass(frozen=True)
class Shape:
    """What of a model decides its exported class."""

    has_experts: bool
    has_tiles: bool
    is_siglip: bool

    @classmethod
    def of(cls, student: Any) -> "Shape":
        settings = student.config.to_dict()
        tower = student.get_vision_tower()
        return cls(tower.settings.moe is not None, _has_tiles(settings), not tower.has_class_token)


def _has_tiles(settings: Mapping[str, Any]) -> bool:
    flat = settings.get("mm_patch_merge_type") in (None, "flat")
    return not flat or (settings.get("image_aspect_ratio") or "") not in ("", "square", "pad", "original")


def check_exportable(student: Any) -> None:
    """Raises CheckpointError for what transformers' classes cannot express, in one line."""
    settings = student.config.to_dict()
    layout = (settings.get("image_aspect_ratio"), settings.get("mm_patch_merge_type"))
    reasons = {
        f"the projector {settings.get('mm_projector_type')}": settings.get("mm_projector_type") != "mlp2x_gelu",
        "a multi-scale tower (s2)": settings.get("s2"),
        f"features {settings.get('mm_vision_select_feature')}": settings.get("mm_vision_select_feature", "patch")
        not in ("patch", "cls_patch"),
        f"pictures laid out as {layout[0]} with {layout[1]}": _has_tiles(settings)
        and layout != ("anyres", "spatial_unpad"),
        f"the language model {settings['model_type']}": backbone_of(settings) in WITHOUT_HF_CLASS,
    }
    found = [reason for reason, applies in reasons.items() if applies]
    if found:
        raise CheckpointError(
            f"transformers has no class for a model with {' and '.join(found)}; it stays in LLaVA's own format, which "
            "this package serves."
        )


def backbone_of(settings: Mapping[str, Any]) -> str:
    """transformers' name of the language model under a LLaVA type."""
    known = {ours: name for name, ours in BACKBONES.items()} | {"move_llava_llama": "llama"}
    return known[settings["model_type"]]


def exported_vision_config(tower: Any) -> PreTrainedConfig:
    """CLIP's, SigLIP's (without the layer and the head that LLaVA drops), or ours with experts."""
    settings = tower.config.to_dict()
    settings.pop("model_type")
    if not tower.has_class_token:
        layers = len(tower.vision_tower.vision_model.encoder.layers)
        return SiglipVisionConfig(**(settings | {"num_hidden_layers": layers, "vision_use_head": False}))
    if tower.settings.moe is None:
        return CLIPVisionConfig(**settings)
    from llava.export.modeling_clip_mole import ClipMoleVisionConfig

    mole = MoLEConfig.from_dict(tower.settings.moe)
    layers = tower.config.num_hidden_layers
    experts = {
        "num_experts": mole.experts,
        "expert_rank": mole.rank,
        "expert_scale": mole.scale,
        "expert_gate": mole.gate,
        "expert_dropout": mole.dropout,
        "num_expert_layers": layers if mole.layers == "all" else num_used_layers(layers, tower.select_layer),
    }
    return ClipMoleVisionConfig(**(settings | experts))  # a tower that was exported before has them already


def exported_config(student: Any, tokenizer: PreTrainedTokenizerBase, rows: int, template: str) -> Any:
    """The whole model's config, with the language model's and the tower's inside, and beside them what this package
    needs to read it again."""
    settings, shape = student.config.to_dict(), Shape.of(student)
    keeps_class_token = shape.is_siglip or settings.get("mm_vision_select_feature") == "cls_patch"
    common = {
        "text_config": _text_config(settings, rows),
        "vision_config": exported_vision_config(student.get_vision_tower()),
        "image_token_index": tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN),
        "image_seq_length": student.get_vision_tower().num_patches,
        "pad_token_id": tokenizer.pad_token_id,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1 if shape.is_siglip else settings.get("mm_vision_select_layer", -2),
        "vision_feature_select_strategy": "full" if keeps_class_token else "default",
        "tie_word_embeddings": settings["tie_word_embeddings"],
        "dtype": str(student.dtype).removeprefix("torch."),
    }
    if shape.has_tiles:
        pinpoints = parse_grid_pinpoints(settings["image_grid_pinpoints"], student.get_vision_tower().image_size)
        common["image_grid_pinpoints"] = [[height, width] for width, height in pinpoints]
    config = _config_class(shape)(**common)
    config.image_aspect_ratio = settings.get("image_aspect_ratio") or "square"
    config.conversation_template = template
    config.mm_use_im_start_end = bool(settings.get("mm_use_im_start_end"))
    if shape.has_tiles:
        config.use_image_newline_parameter = True
    _name_classes(config, shape)
    return config


def _config_class(shape: Shape) -> Any:
    if not shape.has_experts:
        return LlavaNextConfig if shape.has_tiles else LlavaConfig
    from llava.export import modeling_clip_mole

    return modeling_clip_mole.ClipMoleLlavaNextConfig if shape.has_tiles else modeling_clip_mole.ClipMoleLlavaConfig


def _name_classes(config: Any, shape: Shape) -> None:
    name = "LlavaNextForConditionalGeneration" if shape.has_tiles else "LlavaForConditionalGeneration"
    config.architectures = ["ClipMole" + name if shape.has_experts else name]
    if shape.has_experts:
        config.auto_map = {
            "AutoConfig": f"{SHIPPED.stem}.{type(config).__name__}",
            "AutoModelForImageTextToText": f"{SHIPPED.stem}.ClipMole{name}",
        }


def _text_config(settings: Mapping[str, Any], rows: int) -> PreTrainedConfig:
    text_class = CONFIG_MAPPING[backbone_of(settings)]
    known = text_class().to_dict().keys() - {"model_type", "architectures", "_name_or_path"}
    return text_class(**({name: value for name, value in settings.items() if name in known} | {"vocab_size": rows}))


def write_config(config: PreTrainedConfig, directory: Path) -> None:
    """config.json, with `rope_theta` where releases before 5 look for it."""
    settings = json.loads(config.to_json_string())
    text = settings.get("text_config", {})
    rope = text.get("rope_parameters") or {}
    if "rope_theta" in rope:
        text["rope_theta"] = rope["rope_theta"]
    settings["torch_dtype"] = settings["dtype"]
    write_json(settings, directory / "config.json")


def vocabulary_rows(student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    return -(-max(len(tokenizer), student.config.to_dict()["vocab_size"]) // ROWS) * ROWS


def write_model(student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, template: str) -> Any:
    """Weights, config and, where there are experts, the code. Returns the config."""
    rows = vocabulary_rows(student, tokenizer)
    config = exported_config(student, tokenizer, rows, template)
    prefixes = SHIPPED_PREFIXES if Shape.of(student).has_experts else PLAIN_PREFIXES
    write_safetensors(exported_state(student, rows, prefixes), directory)
    write_config(config, directory)
    if prefixes is SHIPPED_PREFIXES:
        shutil.copyfile(SHIPPED, directory / SHIPPED.name)
    return config


def exported_state(student: Any, rows: int, prefixes: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """Every tensor once, under its exported name; the vocabulary has `rows` rows, the new ones the mean of the old."""
    tied = student.all_tied_weights_keys
    own = {name: tensor for name, tensor in as_in_files(student, student.state_dict()).items() if name not in tied}
    grown = grow_vocabulary(gather_state_dict(own), rows)
    if backbone_of(student.config.to_dict()) == "gemma":
        grown |= _scaled_for_gemma(grown, student.get_model().picture_scale)
    return {exported_name(name, prefixes): tensor for name, tensor in grown.items()}


def _scaled_for_gemma(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """What LlavaGemmaModel multiplies pictures with at run time, in the weights: transformers' class does not."""
    scaled = (NEWLINE, f"{PROJECTOR}2.weight", f"{PROJECTOR}2.bias")
    return {name: state[name] * scale for name in scaled if name in state}


def exported_name(name: str, prefixes: tuple[tuple[str, str], ...]) -> str:
    return next(new + name.removeprefix(old) for old, new in prefixes if name.startswith(old))
