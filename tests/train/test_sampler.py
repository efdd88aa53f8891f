"""Orders of samples: permutations, single-modality batches, and the same again after a resume."""

import pytest
import torch

from llava.train.sampler import ORDERS, LengthGroupedSampler

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
        LengthGroupedSampler(1, 1, [3, 0])
    with pytest.raises(ValueError, match="length_auto"):
        LengthGroupedSampler(1, 1, [3], mode="size")
    with pytest.raises(ValueError, match="at least 1"):
        LengthGroupedSampler(0, 1, [3])
