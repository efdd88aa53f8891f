"""Squared error with every teacher pulling equally hard, however large its error is.

A teacher's error is divided by its own current mean, so its term is its weight and only its gradient says anything.
Read `residual/NAME` in the log for the size of the error. Use it in place of `weighted_mse`:
`--kd_objectives balanced_mse=1`.
"""

from torch import Tensor

from llava.model.multimodal_encoder.move_kd.objectives.weighted_mse import WeightedMSE
from llava.model.multimodal_encoder.move_kd.types import DistillInputs

FLOOR = 1e-3  # an error this small is not blown up any further


class BalancedMSE(WeightedMSE):
    def __call__(self, inputs: DistillInputs) -> dict[str, Tensor]:
        terms = super().__call__(inputs)
        if not terms:
            return {}
        shares = self.weights(inputs)[1]
        return {name: self.scaled(term, shares[name].detach().mean()) for name, term in terms.items()}

    @staticmethod
    def scaled(term: Tensor, share: Tensor) -> Tensor:
        return share * term / term.detach().clamp_min(1e-12).maximum(FLOOR * share)


OBJECTIVE = BalancedMSE
