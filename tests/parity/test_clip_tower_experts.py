"""Topic B: the vision tower with experts: hidden states, attention, routing, balance and gradients, as published."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import CLIPVisionConfig

from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.move_kd.mole import record_routing
from llava.model.multimodal_encoder.move_kd.objectives.router_balance import pooled
from llava.model.multimodal_encoder.move_kd.student import stack_published_experts, unstack_experts
from tests.parity.vectors import Case, cases

PREFIX = "model.vision_tower."


def published_tower(case: Case, folder: Path) -> CLIPVisionTower:
    CLIPVisionConfig(**case.meta["vision_config"]).save_pretrained(folder)
    settings = SimpleNamespace(
        mm_vision_select_layer=case.meta["select_layer"],
        mm_vision_select_feature=case.meta["select_feature"],
        moe=case.meta["moe"],
    )
    tower = CLIPVisionTower(str(folder), settings, delay_load=True)
    state = {name.removeprefix(PREFIX): tensor for name, tensor in case.group("weight").items()}
    tower.load_state_dict(stack_published_experts(state))
    return tower.eval()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", cases("B_clip_tower"), ids=str)
def test_every_hidden_state_and_route_is_the_published_one(case: Case, tmp_path: Path) -> None:
    tower = published_tower(case, tmp_path)
    layers = case.meta["vision_config"]["num_hidden_layers"]
    with torch.no_grad(), record_routing([tower]) as routing:
        states = tower.vision_tower.vision_model(
            case.tensors["input.pixel_values"], keep=set(range(layers + 1)), num_layers=layers
        )
    for index in range(layers + 1):
        close(states[index], case.tensors[f"expected.hidden_states.{index}"])
    assert len(routing) == layers
    for index, layer in enumerate(routing):
        close(layer.probs, case.tensors[f"expected.routing_probs.{index}"])
        chosen = case.tensors[f"expected.expert_choice.{index}"].argmax(-1)
        assert torch.equal(layer.choice, chosen)


@pytest.mark.parametrize("case", cases("B_clip_tower"), ids=str)
def test_features_and_class_attention_are_the_published_ones(case: Case, tmp_path: Path) -> None:
    tower = published_tower(case, tmp_path)
    with torch.no_grad():
        vision = tower.encode(case.tensors["input.pixel_values"], with_cls_attention=True)
    close(vision.features, case.tensors["expected.features"])
    assert tower.num_patches == case.meta["num_patches"]
    assert tower.num_patches_per_side == case.meta["num_patches_per_side"]
    layers = case.meta["vision_config"]["num_hidden_layers"]
    block = (case.meta["select_layer"] + layers) % (layers + 1)  # the block that made the selected hidden state
    row = case.tensors[f"expected.attentions.{block}"].mean(1)[:, 0, 1:]
    assert vision.cls_attention is not None
    close(vision.cls_attention, row)


@pytest.mark.parametrize("case", cases("B_clip_tower"), ids=str)
def test_balance_and_gradients_are_the_published_ones(case: Case, tmp_path: Path) -> None:
    if case.meta["balance_loss"] is None:
        pytest.skip("this case records no gradients")
    tower = published_tower(case, tmp_path)
    vision = tower.encode(case.tensors["input.pixel_values"])
    balance = pooled(vision.routing, torch.ones(len(vision.patches)))
    assert balance.item() == pytest.approx(case.meta["balance_loss"], rel=1e-5)
    ((vision.features * case.tensors["input.proj"]).sum() + balance).backward()
    found = {PREFIX + name: p.grad for name, p in tower.named_parameters() if p.grad is not None}
    found = unstack_experts(found)
    for name, gradient in case.group("expected.grad").items():
        allowed = 1e-3 * gradient.abs().max().item() + 1e-8
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-3, atol=allowed, msg=lambda text, n=name: f"{n}: {text}"
        )
    for name in case.meta["grad_is_none"]:
        assert name not in found or not found[name].any(), name
