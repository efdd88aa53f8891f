"""Going on from what others wrote: LoRA beside experts, published checkpoints, cached teachers, interrupted runs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import read_state_dict
from llava.train.cache_teachers import cache_teachers
from tests.parity.vectors import Case, cases
from tests.tiny import tiny_tokenizer_folder
from tests.train.distillation.conftest import FINETUNE, PRETRAIN, SETTINGS, Lab, rows, taught_by, terms
from tests.train.distillation.test_stages import FOUR, generate
from tests.train.runs import RUN_FLAGS, command_line

LORA = {"tune_all": False, "finetune": False, "lora_enable": True, "lora_r": 4, "lora_alpha": 8, "learning_rate": 1e-2}


def experts(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By published names, wherever they lie."""
    return {
        name[name.index("layers.") :]: value for name, value in state.items() if ".moe_" in name or ".router" in name
    }


@pytest.mark.parametrize("bits", [16, 4, 8])
def test_lora_on_the_language_model_keeps_the_experts(bits: int, lab: Lab, pretrained: Path) -> None:
    """Published runs lost them: `lora_A` is part of both names."""
    flags = {"encoder_teachers": lab.specs(*FOUR), "init_from": pretrained, "bits": bits}
    out = lab.finetune(flags, LORA)
    before = experts(torch.load(pretrained / "mole_encoder.bin", weights_only=True))
    after = experts(torch.load(out / "non_lora_trainables.bin", weights_only=True))
    assert after.keys() == before.keys()
    assert any(not torch.equal(after[name].float(), before[name].float()) for name in before)
    adapter = load_file(out / "adapter_model.safetensors")
    assert all(".self_attn." in name or ".mlp." in name for name in adapter)
    assert not experts(adapter)
    assert (out / "encoder_adapter.bin").exists()
    assert generate(out, lab.world.folder / "llama-tiny").shape == (2, 4)


def test_lora_with_experts_resumes_exactly(lab: Lab, pretrained: Path) -> None:
    flags = {"encoder_teachers": lab.specs("clip", "eva"), "init_from": pretrained, "lora_dropout": 0.3}
    saving = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = lab.finetune(flags, LORA, saving, out="whole")
    (lab.folder / "broken").mkdir()
    shutil.copytree(whole / "checkpoint-2", lab.folder / "broken" / "checkpoint-2")
    broken = lab.finetune(flags, LORA, saving, out="broken")
    assert [terms(row) for row in rows(broken)] == [terms(row) for row in rows(whole)]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_checkpoint_holds_everything_that_trains(stage: str, lab: Lab) -> None:
    saving = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2}
    flags = {"encoder_teachers": lab.specs("clip", "eva"), **saving}
    out = getattr(lab, stage)(flags)
    checkpoint = out / "checkpoint-2"
    state = set(load_file(checkpoint / "trained_state.safetensors"))
    for part in ("mm_projector.0.weight", "moe_down.reduce_weight", "router.weight", "adapters.eva.output.weight"):
        assert any(name.endswith(part) for name in state), part
    assert {"adapters.clip.statistics.mean", "adapters.eva.statistics.count"} <= state
    names = {path.name for path in checkpoint.iterdir()}
    assert names >= {"optimizer.pt", "scheduler.pt", "rng_state.pth", "complete.json", "encoder_adapter.bin"}
    assert ("model.safetensors" in names) == (stage == "finetune")
    # And it goes on as if nothing had happened.
    broken = lab.folder / "broken"
    shutil.copytree(checkpoint, broken / "checkpoint-2")
    getattr(lab, stage)(flags, out="broken")
    assert [terms(row) for row in rows(broken)] == [terms(row) for row in rows(out)]
    for name in ("mm_projector.bin", "encoder_adapter.bin"):
        first, second = (torch.load(folder / name, weights_only=True) for folder in (out, broken))
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_teachers_in_another_order_do_not_take_over_a_run(lab: Lab) -> None:
    """The optimizer's state goes by index, and these two have equal sizes."""
    saving = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    one, two = (f"{lab.teachers['eva']},name={name}" for name in ("one", "two"))
    lab.pretrain({"encoder_teachers": ["clip", one, two]}, saving)
    with pytest.raises(ValueError, match="or teachers in another order"):
        lab.pretrain({"encoder_teachers": ["clip", two, one]}, saving, {"max_steps": 2})


PUBLISHED = [
    case for case in cases("H_end_to_end") if "train" in case.meta and (case.path.parent / "checkpoint").exists()
]


def test_there_is_a_published_model_to_go_on_from() -> None:
    assert PUBLISHED


@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_a_published_model_is_finetuned_further(case: Case, lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    source = lab.folder / "published"
    shutil.copytree(case.path.parent / "checkpoint", source)
    config = json.loads((source / "config.json").read_text())
    config["mm_vision_tower"] = str(case.path.parent / "clip")
    (source / "config.json").write_text(json.dumps(config))
    tiny_tokenizer_folder(source)
    flags = {
        "model_name_or_path": source,
        "vision_tower": case.path.parent / "clip",
        "encoder_teachers": lab.specs("clip", "eva", "convnext"),
        "moe_encoder_num_experts": config["moe"]["moe_encoder_num_experts"],
        "moe_encoder_dense": config["moe"]["moe_encoder_dense"],
        "mm_projector_type": config["mm_projector_type"],
        "kd_recipe": "release",
    }
    out = lab.finetune(flags)
    assert taught_by(out) == {"clip", "eva", "convnext"}
    # Its own adapters were made for teachers of other sizes.
    assert "adapters are of another form" in caplog.text
    before, after = read_state_dict(source), read_state_dict(out)
    assert {name for name in before if "_adapter_" not in name} == set(after)
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items() if ".moe_" in name)
    _, model, _, _ = load_pretrained_model(str(out), None, "move-kd", device="cpu", torch_dtype="float32")
    ids = torch.tensor([[1, -200, 40]])
    assert model.generate(ids, images=torch.randn(1, 3, 42, 42), min_new_tokens=3, max_new_tokens=3).shape == (1, 3)


@pytest.mark.parametrize("stage", [PRETRAIN, FINETUNE], ids=["pretrain", "finetune"])
def test_cached_teachers_give_the_losses_of_live_ones(stage: dict[str, Any], lab: Lab) -> None:
    live = {"encoder_teachers": lab.specs("eva", "sam", "convnext"), "data_path": lab.data("chats")}
    live |= {"version": "v1", "kd_recipe": "release", "image_aspect_ratio": "pad"}
    stored = {**live, "teacher_cache": lab.folder / "cache"}
    where = {"output_dir": lab.folder / "unused"}
    groups = (lab.world.model_flags, RUN_FLAGS, stage, SETTINGS, stored, where)
    cache_teachers([*command_line(*groups), "--num_workers", "0"])
    run = lab.pretrain if stage is PRETRAIN else lab.finetune
    assert [terms(row) for row in rows(run(live, out="live"))] == [
        terms(row) for row in rows(run(stored, out="stored"))
    ]
