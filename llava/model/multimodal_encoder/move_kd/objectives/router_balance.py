"""Balance of the experts: a router's mean probability of each expert times the share of tokens it really gets.

The share carries no gradient, so a router lowers the term by preferring experts that are used less.
Legend: L expert layers, T tiles, N tokens, E experts.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from llava.model.multimodal_encoder.move_kd.objectives.base import Objective, weighted_mean
from llava.model.multimodal_encoder.move_kd.types import DistillInputs, Routing


def assigned(routing: Routing) -> Tensor:
    """(T, N, E) zeros and ones."""
    zeros = torch.zeros_like(routing.probs, requires_grad=False)
    return zeros.scatter(-1, routing.choice.unsqueeze(-1), 1.0)


def routed_weight(routing: Sequence[Routing], tile_weight: Tensor) -> Tensor:
    """`tile_weight` for each picture that the layers saw; a multi-scale tower shows them several per tile."""
    return tile_weight.repeat(len(routing[0].probs) // len(tile_weight))


def pooled(routing: Sequence[Routing], tile_weight: Tensor) -> Tensor:
    """As released: one mean per image over all layers and tokens. At least 1 / E, also where each layer has collapsed
    on an expert of its own."""
    probs = torch.stack([layer.probs.mean(1) for layer in routing]).mean(0)  # (T, E)
    share = torch.stack([assigned(layer).mean(1) for layer in routing]).mean(0)
    return weighted_mean((probs * share).sum(-1), tile_weight)


def per_layer(routing: Sequence[Routing], tile_weight: Tensor) -> Tensor:
    """Each layer by itself over the tokens of all real tiles, times E: 1 where a layer is balanced, E where it has
    collapsed; the mean over layers."""
    weight = tile_weight / tile_weight.sum().clamp_min(1e-6)
    probs = torch.stack([weight @ layer.probs.mean(1) for layer in routing])  # (L, E)
    share = torch.stack([weight @ assigned(layer).mean(1) for layer in routing])
    return probs.shape[-1] * (probs * share).sum(-1).mean()


BALANCE: Mapping[str, Callable[[Sequence[Routing], Tensor], Tensor]] = {"pooled": pooled, "per_layer": per_layer}


class RouterBalance(Objective):
    label = "balance"

    def routing(self, inputs: DistillInputs) -> list[Routing]:
        """Layers and tokens that count: as released all of them, otherwise patches in layers that lead somewhere."""
        layers = list(inputs.student.routing)
        if self.setup.config.balance == "pooled":
            return layers
        patches = inputs.student.patches.shape[1]
        return [Routing(*(part[:, -patches:] for part in layer)) for layer in layers[: self.setup.num_used_layers]]

    def __call__(self, inputs: DistillInputs) -> dict[str, Tensor]:
        layers = self.routing(inputs)
        if not layers or layers[0].probs.shape[-1] == 1:
            return {}
        return {"": BALANCE[self.setup.config.balance](layers, routed_weight(layers, inputs.tile_weight))}


OBJECTIVE = RouterBalance
