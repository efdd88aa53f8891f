"""Every part of the method can be switched by itself, and no switch does nothing."""

from pathlib import Path
from typing import Any

import pytest

from llava.model.multimodal_encoder.move_kd import objectives
from llava.model.multimodal_encoder.move_kd.plugins import plugin_names
from llava.train.distill_arguments import DISTILL_ITEMS, MOLE_ITEMS
from tests.train.distillation.conftest import FINETUNE, Lab, assert_terms_sum_to_the_loss, rows

# Against our recipe with clip, eva (twice as fine as the student), dinov2 and a second clip. Where a switch needs
# others, they come first.
SWITCHES: list[dict[str, Any]] = [
    {"kd_w": 1.0},
    {"kd_memory_w": 0.5},
    {"kd_clip_share": 0.5},
    {"kd_objectives": ["weighted_mse=2"]},
    {"kd_heads": "teacher"},
    {"kd_heads": "interpolate"},
    {"kd_grid": "pool"},
    {"kd_standardize": False},
    {"kd_statistics_steps": 1},
    {"kd_token_weights": "uniform"},
    {"kd_token_weights": "attention"},
    {"kd_token_weights": "release"},
    {"kd_anchor": "sibling"},
    {"moe_encoder_num_experts": 4, "kd_experts": "own"},
    {"kd_heads": "teacher", "kd_teacher_weights": "similarity"},
    {"kd_heads": "teacher", "kd_teacher_weights": "release"},
    {"kd_balance": "pooled"},
    {"data_path": "chats", "kd_blank_weight": 1.0},
    {"kd_recipe": "ours", "token_weight": False},
    {"kd_recipe": "release", "teacher_weight": False},
    {"tune_all": False, "tune_encoder": False, "moe_encoder": False},
    {"moe_encoder_dense": True},
    {"moe_encoder_balance_w": 0.5},
    {"moe_encoder_num_experts": 1},
    {"moe_encoder_num_experts": 2},
    {"moe_encoder_lora_rank": 2},
    {"moe_encoder_lora_alpha": 1},
    {"moe_init_b": "kaiming", "moe_gate": "top1"},
    {"moe_gate": "top1_prob"},
    {"moe_gate": "soft"},
    {"moe_gate": "dense"},
    {"moe_init_a": "linear"},
    {"moe_init_b": "kaiming"},
    {"moe_init_b": "linear"},
    {"moe_dropout": 0.5},
    {"kd_balance": "pooled", "moe_layers": "all"},
    {"teacher_dtype": "bf16"},
    {"tune_all": False, "tune_encoder": False},
    {"tune_all": False, "tune_encoder_adapter": False},
    {"mole_lr": 0.0},
    {"adapter_lr": 0.0},
    {"moe_encoder": True, "kd": False},
]


def named(switch: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in switch.items())


@pytest.fixture(scope="module")
def losses_without(world: Any, teachers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Losses of our recipe by itself, or with some of the flags, each computed once."""
    known: dict[str, list[float]] = {}

    def losses(**flags: Any) -> list[float]:
        key = named(flags)
        if key not in known:
            with pytest.MonkeyPatch.context() as patch:
                lab = Lab(world, teachers, tmp_path_factory.mktemp("base"), patch)
                known[key] = [row["loss"] for row in rows(train(lab, flags))]
        return known[key]

    return losses


def train(lab: Lab, switch: dict[str, Any]) -> Path:
    fine = lab.teachers["eva"].replace("size=64", "size=128")
    sibling = f"clip:path={lab.world.folder / 'clip-tiny'},name=sibling,layer=1"
    specs = ["clip", fine, lab.teachers["dinov2"], sibling]
    data = lab.data(switch.get("data_path", "captions"))
    return lab.finetune({"encoder_teachers": specs, "learning_rate": 1e-2}, switch, {"data_path": data})


@pytest.mark.parametrize("switch", SWITCHES, ids=named)
def test_a_switch_trains_and_changes_the_training(switch: dict[str, Any], lab: Lab, losses_without: Any) -> None:
    out = train(lab, switch)
    assert_terms_sum_to_the_loss(out)
    *needed, _tested = switch
    assert [row["loss"] for row in rows(out)] != losses_without(**{name: switch[name] for name in needed})


@pytest.mark.parametrize("name", plugin_names(objectives.__name__))
def test_every_objective_can_be_asked_for(name: str, lab: Lab) -> None:
    label = "balance" if name == "router_balance" else None
    flags = {"kd_objectives": [f"{name}=0.5"], "moe_encoder_balance_w": 0.0}
    out = train(lab, flags)
    found = [key for key in rows(out)[0] if key == label or "/" in key]
    assert label in found if label else found


def test_every_flag_of_the_method_is_among_the_switches() -> None:
    tried = {name for switch in SWITCHES for name in switch}
    assert {*DISTILL_ITEMS, *MOLE_ITEMS} <= tried
    assert "tune_encoder" in FINETUNE
