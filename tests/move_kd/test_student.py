from types import SimpleNamespace

import pytest
import torch
from torch import nn

from llava.model.multimodal_encoder.move_kd.config import MoLEConfig
from llava.model.multimodal_encoder.move_kd.mole import MoLE
from llava.model.multimodal_encoder.move_kd.student import (
    expert_parameters,
    install_experts,
    num_used_layers,
    stack_published_experts,
    unstack_experts,
)
from tests.move_kd.fakes import Mlp


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp()


def tower(layers: int = 3) -> nn.Module:
    model = nn.Module()
    model.encoder = nn.Module()
    model.encoder.layers = nn.ModuleList(Layer() for _ in range(layers))
    return model


@pytest.mark.parametrize(("layers", "wrapped"), [("used", [True, True, False]), ("all", [True, True, True])])
def test_experts_stand_in_the_layers_that_the_config_names(layers: str, wrapped: list[bool]) -> None:
    model = tower()
    install_experts(model, MoLEConfig(rank=2, layers=layers), 2)
    assert [isinstance(layer.mlp, MoLE) for layer in model.encoder.layers] == wrapped
    with pytest.raises(ValueError, match="has experts already"):
        install_experts(model, MoLEConfig(rank=2), 2)


def test_expert_parameters_are_routers_and_banks_but_not_the_mlp() -> None:
    model = tower()
    install_experts(model, MoLEConfig(rank=2), 1)
    names = set(expert_parameters(model))
    assert len(names) == 2 + 2 * 4
    assert all(name.startswith("encoder.layers.0.mlp.") for name in names)
    assert not any("original_module" in name for name in names)
    assert expert_parameters(model.encoder.layers[0].mlp).keys() == {
        name.removeprefix("encoder.layers.0.mlp.") for name in names
    }


def test_experts_take_dtype_and_device_of_the_mlp_they_wrap() -> None:
    model = tower().to("meta", torch.bfloat16)
    install_experts(model, MoLEConfig(rank=2), 3)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize(("select", "used"), [(-2, 23), (-1, 24), (0, 0), (7, 7), (24, 24), (-25, 0)])
def test_the_selected_hidden_state_says_how_many_layers_run(select: int, used: int) -> None:
    assert num_used_layers(24, select) == used


@pytest.mark.parametrize("select", [25, -26])
def test_a_layer_that_is_not_there_is_refused(select: int) -> None:
    with pytest.raises(ValueError, match="mm_vision_select_layer"):
        num_used_layers(24, select)


def published_state() -> dict[str, torch.Tensor]:
    model = tower()
    install_experts(model, MoLEConfig(rank=2), 3)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return unstack_experts({f"model.tower.{name}": tensor for name, tensor in model.state_dict().items()})


def test_published_files_hold_one_pair_of_matrices_per_expert() -> None:
    state = published_state()
    assert state["model.tower.encoder.layers.0.mlp.moe_down.2.lora_A.weight"].shape == (2, 8)
    assert state["model.tower.encoder.layers.0.mlp.moe_down.2.lora_B.weight"].shape == (16, 2)
    assert state["model.tower.encoder.layers.2.mlp.moe_up.0.lora_B.bias"].shape == (8,)
    assert all(tensor.is_contiguous() for tensor in state.values())


def test_stacking_fills_a_model_strictly_and_is_idempotent() -> None:
    stacked = stack_published_experts(published_state())
    assert stack_published_experts(stacked).keys() == stacked.keys()
    model = tower()
    install_experts(model, MoLEConfig(rank=2), 3)
    model.load_state_dict({name.removeprefix("model.tower."): tensor for name, tensor in stacked.items()})


@pytest.mark.parametrize("lost", ["moe_down.1.lora_A.weight", "moe_up.2.lora_B.bias", "moe_up.0.lora_A.bias"])
def test_an_incomplete_expert_is_named(lost: str) -> None:
    state = published_state()
    del state[f"model.tower.encoder.layers.1.mlp.{lost}"]
    with pytest.raises(ValueError, match=f"layers.1.mlp.{lost}"):
        stack_published_experts(state)


def test_a_file_with_both_forms_is_refused() -> None:
    state = published_state()
    with pytest.raises(ValueError, match="both as single experts and stacked"):
        stack_published_experts(stack_published_experts(state) | state)


def test_towers_without_a_list_of_layers_work_by_duck_typing() -> None:
    layer = SimpleNamespace(mlp=Mlp())
    install_experts(SimpleNamespace(encoder=SimpleNamespace(layers=[layer])), MoLEConfig(rank=2), 1)
    assert isinstance(layer.mlp, MoLE)
