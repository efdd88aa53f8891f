"""The module that is trained: a student VLM, its alignments with teachers, and the objectives that join them.

The student does not know that it is distilled; teachers are not in here, only what they said of this batch. Plain LLaVA
is the same module with no teachers: its loss is the language model's. Legend: M teacher images, T tiles.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llava.model.multimodal_encoder.move_kd import objectives as objectives_package
from llava.model.multimodal_encoder.move_kd.adapters import (
    Alignment,
    HasShape,
    Shape,
    build_alignments,
)
from llava.model.multimodal_encoder.move_kd.config import DistillConfig
from llava.model.multimodal_encoder.move_kd.metrics import routing_metrics, similarity_metrics
from llava.model.multimodal_encoder.move_kd.objectives.base import Objective, Setup
from llava.model.multimodal_encoder.move_kd.plugins import load_plugin
from llava.model.multimodal_encoder.move_kd.statistics import update_statistics
from llava.model.multimodal_encoder.move_kd.student import num_used_layers
from llava.model.multimodal_encoder.move_kd.types import DistillInputs, Pair, StudentFeatures, TeacherFeatures


class Distiller(nn.Module):
    """student: a VLM that answers with `loss` and `vision`, plain, in a PEFT wrapper or with a quantized LM.
    teachers: grid and width by name; not kept. config: None for the defaults, or for nothing if there are no teachers.

    Set `collect_metrics` for a step whose metrics are wanted. Raises ValueError for a configuration that cannot run.
    """

    student: Any  # any VLM that answers with `loss` and `vision`, whatever wraps it
    accepts_loss_kwargs = False  # the sum of an LM loss and others must not be scaled by the number of tokens
    _keys_to_ignore_on_save = None  # transformers' trainer looks for it when it loads a state dict

    def __init__(
        self, student: nn.Module, teachers: Mapping[str, HasShape] | None = None, config: DistillConfig | None = None
    ) -> None:
        super().__init__()
        teachers = teachers or {}
        if config is None:
            config = DistillConfig() if teachers else DistillConfig(objectives=(), balance_weight=0.0)
        self.student = student
        self.distill_config = config
        self.targets = config.targets(teachers) if config.objectives else ()
        self.adapters = nn.ModuleDict()
        self.grid = (0, 0)
        self.collect_metrics = False
        used_layers = 0
        if teachers or config.balance_weight > 0:
            tower = self.student.get_vision_tower()
            if tower is None:
                raise ValueError("the student has no vision tower: nothing can be distilled. Set --vision_tower.")
            self.grid = (tower.num_patches_per_side, tower.num_patches_per_side)
            if config.needs_class_token and self.targets and teachers[config.anchor].width != tower.hidden_size:
                raise ValueError(
                    f"teacher_weights={config.teacher_weights!r} compares the class token of {config.anchor!r}, "
                    f"{teachers[config.anchor].width} wide, with teachers in the student's space, {tower.hidden_size} "
                    "wide. Use another anchor, or teacher_weights='uniform'."
                )
            if config.experts == "own" and self.targets:
                tower.show_solos(len(self.targets))
            shapes = {name: Shape.of(teachers[name]) for name in self.targets}
            self.adapters = build_alignments(shapes, Shape(self.grid, tower.hidden_size), config)
            used_layers = num_used_layers(tower.config.num_hidden_layers, tower.select_layer)
        self.objectives = build_objectives(Setup(config, self.targets, used_layers))
        self.required = required_features(self.objectives, self.targets, teachers)

    def forward(
        self,
        distill: Mapping[str, Any] | None = None,
        features: Mapping[str, TeacherFeatures] | None = None,
        **vlm_inputs: Any,
    ) -> dict[str, Any]:
        """One step. distill: the collator's `tile_index`, `weight`, `tile_weight` (None: no teacher images, no blank).
        features: what each teacher says of them. vlm_inputs: the student's own, labels included.

        Returns `loss`, a scalar; `terms`, its summands by name, detached ("lm" always); `metrics`, detached.
        """
        answer = self.student(**vlm_inputs)
        if answer.loss is None:
            raise ValueError("the student gave no loss: the batch has no labels.")
        terms = {"lm": answer.loss.float()}
        metrics: dict[str, Tensor] = {}
        unread: Tensor | float = 0.0
        if self.objectives and answer.vision is not None:
            inputs, read = self.distill_inputs(answer.vision, distill, features), set[str]()
            with torch.autocast(answer.loss.device.type, enabled=False):
                for name, (objective, weight) in self.objectives.items():
                    for part, value in objective(inputs).items():
                        if not isinstance(value, Tensor) or value.ndim:
                            raise ValueError(f"objective {name!r} must give scalar tensors; its {part!r} is no scalar")
                        terms[f"{name}/{part}" if part else name] = weight * value
                        read.add(part)
                unread = zero_of(pair for name, pair in inputs.pairs.items() if name not in read)
                if self.collect_metrics:
                    metrics = self.measure(inputs)
        elif self.targets and self.training:
            raise ValueError("the student encoded no image in this step; text-only batches need a blank tile.")
        loss = sum(terms.values()) + unread
        return {"loss": loss, "terms": {k: v.detach() for k, v in terms.items()}, "metrics": metrics}

    def distill_inputs(
        self,
        student: StudentFeatures,
        distill: Mapping[str, Any] | None,
        features: Mapping[str, TeacherFeatures] | None,
    ) -> DistillInputs:
        """Everything the objectives read, with each target beside the student. Updates the statistics when training."""
        if distill is None or not self.targets:
            return self.routing_inputs(student, distill)
        features = features or {}
        self.check_features(features)
        tile_index, weight = distill["tile_index"], distill["weight"].float()
        self.learn_statistics(features, weight)
        if student.solos is None:
            seen = dict.fromkeys(self.targets, student.patches[tile_index])
        else:  # by name, so that teachers given in another order find their experts again
            solos = zip(sorted(self.targets), student.solos, strict=True)
            seen = {name: patches[tile_index] for name, patches in solos}
        pairs: dict[str, Pair] = {name: self.alignment(name)(seen[name], features[name]) for name in self.targets}
        tile_weight = self.soften(distill["tile_weight"].float())
        return DistillInputs(student, self.grid, features, pairs, tile_index, self.soften(weight), tile_weight)

    def routing_inputs(self, student: StudentFeatures, distill: Mapping[str, Any] | None) -> DistillInputs:
        """A step without teachers: what the routers' balance needs."""
        if self.targets and self.training:
            raise ValueError(f"the batch holds no teacher images, but {list(self.targets)} are to be distilled.")
        device = student.patches.device
        tile_weight = torch.ones(len(student.patches), device=device) if distill is None else distill["tile_weight"]
        none = torch.zeros(0, dtype=torch.long, device=device)
        return DistillInputs(student, self.grid, {}, {}, none, none.float(), self.soften(tile_weight.float()))

    def alignment(self, teacher: str) -> Alignment:
        found = self.adapters[teacher]
        assert isinstance(found, Alignment)
        return found

    def soften(self, weight: Tensor) -> Tensor:
        """0 for a blank becomes `blank_weight`."""
        blank = self.distill_config.blank_weight
        return weight if blank == 0 else weight + (1.0 - weight) * blank

    def learn_statistics(self, features: Mapping[str, TeacherFeatures], weight: Tensor) -> None:
        if not self.training or not self.distill_config.standardize:
            return
        statistics = [self.alignment(name).statistics for name in self.targets]
        update_statistics(
            [each for each in statistics if each is not None], [features[name].patches for name in self.targets], weight
        )

    def check_features(self, features: Mapping[str, TeacherFeatures]) -> None:
        """Raises ValueError for a teacher that did not answer, or not with what an objective reads."""
        if missing := [name for name in self.required if name not in features]:
            raise ValueError(f"no features of {missing} in this step; there are those of {sorted(features)}.")
        for name in self.required:
            self.check_answer(name, features[name])

    def check_answer(self, teacher: str, answer: TeacherFeatures) -> None:
        """Raises ValueError for an answer without something that an objective reads."""
        if absent := [field for field in self.required[teacher] if getattr(answer, field) is None]:
            raise ValueError(
                f"an objective reads {', '.join(sorted(absent))} of teacher {teacher!r}, which does not give that. "
                "Use another anchor, or set token_weights and teacher_weights to 'uniform'."
            )

    @torch.no_grad()
    def measure(self, inputs: DistillInputs) -> dict[str, Tensor]:
        """What the objectives report, similarity to each teacher, and what the routers do. NaN where there is no
        picture to measure it on."""
        found = where_measured(routing_metrics(inputs.student.routing, inputs.tile_weight), inputs.tile_weight)
        if inputs.pairs:
            teaching = similarity_metrics(inputs)
            for objective, _ in self.objectives.values():
                teaching.update(objective.metrics(inputs))
            found.update(where_measured(teaching, inputs.weight))
        return found

    def parts(self) -> dict[str, dict[str, nn.Parameter]]:
        """The student's parts and `adapters`, under the names of `self.named_parameters()`; each parameter once."""
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        parts = {
            part: {names[id(parameter)]: parameter for parameter in parameters.values()}
            for part, parameters in self.student.parts().items()
        }
        own = {f"adapters.{name}": parameter for name, parameter in self.adapters.named_parameters()}
        return {**parts, "adapters": own}

    def adapter_buffers(self) -> dict[str, Tensor]:
        """The statistics of the teachers, which belong into every file that holds the adapters."""
        return {f"adapters.{name}": buffer for name, buffer in self.adapters.named_buffers()}

    # What transformers' trainer and DeepSpeed ask of a model.

    @property
    def config(self) -> Any:
        return self.student.config

    @property
    def device(self) -> torch.device:
        return self.student.device

    @property
    def dtype(self) -> torch.dtype:
        return self.student.dtype

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.student.is_gradient_checkpointing

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        self.student.gradient_checkpointing_enable(gradient_checkpointing_kwargs)

    def gradient_checkpointing_disable(self) -> None:
        self.student.gradient_checkpointing_disable()


