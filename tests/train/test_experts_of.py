"""Which experts a run has that goes on from a checkpoint: its own, with what flags may change."""

import json
from pathlib import Path
from typing import Any

import pytest

from llava.model.multimodal_encoder.move_kd.config import MoLEConfig
from llava.train.arguments import parse_run
from llava.train.distill_arguments import DistillArguments
from llava.train.run_config import Run
from llava.train.student import experts_of

PUBLISHED = {
    "moe_encoder": True,
    "moe_encoder_dense": False,
    "moe_encoder_lora_rank": 32,
    "moe_encoder_lora_alpha": 1,
    "moe_encoder_num_experts": 3,
}


def found(folder: Path, stored: dict[str, Any] = PUBLISHED, **flags: Any) -> dict[str, Any]:
    """For our recipe with these flags, on a checkpoint with experts, as published."""
    (folder / "config.json").write_text(json.dumps({"model_type": "move_llava_llama", "moe": stored}))
    arguments = DistillArguments(encoder_teachers=["clip"], **flags)
    mole = arguments.mole_config()
    assert mole is not None
    return experts_of(str(folder), mole.to_dict(), arguments.given_moe_keys())


def test_a_checkpoints_experts_stay_what_they_are_whatever_the_recipe(tmp_path: Path) -> None:
    assert found(tmp_path) == PUBLISHED
    assert found(tmp_path, moe_encoder_dense=False, moe_encoder_lora_rank=32, moe_init_b="zero") == PUBLISHED


def test_gate_and_dropout_may_change_where_a_flag_says_so(tmp_path: Path) -> None:
    changed = MoLEConfig.from_dict(found(tmp_path, moe_gate="top1_ste", moe_dropout=0.2))
    assert (changed.gate, changed.dropout, changed.alpha, changed.layers) == ("top1_ste", 0.2, 1, "all")
    dense = found(tmp_path, moe_encoder_dense=True)
    assert MoLEConfig.from_dict(dense).is_dense
    sparse = found(tmp_path, stored=dense, moe_encoder_dense=False)
    assert (sparse["moe_encoder_dense"], sparse["moe_gate"]) == (False, "top1_ste")


@pytest.mark.parametrize("flags", [{"moe_encoder_lora_rank": 8}, {"moe_encoder_lora_alpha": 4}, {"moe_layers": "used"}])
def test_another_form_than_the_checkpoints_is_refused(flags: dict[str, Any], tmp_path: Path) -> None:
    [name] = flags
    with pytest.raises(ValueError, match=rf"--{name} {flags[name]}\S* does not fit the experts of .*, which say"):
        found(tmp_path, **flags)


def going_on(folder: Path, flags: str) -> Run:
    """A run from a checkpoint that has experts."""
    (folder / "config.json").write_text(json.dumps({"model_type": "move_llava_llama", "moe": PUBLISHED}))
    places = ["--model_name_or_path", str(folder), "--vision_tower", "v", "--data_path", "d", "--output_dir", "o"]
    return parse_run([*places, *flags.split()])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--moe_encoder_lora_rank 32 --moe_encoder_balance_w 0.5", []),
        ("--moe_encoder False --moe_encoder_balance_w 0.5 --encoder_teachers clip eva --kd_experts own", ["stay"]),
        ("--moe_encoder_balance_w 0.5 --moe_init_a linear --moe_init_b linear", ["stay", "stay"]),
    ],
)
def test_experts_that_a_checkpoint_has_count_without_a_flag_that_asks_for_them(
    flags: str, said: list[str], tmp_path: Path
) -> None:
    run = going_on(tmp_path, f"--tune_encoder True {flags}")
    assert run.distill is not None
    assert run.distill.config.balance_weight == 0.5
    assert [line.split()[-1] for line in run.warnings if "no effect" in line] == said


def test_experts_that_nobody_mentions_stay_as_they_are(tmp_path: Path) -> None:
    run = going_on(tmp_path, "")
    assert (run.distill, run.warnings) == (None, ())
    assert "mole" not in run.stage.trainable
