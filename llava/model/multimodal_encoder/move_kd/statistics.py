"""Running mean and standard deviation of a teacher's channels, over the real images of all processes.

A teacher is frozen, so every image counts the same however long ago it was seen. Nothing here needs a gradient.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

EPSILON = 1e-6
CHUNK = 4  # images


class ChannelStatistics(nn.Module):
    """Mean and variance per channel, as float32 buffers that no change of the model's dtype touches.

    width: D. max_steps: updates after which nothing changes any more; None for never.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor
    steps: Tensor

    def __init__(self, width: int, max_steps: int | None = None) -> None:
        super().__init__()
        self.max_steps = max_steps
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("count", torch.zeros(()))  # images seen
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        """Moves go through; casts do not: engines that train in half precision cast every buffer they find."""
        kept = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = self._buffers[name]
            assert after is not None
            if after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return self

    @torch.no_grad()
    def moments(self, tokens: Tensor, weight: Tensor) -> Tensor:
        """tokens (M, N, D), weight (M,), 0 for what must not count. Returns (1 + 2 * D,), which may be summed over
        processes: images, and sums of first and second power of the distance to the current mean. In float64 where
        there is one: in the first step the mean is not known yet, and some channels lie far from zero."""
        wide = torch.float32 if tokens.device.type == "mps" else torch.float64
        share = weight.to(wide).unsqueeze(-1)
        if self.max_steps is not None:
            share = share * (self.steps < self.max_steps)
        sums = torch.zeros(2, len(self.mean), dtype=wide, device=tokens.device)
        # A few images at a time: a float32 copy of all tokens may be a gigabyte.
        for part, counts in zip(tokens.split(CHUNK), share.split(CHUNK), strict=True):
            distance = part.float() - self.mean
            for total, values in zip(sums, (distance, distance.square()), strict=True):
                total += (counts * values.mean(1, dtype=wide)).sum(0)
        return torch.cat([share.sum().unsqueeze(0), sums.flatten()])

    @torch.no_grad()
    def update(self, moments: Tensor) -> None:
        """Merge what `moments` gave into the running values; no image, no change."""
        images, first, second = moments.split([1, len(self.mean), len(self.mean)])
        total = self.count + images
        share = torch.where(total > 0, 1.0 / total.clamp_min(EPSILON), 0.0)
        shift = first * share
        variance = (self.count * self.variance + second) * share - shift.square()
        self.variance.copy_(torch.where(total > 0, variance.clamp_min(0.0), self.variance))
        self.mean.add_(shift.to(self.mean.dtype))
        self.count.copy_(total.squeeze(0))
        self.steps.add_((images > 0).long().squeeze(0))

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., D) to zero mean and unit variance per channel, float32."""
        return (tokens.float() - self.mean) * torch.rsqrt(self.variance + EPSILON)


def update_statistics(statistics: Sequence[ChannelStatistics], tokens: Sequence[Tensor], weight: Tensor) -> None:
    """Update several teachers' statistics from this step's images, with one reduction over all processes."""
    if not statistics:
        return
    moments = [each.moments(values, weight) for each, values in zip(statistics, tokens, strict=True)]
    joined = torch.cat(moments)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(joined)
    for each, part in zip(statistics, joined.split([len(part) for part in moments]), strict=True):
        each.update(part)
