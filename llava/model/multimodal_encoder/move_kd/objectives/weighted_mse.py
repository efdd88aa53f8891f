"""The published form of the loss: squared error per token, weighed by token and by teacher."""

from torch import Tensor

from llava.model.multimodal_encoder.move_kd.objectives.base import TokenObjective
from llava.model.multimodal_encoder.move_kd.types import Pair


class WeightedMSE(TokenObjective):
    label = "kd"

    def error(self, pair: Pair) -> Tensor:
        return (pair.prediction - pair.target).square().mean(-1)


OBJECTIVE = WeightedMSE
