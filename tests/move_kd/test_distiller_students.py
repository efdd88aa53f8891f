"""The distiller around real students: plain, in a PEFT wrapper, with a quantized language model."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.multimodal_encoder.move_kd.adapters import Shape
from llava.model.multimodal_encoder.move_kd.config import DistillConfig, MoLEConfig
from llava.model.multimodal_encoder.move_kd.distiller import Distiller
from llava.model.multimodal_encoder.move_kd.types import TeacherFeatures
from llava.train.build import build_teachers, set_precision
from llava.train.run_config import DistillRun
from llava.train.stages import PRETRAIN
from tests.tiny import NUM_PATCHES, VISION_WIDTH, save_tiny_llava, tiny_images, tiny_llava

GRID = (int(NUM_PATCHES**0.5),) * 2
TEACHERS = {"clip": Shape(GRID, VISION_WIDTH), "eva": Shape((8, 8), 6)}
MOE = MoLEConfig(rank=2).to_dict()
ZERO2, ZERO3 = ({"zero_optimization": {"stage": stage}} for stage in (2, 3))


def said(images: int) -> dict[str, TeacherFeatures]:
    attention = torch.rand(images, NUM_PATCHES).softmax(-1)
    cls = torch.randn(images, VISION_WIDTH)
    return {
        "clip": TeacherFeatures(torch.randn(images, NUM_PATCHES, VISION_WIDTH), GRID, cls, attention),
        "eva": TeacherFeatures(torch.randn(images, 64, 6), (8, 8)),
    }


def step(distiller: Distiller) -> dict[str, Any]:
    """Two samples of text, each with one picture."""
    ids = torch.randint(3, 50, (2, 6))
    ids[:, 1] = IMAGE_TOKEN_INDEX
    return distiller(
        distill={"tile_index": torch.arange(2), "weight": torch.ones(2), "tile_weight": torch.ones(2)},
        features=said(2),
        input_ids=ids,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        labels=ids,
        images=tiny_images(2),
    )


def check(distiller: Distiller) -> None:
    """A step trains experts, routers and heads, and the parts name every parameter once."""
    answer = step(distiller)
    assert set(answer["terms"]) == {"lm", "balance", "kd/clip", "kd/eva"}
    answer["loss"].backward()
    parts = distiller.parts()
    owned = dict(distiller.named_parameters())
    assert sorted(name for part in parts.values() for name in part) == sorted(owned)
    for part in ("mole", "adapters", "projector"):
        assert parts[part]
        assert all(parameter.grad is not None for parameter in parts[part].values() if parameter.requires_grad)
    routers = [parameter for name, parameter in parts["mole"].items() if "router.weight" in name]
    assert routers
    assert all(router.grad is not None and router.grad.any() for router in routers)


def test_a_plain_student_and_its_checkpointed_twin_give_equal_gradients(tmp_path: Path) -> None:
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(1)
        distiller = Distiller(tiny_llava(tmp_path, moe=MOE), TEACHERS).train()
        if checkpointed:
            distiller.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        assert distiller.is_gradient_checkpointing is checkpointed
        torch.manual_seed(2)
        check(distiller)
        gradients.append({name: p.grad for name, p in distiller.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_a_student_in_a_peft_wrapper_keeps_its_parts(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    student = tiny_llava(tmp_path, moe=MOE)
    wrapped = get_peft_model(student, LoraConfig(r=2, target_modules=r".*\.layers\.\d+\.self_attn\.[qv]_proj"))
    for name, parameter in wrapped.named_parameters():
        if ".moe_" in name or ".router." in name or "mm_projector" in name:
            parameter.requires_grad_(True)
    distiller = Distiller(wrapped, TEACHERS).train()
    check(distiller)
    parts = distiller.parts()
    assert all(name.startswith("student.base_model.model.") for name in parts["mole"])
    assert any("lora_A" in name for name in parts["language_model"])
    assert not any("lora_" in name for name in parts["mole"])


def test_a_quantized_language_model_distils_like_any_other(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from llava.model import LlavaLlamaForCausalLM
    from llava.model.quantization import quantization_config

    folder = save_tiny_llava(tmp_path, moe=MOE)
    settings = quantization_config(load_8bit=False, load_4bit=True, compute_dtype=torch.float32)
    student = LlavaLlamaForCausalLM.from_pretrained(folder, quantization_config=settings, dtype=torch.float32)
    for name, parameter in student.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(".moe_" in name or ".router." in name or "mm_projector" in name)
    check(Distiller(student, TEACHERS).train())


def test_a_student_of_another_family_distils_without_experts(tmp_path: Path) -> None:
    distiller = Distiller(tiny_llava(tmp_path, "qwen"), TEACHERS, DistillConfig()).train()
    distiller.student.requires_grad_(True)
    answer = step(distiller)
    assert set(answer["terms"]) == {"lm", "kd/clip", "kd/eva"}
    answer["loss"].backward()


@pytest.mark.parametrize(("config", "shares"), [({}, True), (ZERO2, True), (ZERO3, False)], ids=["torch", "2", "3"])
def test_a_clip_teacher_shares_a_frozen_students_weights_unless_they_are_sharded(
    config: dict[str, Any], shares: bool, tmp_path: Path
) -> None:
    """They lie where the teachers are before training starts: a teacher is asked on a blank then."""
    student = tiny_llava(tmp_path, moe=MOE)
    moved: list[Any] = []
    student.get_vision_tower().to = moved.append
    device = torch.device("cpu")
    distill = DistillRun(DistillConfig(), ("clip",), False, torch.float32, False, None)
    hf = SimpleNamespace(deepspeed=config, device=device)
    model = SimpleNamespace(dtype=torch.float32)
    run: Any = SimpleNamespace(distill=distill, stage=PRETRAIN, brings_tower=False, hf=hf, model=model)
    assert build_teachers(run, student)["clip"].shares_student is shares
    assert moved == [device] * shares


def test_a_clip_teacher_keeps_the_precision_asked_for_where_the_students_frozen_tower_loses_it(tmp_path: Path) -> None:
    """Where the language model trains in bf16 without DeepSpeed, the tower is float32 until `set_precision`."""
    student = tiny_llava(tmp_path, moe=MOE)
    distill = DistillRun(DistillConfig(), ("clip",), False, torch.float32, False, None)
    hf, model = SimpleNamespace(deepspeed=None, device=torch.device("cpu")), SimpleNamespace(dtype=torch.bfloat16)
    run: Any = SimpleNamespace(distill=distill, stage=PRETRAIN, brings_tower=False, hf=hf, model=model)
    teacher = build_teachers(run, student)["clip"]
    set_precision(student.get_vision_tower().requires_grad_(False), run)
    assert {parameter.dtype for parameter in student.get_vision_tower().parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}


def test_a_language_model_without_eyes_is_trained_as_it_is() -> None:
    class Blind(nn.Module):
        def get_vision_tower(self) -> None:
            return None

    assert not Distiller(Blind()).objectives
    with pytest.raises(ValueError, match="no vision tower"):
        Distiller(Blind(), TEACHERS)
