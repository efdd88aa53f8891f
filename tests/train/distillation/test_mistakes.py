"""What cannot work is refused before the first batch, in words that say what to do."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.train.llava_trainer import LLaVATrainer
from tests.tiny import tiny_siglip_folder
from tests.train.distillation.conftest import Lab, rows, taught_by


@pytest.fixture
def lab_without_batches(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(LLaVATrainer, "compute_loss", lambda *_, **__: pytest.fail("reached the first batch"))
    return lab


def with_teachers(*specs: str, **flags: Any) -> dict[str, Any]:
    return {"encoder_teachers": list(specs), **flags}


CROP_SPLIT = {"image_aspect_ratio": "crop_split", "image_crop_resolution": 56, "image_split_resolution": 28}

MISTAKES: list[tuple[dict[str, Any], str]] = [
    (with_teachers("clip", "evo"), r"unknown teacher 'evo'; there are: clip, .*sam"),
    (with_teachers("clip", "clip"), "two teachers are called 'clip'; give one of them name="),
    (with_teachers("clip", "eva:path=/nowhere/eva.pth"), "'eva'.*there is no file or folder /nowhere/eva.pth"),
    (with_teachers("clip", "sam:size"), "'sam'.*|/size"),
    (with_teachers("clip", "clip:name=two,colour=red"), "takes no colour; accepted: path, name"),
    (with_teachers("clip", kd_anchor="nobody"), "unknown teacher 'nobody'"),
    (with_teachers("clip", kd_objectives=["huge=1"]), "unknown objective 'huge'; there are: .*weighted_mse"),
    (with_teachers("clip", kd_objectives=["weighted_mse=x"]), "expected NAME=WEIGHT"),
    (with_teachers("clip", kd_objectives=["weighted_mse=1"], kd_w=2), "drop it"),
    (with_teachers("clip", kd_teacher_weights="similarity"), "heads='teacher'"),
    (with_teachers("clip", kd_memory_w=0.1, kd_clip_share=0.2), "same share"),
    (with_teachers("clip", kd_memory_w=1.5), "from 0.0 to 1.0"),
    (with_teachers("clip", moe_encoder_num_experts=0), "number of experts is 0"),
    (with_teachers("clip", moe_encoder_lora_rank=-1), "rank of the experts is -1"),
    (with_teachers("clip", moe_dropout=2), "dropout of the experts is 2"),
    (with_teachers("clip", moe_init_a="zero", moe_init_b="zero"), "no expert would ever learn"),
    (with_teachers("clip", moe_encoder_dense=True, moe_gate="top1"), "contradict each other"),
    (with_teachers("clip", token_weight=True, kd_token_weights="uniform"), "contradict each other"),
    (with_teachers("clip", moe_encoder=False), "--tune_encoder True trains experts.*--moe_encoder True"),
    ({}, "--tune_encoder True trains experts.*--moe_encoder True"),
    (with_teachers("clip", shard_teachers=True), "add --deepspeed"),
    (with_teachers("clip", "sam:chunk=4", shard_teachers=True), "chunk= of sam"),
    (with_teachers("clip", teacher_dtype="int8"), "bf16, fp16 or fp32"),
    (with_teachers("clip", teacher_cache="/nowhere"), "no teacher cache /nowhere; write it with"),
    (with_teachers("clip", **CROP_SPLIT), "teachers cannot be shown these tiles"),
    (with_teachers("clip", pretrain_mole_encoder="/nowhere.bin"), "no such stage-1 file"),
    (with_teachers("clip", pretrain_encoder_adapter="/nowhere.bin"), "no such stage-1 file"),
]


@pytest.mark.parametrize(("flags", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_a_mistake_is_refused(flags: dict[str, Any], message: str, lab_without_batches: Lab) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        lab_without_batches.finetune(flags)


def test_an_anchor_without_class_attention_is_refused(lab_without_batches: Lab) -> None:
    """Neither eva, which has no class token, nor dinov2, which gives no attention, can weigh tokens."""
    specs = lab_without_batches.specs("clip", "eva", "dinov2")
    for anchor in ("eva", "dinov2"):
        with pytest.raises(ValueError, match=f"cls_attention of teacher '{anchor}'.*'uniform'"):
            lab_without_batches.finetune(with_teachers(*specs, kd_anchor=anchor))


def test_a_siglip_student_says_what_it_lacks(lab: Lab) -> None:
    tower = {"vision_tower": tiny_siglip_folder(lab.folder)}
    eva, clip = lab.specs("eva", "clip_vision")
    no_experts = {"moe_encoder": False, "tune_encoder": False}
    with pytest.raises(ValueError, match=r"this one is SigLIP\. --moe_encoder False"):
        lab.finetune(with_teachers(eva), tower)
    with pytest.raises(ValueError, match=r"clip:path=DIR, or set --kd_token_weights uniform"):
        lab.finetune(with_teachers(eva), tower, no_experts)
    out = lab.finetune(with_teachers(eva, kd_token_weights="uniform"), tower, no_experts, out="uniform")
    assert taught_by(out) == {"eva"}
    out = lab.finetune(with_teachers(eva, clip), tower, no_experts, out="named")
    assert taught_by(out) == {"clip", "eva"}


def test_a_class_token_of_another_width_is_refused(lab_without_batches: Lab, world: Any) -> None:
    from tests.tiny import tiny_clip_folder

    tower = tiny_clip_folder(lab_without_batches.folder, hidden_size=64, intermediate_size=64)
    flags = with_teachers(*lab_without_batches.specs("clip_vision", "eva"), kd_recipe="paper")
    with pytest.raises(ValueError, match=r"class token of 'clip', 32 wide.*64 wide"):
        lab_without_batches.finetune(flags, {"vision_tower": tower})


def test_options_that_need_teachers_are_warned_about(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.finetune({"tune_encoder": False, "teacher_cache": "/nowhere"})
    printed = capsys.readouterr().out
    for name in ("tune_encoder_adapter", "teacher_cache"):
        assert f"--{name} has no effect: no teacher is named" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"moe_encoder_lora_rank": 8}, r"of the wrong shape .*\(3, 4.*the model has \(3, 8"),
        ({"moe_encoder_num_experts": 2}, r"of the wrong shape .*the model has \(2,"),
        ({"moe_layers": "all"}, r"tensors missing .*layers\.2\.mlp"),
        ({"moe_encoder": False, "tune_encoder": False}, r"not known .*mlp\.(router|moe)"),
        ({"kd_heads": "teacher"}, r"encoder_adapter.bin does not fit .*adapters\.\w+\.channels"),
    ],
    ids=["rank", "experts", "layers", "no experts", "heads"],
)
def test_stage_one_files_of_another_form_are_refused(
    flags: dict[str, Any], message: str, lab_without_batches: Lab, pretrained: Path
) -> None:
    teachers = with_teachers(*lab_without_batches.specs("clip", "sam", "eva", "convnext"))
    with pytest.raises(ValueError, match=message):
        lab_without_batches.finetune(teachers, {"init_from": pretrained}, flags)


def test_a_damaged_stage_one_file_is_refused(lab_without_batches: Lab, pretrained: Path) -> None:
    teachers = with_teachers(*lab_without_batches.specs("clip", "sam", "eva", "convnext"))
    for name, change in (("mole_encoder.bin", "router.weight"), ("encoder_adapter.bin", "eva.norm.weight")):
        folder = shutil.copytree(pretrained, lab_without_batches.folder / name)
        state = torch.load(folder / name, weights_only=True)
        torch.save({key: value for key, value in state.items() if not key.endswith(change)}, folder / name)
        with pytest.raises(ValueError, match=rf"{name} does not fit .*missing .*{change}"):
            lab_without_batches.finetune(teachers, {"init_from": folder})
        (folder / name).write_bytes((pretrained / name).read_bytes()[:-100])
        with pytest.raises(ValueError, match=name):
            lab_without_batches.finetune(teachers, {"init_from": folder})


def test_adapters_of_other_teachers_are_left_out_and_named(
    lab: Lab, pretrained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The file knows clip, sam, eva and convnext; the run has dinov2 instead of sam and convnext."""
    flags = with_teachers(*lab.specs("clip", "eva", "dinov2"), init_from=pretrained)
    out = lab.finetune(flags)
    assert "adapters of convnext, sam are left out" in caplog.text
    assert "no adapters of dinov2; theirs start anew" in caplog.text
    fresh = lab.finetune({**flags, "init_from": pretrained / "mm_projector.bin"}, out="fresh")
    assert rows(out)[0]["kd/eva"] < rows(fresh)[0]["kd/eva"]
