#!/usr/bin/env python
"""How long a run takes, by calculation: FLOPs of language model, student and teachers over assumed utilization.

    python scripts/estimate_hours.py --teachers clip eva convnext --gpus 8 --peak_tflops 312 --mfu 0.4

An estimate, not a measurement. A matrix weight costs 2 FLOPs per token forward, 2 for the gradient of its
input, 2 for its own gradient, and 2 more where gradient checkpointing repeats the forward.
"""

import argparse
from dataclasses import dataclass

BILLION = 1e9


@dataclass(frozen=True)
class Stage:
    """samples, mean tokens a sample after image expansion, and FLOPs per language-model weight and token."""

    name: str
    samples: int
    tokens: int
    language_factor: int
    student_factor: int


STAGES = (
    # frozen language model: forward, recomputed forward, gradient of inputs
    Stage("pretrain (558k captions)", 558_128, 640, 6, 6),
    # everything trained: forward, recomputed forward, gradient of inputs and weights
    Stage("finetune (665k conversations)", 665_298, 1_050, 8, 8),
)

LANGUAGE_MODEL = {"7b": 6.6 * BILLION, "13b": 12.9 * BILLION}
STUDENT_PARAMETERS, STUDENT_TOKENS = 0.30 * BILLION, 577


@dataclass(frozen=True)
class TeacherCost:
    """Forward FLOPs per picture from weights and tokens; attention over n tokens adds 4 n^2 d per block."""

    parameters: float
    tokens: int
    attention: float = 0.0

    @property
    def flops(self) -> float:
        return 2 * self.parameters * self.tokens + self.attention


TEACHERS = {
    "clip": TeacherCost(0.30 * BILLION, 577, 24 * 4 * 577**2 * 1024),
    # windowed blocks attend within 256 tokens, the rest globally over 4096
    "eva": TeacherCost(0.30 * BILLION, 4096, 4 * 1024 * 4096 * (8 * 4096 + 16 * 256)),
    "sam": TeacherCost(0.31 * BILLION, 4096, 4 * 1024 * 4096 * (4 * 4096 + 20 * 196)),
    "pix2struct": TeacherCost(0.53 * BILLION, 2048, 18 * 4 * 2048**2 * 1536),
    # convolutional: 198 GMACs at 256 px, scaled by the area of 1024 px
    "convnext": TeacherCost(0.0, 0, 2 * 198e9 * 16),
}


def stage_flops(
    stage: Stage, language_parameters: float, teachers: list[str], student_learns: bool
) -> dict[str, float]:
    """FLOPs of a whole stage by part."""
    student = stage.student_factor if student_learns or stage.name.startswith("finetune") else 2
    return {
        "language model": stage.samples * stage.tokens * stage.language_factor * language_parameters,
        "student": stage.samples * STUDENT_TOKENS * student * STUDENT_PARAMETERS,
        "teachers": stage.samples * sum(TEACHERS[name].flops for name in teachers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=LANGUAGE_MODEL, default="7b")
    parser.add_argument("--teachers", nargs="*", default=[], choices=TEACHERS)
    parser.add_argument("--tower", action="store_true", help="the tower learns in stage 1 without teachers too")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--peak_tflops", type=float, default=312.0, help="bf16 peak of a GPU: A100 312, H100 989")
    parser.add_argument("--mfu", type=float, default=0.4, help="assumed share of the peak that is reached")
    args = parser.parse_args()
    rate = args.gpus * args.peak_tflops * 1e12 * args.mfu
    teachers = " ".join(args.teachers) or "none"
    print(f"{args.model}, {args.gpus} GPUs at {args.peak_tflops:g} TFLOP/s x {args.mfu:g}; teachers: {teachers}")
    for stage in STAGES:
        parts = stage_flops(stage, LANGUAGE_MODEL[args.model], args.teachers, args.tower or bool(args.teachers))
        total = sum(parts.values())
        shares = ", ".join(f"{name} {flops / total:.0%}" for name, flops in parts.items())
        print(f"{stage.name}: {total / rate / 3600:.1f} h ({args.gpus * total / rate / 3600:.0f} GPU hours); {shares}")


if __name__ == "__main__":
    main()
