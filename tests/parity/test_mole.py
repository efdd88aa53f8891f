"""Topic A: one MLP with experts, its routing and its gradients, as published."""

from types import SimpleNamespace

import pytest
import torch
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPMLP

from llava.model.multimodal_encoder.move_kd.config import MoLEConfig
from llava.model.multimodal_encoder.move_kd.mole import MoLE, record_routing
from llava.model.multimodal_encoder.move_kd.student import install_experts, stack_published_experts, unstack_experts
from tests.parity.vectors import Case, cases


def published_mole(case: Case) -> MoLE:
    meta = case.meta
    config = CLIPVisionConfig(
        hidden_size=meta["hidden_size"],
        intermediate_size=meta["intermediate_size"],
        hidden_act=meta["hidden_act"],
        num_attention_heads=1,
    )
    moe = {
        "moe_encoder": True,
        "moe_encoder_dense": meta["dense"],
        "moe_encoder_lora_rank": meta["lora_rank"],
        "moe_encoder_lora_alpha": meta["lora_alpha"],
        "moe_encoder_num_experts": meta["num_experts"],
    }
    layer = torch.nn.Module()
    layer.mlp = CLIPMLP(config)
    install_experts(SimpleNamespace(encoder=SimpleNamespace(layers=[layer])), MoLEConfig.from_dict(moe), 1)
    layer.mlp.load_state_dict(stack_published_experts(case.group("weight")))
    return layer.mlp.eval()


@pytest.mark.parametrize("case", cases("A_moe_lora_mlp"), ids=str)
def test_expert_mlp_gives_the_published_numbers(case: Case) -> None:
    mole = published_mole(case)
    for name in case.meta["frozen"]:
        mole.get_parameter(name).requires_grad_(False)
    x = case.tensors["input.x"].clone().requires_grad_()
    with record_routing([mole]) as routing:
        output = mole(x)
    torch.testing.assert_close(output, case.tensors["expected.out"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(routing[0].probs, case.tensors["expected.routing"], rtol=1e-4, atol=1e-5)
    assert torch.equal(routing[0].choice, case.tensors["expected.expert_index"])
    loss = (output * case.tensors["input.proj"]).sum()
    torch.testing.assert_close(loss, case.tensors["expected.loss"], rtol=1e-4, atol=1e-4)
    loss.backward()
    found = {name: parameter.grad for name, parameter in mole.named_parameters() if parameter.grad is not None}
    found = unstack_experts(found) | {"x": x.grad}
    expected = case.group("expected.grad")
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max().item() + 1e-9)
    for name in set(found) - set(expected):
        # Where the loop never calls an expert it has no gradient; ours is there and zero.
        assert name in case.meta["grad_is_none"], name
        assert not found[name].any(), name


@pytest.mark.parametrize("case", cases("A_moe_lora_mlp"), ids=str)
def test_published_names_survive_stacking_and_unstacking(case: Case) -> None:
    published = case.group("weight")
    back = unstack_experts(stack_published_experts(published))
    assert back.keys() == published.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in published.items())
