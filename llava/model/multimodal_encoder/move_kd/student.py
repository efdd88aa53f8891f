"""Experts inside a vision tower, and their names in published checkpoints.

Published files hold one lora_A and lora_B per expert; ours hold them stacked. Both directions are here, as pure
functions on state dicts with any prefix.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llava.model.multimodal_encoder.move_kd.config import MoLEConfig
from llava.model.multimodal_encoder.move_kd.mole import MoLE

PUBLISHED = re.compile(r"^(?P<bank>(?:.*\.)?moe_(?:down|up))\.(?P<expert>\d+)\.(?P<kind>lora_[AB]\.(?:weight|bias))$")
STACKED = re.compile(r"^(?P<bank>(?:.*\.)?moe_(?:down|up))\.(?P<kind>(?:reduce|expand)_(?:weight|bias))$")
KINDS = {
    "lora_A.weight": "reduce_weight",
    "lora_A.bias": "reduce_bias",
    "lora_B.weight": "expand_weight",
    "lora_B.bias": "expand_bias",
}


def num_used_layers(num_layers: int, select_layer: int) -> int:
    """How many encoder layers run for hidden state `select_layer` of `num_layers` + 1 (the first is the embeddings).

    Raises ValueError if there is no such hidden state.
    """
    used = select_layer if select_layer >= 0 else num_layers + 1 + select_layer
    if not 0 <= used <= num_layers:
        raise ValueError(f"mm_vision_select_layer={select_layer}: a tower of {num_layers} layers has no such output.")
    return used


def install_experts(vision_model: Any, config: MoLEConfig, num_used_layers: int) -> None:
    """Wrap the MLPs (`.mlp`) of `vision_model.encoder.layers` in place: all of them, or those that are used.

    Raises ValueError if they are wrapped already.
    """
    layers = vision_model.encoder.layers
    for layer in layers if config.layers == "all" else layers[:num_used_layers]:
        if isinstance(layer.mlp, MoLE):
            raise ValueError("this vision tower has experts already; install_experts must run once.")
        layer.mlp = MoLE(layer.mlp, config)


def expert_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Routers and experts anywhere inside `module`, without the MLPs they wrap, by their names in `module`."""
    found = {}
    for prefix, block in module.named_modules():
        if isinstance(block, MoLE):
            start = f"{prefix}." if prefix else ""
            for name, parameter in block.named_parameters():
                if not name.startswith("original_module."):
                    found[start + name] = parameter
    return found


def stack_published_experts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the experts of published checkpoints under our names; every other tensor as it is.

    Raises ValueError naming what is missing if an expert is not complete.
    """
    stacked: dict[str, Tensor] = {}
    experts: dict[tuple[str, str], dict[int, Tensor]] = {}
    for name, tensor in state.items():
        if match := PUBLISHED.match(name):
            experts.setdefault((match["bank"], match["kind"]), {})[int(match["expert"])] = tensor
        else:
            stacked[name] = tensor
    counts: dict[str, int] = {}
    for (bank, _), tensors in experts.items():
        counts[bank] = max(counts.get(bank, 0), 1 + max(tensors))
    missing = [
        f"{bank}.{expert}.{kind}"
        for bank, count in counts.items()
        for kind in KINDS
        for expert in range(count)
        if expert not in experts.get((bank, kind), {})
    ]
    if missing:
        shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        raise ValueError(f"the checkpoint's experts are incomplete; missing are {shown}.")
    for (bank, kind), tensors in experts.items():
        name = f"{bank}.{KINDS[kind]}"
        if name in stacked:
            raise ValueError(f"the checkpoint holds {bank} both as single experts and stacked.")
        stacked[name] = torch.stack([from_published(kind, tensors[expert]) for expert in range(len(tensors))])
    return stacked


def unstack_experts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `stack_published_experts`: published names, tensors of their own."""
    published = {value: key for key, value in KINDS.items()}
    single: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = STACKED.match(name)
        if match is None:
            single[name] = tensor
            continue
        kind = published[match["kind"]]
        for expert, value in enumerate(tensor.unbind()):
            single[f"{match['bank']}.{expert}.{kind}"] = to_published(kind, value)
    return single


def from_published(kind: str, tensor: Tensor) -> Tensor:
    return tensor.t() if kind == "lora_B.weight" else tensor


def to_published(kind: str, tensor: Tensor) -> Tensor:
    return (tensor.t() if kind == "lora_B.weight" else tensor).clone(memory_format=torch.contiguous_format)
