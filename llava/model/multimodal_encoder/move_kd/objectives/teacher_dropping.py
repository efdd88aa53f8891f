"""Squared error with teachers dropped at random, image by image, so that none is forgotten for an easier one.

The teacher whose error is largest on an image is always kept; each other one is kept with probability one half. Use it
in place of `weighted_mse`: `--kd_objectives teacher_dropping=4`. All teachers still run. Without gradients, as in
validation, none is dropped.
"""

import torch
from torch import Tensor

from llava.model.multimodal_encoder.move_kd.objectives.base import weighted_mean
from llava.model.multimodal_encoder.move_kd.objectives.weighted_mse import WeightedMSE
from llava.model.multimodal_encoder.move_kd.types import DistillInputs

KEPT = 0.5


class TeacherDropping(WeightedMSE):
    def __call__(self, inputs: DistillInputs) -> dict[str, Tensor]:
        if not inputs.pairs:
            return {}
        tokens, teachers = self.weights(inputs)
        names = list(inputs.pairs)
        errors = torch.stack([(tokens * self.error(inputs.pairs[name])).sum(-1) for name in names], dim=-1)  # (M, K)
        kept = self.keep(errors.detach()) if torch.is_grad_enabled() else torch.ones_like(errors)
        return {
            name: weighted_mean(kept[:, position] * teachers[name] * errors[:, position], inputs.weight)
            for position, name in enumerate(names)
        }

    def keep(self, errors: Tensor) -> Tensor:
        """errors (M, K) to zeros and ones (M, K); every row keeps its largest."""
        drawn = torch.rand_like(errors) < KEPT
        return drawn.scatter(-1, errors.argmax(-1, keepdim=True), True).to(errors.dtype)


OBJECTIVE = TeacherDropping
