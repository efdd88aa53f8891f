"""The fourth group of flags: who teaches, what the student gains by it, and how the loss is formed.

A flag that is left out takes its value from the recipe. After `to_config` and `mole_config` nobody sees these again.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from llava.model.multimodal_encoder.move_kd.config import (
    Balance,
    DistillConfig,
    Experts,
    Gate,
    Grid,
    Heads,
    Init,
    Layers,
    MoLEConfig,
    Recipe,
    TeacherRule,
    TokenRule,
)
from llava.model.multimodal_encoder.move_kd.teachers import parse_spec
from llava.train.model_arguments import option

# Flags that set one item of the recipe each.
DISTILL_ITEMS = {
    "kd_anchor": "anchor",
    "kd_clip_share": "anchor_share",
    "kd_heads": "heads",
    "kd_experts": "experts",
    "kd_grid": "grid",
    "kd_standardize": "standardize",
    "kd_statistics_steps": "statistics_steps",
    "kd_balance": "balance",
    "kd_blank_weight": "blank_weight",
    "moe_encoder_balance_w": "balance_weight",
}
MOLE_ITEMS = {
    "moe_encoder_num_experts": "experts",
    "moe_encoder_lora_rank": "rank",
    "moe_encoder_lora_alpha": "alpha",
    "moe_gate": "gate",
    "moe_init_a": "init_a",
    "moe_init_b": "init_b",
    "moe_dropout": "dropout",
    "moe_layers": "layers",
}
# What experts alone read, with or without teachers.
EXPERT_FLAGS = (*MOLE_ITEMS, "moe_encoder_dense", "moe_encoder_balance_w", "kd_balance")


def one_of(kind: Any, meaning: str) -> Any:
    return field(default=None, metadata={"help": f"{meaning}: {', '.join(get_args(kind))}", "choices": get_args(kind)})


@dataclass
class DistillArguments:
    encoder_teachers: list[str] = field(
        default_factory=list, metadata={"help": "teachers by name, with options as in sam:path=DIR,size=1024"}
    )
    kd: bool = option(True, "False trains without the teachers that are named")
    kd_recipe: str | None = one_of(Recipe, "default ours; release where token_weight or teacher_weight is given")
    kd_w: float | None = option(None, "weight of the distillation loss")
    kd_memory_w: float | None = option(None, "share of CLIP among the teachers (also --kd_clip_share)")
    token_weight: bool | None = option(None, "weigh tokens by the recipe's rule, or (False) equally")
    teacher_weight: bool | None = option(None, "weigh teachers by the recipe's rule, or (False) equally")
    moe_encoder: bool | None = option(None, "experts in the vision tower; default: with teachers; a checkpoint's stay")
    moe_encoder_dense: bool | None = option(None, "all experts by probability (also --moe_gate dense)")
    moe_encoder_lora_rank: int | None = option(None, "rank of an expert")
    moe_encoder_lora_alpha: float | None = option(None, "an expert is scaled by alpha / rank")
    moe_encoder_num_experts: int | None = option(None, "experts per layer")
    moe_encoder_balance_w: float | None = option(None, "weight of the routers' balance term")

    kd_objectives: list[str] | None = field(
        default=None, metadata={"help": "objectives with weights, as in weighted_mse=4 cosine=0.5"}
    )
    kd_anchor: str | None = option(None, "the teacher whose class token weighs tokens, clip by default")
    kd_clip_share: float | None = option(None, "share of the anchor among the teachers")
    kd_heads: str | None = one_of(Heads, "what lays student and teacher side by side")
    kd_experts: str | None = one_of(Experts, "whether teachers share the experts, or each has one of its own")
    kd_grid: str | None = one_of(Grid, "how student heads see a finer teacher")
    kd_standardize: bool | None = option(None, "standardize each channel of each teacher")
    kd_statistics_steps: int | None = option(None, "freeze the channel statistics after so many updates")
    kd_token_weights: str | None = one_of(TokenRule, "rule that weighs tokens")
    kd_teacher_weights: str | None = one_of(TeacherRule, "rule that weighs teachers")
    kd_balance: str | None = one_of(Balance, "form of the balance term")
    kd_blank_weight: float | None = option(None, "weight of blank pictures, 1 as released")
    moe_gate: str | None = one_of(Gate, "how a token's experts are combined")
    moe_init_a: str | None = one_of(Init, "initialization of lora_A")
    moe_init_b: str | None = one_of(Init, "initialization of lora_B")
    moe_dropout: float | None = option(None, "dropout in front of the experts")
    moe_layers: str | None = one_of(Layers, "layers that have experts")

    distill_views: Literal["base", "all"] = option("base", "pictures a teacher sees: the whole, or every tile too")
    teacher_dtype: str | None = option(None, "bf16, fp16 or fp32; default: as the student trains")
    shard_teachers: bool = option(False, "shard the teachers over the processes (ZeRO-3)")
    teacher_cache: str | None = option(None, "directory of cached teacher features")

    # Not a flag: whether the checkpoint that training goes on from has experts. They stay, whatever the flags say.
    goes_on_with_experts: bool = field(default=False, init=False)

    @property
    def recipe(self) -> str:
        """The recipe in use. The two flags that only the published method has ask for it, whatever their value."""
        if self.kd_recipe is not None:
            return self.kd_recipe
        return "ours" if self.token_weight is self.teacher_weight is None else "release"

    @property
    def distills(self) -> bool:
        return self.kd and bool(self.encoder_teachers)

    @property
    def has_experts(self) -> bool:
        asked = self.distills if self.moe_encoder is None else self.moe_encoder
        return asked or self.goes_on_with_experts

    def teacher_specs(self) -> list[str]:
        """The teachers to build: those named, and the anchor where only the weights need it."""
        if not self.distills:
            return []
        config = self._distill_config()
        return [*self.encoder_teachers, *([] if config.anchor_is_target else [config.anchor])]

    def to_config(self, tune_encoder: bool = True) -> DistillConfig | None:
        """None where there is nothing to add to the language model's loss.

        tune_encoder: whether the experts are trained; a router that is not trained has no balance term.
        Raises ValueError for combinations that cannot run.
        """
        if not self.distills and not (self.has_experts and tune_encoder):
            return None
        config = self._distill_config()
        if not tune_encoder:
            config = dataclasses.replace(config, balance_weight=0.0)
        return config if self.distills else dataclasses.replace(config, objectives=())

    def mole_config(self) -> MoLEConfig | None:
        """The experts of a student that is built anew, or None for a plain one. Raises ValueError."""
        given = {item: value for flag, item in MOLE_ITEMS.items() if (value := getattr(self, flag)) is not None}
        if not self.has_experts:
            return None
        if self.moe_encoder_dense and self.moe_gate is None:
            given["gate"] = "dense"
        mole = MoLEConfig.from_recipe(self.recipe, **given)
        if self.moe_encoder_dense not in (None, mole.is_dense):
            raise ValueError(
                f"--moe_encoder_dense {self.moe_encoder_dense} and --moe_gate {self.moe_gate} contradict each other; "
                "give one of them."
            )
        return mole

    def given_moe_keys(self) -> frozenset[str]:
        """Keys of config.json's `moe` that flags name."""
        given = {flag for flag in MOLE_ITEMS if getattr(self, flag) is not None}
        return frozenset(given if self.moe_encoder_dense is None else given | {"moe_encoder_dense"})

    def idle_flags(self, tune_encoder: bool = True) -> dict[str, str]:
        """Flags that were given and change nothing beside the others, each with the reason. Raises ValueError.

        tune_encoder: as in `to_config`.
        """
        idle: dict[str, str] = {}
        if not self.has_experts:
            idle |= dict.fromkeys((*EXPERT_FLAGS, "kd_experts"), "the vision tower gets no experts")
        else:
            idle |= self._idle_beside_experts(tune_encoder)
        if not self.distills:
            own = ("encoder_teachers", "kd", "kd_recipe", "kd_blank_weight", "moe_encoder", *EXPERT_FLAGS)
            reason = "no teacher is named" if self.kd else "--kd is False"
            idle |= {item.name: reason for item in dataclasses.fields(self) if item.init and item.name not in own}
        else:
            idle |= self._idle_beside(self._distill_config())
        found = {name: why for name, why in idle.items() if self._is_given(name)}
        if self.goes_on_with_experts and self.moe_encoder is False:
            found["moe_encoder"] = "the checkpoint has experts, which stay"
        return found

    def _idle_beside_experts(self, tune_encoder: bool) -> dict[str, str]:
        idle: dict[str, str] = {}
        if self.goes_on_with_experts:
            idle |= dict.fromkeys(("moe_init_a", "moe_init_b"), "the checkpoint has experts, which stay")
        if not tune_encoder:
            idle["moe_encoder_balance_w"] = "the experts do not train"
        config = self.to_config(tune_encoder)
        if config is None or (config.balance_weight == 0 and "router_balance" not in dict(config.objectives)):
            idle["kd_balance"] = "there is no balance term"
        return idle

    def _idle_beside(self, config: DistillConfig) -> dict[str, str]:
        idle: dict[str, str] = {}
        if config.anchor not in {parse_spec(spec).name for spec in self.encoder_teachers}:
            why = f"teacher {config.anchor!r} is not distilled"
            idle |= dict.fromkeys(
                ("kd_memory_w", "kd_clip_share", *(() if config.needs_anchor else ("kd_anchor",))), why
            )
        if not config.has_student_heads:
            idle["kd_grid"] = f"--kd_heads is {config.heads}"
        if not config.standardize:
            idle["kd_statistics_steps"] = "teachers are not standardized"
        if config.teacher_weights == "uniform":
            idle["teacher_weight"] = f"recipe {self.recipe!r} weighs teachers equally; see --kd_teacher_weights"
        return idle

    def _is_given(self, name: str) -> bool:
        value = getattr(self, name)
        return value is not None and value is not False and value != type(self).__dataclass_fields__[name].default

    def _distill_config(self) -> DistillConfig:
        given = {item: value for flag, item in DISTILL_ITEMS.items() if (value := getattr(self, flag)) is not None}
        if self.kd_memory_w is not None:
            if self.kd_clip_share not in (None, self.kd_memory_w):
                raise ValueError("--kd_memory_w and --kd_clip_share are the same share; give one of them.")
            given["anchor_share"] = self.kd_memory_w
        given |= self._rules()
        recipe = DistillConfig.from_recipe(self.recipe)
        given["objectives"] = self._objectives(recipe)
        config = dataclasses.replace(recipe, **given)
        named = {parse_spec(spec).name for spec in self.encoder_teachers}
        return dataclasses.replace(config, anchor_is_target=config.anchor in named or not config.needs_anchor)

    def _rules(self) -> dict[str, str]:
        """The two weighting rules, where flags set them; a released flag that is False asks for equal weights."""
        rules = {}
        for item, switch, rule in (
            ("token_weights", self.token_weight, self.kd_token_weights),
            ("teacher_weights", self.teacher_weight, self.kd_teacher_weights),
        ):
            if switch is not None and rule is not None and switch != (rule != "uniform"):
                raise ValueError(f"--{item[:-1]} {switch} and --kd_{item} {rule} contradict each other; give one.")
            if rule is not None:
                rules[item] = rule
            elif switch is False:
                rules[item] = "uniform"
        return rules

    def _objectives(self, recipe: DistillConfig) -> tuple[tuple[str, float], ...]:
        if self.kd_objectives is None:
            return tuple((name, weight if self.kd_w is None else self.kd_w) for name, weight in recipe.objectives)
        if self.kd_w is not None:
            raise ValueError("--kd_objectives gives each objective its weight, so --kd_w has none to set; drop it.")
        return tuple(parse_objective(text) for text in self.kd_objectives)


def parse_objective(text: str) -> tuple[str, float]:
    """`cosine=0.5` as name and weight; a bare name weighs 1. Raises ValueError."""
    name, equals, weight = text.partition("=")
    try:
        return name, float(weight) if equals else 1.0
    except ValueError:
        raise ValueError(f"--kd_objectives {text}: expected NAME=WEIGHT, as in cosine=0.5.") from None
