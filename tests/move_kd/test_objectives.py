import math
from typing import Any

import pytest
import torch

from llava.model.multimodal_encoder.move_kd.config import DistillConfig
from llava.model.multimodal_encoder.move_kd.objectives.base import Setup, weighted_mean
from llava.model.multimodal_encoder.move_kd.objectives.router_balance import OBJECTIVE as BALANCE
from llava.model.multimodal_encoder.move_kd.objectives.router_balance import per_layer, pooled
from llava.model.multimodal_encoder.move_kd.objectives.weighted_mse import OBJECTIVE as MSE
from llava.model.multimodal_encoder.move_kd.types import (
    DistillInputs,
    Pair,
    Routing,
    StudentFeatures,
    TeacherFeatures,
)
from llava.model.multimodal_encoder.move_kd.weights import TEACHER_RULES, TOKEN_RULES, teacher_weights

M, N, D = 3, 16, 8


def inputs(names: tuple[str, ...], weight: list[float] | None = None, routing: tuple[Routing, ...] = ()) -> Any:
    """Random pairs in the student's space; CLIP's raw features hold class token and attention."""
    share = torch.tensor(weight or [1.0] * M)
    attention = torch.rand(M, N).softmax(-1) * 0.8
    clip = TeacherFeatures(torch.randn(M, N, D), (4, 4), torch.randn(M, D), attention)
    raw = {name: TeacherFeatures(torch.randn(M, N, D), (4, 4)) for name in names} | {"clip": clip}
    pairs = {name: Pair(torch.randn(M, N, D), torch.randn(M, N, D, requires_grad=True)) for name in names}
    student = StudentFeatures(torch.randn(M, N, D), torch.randn(M, N, D), routing=routing)
    return DistillInputs(student, (4, 4), raw, pairs, torch.arange(M), share, share)


def mse(names: tuple[str, ...], **config: Any) -> Any:
    defaults = {"heads": "teacher", "standardize": False}
    return MSE(Setup(DistillConfig(**(defaults | config)), names, 2))


def test_the_paper_weighs_tokens_by_attention_and_teachers_by_scaled_similarity() -> None:
    names = ("clip", "eva", "sam")
    data = inputs(names)
    terms = mse(names, anchor_share=0.8, token_weights="attention", teacher_weights="similarity")(data)
    clip = data.teachers["clip"]
    tokens = clip.cls_attention / clip.cls_attention.sum(-1, keepdim=True)
    dots = [(data.pairs[n].target * clip.cls[:, None]).sum(-1).mean(-1) / math.sqrt(D) for n in ("eva", "sam")]
    shares = torch.stack(dots, -1).softmax(-1) * 0.2
    for position, name in enumerate(names):
        error = (data.pairs[name].prediction - data.pairs[name].target).square().mean(-1)
        share = torch.full((M,), 0.8) if position == 0 else shares[:, position - 1]
        torch.testing.assert_close(terms[name], (share * (tokens * error).sum(-1)).mean())


def test_half_of_the_token_weight_is_uniform() -> None:
    attention = torch.tensor([[0.6, 0.2, 0.0, 0.0]])
    torch.testing.assert_close(
        TOKEN_RULES["attention_half"].weigh(attention), torch.tensor([[0.5, 0.25, 0.125, 0.125]])
    )


def test_the_released_token_rule_adds_a_nearly_uniform_softmax() -> None:
    weights = TOKEN_RULES["release"].weigh(torch.tensor([[0.5] + [0.5 / 575] * 575]))
    assert weights.sum().item() == pytest.approx(2.0)
    assert (weights[0, 0] - 1 / 576).item() == pytest.approx(0.0029, abs=1e-4)


@pytest.mark.parametrize("rule", TOKEN_RULES)
def test_token_weights_carry_no_gradient_and_sum_to_a_constant(rule: str) -> None:
    data = inputs(("clip", "eva"))
    tokens, _ = mse(("clip", "eva"), token_weights=rule).weights(data)
    assert not tokens.requires_grad
    torch.testing.assert_close(tokens.sum(-1), torch.full((M,), 2.0 if rule == "release" else 1.0))


@pytest.mark.parametrize("rule", TEACHER_RULES)
@pytest.mark.parametrize("names", [("clip",), ("eva",), ("clip", "eva"), ("clip", *(f"t{i}" for i in range(10)))])
def test_teacher_weights_sum_to_one_but_for_clip_alone(rule: str, names: tuple[str, ...]) -> None:
    weights = teacher_weights(inputs(names), TEACHER_RULES[rule], "clip", 0.3)
    assert tuple(weights) == names
    total = 0.3 if names == ("clip",) else 1.0
    torch.testing.assert_close(sum(weights.values()), torch.full((M,), total))
    assert weights[names[-1]].requires_grad == (rule == "release" and names != ("clip",))


def test_the_saturation_rule_flattens_by_a_second_softmax() -> None:
    share = TEACHER_RULES["release"].share
    calm, sure = torch.tensor([[0.0, 1.0]] * M), torch.tensor([[0.0, 5.0]] * M)
    torch.testing.assert_close(share(calm, torch.ones(M)), calm.softmax(-1))
    torch.testing.assert_close(share(sure, torch.ones(M)), sure.softmax(-1).softmax(-1))
    assert share(sure, torch.ones(M)).max() < math.e / (1 + math.e) + 1e-6


