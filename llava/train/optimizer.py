"""Optimizer groups: one learning rate per part, and no weight decay on biases and norm weights."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn import Parameter
from transformers.trainer_pt_utils import get_parameter_names

from llava.train.stages import Parts, trained_parts

NOT_DECAYED = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]


def decayed_names(model: nn.Module) -> set[str]:
    """Parameters with weight decay: all but those of norm layers and those named as a bias."""
    return set(get_parameter_names(model, [nn.LayerNorm], NOT_DECAYED))


def parameter_groups(
    model: nn.Module, parts: Parts, learning_rates: Mapping[str, float], default_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups of trainable parameters with equal learning rate and decay; `default_rate` comes first, decayed first.

    parts: names are those of `model.named_parameters()`. No group is empty.
    """
    decayed = decayed_names(model)
    groups: dict[tuple[float, bool], list[Parameter]] = {}
    for part, named in trained_parts(parts).items():
        for name, parameter in named.items():
            groups.setdefault((learning_rates[part], name in decayed), []).append(parameter)
    order = sorted(groups, key=lambda key: (key[0] != default_rate, -key[0], not key[1]))
    return [
        {"params": groups[rate, decays], "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        for rate, decays in order
    ]
