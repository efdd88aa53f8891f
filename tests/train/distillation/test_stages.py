"""MoVE-KD as a user trains it: both stages through the entry point, with every kind of teacher set and recipe."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import read_state_dict
from tests.train.distillation.conftest import Lab, assert_terms_sum_to_the_loss, rows, taught_by, terms

FOUR = ("clip", "sam", "eva", "convnext")
PARTS = {"mm_projector.bin", "mole_encoder.bin", "encoder_adapter.bin"}


def generate(folder: Path, base: Path | None = None) -> torch.Tensor:
    """Four tokens about two pictures, from a checkpoint that a run wrote."""
    name = "move-kd-lora" if base is not None and (folder / "adapter_config.json").exists() else "move-kd"
    _, model, processor, _ = load_pretrained_model(
        str(folder), None if base is None else str(base), name, device="cpu", torch_dtype="float32"
    )
    assert model.parts()["mole"]
    assert processor is not None
    ids = torch.tensor([[1, IMAGE_TOKEN_INDEX, 40, 41]] * 2)
    torch.manual_seed(3)
    return model.generate(ids, images=torch.randn(2, 3, 28, 28), do_sample=False, min_new_tokens=4, max_new_tokens=4)


def test_the_first_stage_writes_the_three_published_files(pretrained: Path) -> None:
    assert {path.name for path in pretrained.iterdir()} >= PARTS | {"config.json"}
    assert not (pretrained / "model.safetensors").exists()
    config = json.loads((pretrained / "config.json").read_text())
    assert config["moe"]["moe_encoder"]
    assert config["kd"] == {"kd_mode": True}
    experts = torch.load(pretrained / "mole_encoder.bin", weights_only=True)
    prefix = "model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp."
    assert {f"{prefix}moe_down.2.lora_A.weight", f"{prefix}moe_up.0.lora_B.bias", f"{prefix}router.weight"} <= set(
        experts
    )


def test_the_second_stage_goes_on_from_the_first_and_its_result_answers(lab: Lab, pretrained: Path) -> None:
    out = lab.finetune({"encoder_teachers": lab.specs(*FOUR), "init_from": pretrained})
    assert taught_by(out) == set(FOUR)
    assert_terms_sum_to_the_loss(out)
    state = read_state_dict(out)
    assert not [name for name in state if "adapter" in name or "statistics" in name]
    assert torch.isfinite(rows_losses(out)).all()
    assert generate(out).shape == (2, 4)
    # The result of the first stage alone answers on its base as well.
    assert generate(pretrained, lab.world.folder / "llama-tiny").shape == (2, 4)


def rows_losses(folder: Path) -> torch.Tensor:
    return torch.tensor([row["loss"] for row in rows(folder)])


def test_the_directory_and_the_three_files_start_the_second_stage_alike(lab: Lab, pretrained: Path) -> None:
    teachers = {"encoder_teachers": lab.specs(*FOUR)}
    files = {
        "pretrain_mm_mlp_adapter": pretrained / "mm_projector.bin",
        "pretrain_mole_encoder": pretrained / "mole_encoder.bin",
        "pretrain_encoder_adapter": pretrained / "encoder_adapter.bin",
    }
    first = lab.finetune(teachers, {"init_from": pretrained}, out="directory")
    second = lab.finetune(teachers, files, out="files")
    assert [terms(row) for row in rows(first)] == [terms(row) for row in rows(second)]
    fresh = lab.finetune(teachers, out="fresh")
    assert terms(rows(first)[0]) != terms(rows(fresh)[0])


@pytest.mark.parametrize("recipe", ["ours", "release"])
def test_training_goes_on_from_a_whole_model_with_its_adapters(lab: Lab, recipe: str) -> None:
    """They lie beside the weights; published checkpoints have them among the weights."""
    flags = {"encoder_teachers": lab.specs("clip", "eva"), "kd_recipe": recipe, "adapter_lr": 0.1}
    out = lab.finetune(flags)
    adapters = torch.load(out / "encoder_adapter.bin", weights_only=True)
    forms = {"beside": out, "without": shutil.copytree(out, lab.folder / "bare")}
    (forms["without"] / "encoder_adapter.bin").unlink()
    if recipe == "release":
        forms["among"] = shutil.copytree(forms["without"], lab.folder / "among")
        save_file({**read_state_dict(out), **adapters}, forms["among"] / "model.safetensors", {"format": "pt"})
    first = {}
    for name, folder in forms.items():
        first[name] = rows(lab.finetune(flags, {"model_name_or_path": folder}, out=f"again-{name}"))[0]
    assert len({row["lm"] for row in first.values()}) == 1
    assert first["beside"]["kd/eva"] != first["without"]["kd/eva"]
    assert first.get("among", first["beside"])["kd/eva"] == first["beside"]["kd/eva"]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_without_clip_the_students_own_copy_only_weighs_tokens(
    lab: Lab, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = getattr(lab, stage)({"encoder_teachers": lab.specs("eva", "convnext")})
    assert taught_by(out) == {"eva", "convnext"}
    assert_terms_sum_to_the_loss(out)
    assert 0 < rows(out)[0]["token_entropy"] < 2.773  # log 16: not uniform
    adapters = torch.load(out / "encoder_adapter.bin", weights_only=True)
    assert {name.split(".")[1] for name in adapters} == {"eva", "convnext"}
    assert "the student's own copy of its pretrained CLIP" in capsys.readouterr().out


def test_clip_alone_keeps_the_student_near_its_start(lab: Lab) -> None:
    out = lab.finetune({"encoder_teachers": ["clip"]})
    assert taught_by(out) == {"clip"}
    # Experts start at zero, so the student is its teacher.
    assert rows(out)[0]["kd/clip"] == pytest.approx(0.0, abs=1e-3)
    assert rows(out)[0]["cosine/clip"] == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize(
    ("flags", "adapters"),
    [
        ({"encoder_teachers": ["clip"], "kd_recipe": "release"}, set()),
        ({"kd_heads": "interpolate"}, {"adapters.clip.statistics", "adapters.eva.statistics"}),
    ],
    ids=["clip alone", "interpolate"],
)
def test_alignments_without_parameters_are_handed_on_with_their_statistics(
    lab: Lab, flags: dict[str, Any], adapters: set[str]
) -> None:
    first = lab.pretrain({"encoder_teachers": lab.specs("clip", "eva")}, flags)
    written = torch.load(first / "encoder_adapter.bin", weights_only=True)
    assert {name.rpartition(".")[0] for name in written} == adapters
    files = {"pretrain_mm_mlp_adapter": first / "mm_projector.bin", "pretrain_mole_encoder": first / "mole_encoder.bin"}
    files["pretrain_encoder_adapter"] = first / "encoder_adapter.bin"
    second = lab.finetune({"encoder_teachers": lab.specs("clip", "eva")}, flags, files)
    after = torch.load(second / "encoder_adapter.bin", weights_only=True)
    counts = [name for name in written if name.endswith("count")]
    assert all(after[name] > written[name] for name in counts)


def test_ten_teachers_some_of_one_family_teach_together(lab: Lab) -> None:
    names = ["eva", "convnext", "sam", "pix2struct", "dinov2", "dinov3", "siglip2", "radio"]
    second = lab.teachers["dinov2_registers"] + ",name=registers"
    out = lab.finetune({"encoder_teachers": [*lab.specs("clip", *names), second]})
    assert taught_by(out) == {"clip", *names, "registers"}
    assert_terms_sum_to_the_loss(out)
    shares = [value for name, value in rows(out)[0].items() if name.startswith("weight/")]
    assert len(shares) == 10
    assert sum(shares) == pytest.approx(1.0, abs=1e-5)


def test_any_backbone_of_transformers_teaches(lab: Lab) -> None:
    folder = lab.teachers["dinov2"].split("path=")[1]
    out = lab.finetune({"encoder_teachers": ["clip", f"hf:{folder},mean=imagenet,size=28,name=any"]})
    assert taught_by(out) == {"clip", "any"}


@pytest.mark.parametrize("recipe", ["release", "paper", "ours"])
@pytest.mark.parametrize("names", [("clip", "eva", "sam"), ("eva", "sam")], ids=["clip", "no clip"])
def test_every_recipe_runs_both_stages(lab: Lab, recipe: str, names: tuple[str, ...]) -> None:
    flags = {"encoder_teachers": lab.specs(*names), "kd_recipe": recipe}
    first = lab.pretrain(flags)
    out = lab.finetune(flags, {"init_from": first})
    assert taught_by(out) == set(names)
    assert_terms_sum_to_the_loss(out)
    adapters = torch.load(out / "encoder_adapter.bin", weights_only=True)
    published = {"eva_adapter_1.weight", "sam_adapter_2.bias"} <= set(adapters)
    assert published == (recipe != "ours")
    assert generate(out).shape == (2, 4)


def test_the_flag_that_was_on_by_default_is_plain_llava_without_teachers(lab: Lab) -> None:
    """`--kd` was True wherever nobody said otherwise; its companions change nothing either."""
    plain = lab.finetune({"tune_encoder": False, "tune_encoder_adapter": False}, out="plain")
    flags = {"kd": True, "kd_w": 0.5, "kd_memory_w": 0.8, "token_weight": True, "teacher_weight": True}
    out = lab.finetune(flags, {"tune_encoder": False, "tune_encoder_adapter": False})
    assert [terms(row) for row in rows(out)] == [terms(row) for row in rows(plain)]
    assert terms(rows(out)[0]).keys() == {"lm"}
    config = json.loads((out / "config.json").read_text())
    assert "moe" not in config
