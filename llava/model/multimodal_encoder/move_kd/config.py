"""What a MoVE-KD run is made of, as frozen values: the experts of the student and the distillation itself.

Everything is checked on construction; after that nobody asks again. Knows no argument parser and no module.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

Gate = Literal["top1", "top1_ste", "top1_prob", "soft", "dense"]
Init = Literal["kaiming", "linear", "zero"]
Layers = Literal["used", "all"]
Heads = Literal["student", "linear", "teacher", "interpolate"]
Grid = Literal["unshuffle", "pool"]
Balance = Literal["per_layer", "pooled"]
Experts = Literal["shared", "own"]
TokenRule = Literal["uniform", "attention", "attention_half", "release"]
TeacherRule = Literal["uniform", "similarity", "release"]
Recipe = Literal["release", "paper", "ours"]

PUBLISHED_KEYS = {
    "moe_encoder_lora_rank": "rank",
    "moe_encoder_lora_alpha": "alpha",
    "moe_encoder_num_experts": "experts",
}
OWN_KEYS = {
    "moe_gate": "gate",
    "moe_init_a": "init_a",
    "moe_init_b": "init_b",
    "moe_dropout": "dropout",
    "moe_layers": "layers",
}


def check_choice(name: str, value: object, kind: Any) -> None:
    if value not in get_args(kind):
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(get_args(kind))}.")


def check_number(name: str, value: object, low: float, high: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; it must be a finite number from {low} to {high}.")
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; it must be finite.")


def check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1.")


@dataclass(frozen=True)
class MoLEConfig:
    """A mixture of LoRA experts on both projections of an MLP.

    alpha: a branch is scaled by alpha / rank; None means alpha = rank. gate: `top1` adds the chosen expert as it is,
    so that its router learns from the balance term alone (as released); `top1_ste` is equal in value and lets the
    router learn through the probabilities; `top1_prob` scales the chosen expert by its probability; `soft` mixes all
    experts by probability (`dense` is the published name of the same). layers: the layers that have experts:
    those up to the selected one, or all of them as released.
    """

    experts: int = 3
    rank: int = 32
    alpha: float | None = None
    gate: Gate = "top1_ste"
    init_a: Init = "kaiming"
    init_b: Init = "zero"
    dropout: float = 0.0
    layers: Layers = "used"

    def __post_init__(self) -> None:
        check_count("the number of experts", self.experts)
        check_count("the rank of the experts", self.rank)
        if self.alpha is None:
            object.__setattr__(self, "alpha", self.rank)
        check_number("the alpha of the experts", self.alpha, 0.0)
        check_choice("the gate of the experts", self.gate, Gate)
        check_choice("the initialization of lora_A", self.init_a, Init)
        check_choice("the initialization of lora_B", self.init_b, Init)
        check_choice("the layers that have experts", self.layers, Layers)
        check_number("the dropout of the experts", self.dropout, 0.0, 1.0)
        if self.init_a == "zero" and self.init_b == "zero":
            raise ValueError("init_a and init_b are both 'zero': no expert would ever learn. Choose one of them.")

    @property
    def scale(self) -> float:
        assert self.alpha is not None
        return self.alpha / self.rank

    @property
    def is_dense(self) -> bool:
        """Whether every expert takes part in every token."""
        return self.gate in ("soft", "dense")

    @classmethod
    def from_dict(cls, moe: Mapping[str, Any]) -> "MoLEConfig":
        """The `moe` entry of a model's config.json. Without our own keys it is a published model: its dropout,
        gate, initialization and layers are the released ones.

        Raises ValueError for missing or unknown keys, and if `moe_encoder` is not true.
        """
        known = {"moe_encoder", "moe_encoder_dense", *PUBLISHED_KEYS, *OWN_KEYS}
        if unknown := sorted(set(moe) - known):
            raise ValueError(f"config.moe has unknown keys {unknown}; known are {sorted(known)}.")
        if not moe.get("moe_encoder"):
            raise ValueError("config.moe does not say moe_encoder: true, so this model has no experts to configure.")
        if missing := [key for key in PUBLISHED_KEYS if moe.get(key) is None]:
            raise ValueError(f"config.moe switches experts on but does not say {', '.join(missing)}.")
        published = {name: moe[key] for key, name in PUBLISHED_KEYS.items()}
        own = {name: moe[key] for key, name in OWN_KEYS.items() if key in moe}
        gate = "dense" if moe.get("moe_encoder_dense") else "top1"
        return replace(MOLE_RECIPES["release"], **{"gate": gate, **published, **own})

    def to_dict(self) -> dict[str, Any]:
        """The published keys, so that other readers of the format understand them, and ours beside them."""
        return {
            "moe_encoder": True,
            "moe_encoder_dense": self.is_dense,
            **{key: getattr(self, name) for key, name in (PUBLISHED_KEYS | OWN_KEYS).items()},
        }

    @classmethod
    def from_recipe(cls, recipe: str, **overrides: Any) -> "MoLEConfig":
        """The experts of a named recipe, with single values replaced; None keeps the recipe's."""
        check_choice("the recipe", recipe, Recipe)
        chosen = {name: value for name, value in overrides.items() if value is not None}
        if recipe == "ours" and "alpha" not in chosen:
            chosen["alpha"] = None  # follows the rank, which may have been replaced
        return replace(MOLE_RECIPES[recipe], **chosen)


MOLE_RECIPES: Mapping[str, MoLEConfig] = {
    "release": MoLEConfig(alpha=1, gate="top1", init_b="kaiming", dropout=0.05, layers="all"),
    "paper": MoLEConfig(alpha=1, gate="top1", init_b="zero", dropout=0.05, layers="used"),
    "ours": MoLEConfig(),
}