@pytest.mark.parametrize("blank", [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
def test_a_blank_image_leaves_gradients_zero_but_present(blank: list[float]) -> None:
    names = ("clip", "eva")
    data = inputs(names, blank)
    terms = mse(names, token_weights="attention_half")(data)
    sum(terms.values()).backward()
    for name in names:
        gradient = data.pairs[name].target.grad
        assert gradient is not None
        for image, weight in enumerate(blank):
            assert gradient[image].any() == bool(weight)
    if any(blank):
        kept = [image for image, weight in enumerate(blank) if weight]
        error = (data.pairs["eva"].prediction - data.pairs["eva"].target).square().mean(-1)
        tokens, shares = mse(names, token_weights="attention_half").weights(data)
        by_hand = (shares["eva"] * (tokens * error).sum(-1))[kept].mean()
        torch.testing.assert_close(terms["eva"], by_hand)


def test_attention_of_another_resolution_is_brought_to_the_students_grid() -> None:
    data = inputs(("eva",))
    attention = torch.rand(M, 36).softmax(-1)
    data.teachers["clip"] = TeacherFeatures(torch.randn(M, 36, D), (6, 6), torch.randn(M, D), attention)
    tokens, _ = mse(("eva",), token_weights="attention").weights(data)
    assert tokens.shape == (M, N)
    torch.testing.assert_close(tokens.sum(-1), torch.ones(M))


def test_objectives_say_which_features_they_read() -> None:
    assert mse(("clip", "eva"), token_weights="uniform").requires == {}
    assert mse(("clip", "eva")).requires == {"clip": ("cls_attention",)}
    similar = {"token_weights": "uniform", "teacher_weights": "similarity"}
    assert mse(("clip", "eva"), **similar).requires == {"clip": ("cls",)}
    assert mse(("clip",), **similar).requires == {}, "with no other teacher there is nothing to weigh"


def collapsed(expert: int, tiles: int = M, tokens: int = 1 + N) -> Routing:
    choice = torch.full((tiles, tokens), expert)
    probs = torch.nn.functional.one_hot(choice, 3).float()
    return Routing(probs, choice)


def test_three_layers_on_one_expert_each_fool_the_pooled_balance_only() -> None:
    routing = [collapsed(expert) for expert in range(3)]
    assert pooled(routing, torch.ones(M)).item() == pytest.approx(1 / 3)
    assert per_layer(routing, torch.ones(M)).item() == pytest.approx(3.0)


def test_balance_per_layer_is_one_where_experts_are_even() -> None:
    probs = torch.full((1, 9, 3), 1 / 3)
    routing = [Routing(probs, torch.arange(9).remainder(3)[None])]
    assert per_layer(routing, torch.ones(1)).item() == pytest.approx(1.0)


def test_balance_counts_real_tiles_patches_and_used_layers_only() -> None:
    even = Routing(torch.full((M, 1 + N, 3), 1 / 3), torch.arange(M * (1 + N)).remainder(3).view(M, 1 + N))
    blank, unused = collapsed(1), collapsed(2)
    mixed = Routing(*(torch.cat([a[:2], b[2:]]) for a, b in zip(even, blank, strict=True)))
    mixed.probs[:, 0] = torch.tensor([1.0, 0.0, 0.0])
    objective = BALANCE(Setup(DistillConfig(), (), num_used_layers=1))
    value = objective(inputs((), [1.0, 1.0, 0.0], (mixed, unused)))[""]
    assert value.item() == pytest.approx(1.0, abs=1e-2)
    released = BALANCE(Setup(DistillConfig(balance="pooled"), (), num_used_layers=1))
    assert released(inputs((), [1.0, 1.0, 1.0], (mixed, unused)))[""].item() > 0.4


def test_balance_reaches_the_router_through_probabilities_alone() -> None:
    logits = torch.randn(M, 1 + N, 3, requires_grad=True)
    routing = Routing(logits.softmax(-1), logits.argmax(-1))
    objective = BALANCE(Setup(DistillConfig(), (), num_used_layers=5))
    objective(inputs((), None, (routing,)))[""].backward()
    assert logits.grad is not None
    assert logits.grad.any()


def test_no_balance_without_experts_or_with_one() -> None:
    objective = BALANCE(Setup(DistillConfig(), (), num_used_layers=5))
    assert objective(inputs(())) == {}
    assert objective(inputs((), None, (Routing(torch.ones(M, N, 1), torch.zeros(M, N, dtype=torch.long)),))) == {}


def test_a_multi_scale_tower_may_route_several_pictures_per_tile() -> None:
    many = collapsed(0, tiles=5 * M)
    objective = BALANCE(Setup(DistillConfig(), (), num_used_layers=5))
    assert objective(inputs((), [1.0, 1.0, 0.0], (many,)))[""].item() == pytest.approx(3.0)


def test_a_mean_over_nothing_is_zero_with_a_gradient() -> None:
    values = torch.randn(3, requires_grad=True)
    weighted_mean(values, torch.zeros(3)).backward()
    assert torch.equal(values.grad, torch.zeros(3))