def zero_of(pairs: Iterable[Pair]) -> Tensor | float:
    """0 with a gradient of 0 for every head: objectives may leave teachers out, but processes wait for each head."""
    return sum(0.0 * side[0, 0, 0] for pair in pairs for side in pair if side.requires_grad)


def where_measured(metrics: Mapping[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
    """`metrics`, detached, or NaN if no weight (M,) is positive; decided on the device."""
    nothing = weight.sum() <= 0
    return {name: value.detach().masked_fill(nothing, torch.nan) for name, value in metrics.items()}


def build_objectives(setup: Setup) -> dict[str, tuple[Objective, float]]:
    """By label, each with its weight: those of the config if there are targets, and the routers' balance.

    Raises ValueError for an unknown objective or two of one label.
    """
    config = setup.config
    chosen = [*config.objectives] if setup.targets else []
    if config.balance_weight > 0:
        chosen.append(("router_balance", config.balance_weight))
    built: dict[str, tuple[Objective, float]] = {}
    for name, weight in chosen:
        objective: Objective = load_plugin(objectives_package.__name__, name)(setup)
        label = objective.label or name
        if label in built or label == "lm":
            raise ValueError(f"objective {name!r} logs as {label!r}, which is taken; give it another `label`.")
        built[label] = (objective, weight)
    return built


def required_features(
    objectives: Mapping[str, tuple[Objective, float]], targets: Collection[str], teachers: Collection[str]
) -> dict[str, set[str]]:
    """By teacher that must answer, the fields of TeacherFeatures that are read besides patches.

    Raises ValueError if an objective reads a teacher that is not there.
    """
    required: dict[str, set[str]] = {name: set() for name in targets}
    for label, (objective, _) in objectives.items():
        for teacher, fields in objective.requires.items():
            if teacher not in teachers:
                raise ValueError(
                    f"objective {label!r} reads {', '.join(fields)} of teacher {teacher!r}, but the teachers are "
                    f"{sorted(teachers)}. Add it, or choose weights that do not need it."
                )
            required.setdefault(teacher, set()).update(fields)
    return required