@dataclass(frozen=True)
class DistillConfig:
    """How the student learns from its teachers. The defaults are the recipe `ours`.

    objectives: name and weight of each distillation objective; empty for none.
    balance, balance_weight: the router's balance term, per layer or pooled over layers as released.
    anchor: the teacher that gives class-token attention (and, as a target, keeps the student near its start);
    anchor_is_target False uses it for the weights only. anchor_share: its part of the teachers' weight, the rest is
    divided among the others; it stays so if the anchor is the only target. Without the anchor the others share 1.
    heads: `student` predicts the teachers' features from the student's with a two-layer head, `linear` with one layer,
    `teacher` maps the teachers' features into the student's space as published, `interpolate` resizes them with no
    parameter.
    standardize: per channel, by running statistics over real images; statistics_steps: updates before they freeze.
    experts: `shared` compares every teacher with what the router made of all experts, `own` gives each teacher one of
    them for itself, in alphabetical order: it is compared with what the student sees through that one alone.
    grid: how student-side heads see a finer teacher: its tokens stacked per student token, or averaged.
    blank_weight: the weight of pictures that stand in for none, 1 as released.
    """

    objectives: tuple[tuple[str, float], ...] = (("weighted_mse", 4.0),)
    balance: Balance = "per_layer"
    balance_weight: float = 0.01
    anchor: str = "clip"
    anchor_share: float = 0.05
    anchor_is_target: bool = True
    heads: Heads = "student"
    experts: Experts = "shared"
    grid: Grid = "unshuffle"
    standardize: bool = True
    statistics_steps: int | None = None
    token_weights: TokenRule = "attention_half"
    teacher_weights: TeacherRule = "uniform"
    blank_weight: float = 0.0

    def __post_init__(self) -> None:
        for name, kind in (
            ("balance", Balance),
            ("heads", Heads),
            ("experts", Experts),
            ("grid", Grid),
            ("token_weights", TokenRule),
            ("teacher_weights", TeacherRule),
        ):
            check_choice(name, getattr(self, name), kind)
        check_number("balance_weight", self.balance_weight, 0.0)
        check_number("anchor_share", self.anchor_share, 0.0, 1.0)
        check_number("blank_weight", self.blank_weight, 0.0, 1.0)
        if self.statistics_steps is not None:
            check_count("statistics_steps", self.statistics_steps)
        names = [name for name, _ in self.objectives]
        if len(set(names)) != len(names):
            raise ValueError(f"objectives {names} name one of them twice; give each a single weight.")
        for name, weight in self.objectives:
            check_number(f"the weight of objective {name!r}", weight, 0.0)
        self._check_combination()

    def _check_combination(self) -> None:
        if self.has_student_heads and self.teacher_weights != "uniform":
            raise ValueError(
                f"teacher_weights={self.teacher_weights!r} compares teacher tokens with the anchor's class token, "
                f"so they must be in the student's space; with heads={self.heads!r} they stay in the teacher's. "
                "Use teacher_weights='uniform', or heads='teacher'."
            )

    @property
    def has_student_heads(self) -> bool:
        return self.heads in ("student", "linear")

    @property
    def needs_attention(self) -> bool:
        return bool(self.objectives) and self.token_weights != "uniform"

    @property
    def needs_class_token(self) -> bool:
        return bool(self.objectives) and self.teacher_weights != "uniform"

    @property
    def needs_anchor(self) -> bool:
        """Whether the anchor's features are read even if it is not a target."""
        return self.needs_attention or self.needs_class_token

    def targets(self, teachers: Collection[str]) -> tuple[str, ...]:
        """The teachers that are distilled, the anchor first.

        Raises ValueError if the weights need an anchor that is not among the teachers.
        """
        if teachers and self.needs_anchor and self.anchor not in teachers:
            rule = f"token_weights={self.token_weights!r}" if self.needs_attention else ""
            rule = rule or f"teacher_weights={self.teacher_weights!r}"
            raise ValueError(
                f"{rule} needs the class token of teacher {self.anchor!r}, but the teachers are {sorted(teachers)}. "
                f"Add {self.anchor!r} (with anchor_is_target=False it gives weights and is no target), "
                "or set token_weights and teacher_weights to 'uniform'."
            )
        others = tuple(name for name in teachers if name != self.anchor)
        if self.anchor in teachers and self.anchor_is_target:
            return (self.anchor, *others)
        return others

    @classmethod
    def from_recipe(cls, recipe: str, **overrides: Any) -> "DistillConfig":
        """A named recipe with single values replaced; None keeps the recipe's."""
        check_choice("the recipe", recipe, Recipe)
        known = {item.name for item in fields(cls)}
        if unknown := sorted(set(overrides) - known):
            raise ValueError(f"a distillation has no {', '.join(unknown)}; it has {sorted(known)}.")
        return replace(DISTILL_RECIPES[recipe], **{k: v for k, v in overrides.items() if v is not None})


PUBLISHED_FORM: Mapping[str, Any] = {
    "objectives": (("weighted_mse", 0.5),),
    "anchor_share": 0.8,
    "heads": "teacher",
    "standardize": False,
}
DISTILL_RECIPES: Mapping[str, DistillConfig] = {
    "release": DistillConfig(
        **PUBLISHED_FORM, balance="pooled", token_weights="release", teacher_weights="release", blank_weight=1.0
    ),
    "paper": DistillConfig(**PUBLISHED_FORM, token_weights="attention", teacher_weights="similarity"),
    "ours": DistillConfig(),
}
