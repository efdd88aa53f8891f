"""What is compared: each arm is one way to train; its title says in what it differs from the arm it is `against`.

All arms share scenes, pieces, steps and learning rates; what an arm changes stands in its entry and nowhere else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Tower = Literal["trained", "early", "frozen", "teachers"]


@dataclass(frozen=True)
class Arm:
    """teachers: kinds, in the order of the flag; `truth` knows the labels themselves. flags: of both stages.
    tower: `teachers` puts the teachers, joined channel by channel and frozen, in the student's place; `early` trains
    the whole tower in stage 1 already.
    length: of both stages, relative to the recipe. data: share of the training scenes. rates: the learning rates of
    stage 2 relative to the recipe's, of projector and language model and of the tower. pretrain: length of stage 1
    alone."""

    name: str
    title: str
    against: str | None = "baseline"
    teachers: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    tower: Tower = "trained"
    length: float = 1.0
    data: float = 1.0
    rates: tuple[float, float] = (1.0, 1.0)
    pretrain: float = 1.0


EXPERTS = "--moe_encoder True --tune_encoder True --moe_encoder_num_experts 3 --moe_encoder_lora_rank 8"
NO_EXPERTS = "--moe_encoder False"
TEACHERS = ("clip", "eva", "convnext")
OURS = Arm("ours", "ours", "baseline-early", TEACHERS, (*EXPERTS.split(), "--kd_recipe", "ours"), "early")
PAPER = Arm("paper", "as the paper says", "baseline", TEACHERS, (*EXPERTS.split(), "--kd_recipe", "paper"))


def without_experts(arm: Arm) -> tuple[str, ...]:
    start = len(EXPERTS.split())
    assert " ".join(arm.flags[:start]) == EXPERTS
    return (*NO_EXPERTS.split(), *arm.flags[start:])


def change(arm: Arm, name: str, title: str, flags: str = "", **other: Any) -> Arm:
    """`arm` with more flags; of a flag that is given twice the last one counts."""
    return replace(
        arm, **{"name": name, "title": title, "against": arm.name, **other}, flags=(*arm.flags, *flags.split())
    )


BASELINE = Arm("baseline", "LLaVA, tower trained in stage 2", None)
EARLY = Arm("baseline-early", "LLaVA, tower trained in both stages", tower="early")
CONTROLS = (
    BASELINE,
    EARLY,
    Arm("frozen", "LLaVA, tower frozen", tower="frozen"),
    Arm("experts", "experts, no teachers", "baseline-early", flags=tuple(EXPERTS.split()), tower="early"),
    Arm("baseline-time", "LLaVA, as much processor time as ours", length=1.55),
    replace(
        EARLY,
        name="early-time",
        title="LLaVA, tower trained in both stages, as much processor time as ours",
        against="baseline-early",
        length=1.3,
    ),
    Arm(
        "truth",
        "the teachers' labels themselves, no teachers",
        "baseline-early",
        teachers=("clip", "truth"),
        flags=without_experts(OURS),
        tower="early",
    ),
    Arm("ceiling", "language model reads the teachers", tower="teachers"),
)
RECIPES = (
    Arm("release", "as released", "baseline", TEACHERS, (*EXPERTS.split(), "--kd_recipe", "release")),
    PAPER,
    replace(
        PAPER,
        name="paper-early",
        title="as the paper says, tower trained in both stages",
        against="baseline-early",
        tower="early",
    ),
    replace(
        PAPER,
        name="paper-weights",
        title="as the paper says, tower trained in both stages, weights as in ours",
        against="baseline-early",
        flags=(*PAPER.flags, "--kd_w", "4", "--kd_clip_share", "0.05"),
        tower="early",
    ),
    OURS,
)
PARTS = (
    replace(OURS, name="ours-late", title="whole tower trained in stage 2 only", against="ours", tower="trained"),
    change(OURS, "ours-linear", "heads of one layer", "--kd_heads linear"),
    change(OURS, "ours-teacher-heads", "heads on the teachers' side", "--kd_heads teacher"),
    change(OURS, "ours-interpolate", "no heads, tokens resized", "--kd_heads interpolate"),
    change(OURS, "ours-raw", "features not standardized", "--kd_standardize False"),
    change(OURS, "ours-even-tokens", "tokens weigh the same", "--kd_token_weights uniform"),
    change(OURS, "ours-even-teachers", "teachers weigh the same", "--kd_clip_share 0.333"),
    change(OURS, "ours-top1", "router hears the balance term only", "--moe_gate top1"),
    change(OURS, "ours-kaiming", "lora_B drawn at random", "--moe_init_b kaiming"),
    change(OURS, "ours-unbalanced", "no balance term", "--moe_encoder_balance_w 0"),
    replace(OURS, name="ours-no-experts", title="ours, no experts", flags=without_experts(OURS)),
    change(
        OURS,
        "ours-one-lora",
        "one LoRA of rank 24 in place of three experts",
        "--moe_encoder_num_experts 1 --moe_encoder_lora_rank 24",
    ),
)
TEACHING = (
    *(
        change(OURS, f"only-{kind}", f"{kind} alone", flags, against="baseline-early", teachers=(kind,))
        # By itself a teacher has the whole weight, but the anchor of the token weights only the share it is given.
        for kind, flags in (("clip", "--kd_clip_share 1"), ("eva", ""), ("convnext", ""))
    ),
    *(
        replace(
            OURS,
            name=f"without-{kind}",
            title=f"without {kind}",
            against="ours",
            teachers=tuple(other for other in TEACHERS if other != kind),
        )
        for kind in TEACHERS
    ),
    replace(OURS, name="with-sam", title="with sam besides", against="ours", teachers=(*TEACHERS, "sam")),
)
WEIGHTS = (
    *(change(OURS, f"weight-{value}", f"distillation weighs {value}", f"--kd_w {value}") for value in (1, 2, 8, 16)),
    *(change(OURS, f"clip-{value}", f"CLIP's share is {value}", f"--kd_clip_share {value}") for value in (0, 0.2, 0.8)),
)
SIZES = tuple(
    replace(arm, name=f"{arm.name}-{label}", title=f"{arm.title}, {words}", against=against, length=length, data=data)
    for label, words, length, data in (
        ("short", "half the steps", 0.5, 1.0),
        ("long", "twice the steps", 2.0, 1.0),
        ("little", "a quarter of the scenes", 1.0, 0.25),
    )
    for arm, against in ((EARLY, None), (OURS, f"baseline-early-{label}"))
)
RIVALS = (
    change(OURS, "cosine", "cosine and smooth L1, as agglomerative models", "--kd_objectives cosine_smooth_l1=4"),
    change(OURS, "dropping", "teachers dropped at random", "--kd_objectives teacher_dropping=4"),
    change(OURS, "own-experts", "each teacher has an expert of its own, as in HAWAII", "--kd_experts own"),
    change(OURS, "balanced", "every teacher pulls equally hard", "--kd_objectives balanced_mse=1"),
)
UNCLIPPED = tuple(
    replace(
        arm,
        name=f"{arm.name}-unclipped",
        title=f"{arm.title}, gradients not clipped",
        against=against,
        flags=(*arm.flags, "--max_grad_norm", "0"),
    )
    for arm, against in ((EARLY, "baseline-early"), (OURS, "baseline-early-unclipped"))
)
EVEN = "--kd_token_weights uniform --kd_teacher_weights uniform"
LADDER = (
    replace(
        PAPER,
        name="ladder-kd",
        title="+ distillation, tokens resized",
        against="baseline",
        flags=(*without_experts(PAPER), *["--kd_heads", "interpolate"], *EVEN.split()),
    ),
    replace(
        PAPER,
        name="ladder-adapters",
        title="+ encoder adapters",
        against="ladder-kd",
        flags=(*without_experts(PAPER), *EVEN.split()),
    ),
    change(PAPER, "ladder-experts", "+ experts", EVEN, against="ladder-adapters"),
    change(PAPER, "ladder-tokens", "+ token weights", "--kd_teacher_weights uniform", against="ladder-experts"),
)
LADDER_STEPS: Mapping[str, float] = {  # the paper's Table 2, mean of five benchmarks, 7B
    "ladder-kd": -0.2,
    "ladder-adapters": 0.4,
    "ladder-experts": 0.7,
    "ladder-tokens": 0.3,
    "paper": 0.3,
}
TUNING = (
    *(
        replace(
            BASELINE,
            name=f"tune-{rate}-{tower}",
            title=f"rate x {rate}, of the tower x {tower}",
            against="baseline",
            rates=(rate, tower),
        )
        for rate, tower in ((0.5, 1.0), (2.0, 1.0), (2.0, 2.0), (1.0, 0.3), (1.0, 3.0), (0.5, 0.3), (0.5, 0.15))
    ),
    replace(BASELINE, name="tune-long", title="twice the steps", against="baseline", length=2.0),
    *(
        replace(
            BASELINE, name=f"tune-pretrain-{factor}", title=f"stage 1 x {factor}", against="baseline", pretrain=factor
        )
        for factor in (0.5, 1.5)
    ),
)
ARMS: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (*CONTROLS, *RECIPES, *PARTS, *TEACHING, *WEIGHTS, *SIZES, *UNCLIPPED, *RIVALS, *LADDER, *TUNING)
}


def names(arms: Sequence[Arm]) -> tuple[str, ...]:
    return tuple(arm.name for arm in arms)


LADDER_RUNGS = ("baseline", *names(LADDER), "paper")
TABLES: Mapping[str, tuple[str, ...]] = {
    "Does it help": (*names((*CONTROLS, *RECIPES)), "ours-no-experts"),
    "Ours without each of its parts": ("ours", *names(PARTS)),
    "Which teachers": ("ours", *names(TEACHING)),
    "Weights": ("ours", *names(WEIGHTS)),
    "Budget and data": names(SIZES),
    "Gradients not clipped": ("baseline-early", *names(UNCLIPPED)),
    "What others do": ("ours", *names(RIVALS)),
    "Tuning the baseline": ("baseline", *names(TUNING)),
}
# Of these tables every arm is compared with one, whatever it is compared with elsewhere.
REFERENCES: Mapping[str, str] = dict.fromkeys(
    ("Ours without each of its parts", "Which teachers", "Weights", "What others do"), "ours"
)
