"""How much each token and each teacher counts. Functions that objectives are composed of.

A rule says which of the anchor's features it reads, so that a wrong combination fails before the first batch.
Legend: M images, N tokens, D width. All results are float32.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llava.model.multimodal_encoder.move_kd.grids import to_grid
from llava.model.multimodal_encoder.move_kd.types import DistillInputs

SATURATION = 0.8


@dataclass(frozen=True)
class TokenRule:
    """weigh: the anchor's attention (M, N) on the student's grid to weights (M, N). reads: features of the anchor."""

    weigh: Callable[[Tensor], Tensor]
    reads: tuple[str, ...] = ("cls_attention",)


@dataclass(frozen=True)
class TeacherRule:
    """share: similarity (M, K) of K teachers and image weights (M,) to shares (M, K) that sum to 1.

    scaled: the similarity is divided by sqrt(D) and gives no gradient.
    """

    share: Callable[[Tensor, Tensor], Tensor]
    reads: tuple[str, ...] = ("cls",)
    scaled: bool = True


def uniform_tokens(attention: Tensor) -> Tensor:
    return torch.full_like(attention, 1.0 / attention.shape[-1])


def renormalized(attention: Tensor) -> Tensor:
    """The attention row itself; the class token's share of it is given to the patches."""
    return attention / attention.sum(-1, keepdim=True)


def half_renormalized(attention: Tensor) -> Tensor:
    return 0.5 * (renormalized(attention) + uniform_tokens(attention))


def softmax_on_top(attention: Tensor) -> Tensor:
    """As released: a second softmax, which is nearly uniform, added to the uniform mean. Sums to 2."""
    return uniform_tokens(attention) + attention.softmax(-1)


def equal_shares(similarity: Tensor, weight: Tensor) -> Tensor:
    return torch.full_like(similarity, 1.0 / similarity.shape[-1])


def softmax_shares(similarity: Tensor, weight: Tensor) -> Tensor:
    return similarity.softmax(-1)


def released_shares(similarity: Tensor, weight: Tensor) -> Tensor:
    """As released: where one teacher's mean share over the batch exceeds 0.8, every image's shares go through a second
    softmax. (The 0.2 that the release adds before it cancels.)"""
    shares = similarity.softmax(-1)
    mean = (shares * weight.unsqueeze(-1)).sum(0) / weight.sum().clamp_min(1e-6)
    return torch.where(mean.max() > SATURATION, shares.softmax(-1), shares)


TOKEN_RULES: Mapping[str, TokenRule] = {
    "uniform": TokenRule(uniform_tokens, reads=()),
    "attention": TokenRule(renormalized),
    "attention_half": TokenRule(half_renormalized),
    "release": TokenRule(softmax_on_top),
}
TEACHER_RULES: Mapping[str, TeacherRule] = {
    "uniform": TeacherRule(equal_shares, reads=()),
    "similarity": TeacherRule(softmax_shares),
    "release": TeacherRule(released_shares, scaled=False),
}


def token_weights(inputs: DistillInputs, rule: TokenRule, anchor: str) -> Tensor:
    """(M, N) for the student's tokens; no gradient."""
    if not rule.reads:
        images, tokens = len(inputs.tile_index), inputs.grid[0] * inputs.grid[1]
        return rule.weigh(torch.ones(images, tokens, device=inputs.tile_index.device))
    features = inputs.teachers[anchor]
    assert features.cls_attention is not None
    attention = features.cls_attention.detach().unsqueeze(-1)
    return rule.weigh(to_grid(attention, features.grid, inputs.grid).squeeze(-1))


def teacher_weights(inputs: DistillInputs, rule: TeacherRule, anchor: str, anchor_share: float) -> dict[str, Tensor]:
    """(M,) for each teacher in `inputs.pairs`. The anchor has `anchor_share`, the others divide what is left of 1."""
    others = [name for name in inputs.pairs if name != anchor]
    left = 1.0
    shares: dict[str, Tensor] = {}
    if anchor in inputs.pairs:
        shares[anchor] = torch.full_like(inputs.weight, anchor_share)
        left -= anchor_share
    if others:
        divided = left * rule.share(similarity(inputs, rule, anchor, others), inputs.weight)  # (M, K)
        shares.update(zip(others, divided.unbind(-1), strict=True))
    return shares


def similarity(inputs: DistillInputs, rule: TeacherRule, anchor: str, names: list[str]) -> Tensor:
    """(M, K): mean dot product of the anchor's class token with each teacher's tokens in the student's space."""
    if not rule.reads:
        return inputs.weight.new_zeros(len(inputs.weight), len(names))
    class_token = inputs.teachers[anchor].cls
    assert class_token is not None
    class_token = class_token.detach().float()
    targets = [inputs.pairs[name].target for name in names]
    if rule.scaled:
        targets = [target.detach() for target in targets]
    # The mean over tokens first: the same number, without an (M, N) intermediate per teacher.
    dots = torch.stack([(target.mean(1) * class_token).sum(-1) for target in targets], dim=-1)
    return dots * class_token.shape[-1] ** -0.5 if rule.scaled else dots
