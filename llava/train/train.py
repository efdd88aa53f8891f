"""Train a LLaVA model: the recipe that both stages, plain or distilled, go through.

    python llava/train/train.py --model_name_or_path ... --vision_tower ... --data_path ... --output_dir ...

Works under `deepspeed` and `torchrun`, and as a single process. See docs/training.md for the flags.
"""

import sys

import torch
from transformers import set_seed

from llava.errors import readable_errors
from llava.train.arguments import parse_run
from llava.train.build import (
    build_data,
    build_distiller,
    build_teachers,
    build_tokenizer,
    check_data,
    load_stage_one,
    set_precision,
)
from llava.train.data_check import check_before_training
from llava.train.environment import leave_processes, say, world_size
from llava.train.llava_trainer import LLaVATrainer
from llava.train.resume import resumable
from llava.train.run_config import Run
from llava.train.stages import Parts, apply_stage, trainable_report, trained_parts
from llava.train.student import build_student, unused_parameters
from llava.train.translate import RATE_FLAGS


def train(attn_implementation: str | None = None) -> None:
    """One run, from the command line's flags. attn_implementation: used where no flag says otherwise."""
    run = parse_run(sys.argv[1:], attn_implementation)
    check_data(run.data)
    set_seed(run.hf.seed)
    tokenizer = build_tokenizer(run.model)
    student = build_student(run, tokenizer)
    teachers = build_teachers(run, student)
    distiller = build_distiller(run, student, teachers)
    apply_stage(distiller.parts(), run.stage, unused=unused_parameters(distiller, "mole" in run.stage.trainable))
    set_precision(distiller, run)
    load_stage_one(distiller, run)
    data = build_data(run, tokenizer, student, teachers)
    check_before_training(data["train_dataset"])
    trainer = LLaVATrainer(distiller, run, tokenizer=tokenizer, teachers=teachers, **data)
    announce(run, trainer)
    with resumable(trainer.output_dir):
        trainer.train()
    trainer.save_state()
    trainer.save_model()
    if run.report:
        from llava.train.report import report_run

        report_run(trainer)


def announce(run: Run, trainer: LLaVATrainer) -> None:
    """What trains, and every flag that has no effect, once."""
    devices = torch.accelerator.device_count()
    if devices > 1 and world_size() == 1 and not run.hf.use_cpu:
        say(f"1 of {devices} devices is used: start with `deepspeed` or `torchrun` to use them all")
    parts = trainer.distiller.parts()
    say("\n".join([*run.warnings, *idle_rates(run, parts), *trainable_report(parts, run.learning_rates)]))


def idle_rates(run: Run, parts: Parts) -> list[str]:
    """A line for each learning rate of a part of which nothing trains."""
    trained = trained_parts(parts)
    given = {part: flag for part, flag in RATE_FLAGS.items() if run.learning_rates[part] != run.hf.learning_rate}
    return [f"--{flag} has no effect: {part} does not train" for part, flag in given.items() if part not in trained]


def main(attn_implementation: str | None = None) -> None:
    with readable_errors():
        train(attn_implementation)
    leave_processes()


if __name__ == "__main__":
    main()
