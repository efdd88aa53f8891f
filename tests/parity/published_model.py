"""A published tiny MoVE-KD model, its teachers' stored answers and its loss, from the tensors of a parity case."""

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig

from llava.model.language_model.move_llava_llama import MoVELlavaLlamaConfig, MoVELlavaLlamaForCausalLM
from llava.model.multimodal_encoder.move_kd.adapters import from_published_adapters
from llava.model.multimodal_encoder.move_kd.config import DistillConfig
from llava.model.multimodal_encoder.move_kd.distiller import Distiller
from llava.model.multimodal_encoder.move_kd.student import stack_published_experts
from llava.model.multimodal_encoder.move_kd.types import TeacherFeatures
from tests.parity.vectors import Case


def is_adapter(name: str) -> bool:
    return "_adapter_" in name


def published_student(case: Case, tower: Path) -> MoVELlavaLlamaForCausalLM:
    """The case's model with its recorded weights. tower: a folder for, or with, the CLIP configuration."""
    meta = case.meta
    if not (tower / "config.json").exists():
        CLIPVisionConfig(**meta["vision_config"]).save_pretrained(tower)
    config = MoVELlavaLlamaConfig(
        **meta["llm_config"],
        mm_vision_tower=str(tower),
        mm_hidden_size=meta["vision_config"]["hidden_size"],
        mm_vision_select_layer=meta.get("select_layer", -2),
        mm_vision_select_feature=meta.get("select_feature", "patch"),
        mm_projector_type=meta.get("projector", "mlp2x_gelu"),
        tie_word_embeddings=False,
        moe={**meta["moe"], "moe_dropout": 0.0},
    )
    student = MoVELlavaLlamaForCausalLM(config)
    state = {name: tensor for name, tensor in case.group("weight").items() if not is_adapter(name)}
    student.load_state_dict(stack_published_experts(state))
    student.get_vision_tower().mark_loaded()
    return student


def published_features(case: Case) -> dict[str, TeacherFeatures]:
    """What the case stores of each teacher, in the order of its names."""
    stored = case.group("input.teacher")
    features = {}
    for name in case.meta["teachers"]:
        if f"{name}.map" in stored:
            tokens = stored[f"{name}.map"].flatten(2).transpose(1, 2)
        elif f"{name}.tokens" in stored:
            tokens = stored[f"{name}.tokens"]
        else:
            continue
        attention = stored.get(f"{name}.attention")
        row = None if attention is None else attention.mean(1)[:, 0, 1:]
        features[name] = TeacherFeatures(tokens, grid_of(tokens), stored.get(f"{name}.cls_token"), row)
    return features


def grid_of(tokens: Tensor) -> tuple[int, int]:
    """A square where there is one; published adapters mind only the number of tokens."""
    count = tokens.shape[1]
    side = math.isqrt(count)
    return (side, side) if side**2 == count else (1, count)


def released_config(flags: Mapping[str, Any], experts: int) -> DistillConfig:
    """The released recipe with the flags of a recorded run."""
    balanced = flags["tune_encoder"] and experts > 1
    return DistillConfig.from_recipe(
        "release",
        objectives=(("weighted_mse", flags["kd_w"]),),
        anchor_share=flags["kd_memory_w"],
        balance_weight=flags["moe_encoder_balance_w"] if balanced else 0.0,
        token_weights="release" if flags["token_weight"] else "uniform",
        teacher_weights="release" if flags["teacher_weight"] else "uniform",
    )


def published_distiller(
    case: Case, student: MoVELlavaLlamaForCausalLM, features: Mapping[str, TeacherFeatures], config: DistillConfig
) -> Distiller:
    teachers = {name: SimpleNamespace(grid=f.grid, width=f.patches.shape[-1]) for name, f in features.items()}
    distiller = Distiller(student, teachers, config)
    state = {name: tensor for name, tensor in case.group("weight").items() if is_adapter(name)}
    distiller.adapters.load_state_dict(from_published_adapters(state))
    return distiller


def whole_batch(images: int) -> dict[str, Tensor]:
    """One teacher image per tile. Released runs count blanks like any picture; the recipe sees to that."""
    return {
        "tile_index": torch.arange(images),
        "weight": torch.ones(images),
        "tile_weight": torch.ones(images),
    }
