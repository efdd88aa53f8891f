"""A step must never wait for the device. Fake tensors have no values, so whatever asks for one raises."""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from llava.model.multimodal_encoder.move_kd.objectives import base
from llava.model.multimodal_encoder.move_kd.plugins import plugin_names
from tests.move_kd.fakes import batch, features, tokens
from tests.move_kd.test_distiller import RECIPES, build

NAMES = ("clip", "eva", "convnext", "sam")
OBJECTIVES = [name for name in plugin_names(base.__package__) if name != "router_balance"]


def step(recipe: str, **changes: object) -> None:
    with FakeTensorMode():
        distiller = build(recipe, NAMES, **changes)
        distiller.collect_metrics = True
        answer = distiller(batch(), features(*NAMES), images=tokens())
        answer["loss"].backward()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_of_each_recipe_reads_no_value(recipe: str) -> None:
    step(recipe)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_of_each_objective_reads_no_value(objective: str) -> None:
    step("ours", objectives=((objective, 1.0),), statistics_steps=3)


def test_this_check_would_notice() -> None:
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.ones(1).item()
