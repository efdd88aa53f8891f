"""The projector: vision features onto the language model's width."""

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig

_MLP = re.compile(r"mlp(?P<depth>\d+)x(?:_res(?P<blocks>\d+)x)?_gelu")


class IdentityMap(nn.Module):
    """No projection; only for a language model as wide as the vision tower."""

    def forward(self, features: Tensor) -> Tensor:
        return features

    @property
    def config(self) -> dict[str, str]:
        return {"mm_projector_type": "identity"}


class SimpleResBlock(nn.Module):
    """A two-layer perceptron whose output is added to its normalized input. channels: D."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(channels)
        self.proj = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels))

    def forward(self, features: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        normed = self.pre_norm(features)
        return normed + self.proj(normed)


# By name, from the tower's and the language model's width; a new projector is an entry here.
PROJECTORS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": nn.Linear,
    "identity": lambda width, hidden: IdentityMap(),
}


def build_vision_projector(config: PreTrainedConfig, delay_load: bool = False, **kwargs: Any) -> nn.Module:
    """The module `config.mm_projector_type` names: one of PROJECTORS (linear where the key is absent), mlpNx_gelu or
    mlpNx_resMx_gelu.

    `delay_load` and `kwargs` are part of the published signature; a projector has nothing to load.
    Raises ValueError for another name.
    """
    name = getattr(config, "mm_projector_type", None) or "linear"
    width, hidden = config.mm_hidden_size, config.hidden_size
    if name in PROJECTORS:
        return PROJECTORS[name](width, hidden)
    if match := _MLP.fullmatch(name):
        layers: list[nn.Module] = [nn.Linear(width, hidden)]
        for _ in range(1, int(match["depth"])):
            layers += [nn.GELU(), nn.Linear(hidden, hidden)]
        layers += [SimpleResBlock(hidden) for _ in range(int(match["blocks"] or 0))]
        return nn.Sequential(*layers)
    raise ValueError(
        f"mm_projector_type {name!r} is not known; use mlpNx_gelu (N layers), mlpNx_resMx_gelu or "
        f"{', '.join(PROJECTORS)}"
    )
