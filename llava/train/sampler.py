"""The order in which samples are visited, so that a step spends little on padding.

A global batch is `world_size * batch_size` samples, where `world_size` counts processes times accumulation
steps. Every order is a permutation of all samples and a pure function of its random generator; the sampler seeds
one generator from (seed, epoch), so a resumed run sees what an uninterrupted one would. Nothing here reads a sample.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Generator
from torch.utils.data import Sampler

Mode = Literal["length_auto", "modality", "modality_auto", "variable"]

# Sorted windows of "variable" span this many global batches.
WINDOW = 8


def split_to_even_chunks(indices: Sequence[int], lengths: Sequence[int], num_chunks: int) -> list[list[int]]:
    """Deal one global batch to `num_chunks` processes: equal counts, nearly equal summed lengths.

    indices: best given longest first. A count that does not divide evenly is dealt in turn.
    """
    if len(indices) % num_chunks:
        return [list(indices[start::num_chunks]) for start in range(num_chunks)]
    capacity = len(indices) // num_chunks
    chunks: list[list[int]] = [[] for _ in range(num_chunks)]
    loads: list[float] = [0] * num_chunks
    for index in indices:
        lightest = loads.index(min(loads))
        chunks[lightest].append(index)
        full = len(chunks[lightest]) == capacity
        loads[lightest] = float("inf") if full else loads[lightest] + lengths[index]
    return chunks


def _shuffled(count: int, generator: Generator | None) -> list[int]:
    return torch.randperm(count, generator=generator).tolist()


def _cut(indices: Sequence[int], size: int) -> list[list[int]]:
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]


def _deal(indices: Sequence[int], lengths: Sequence[int], batch_size: int, world_size: int) -> list[list[int]]:
    """Global batches of `indices` in their order, each sorted longest first and dealt to the processes."""
    batches = []
    for batch in _cut(indices, world_size * batch_size):
        longest_first = sorted(batch, key=lambda index: lengths[index], reverse=True)
        chunks = split_to_even_chunks(longest_first, lengths, world_size)
        batches.append([index for chunk in chunks for index in chunk])
    return batches


def length_order(
    lengths: Sequence[int], batch_size: int, world_size: int, generator: Generator | None = None
) -> list[int]:
    """Shuffle, cut into global batches, balance each batch over the processes (LLaVA 1.5)."""
    indices = _shuffled(len(lengths), generator)
    return [index for batch in _deal(indices, lengths, batch_size, world_size) for index in batch]


def length_auto_order(
    lengths: Sequence[int], batch_size: int, world_size: int, generator: Generator | None = None
) -> list[int]:
    """Batches of similar length in random order (LLaVA-NeXT): sort within windows of up to 50 global batches.

    The longest sample of all comes first in its window's order, so that memory runs out early or not at all.
    """
    global_batch = batch_size * world_size
    window = max(min(len(lengths) // (global_batch * 4), 50), 1) * global_batch
    indices = _shuffled(len(lengths), generator)
    windows = [sorted(part, key=lambda index: lengths[index], reverse=True) for part in _cut(indices, window)]
    if windows:
        heads = [lengths[part[0]] for part in windows]
        longest = heads.index(max(heads))
        windows[0][0], windows[longest][0] = windows[longest][0], windows[0][0]
    batches = _deal([index for part in windows for index in part], lengths, batch_size, world_size)
    return [index for position in _shuffled(len(batches), generator) for index in batches[position]]


def variable_order(
    lengths: Sequence[int], batch_size: int, world_size: int, generator: Generator | None = None
) -> list[int]:
    """Sort everything by length, shuffle within windows of 8 global batches, then shuffle the batches."""
    global_batch = batch_size * world_size
    rank = _shuffled(len(lengths), generator)
    by_length = sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True)
    windows = _cut(by_length, WINDOW * global_batch)
    mixed = [index for part in windows for index in sorted(part, key=lambda index: rank[index], reverse=True)]
    batches = _cut(mixed, global_batch)
    return [index for position in _shuffled(len(batches), generator) for index in batches[position]]


def _by_modality(
    order: Callable[..., list[int]],
    lengths: Sequence[int],
    batch_size: int,
    world_size: int,
    generator: Generator | None,
    within: Generator | None,
) -> tuple[list[int], list[int], list[int]]:
    """(whole global batches of one modality each, left-over with image, left-over without).

    Both signs must occur in `lengths`, and no 0.
    """
    if 0 in lengths:
        raise ValueError(f"sample {list(lengths).index(0)} has length 0, which is neither with image nor text only")
    kinds = []
    for sign in (1, -1):
        members = [index for index, length in enumerate(lengths) if sign * length > 0]
        sizes = [abs(lengths[index]) for index in members]
        kinds.append([members[position] for position in order(sizes, batch_size, world_size, within)])
    # The last batch of a kind counts as left over even when it is full, as in the published order.
    cut = [_cut(kind, world_size * batch_size) for kind in kinds]
    batches = [batch for kind in cut for batch in kind[:-1]]
    shuffled = [index for position in _shuffled(len(batches), generator) for index in batches[position]]
    return shuffled, cut[0][-1], cut[1][-1]


def _single_modality(lengths: Sequence[int]) -> bool:
    # All of one sign are then ordered by the signed lengths, as published: text only means shortest first.
    return all(length > 0 for length in lengths) or all(length < 0 for length in lengths)


def modality_order(
    lengths: Sequence[int],
    batch_size: int,
    world_size: int,
    generator: Generator | None = None,
    within: Generator | None = None,
) -> list[int]:
    """Global batches with images (positive lengths) or of text only (negative), never both, but for the last ones.

    within: generator of the order inside each kind; None shares `generator`. (The published code draws it
    from torch's global generator, so its order depends on whatever ran before.)
    """
    if _single_modality(lengths):
        return length_order(lengths, batch_size, world_size, generator)
    shuffled, image, text = _by_modality(length_order, lengths, batch_size, world_size, generator, within or generator)
    return shuffled + sorted(image + text)


def modality_auto_order(
    lengths: Sequence[int],
    batch_size: int,
    world_size: int,
    generator: Generator | None = None,
    within: Generator | None = None,
) -> list[int]:
    """`modality_order` over batches of similar length. Nothing is dropped: the published code forgets the left-over."""
    if _single_modality(lengths):
        return length_auto_order(lengths, batch_size, world_size, generator)
    shuffled, image, text = _by_modality(
        length_auto_order, lengths, batch_size, world_size, generator, within or generator
    )
    return shuffled + image + text


ORDERS: dict[Mode, Callable[..., list[int]]] = {
    "length_auto": length_auto_order,
    "modality": modality_order,
    "modality_auto": modality_auto_order,
    "variable": variable_order,
}


class LengthGroupedSampler(Sampler[int]):
    """Visits every sample once an epoch, grouped by length and, in the modality modes, by presence of an image.

    batch_size: samples per process and forward pass. world_size: processes times accumulation steps.
    lengths: one per sample, never 0; negative only in the modality modes, for text only.
    The order depends on `seed` and the epoch alone: `set_epoch` before iterating resumes at any epoch.
    """

    def __init__(self, batch_size: int, world_size: int, lengths: Sequence[int], mode: Mode, seed: int = 0) -> None:
        if mode not in ORDERS:
            raise ValueError(f"sampler mode {mode!r} is unknown; there are {', '.join(ORDERS)}")
        if batch_size < 1 or world_size < 1:
            raise ValueError(f"batch_size and world_size must be at least 1, got {batch_size} and {world_size}")
        lengths = [int(length) for length in lengths]
        if 0 in lengths:
            raise ValueError(
                f"sample {lengths.index(0)} has length 0; give every sample a length of at least 1 (negative for text)"
            )
        self.batch_size = batch_size
        self.world_size = world_size
        self.lengths = lengths
        self.mode = mode
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(ORDERS[self.mode](self.lengths, self.batch_size, self.world_size, generator))
