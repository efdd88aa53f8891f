"""The file that travels with the weights against our own experts: the same numbers, forward and backward."""

import ast
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPMLP

from llava.export.modeling_clip_mole import (
    ClipMoleExperts,
    ClipMoleMLP,
    ClipMoleVisionConfig,
    ClipMoleVisionModel,
    gate_of,
)
from llava.export.native import SHIPPED
from llava.model.multimodal_encoder.move_kd.config import Gate, Layers, MoLEConfig
from llava.model.multimodal_encoder.move_kd.mole import GATES, MoLE
from llava.model.multimodal_encoder.move_kd.student import install_experts
from llava.model.multimodal_encoder.vision_transformer import VisionTransformer
from tests.tiny import tiny_clip_config

GATE_NAMES = get_args(Gate)


def shipped_config(mole: MoLEConfig, vision: CLIPVisionConfig, num_expert_layers: int = 0) -> ClipMoleVisionConfig:
    settings = vision.to_dict()
    settings.pop("model_type")
    return ClipMoleVisionConfig(
        **settings,
        num_experts=mole.experts,
        expert_rank=mole.rank,
        expert_scale=mole.scale,
        expert_gate=mole.gate,
        expert_dropout=mole.dropout,
        num_expert_layers=num_expert_layers,
    )


def randomize(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)


def run(module: torch.nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The output and every gradient of its weighted sum, the input's too."""
    x = x.clone().requires_grad_()
    output = module(x)
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    gradients = {name: value.grad for name, value in module.named_parameters() if value.grad is not None}
    return output, gradients | {"x": x.grad}  # type: ignore[return-value,dict-item]


@pytest.mark.parametrize("gate", GATE_NAMES)
def test_gates_are_the_same_function(gate: str) -> None:
    logits = torch.randn(2, 5, 3, requires_grad=True)
    probs = logits.softmax(-1)
    ours = GATES[gate](probs, probs.argmax(-1))
    torch.testing.assert_close(gate_of(gate, probs), ours, rtol=0, atol=0)


@pytest.mark.parametrize("gate", GATE_NAMES)
@pytest.mark.parametrize("experts", [1, 4])
def test_an_expert_mlp_gives_our_numbers_and_gradients(gate: Any, experts: int) -> None:
    vision = tiny_clip_config()
    mole = MoLEConfig(experts=experts, rank=3, alpha=2, gate=gate)
    ours = MoLE(CLIPMLP(vision), mole)
    randomize(ours)
    theirs = ClipMoleMLP(shipped_config(mole, vision))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 7, 32)
    (wanted, wanted_gradients), (given, gradients) = run(ours, x), run(theirs, x)
    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == wanted_gradients.keys()
    for name, gradient in wanted_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-4, msg=name)


def test_dropout_falls_on_the_same_values() -> None:
    vision, mole = tiny_clip_config(), MoLEConfig(experts=2, rank=3, dropout=0.4)
    ours = MoLE(CLIPMLP(vision), mole).train()
    randomize(ours)
    theirs = ClipMoleMLP(shipped_config(mole, vision)).train()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 7, 32)
    torch.manual_seed(5)
    wanted = ours(x)
    torch.manual_seed(5)
    torch.testing.assert_close(theirs(x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", get_args(Layers))
def test_the_encoder_gives_our_hidden_states(layers: Any) -> None:
    vision, mole = tiny_clip_config(), MoLEConfig(rank=4, layers=layers)
    ours = VisionTransformer(vision, 3, has_class_token=True)
    install_experts(ours, mole, num_used_layers=2)
    randomize(ours)
    theirs = ClipMoleVisionModel(shipped_config(mole, vision, 3 if layers == "all" else 2)).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        wanted = ours(images, range(4), 3)
        output = theirs(images, output_hidden_states=True)
    for state, ours_state in zip(output.hidden_states, wanted, strict=True):
        torch.testing.assert_close(state, ours_state, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.pooler_output, ours.post_layernorm(output.last_hidden_state[:, 0]))


def test_chosen_hidden_states_stand_where_all_of_them_would() -> None:
    model = ClipMoleVisionModel(shipped_config(MoLEConfig(rank=2), tiny_clip_config(), 2)).eval()
    images = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        every = model(images, output_hidden_states=True).hidden_states
        one = model(images, output_hidden_states=-2).hidden_states
        two = model(images, output_hidden_states=[0, -1]).hidden_states
        assert model(images).hidden_states is None
        assert isinstance(model(images, return_dict=False), tuple)
    assert [state is None for state in one] == [True, True, False, True]
    torch.testing.assert_close(one[-2], every[-2])
    assert [state is None for state in two] == [False, True, True, False]


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model = ClipMoleVisionModel(shipped_config(MoLEConfig(rank=2), tiny_clip_config(), 3)).train()
    randomize(model)
    images = torch.randn(1, 3, 28, 28)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(images).last_hidden_state.square().mean().backward()
        return [value.grad.clone() for value in model.parameters() if value.grad is not None]

    plain = gradients()
    model.gradient_checkpointing_enable()
    assert all(layer.gradient_checkpointing for layer in model.encoder.layers)
    torch.testing.assert_close(gradients(), plain)


def test_pictures_of_another_size_are_refused() -> None:
    model = ClipMoleVisionModel(shipped_config(MoLEConfig(rank=2), tiny_clip_config(), 2))
    with pytest.raises(ValueError, match="images of 28 x 28 px are needed"):
        model(torch.randn(1, 3, 28, 42))


def test_the_file_needs_torch_and_transformers_only() -> None:
    found = set()
    for node in ast.walk(ast.parse(SHIPPED.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(str(node.module).split(".")[0])
    assert found == {"copy", "typing", "torch", "transformers"}


def test_experts_start_at_zero_until_weights_come() -> None:
    experts = ClipMoleExperts(shipped_config(MoLEConfig(rank=2), tiny_clip_config()), 4, 6)
    base = torch.randn(1, 2, 6)
    assert torch.equal(experts(torch.randn(1, 2, 4), torch.ones(1, 2, 3), base), base)
