"""What trains in which stage, and with which learning rate."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from llava.train.optimizer import decayed_names, parameter_groups
from llava.train.stages import (
    FINETUNE,
    PARTS,
    PRETRAIN,
    Stage,
    StageFlags,
    apply_stage,
    select_stage,
    trainable_report,
    trained_parts,
)

ADAPTERS = {"adapters"}


def _parts() -> dict[str, dict[str, nn.Parameter]]:
    names = {
        "projector": ["model.mm_projector.0.weight", "model.mm_projector.0.bias"],
        "mole": ["model.vision_tower.layers.0.mlp.moe_down.reduce_weight"],
        "vision_tower": ["model.vision_tower.layers.0.mlp.fc1.weight", "model.vision_tower.layers.1.mlp.fc1.weight"],
        "language_model": [
            "model.embed_tokens.weight",
            "model.layers.0.q_proj.base_layer.weight",
            "model.layers.0.q_proj.base_layer.bias",
            "model.layers.0.q_proj.lora_A.default.weight",
            "model.layers.0.norm.bias",
            "lm_head.weight",
        ],
        "adapters": ["adapters.eva.hidden.weight"],
    }
    return {part: {name: nn.Parameter(torch.zeros(2)) for name in listed} for part, listed in names.items()}


def _trained(parts: dict[str, dict[str, nn.Parameter]]) -> set[str]:
    return {name for named in trained_parts(parts).values() for name in named}


RULES: list[tuple[dict[str, Any], set[str]]] = [
    ({}, {"projector", "language_model"}),
    ({"tune_mm_mlp_adapter": True}, {"projector"}),
    ({"tune_mm_vision_resampler": True}, {"projector"}),
    ({"tune_mm_mlp_adapter": True, "tune_encoder": True}, {"projector", "mole"}),
    ({"tune_mm_mlp_adapter": True, "unfreeze_language_model": True}, {"projector", "language_model"}),
    ({"unfreeze_mm_vision_tower": True}, {"projector", "language_model", "vision_tower"}),
    ({"freeze_backbone": True}, {"projector"}),
    ({"freeze_mm_mlp_adapter": True}, {"language_model"}),
    ({"freeze_mm_mlp_adapter": True, "tune_all": True}, {"mole", "vision_tower", "language_model"}),
    ({"tune_all": True}, {"projector", "mole", "vision_tower", "language_model"}),
    ({"mm_tunable_parts": "mm_mlp_adapter"}, {"projector"}),
    ({"mm_tunable_parts": " mm_mlp_adapter , mm_vision_tower"}, {"projector", "vision_tower"}),
    ({"mm_tunable_parts": "mm_language_model", "tune_mm_mlp_adapter": True}, {"language_model"}),
    ({"mm_tunable_parts": "mm_mlp_adapter", "freeze_mm_mlp_adapter": True}, {"projector"}),
    ({"mm_tunable_parts": "mm_mlp_adapter", "lora_enable": True}, {"projector", "language_model"}),
    ({"lora_enable": True}, {"projector", "language_model"}),
    ({"lora_enable": True, "tune_mm_mlp_adapter": True}, {"projector"}),
]


@pytest.mark.parametrize(("flags", "expected"), RULES, ids=[" ".join(flags) for flags, _ in RULES])
def test_flags_choose_exactly_these_parts(flags: dict[str, Any], expected: set[str]) -> None:
    assert select_stage(StageFlags(**flags)).trainable == expected | ADAPTERS


def test_adapters_train_unless_they_are_told_not_to() -> None:
    assert "adapters" in select_stage(StageFlags(tune_encoder_adapter=None)).trainable
    assert "adapters" not in select_stage(StageFlags(tune_encoder_adapter=False)).trainable


def test_a_language_model_by_itself_has_no_other_part() -> None:
    assert select_stage(StageFlags(vision_tower=None)).trainable == {"language_model"}


def test_a_run_that_would_train_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="freeze the whole student"):
        select_stage(StageFlags(vision_tower=None, freeze_backbone=True))


def test_pretrain_stage_trains_exactly_experts_adapters_and_projector() -> None:
    parts = _parts()
    apply_stage(parts, PRETRAIN)
    assert _trained(parts) == {*parts["mole"], *parts["adapters"], *parts["projector"]}


def test_finetune_stage_trains_everything_that_is_reached() -> None:
    parts = _parts()
    unused = frozenset({"model.vision_tower.layers.1.mlp.fc1.weight"})
    apply_stage(parts, FINETUNE, unused)
    assert _trained(parts) == {name for named in parts.values() for name in named} - unused


@pytest.mark.parametrize(
    ("bias", "biases"),
    [
        ("none", set()),
        ("lora_only", {"model.layers.0.q_proj.base_layer.bias"}),
        ("all", {"model.layers.0.q_proj.base_layer.bias", "model.layers.0.norm.bias"}),
    ],
)
def test_with_lora_only_the_matrices_of_the_language_model_train(bias: str, biases: set[str]) -> None:
    parts = _parts()
    apply_stage(parts, Stage("finetune", frozenset({"language_model"}), lora=True, lora_bias=bias))
    assert _trained(parts) == {"model.layers.0.q_proj.lora_A.default.weight"} | biases


def test_experts_are_not_taken_for_lora_of_the_language_model() -> None:
    parts = {"mole": {"layers.0.mlp.moe_down.lora_A": nn.Parameter(torch.zeros(1))}, "language_model": {}}
    apply_stage(parts, Stage("finetune", frozenset({"language_model"}), lora=True))
    assert not _trained(parts)


def test_embeddings_of_new_tokens_train_with_the_projector() -> None:
    stage = select_stage(StageFlags(tune_mm_mlp_adapter=True, mm_use_im_start_end=True))
    parts = _parts()
    apply_stage(parts, stage)
    assert _trained(parts["language_model"] and {"language_model": parts["language_model"]}) == {
        "model.embed_tokens.weight"
    }


def test_a_quantized_part_cannot_train() -> None:
    parts = {"language_model": {"q_proj.weight": nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)}}
    with pytest.raises(ValueError, match="lora_enable"):
        apply_stage(parts, FINETUNE)


def test_the_report_counts_every_part() -> None:
    parts = _parts()
    apply_stage(parts, PRETRAIN)
    lines = trainable_report(parts, dict.fromkeys(PARTS, 1e-3))
    assert [line.split()[0] for line in lines[1:]] == [*parts, "total"]
    assert lines[1].split() == ["projector", "4", "4", "2", "0.001"]
    assert lines[4].split() == ["language_model", "0", "12", "0", "frozen"]


@dataclass
class _Model:
    module: nn.Module
    parts: dict[str, dict[str, nn.Parameter]]


def _small_model() -> _Model:
    module = nn.ModuleDict({"mm_projector": nn.Linear(2, 2), "norm": nn.LayerNorm(2), "head": nn.Linear(2, 2)})
    named = dict(module.named_parameters())
    projector = {name: value for name, value in named.items() if name.startswith("mm_projector")}
    rest = {name: value for name, value in named.items() if name not in projector}
    return _Model(module, {"projector": projector, "language_model": rest})


def test_biases_and_norms_do_not_decay() -> None:
    assert decayed_names(_small_model().module) == {"mm_projector.weight", "head.weight"}


def test_groups_hold_every_trainable_parameter_once_and_none_is_empty() -> None:
    model = _small_model()
    model.module["head"].requires_grad_(False)
    groups = parameter_groups(model.module, model.parts, {"projector": 2e-5, "language_model": 1e-3}, 1e-3, 0.1)
    assert [(group["lr"], group["weight_decay"], len(group["params"])) for group in groups] == [
        (1e-3, 0.0, 2),
        (2e-5, 0.1, 1),
        (2e-5, 0.0, 1),
    ]
