"""Direction first, size second: cosine distance and smooth L1, as agglomerative vision models are distilled.

An alternative to `weighted_mse` under the same weights of tokens and teachers: `--kd_objectives cosine_smooth_l1=4`.
"""

import torch.nn.functional as F
from torch import Tensor

from llava.model.multimodal_encoder.move_kd.objectives.base import TokenObjective
from llava.model.multimodal_encoder.move_kd.types import Pair

COSINE_SHARE = 0.9


class CosineSmoothL1(TokenObjective):
    def error(self, pair: Pair) -> Tensor:
        cosine = 1.0 - F.cosine_similarity(pair.prediction, pair.target, dim=-1)
        distance = F.smooth_l1_loss(pair.prediction, pair.target, reduction="none").mean(-1)
        return COSINE_SHARE * cosine + (1.0 - COSINE_SHARE) * distance


OBJECTIVE = CosineSmoothL1
