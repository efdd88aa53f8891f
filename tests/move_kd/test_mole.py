import contextlib
import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPMLP

from llava.model.multimodal_encoder.move_kd.config import MoLEConfig
from llava.model.multimodal_encoder.move_kd.mole import GATES, MoLE, record_routing
from tests.move_kd.reference import gather_loop


def clip_mlp(width: int = 16, inner: int = 32) -> CLIPMLP:
    return CLIPMLP(CLIPVisionConfig(hidden_size=width, intermediate_size=inner, num_attention_heads=4))


def random_mole(gate: str = "top1", dtype: torch.dtype = torch.float64, **settings: object) -> MoLE:
    """Every expert parameter random and away from zero, biases included."""
    mole = MoLE(clip_mlp(), MoLEConfig(**({"experts": 3, "rank": 4, "alpha": 2.0, "gate": gate} | settings))).to(dtype)
    with torch.no_grad():
        for parameter in mole.parameters():
            parameter.normal_(std=0.3)
    return mole


def gradients(mole: MoLE, output: torch.Tensor, x: torch.Tensor) -> dict[str, torch.Tensor | None]:
    names, parameters = zip(*mole.named_parameters(), strict=True)
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    found = torch.autograd.grad((output * weight).sum(), [*parameters, x], allow_unused=True)
    return dict(zip([*names, "x"], found, strict=True))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("experts", [1, 3])
def test_masked_experts_equal_gathering_each_token_to_its_expert(gate: str, experts: int) -> None:
    mole = random_mole(gate, experts=experts)
    x = torch.randn(2, 9, 16, dtype=torch.float64, requires_grad=True)
    ours, reference = mole(x), gather_loop(mole, x)
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
    expected = gradients(mole, reference, x)
    for name, gradient in gradients(mole, ours, x).items():
        wanted = expected[name]
        if gradient is None:
            assert wanted is None or not wanted.any(), name
        else:
            torch.testing.assert_close(
                gradient, wanted, rtol=1e-10, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}"
            )


def only(mole: MoLE, expert: int) -> MoLE:
    """The layer with one of its experts, which every token goes through."""
    single = MoLE(mole.original_module, replace(mole.config, experts=1)).to(torch.float64)
    for bank, source in ((single.moe_down, mole.moe_down), (single.moe_up, mole.moe_up)):
        for name, parameter in bank.named_parameters():
            parameter.data = getattr(source, name).detach()[expert : expert + 1].clone()
    return single


@pytest.mark.parametrize("gate", GATES)
def test_parts_of_the_input_pass_through_one_expert_alone_while_training(gate: str) -> None:
    mole, x = random_mole(gate), torch.randn(2, 9, 16, dtype=torch.float64)
    mole.solos = 2
    with record_routing([mole]) as routing:
        routed, first, second = mole(x.repeat(3, 1, 1)).chunk(3)
    torch.testing.assert_close(routed, gather_loop(mole, x), rtol=1e-12, atol=1e-12)
    for expert, given in enumerate((first, second)):
        torch.testing.assert_close(given, only(mole, expert)(x), rtol=1e-12, atol=1e-12)
    assert routing[0].choice.shape == (2, 9)
    mole.eval()
    torch.testing.assert_close(mole(x), gather_loop(mole, x), rtol=1e-12, atol=1e-12)


def test_an_expert_that_no_token_chose_gets_a_zero_gradient_not_none() -> None:
    mole = random_mole("top1")
    with torch.no_grad():
        mole.router.bias.copy_(torch.tensor([9.0, 0.0, -9.0]))
        mole.router.weight.mul_(0.01)
    mole(torch.randn(2, 5, 16, dtype=torch.float64)).sum().backward()
    for bank in (mole.moe_down, mole.moe_up):
        for parameter in bank.parameters():
            assert parameter.grad is not None
            assert parameter.grad[0].any()
            assert not parameter.grad[1:].any()


