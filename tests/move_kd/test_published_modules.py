"""Module paths of the published code that other code imports."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llava.model.multimodal_encoder import moe_lora
from llava.model.multimodal_encoder.mixture_vision_models import init_vision_teachers
from llava.model.multimodal_encoder.move_kd.config import MoLEConfig
from llava.model.multimodal_encoder.move_kd.mole import MoLE
from tests.tiny import tiny_clip_config
from tests.tiny_teachers import make_clip, make_dinov2


def test_the_encoder_with_experts_runs_under_its_published_name() -> None:
    encoder = moe_lora.MoECLIPVisionTransformer(tiny_clip_config(), MoLEConfig(rank=2))
    wrapped = [isinstance(layer.mlp, moe_lora.MoE_LoRA_CLIP) for layer in encoder.encoder.layers]
    assert wrapped == [True, True, False]
    assert moe_lora.MoE_LoRA_CLIP is MoLE
    with torch.no_grad():
        states = encoder(torch.randn(1, 3, 28, 28), {2}, 2)
    assert states[2].shape == (1, 17, 32)


@pytest.mark.parametrize("name", ["LoRALayer", "MoECLIPEncoderLayer", "MoECLIPEncoder"])
def test_what_has_no_counterpart_says_what_took_its_place(name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"{name} does not exist here: .+"):
        getattr(moe_lora, name)(8, 8, r=2)


def test_teachers_are_built_from_a_config(tmp_path: Path) -> None:
    paths = [make_clip(tmp_path / "clip"), make_dinov2(tmp_path / "dino")]
    config = SimpleNamespace(encoder_teachers=[f"clip:path={paths[0]}", f"dinov2:path={paths[1]},size=28"])
    teachers = init_vision_teachers(config)
    assert list(teachers) == ["clip", "dinov2"]
    assert not any(parameter.requires_grad for teacher in teachers.values() for parameter in teacher.parameters())
    with pytest.raises(ValueError, match="unknown teacher 'nobody'"):
        init_vision_teachers(SimpleNamespace(encoder_teachers=["nobody"]))
