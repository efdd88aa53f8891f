"""Objectives that can stand in for the published one."""

import pytest
import torch

from llava.model.multimodal_encoder.move_kd.config import DistillConfig
from llava.model.multimodal_encoder.move_kd.objectives import balanced_mse, cosine_smooth_l1, teacher_dropping
from llava.model.multimodal_encoder.move_kd.objectives.base import Setup
from llava.model.multimodal_encoder.move_kd.types import Pair
from tests.move_kd.fakes import batch, features, tokens
from tests.move_kd.test_distiller import build
from tests.move_kd.test_objectives import D, M, N, inputs

NAMES = ("clip", "eva", "sam")
SETUP = Setup(DistillConfig(), NAMES, 2)


@pytest.mark.parametrize("objective", ["cosine_smooth_l1", "teacher_dropping", "balanced_mse"])
def test_each_can_replace_the_published_objective(objective: str) -> None:
    distiller = build("ours", NAMES, objectives=((objective, 2.0),))
    answer = distiller(batch(blank=1), features(*NAMES), images=tokens())
    label = "cosine_smooth_l1" if objective == "cosine_smooth_l1" else "kd"
    assert {f"{label}/{name}" for name in NAMES} <= set(answer["terms"])
    assert torch.isfinite(answer["loss"])
    answer["loss"].backward()
    assert all(p.grad is not None for p in distiller.adapters.parameters())


def test_cosine_and_smooth_l1_ignore_scale_for_the_most_part() -> None:
    error = cosine_smooth_l1.OBJECTIVE(SETUP).error
    target = torch.randn(M, N, D)
    same = error(Pair(target, target))
    torch.testing.assert_close(same, torch.zeros(M, N), rtol=0, atol=1e-6)
    assert error(Pair(2 * target, target)).max() < error(Pair(-target, target)).min()


def test_dropping_keeps_the_worst_teacher_of_every_image_and_about_half_of_the_others() -> None:
    errors = torch.rand(4000, 3)
    kept = teacher_dropping.OBJECTIVE(SETUP).keep(errors)
    assert (kept.gather(1, errors.argmax(1, keepdim=True)) == 1).all()
    assert kept.mean().item() == pytest.approx(2 / 3, abs=0.02)
    data = inputs(NAMES)
    with torch.no_grad():
        first, second = (teacher_dropping.OBJECTIVE(SETUP)(data) for _ in range(2))
    assert first == second


def test_balancing_gives_each_teacher_the_pull_of_its_weight() -> None:
    data = inputs(("eva", "sam"))
    large = Pair(100 * data.pairs["eva"].prediction, data.pairs["eva"].target)
    data.pairs["eva"] = large
    terms = balanced_mse.OBJECTIVE(Setup(DistillConfig(anchor_is_target=False), ("eva", "sam"), 2))(data)
    for name in ("eva", "sam"):
        assert terms[name].item() == pytest.approx(0.5, rel=1e-5)
        assert terms[name].requires_grad


def test_balancing_survives_teachers_without_weight_and_batches_without_pictures() -> None:
    config = DistillConfig(anchor_share=0.0)
    for weight in ([1.0] * M, [0.0] * M):
        terms = balanced_mse.OBJECTIVE(Setup(config, NAMES, 2))(inputs(NAMES, weight))
        assert all(torch.isfinite(value) for value in terms.values())
        assert terms["clip"].item() == 0.0
