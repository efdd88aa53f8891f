"""What a distillation objective is, and how to add one.

One file beside this one, `objectives/huber.py`, is the objective `huber`:

    class Huber(Objective):
        def __call__(self, inputs):
            return {
                name: weighted_mean(F.smooth_l1_loss(*pair, reduction="none").mean((1, 2)), inputs.weight)
                for name, pair in inputs.pairs.items()
            }

    OBJECTIVE = Huber

It is used by `--kd_objectives huber=0.5` (or beside another: `weighted_mse=4 huber=0.5`). Each entry it returns is a
scalar; the run multiplies it by the objective's weight, adds it to the loss and logs it as `huber/NAME`.
To weigh tokens and teachers as the run is configured to, derive from `TokenObjective` and give only the error.
Shapes are in `DistillInputs`; `pairs` is empty in a validation step without teachers. Compute in float32, on the
device, without waiting for it (no `.item()`), and weigh images by `inputs.weight`, so that a blank costs nothing and
still gives a (zero) gradient.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from llava.model.multimodal_encoder.move_kd.config import DistillConfig
from llava.model.multimodal_encoder.move_kd.types import DistillInputs, Pair
from llava.model.multimodal_encoder.move_kd.weights import (
    TEACHER_RULES,
    TOKEN_RULES,
    teacher_weights,
    token_weights,
)


@dataclass(frozen=True)
class Setup:
    """The run an objective is built for. targets: the teachers it will see as pairs, anchor first.
    num_used_layers: layers of the student's tower that lead to its features."""

    config: DistillConfig
    targets: tuple[str, ...]
    num_used_layers: int


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of `values` (M,) by `weight` (M,); 0, with a gradient of 0, if every weight is 0."""
    return (values * weight).sum() / weight.sum().clamp_min(1e-6)


class Objective(ABC):
    """One part of the distillation loss. label: what its terms are called in the log; None for its file's name.

    Built once per run; holds no parameters.
    """

    label: str | None = None

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    @property
    def requires(self) -> Mapping[str, tuple[str, ...]]:
        """Features it reads by teacher, as `{"clip": ("cls", "cls_attention")}`, beyond patches. Checked at start."""
        return {}

    @abstractmethod
    def __call__(self, inputs: DistillInputs) -> dict[str, Tensor]:
        """Scalars by name (a teacher's, as a rule); the empty name is the objective itself. {} says: nothing to do."""

    def metrics(self, inputs: DistillInputs) -> dict[str, Tensor]:
        """What is worth logging besides, computed only when the trainer asks; called without gradients."""
        return {}


class TokenObjective(Objective):
    """Sum over teachers of teacher weight x sum over tokens of token weight x error, a mean over images.

    Subclasses give `error`; the two weights are the run's (`token_weights`, `teacher_weights`).
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.token_rule = TOKEN_RULES[setup.config.token_weights]
        self.teacher_rule = TEACHER_RULES[setup.config.teacher_weights]

    @property
    def requires(self) -> Mapping[str, tuple[str, ...]]:
        several = any(name != self.setup.config.anchor for name in self.setup.targets)
        reads = (*self.token_rule.reads, *(self.teacher_rule.reads if several else ()))
        return {self.setup.config.anchor: reads} if reads else {}

    @abstractmethod
    def error(self, pair: Pair) -> Tensor:
        """(M, N) float32, a number per token."""

    def weights(self, inputs: DistillInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Of tokens (M, N), and of each teacher (M,)."""
        config = self.setup.config
        tokens = token_weights(inputs, self.token_rule, config.anchor)
        return tokens, teacher_weights(inputs, self.teacher_rule, config.anchor, config.anchor_share)

    def __call__(self, inputs: DistillInputs) -> dict[str, Tensor]:
        if not inputs.pairs:
            return {}
        tokens, teachers = self.weights(inputs)
        return {
            name: weighted_mean(teachers[name] * (tokens * self.error(pair)).sum(-1), inputs.weight)
            for name, pair in inputs.pairs.items()
        }

    def metrics(self, inputs: DistillInputs) -> dict[str, Tensor]:
        tokens, teachers = self.weights(inputs)
        shares = tokens / tokens.sum(-1, keepdim=True)
        entropy = -(shares * shares.clamp_min(1e-12).log()).sum(-1)
        found = {"token_entropy": weighted_mean(entropy, inputs.weight)}
        for name, share in teachers.items():
            found[f"weight/{name}"] = weighted_mean(share, inputs.weight)
            found[f"residual/{name}"] = weighted_mean(self.error(inputs.pairs[name]).mean(-1), inputs.weight)
        return found