def test_the_same_values_without_gradients_where_the_sum_is_formed_in_place() -> None:
    mole = random_mole()
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(mole(x), mole(x.clone().requires_grad_()), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(mole(x), gather_loop(mole, x), rtol=1e-12, atol=1e-12)


def test_the_released_gate_gives_the_router_no_gradient_and_the_others_do() -> None:
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    for gate in GATES:
        mole = random_mole(gate)
        mole(x).square().sum().backward()
        assert (mole.router.weight.grad is None) == (gate == "top1"), gate


def test_zero_initialized_experts_leave_the_mlp_as_it_was() -> None:
    mlp = clip_mlp()
    x = torch.randn(2, 5, 16)
    before = mlp(x)
    torch.testing.assert_close(MoLE(mlp, MoLEConfig(init_b="zero"))(x), before)
    assert not torch.allclose(MoLE(mlp, MoLEConfig(init_b="kaiming"))(x), before, atol=1e-3)


def test_initialization_has_the_spread_that_the_config_names() -> None:
    torch.manual_seed(0)
    wide = CLIPMLP(CLIPVisionConfig(hidden_size=64, intermediate_size=128, num_attention_heads=4))
    bank = MoLE(wide, MoLEConfig(rank=16, init_a="kaiming", init_b="kaiming")).moe_down
    assert bank.reduce_weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    assert bank.expand_weight.std().item() == pytest.approx((2 / 16) ** 0.5, rel=0.05)
    assert not bank.reduce_bias.any()
    assert not bank.expand_bias.any()
    bank = MoLE(wide, MoLEConfig(rank=16, init_a="linear", init_b="zero")).moe_down
    assert bank.reduce_weight.abs().max().item() <= 64**-0.5
    assert not bank.expand_weight.any()


def test_dropout_acts_in_training_only_and_zero_is_none() -> None:
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    mole = random_mole(dropout=0.5)
    assert not torch.equal(mole(x), mole(x))
    mole.eval()
    assert torch.equal(mole(x), mole(x))
    none = random_mole(dropout=0.0)
    assert torch.equal(none.train()(x), none.eval()(x))


def test_bfloat16_stays_bfloat16_while_the_router_decides_in_float32() -> None:
    mole = random_mole("soft", torch.float32)
    x = torch.randn(2, 9, 16)
    exact = mole(x)
    mole.bfloat16()
    with record_routing([mole]) as routing:
        rounded = mole(x.bfloat16())
    assert rounded.dtype == torch.bfloat16
    assert routing[0].probs.dtype == torch.float32
    torch.testing.assert_close(rounded.float(), exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("enabled", [True, False])
def test_autocast_runs_with_and_without_gradients(enabled: bool) -> None:
    mole = random_mole("top1_ste", torch.float32)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(enabled):
        assert mole(torch.randn(2, 9, 16)).dtype == torch.bfloat16


def run_blocks(blocks: list[MoLE], x: torch.Tensor, recompute: bool) -> torch.Tensor:
    for block in blocks:
        x = x + (checkpoint(block, x, use_reentrant=False) if recompute else block(x))
    return x


@pytest.mark.parametrize("gate", ["top1", "top1_ste"])
def test_router_gradients_through_recorded_routing_survive_checkpointing(gate: str) -> None:
    blocks = [random_mole(gate) for _ in range(3)]
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    found = []
    for recompute in (False, True):
        with record_routing(blocks) as routing:
            hidden = run_blocks(blocks, x, recompute)
        assert len(routing) == 3
        loss = hidden.square().mean() + sum(layer.probs[..., 0].square().mean() for layer in routing)
        found.append(torch.autograd.grad(loss, [block.router.weight for block in blocks]))
    for plain, recomputed in zip(*found, strict=True):
        assert plain.any()
        torch.testing.assert_close(recomputed, plain)


def test_nothing_recorded_is_alive_after_backward() -> None:
    blocks = [random_mole() for _ in range(3)]
    with record_routing(blocks) as routing:
        hidden = run_blocks(blocks, torch.randn(2, 5, 16, dtype=torch.float64), recompute=True)
    held = [weakref.ref(layer.probs) for layer in routing]
    (hidden.square().mean() + sum(layer.probs[..., 0].square().mean() for layer in routing)).backward()
    del routing, hidden
    gc.collect()
    assert [reference() for reference in held] == [None] * 3
    assert all(block.record is None for block in blocks)


def test_records_nest_and_close_after_an_error() -> None:
    blocks = [random_mole()]
    x = torch.randn(1, 3, 16, dtype=torch.float64)
    with record_routing(blocks) as outer:
        with contextlib.suppress(KeyError), record_routing(blocks) as inner:
            blocks[0](x)
            raise KeyError
        blocks[0](x)
    assert (len(outer), len(inner)) == (1, 1)
    assert blocks[0].record is None


def test_choice_is_the_first_of_equal_probabilities() -> None:
    mole = random_mole()
    with torch.no_grad():
        mole.router.weight.zero_()
        mole.router.bias.zero_()
    with record_routing([mole]) as routing:
        mole(torch.randn(1, 3, 16, dtype=torch.float64))
    assert routing[0].choice.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("gate", ["top1", "top1_ste", "soft"])
def test_compiles_as_one_graph_and_gives_the_same_numbers(gate: str) -> None:
    """In training there are two, around what keeps the routing."""
    mole = random_mole(gate).eval()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(mole, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), mole(x))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), mole(x))


def test_recording_works_inside_compiled_blocks() -> None:
    mole = random_mole("top1_ste")
    torch._dynamo.reset()
    compiled = torch.compile(mole, backend="eager")
    with record_routing([mole]) as routing:
        compiled(torch.randn(2, 5, 16, dtype=torch.float64)).sum().backward()
    assert len(routing) == 1
    assert routing[0].probs.shape == (2, 5, 3)
