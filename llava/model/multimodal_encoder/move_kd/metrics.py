"""What to look at while a student learns; computed on the device and only when asked, without gradients.

Legend: M images, N tokens, D width, L expert layers, T tiles, E experts.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llava.model.multimodal_encoder.move_kd.grids import to_grid
from llava.model.multimodal_encoder.move_kd.objectives.base import weighted_mean
from llava.model.multimodal_encoder.move_kd.objectives.router_balance import assigned, routed_weight
from llava.model.multimodal_encoder.move_kd.types import DistillInputs, Routing

CKA_TOKENS = 512


def linear_cka(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Similarity of two representations of the same tokens, 0 to 1, blind to rotation and scale.

    first (K, D), second (K, D'), weight (K,) of 0 and 1. 0 if fewer than two tokens count.
    """
    share = (weight / weight.sum().clamp_min(1e-6)).unsqueeze(-1)
    grams = []
    for values in (first.float(), second.float()):
        centered = (values - (share * values).sum(0)) * weight.unsqueeze(-1)
        centered = centered / centered.norm().clamp_min(1e-12)
        grams.append(centered @ centered.t())
    first_gram, second_gram = grams
    return (first_gram * second_gram).sum() / (first_gram.norm() * second_gram.norm()).clamp_min(1e-12)


def similarity_metrics(inputs: DistillInputs) -> dict[str, Tensor]:
    """Per teacher: cosine of prediction and target, and CKA of the student's own patches with the teacher's."""
    images, tokens = len(inputs.tile_index), inputs.grid[0] * inputs.grid[1]
    rows = torch.arange(0, images * tokens, max(1, images * tokens // CKA_TOKENS), device=inputs.weight.device)
    weight = inputs.weight.gt(0).float().repeat_interleave(tokens, output_size=images * tokens)[rows]
    student = inputs.student.patches[inputs.tile_index].flatten(0, 1)[rows]
    found = {}
    for name, pair in inputs.pairs.items():
        cosine = F.cosine_similarity(pair.prediction, pair.target, dim=-1).mean(-1)
        found[f"cosine/{name}"] = weighted_mean(cosine, inputs.weight)
        features = inputs.teachers[name]
        teacher = to_grid(features.patches, features.grid, inputs.grid).flatten(0, 1)[rows]
        found[f"cka/{name}"] = linear_cka(student, teacher, weight)
    return found


def routing_metrics(routing: Sequence[Routing], tile_weight: Tensor) -> dict[str, Tensor]:
    """Per layer, over the tokens of real tiles. `expert_load/LAYER/EXPERT`: the share of them that an expert gets.
    `routing_entropy/LAYER`: of a token's probabilities; 0 is certain, 1 undecided."""
    if not routing:
        return {}
    weight = routed_weight(routing, tile_weight)
    weight = weight / weight.sum().clamp_min(1e-6)
    found: dict[str, Tensor] = {}
    for index, layer in enumerate(routing):
        load = weight @ assigned(layer).mean(1)  # (E,)
        found.update({f"expert_load/{index}/{expert}": share for expert, share in enumerate(load.unbind())})
        entropy = -(layer.probs * layer.probs.clamp_min(1e-12).log()).sum(-1).mean(1)
        found[f"routing_entropy/{index}"] = (weight * entropy).sum() / math.log(max(len(load), 2))
    return found
