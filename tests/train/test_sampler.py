"""Orders of samples: permutations, single-modality batches, and the same again after a resume."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llava.train.llava_trainer import LLaVATrainer
from llava.train.sampler import ORDERS, LengthGroupedSampler
from tests.train.data import make_dataset, picture_record, text_record

LENGTHS = [(-1 if index % 3 == 0 else 1) * (1 + index * 7 % 31) for index in range(101)]


@pytest.mark.parametrize("mode", ORDERS)
@pytest.mark.parametrize(("batch_size", "world_size"), [(1, 1), (2, 3), (4, 8), (64, 4)])
def test_every_sample_is_visited_once(mode: str, batch_size: int, world_size: int) -> None:
    sampler = LengthGroupedSampler(batch_size, world_size, LENGTHS, mode=mode)
    assert sorted(sampler) == list(range(len(LENGTHS)))


@pytest.mark.parametrize("mode", ORDERS)
def test_order_is_a_function_of_seed_and_epoch(mode: str) -> None:
    first = LengthGroupedSampler(2, 2, LENGTHS, mode=mode, seed=3)
    epochs = []
    for epoch in range(3):
        first.set_epoch(epoch)
        epochs.append(list(first))
    assert epochs[0] != epochs[1] != epochs[2]
    torch.manual_seed(99)  # the global generator must not matter
    resumed = LengthGroupedSampler(2, 2, LENGTHS, mode=mode, seed=3)
    resumed.set_epoch(2)
    assert list(resumed) == epochs[2]
    assert list(LengthGroupedSampler(2, 2, LENGTHS, mode=mode, seed=4)) != epochs[0]


@pytest.mark.parametrize("mode", ["length_auto", "modality_auto", "variable"])
def test_batches_of_similar_length_have_little_padding(mode: str) -> None:
    lengths = [1 + index * 37 % 1000 for index in range(1024)]
    order = list(LengthGroupedSampler(8, 4, lengths, mode=mode))
    batches = [[lengths[index] for index in order[start : start + 8]] for start in range(0, len(order), 8)]
    assert sum(8 * max(batch) for batch in batches) < 1.3 * sum(lengths)


@pytest.mark.parametrize("mode", ORDERS)
def test_the_trainer_orders_by_words_and_pictures_unless_modalities_stay_apart(mode: str) -> None:
    trainer: Any = SimpleNamespace(
        train_dataset=make_dataset([picture_record("a.png"), text_record()]),
        run=SimpleNamespace(sampling=mode),
        args=SimpleNamespace(seed=0, data_seed=None, world_size=1, gradient_accumulation_steps=1),
        _train_batch_size=1,
        add_callback=lambda callback: None,
    )
    sampler: Any = LLaVATrainer._get_train_sampler(trainer)
    assert sampler.lengths == ([6, -4] if mode.startswith("modality") else [134, 4])


@pytest.mark.parametrize("mode", ["modality", "modality_auto"])
def test_at_most_the_last_two_global_batches_mix_modalities(mode: str) -> None:
    order = list(LengthGroupedSampler(2, 3, LENGTHS, mode=mode))
    batches = [order[start : start + 6] for start in range(0, len(order), 6)]
    mixed = [position for position, batch in enumerate(batches) if len({LENGTHS[index] > 0 for index in batch}) == 2]
    assert all(position >= len(batches) - 2 for position in mixed)


def test_iterating_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    list(LengthGroupedSampler(2, 2, LENGTHS, mode="modality"))
    assert torch.equal(before, torch.get_rng_state())


def test_bad_settings_are_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match="sample 1 has length 0"):
        LengthGroupedSampler(1, 1, [3, 0], mode="modality")
    with pytest.raises(ValueError, match="length_auto"):
        LengthGroupedSampler(1, 1, [3], mode="size")
    with pytest.raises(ValueError, match="at least 1"):
        LengthGroupedSampler(0, 1, [3], mode="modality")
