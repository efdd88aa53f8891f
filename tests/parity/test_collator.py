"""Batches and lengths of samples against the published collators and datasets."""

from itertools import chain
from typing import Any

import pytest
import torch

from llava.train.collator import Collator
from llava.train.data_config import DataConfig
from llava.train.dataset import SupervisedDataset
from llava.train.prompts import training_template
from llava.train.sources import InMemory
from tests.parity.vectors import Case, cases
from tests.tokenizers import llama

CASES = list(chain(cases("F_preprocess_llava"), cases("F_preprocess_next")))
COLLATORS = [case for case in CASES if "instances" in case.meta]
LENGTHS = [case for case in CASES if "modality_lengths" in case.meta]
assert COLLATORS
assert LENGTHS


def items(case: Case) -> list[dict[str, Any]]:
    return [{key: torch.tensor(values) for key, values in row.items()} for row in case.meta["instances"]]


@pytest.mark.parametrize("case", COLLATORS, ids=str)
def test_batch_equals_the_published_one(case: Case) -> None:
    meta = case.meta
    collator = Collator(meta["pad_token_id"], meta.get("padding_side", "right"), meta["model_max_length"])
    batch = collator(items(case))
    expected = {key: torch.tensor(rows) for key, rows in meta["batch"].items()}
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["labels"], expected["labels"])
    # Ours comes from the lengths. The published one calls every token with the pad id padding, also inside a text.
    is_pad_token = batch["attention_mask"] & (batch["input_ids"] == meta["pad_token_id"])
    assert torch.equal(batch["attention_mask"] & ~is_pad_token, expected["attention_mask"].bool())


@pytest.mark.parametrize("case", LENGTHS, ids=str)
def test_lengths_equal_the_published_ones(case: Case) -> None:
    config = DataConfig(is_multimodal=False)
    dataset = SupervisedDataset(InMemory(case.meta["samples"]), llama(), config, None, training_template("v1"))
    assert dataset.lengths == case.meta["lengths"]
    assert dataset.modality_lengths == case.meta["modality_lengths"]
