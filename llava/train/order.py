"""The order of samples when they are not grouped by length."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class ShuffledSampler(Sampler[int]):
    """Every sample once an epoch; the order depends on `seed` and the epoch alone."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(torch.randperm(self.count, generator=generator).tolist())
