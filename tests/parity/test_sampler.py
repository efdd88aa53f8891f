"""Length-grouped orders against the published samplers' index sequences."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from llava.train.sampler import (
    LengthGroupedSampler,
    length_auto_order,
    length_order,
    modality_auto_order,
    modality_order,
    split_to_even_chunks,
    variable_order,
)
from tests.parity.vectors import Case, cases

CASES = cases("I_sampler")
ROWS = [(case, row) for case in CASES for row in case.meta["rows"]]
CHUNKS = [(case, row) for case in CASES for row in case.meta["split_to_even_chunks"]]


def order_of(case: Case, mode: str) -> tuple[Callable[..., list[int]], bool]:
    """(our order, whether the published one forgets the left-over). "plain" differs between the two projects."""
    if mode == "plain":
        return (length_auto_order if case.name.endswith("next") else length_order), False
    return {
        "group_by_modality": (modality_order, False),
        "group_by_modality_auto": (modality_auto_order, True),
        "variable_length": (variable_order, False),
    }[mode]


def assert_same_order(got: list[int], expected: list[int], forgets_left_over: bool) -> None:
    assert sorted(got) == list(range(len(got)))
    if forgets_left_over:  # ours visits these samples too, at the end
        got = got[: len(expected)]
    assert got == expected


@pytest.mark.parametrize(
    ("case", "row"), ROWS, ids=lambda value: value["name"] if isinstance(value, dict) else str(value)
)
def test_order_equals_the_published_one(case: Case, row: dict[str, Any]) -> None:
    order, forgets = order_of(case, row["mode"])
    sizes = (row["lengths"], row["batch_size"], row["world_size"])
    torch.manual_seed(row["seed_global"])
    assert_same_order(order(*sizes), row["indices_with_global_seed"], forgets)
    torch.manual_seed(row["seed_global"])
    generators: dict[str, Any] = {"generator": torch.Generator().manual_seed(row["seed_generator"])}
    if order in (modality_order, modality_auto_order):
        generators["within"] = torch.default_generator  # the published code's hidden source of randomness
    assert_same_order(order(*sizes, **generators), row["indices_with_generator"], forgets)


@pytest.mark.parametrize(
    ("case", "row"), ROWS, ids=lambda value: value["name"] if isinstance(value, dict) else str(value)
)
def test_sampler_visits_as_many_samples_as_the_published_one_claims(case: Case, row: dict[str, Any]) -> None:
    modes = {"group_by_modality": "modality", "group_by_modality_auto": "modality_auto", "variable_length": "variable"}
    sampler = LengthGroupedSampler(
        row["batch_size"], row["world_size"], row["lengths"], mode=modes.get(row["mode"], "length_auto")
    )
    assert len(sampler) == row["len"] == len(list(sampler))


@pytest.mark.parametrize(("case", "row"), CHUNKS)
def test_global_batch_is_dealt_as_published(case: Case, row: dict[str, Any]) -> None:
    assert split_to_even_chunks(row["indices"], row["lengths"], row["num_chunks"]) == row["expected"]
