"""From nothing to a LLaVA and a MoVE-KD that answer: the whole of it on a world small enough for a laptop.

    python -m playground.quickstart [--out playground/out] [--fresh]

Draws the world, makes a tiny language model, a tiny CLIP and teachers of other skills, trains both stages through
llava/train/train_mem.py without and with the teachers (same data, steps and learning rates), evaluates both on held-out
scenes, answers one question and draws figures. What is complete is reused, the rest resumed.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from llava.inference import Turn
from llava.serve import demo_examples
from playground import figures
from playground.evaluate import GREEDY, gains, load_chat, read_scores, table
from playground.processes import Command, CommandFailed, python, run_side_by_side
from playground.recipe import RECIPES, Recipe
from playground.stages import EARLY_TOWER, distill_flags, finetune_flags, launcher, pretrain_flags, teacher_specs
from playground.steps import Stamps

DATA = ("world", "data")
LANGUAGE = ("world", "language")
CLIP = ("world", "clip")
LM_LOSS = "lm"  # the name of the language model's term in the log of a distilling run
TEACHERS = ("world", "teachers")
CACHE = ("world", "data", "language", "clip", "teachers", "distill")
STAGE1 = ("world", "data", "language", "clip", "pretrain")
SLOTS = 2  # commands at a time
MOST_THREADS = 4  # of one command; more do not help networks this small


@dataclass(frozen=True)
class Step:
    """output: the folder or file it makes. parts: of the recipe that it depends on. total: of its progress bar, 0 if
    unknown. needs: steps that must be done before."""

    name: str
    title: str
    output: Path
    parts: tuple[str, ...]
    arguments: Sequence[str]
    total: int
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arm:
    """One way to train: `folder` is put before the names of its stages' folders."""

    name: str
    folder: str = ""
    distills: bool = False

    def stage(self, out: Path, number: int) -> Path:
        return out / f"{self.folder}stage{number}"

    def result(self, out: Path) -> Path:
        return out / "results" / self.name.lower() / "result.json"


PLAIN, DISTILLED = Arm("LLaVA"), Arm("MoVE-KD", "move-kd-", distills=True)
ARMS = (DISTILLED, PLAIN)  # the longer one first, so that both end together


class Pipeline:
    """Runs steps that are not done yet, side by side where they do not need each other."""

    def __init__(self, out: Path, recipe: Recipe) -> None:
        self.out, self.recipe, self.stamps = out, recipe, Stamps(out)
        self.steps: dict[str, Step] = {}

    def run(self, steps: Sequence[Step]) -> None:
        """Raises CommandFailed naming the log of the step that failed."""
        self.steps = {step.name: step for step in steps}
        waiting = [s for s in steps if not self.stamps.is_done(s.name, self._fingerprint(s.name), s.output)]
        for step in steps:
            if step not in waiting:
                print(f"{step.title}: already there")
        logs = self.out / "logs"
        threads = max(1, min(MOST_THREADS, (os.cpu_count() or SLOTS) // SLOTS))
        run_side_by_side(
            [Command(s.name, s.title, s.arguments, logs / f"{s.name}.txt", s.total, threads, s.needs) for s in waiting],
            SLOTS,
            self,
        )

    def _fingerprint(self, name: str) -> str:
        return self.recipe.fingerprint(*self.steps[name].parts)

    def begin(self, name: str) -> None:
        self.stamps.begin(name, self._fingerprint(name), self.steps[name].output)

    def finish(self, name: str, seconds: float) -> None:
        self.stamps.finish(name, self._fingerprint(name), seconds)

    def piece(self, name: str, title: str, parts: tuple[str, ...], total: int, needs: tuple[str, ...] = ()) -> Step:
        arguments = python("playground.make", name, "--recipe", self.recipe.name, "--out", str(self.out))
        return Step(name, title, self.out / name, parts, arguments, total, needs)

    def teacher(self, kind: str) -> Step:
        target, training = self.out / "teachers" / kind, self.recipe.teachers.of(kind)
        flags = ("--recipe", self.recipe.name, "--out", str(self.out), "--teachers", kind)
        arguments = python("playground.make", "teachers", *flags)
        return Step(f"teacher-{kind}", f"Teacher {kind}", target, TEACHERS, arguments, training.steps)

    def arm(self, arm: Arm) -> list[Step]:
        """Stage 1, stage 2 and evaluation."""
        recipe, first, second = self.recipe, arm.stage(self.out, 1), arm.stage(self.out, 2)
        parts = (*STAGE1, "teachers", "distill") if arm.distills else STAGE1
        extra = distill_flags(self.out, recipe) if arm.distills else []
        taught = ("cache",) if arm.distills else ()
        files = {"--model": second, "--data": self.out / "data", "--to": arm.result(self.out)}
        flags = [part for flag, path in files.items() for part in (flag, str(path))]
        return [
            Step(
                first.name,
                f"{arm.name}, stage 1",
                first,
                parts,
                [*launcher(), *pretrain_flags(self.out, recipe, first), *EARLY_TOWER, *extra],
                recipe.pretrain.steps,
                ("data", "language", "clip", *taught),
            ),
            Step(
                second.name,
                f"{arm.name}, stage 2",
                second,
                (*parts, "finetune"),
                [*launcher(), *finetune_flags(self.out, recipe, first, second), *extra],
                recipe.finetune.steps,
                (first.name,),
            ),
            Step(
                f"{arm.folder}evaluation",
                f"{arm.name}, evaluation",
                arm.result(self.out).parent,
                (*parts, "finetune"),
                python("playground.evaluate", *flags),
                0,
                (second.name,),
            ),
        ]


def run(out: Path, recipe: Recipe) -> None:
    pipeline = Pipeline(out, recipe)
    taught = [f"teacher-{kind}" for kind in recipe.distill.teachers]
    pieces = [
        pipeline.piece("language", "Language model", LANGUAGE, recipe.language.steps),
        pipeline.piece("clip", "CLIP", CLIP, recipe.clip.steps),
        pipeline.piece("data", "World", DATA, recipe.data.pictures),
        *(pipeline.teacher(kind) for kind in recipe.distill.teachers),
        pipeline.piece("cache", "What the teachers say", CACHE, 0, ("data", "language", "clip", *taught)),
    ]
    pipeline.run([*pieces, *(step for arm in ARMS for step in pipeline.arm(arm))])


def report(out: Path, recipe: Recipe) -> None:
    """The table, one answered question, the figures, and how to talk to what was trained."""
    results = {arm.name: json.loads(arm.result(out).read_text()) for arm in (PLAIN, DISTILLED)}
    scores = {arm.name: read_scores(arm.result(out)) for arm in (PLAIN, DISTILLED)}
    folder = out / "report"
    folder.mkdir(exist_ok=True)
    figures.loss_curves(
        {
            "language model, text only": {"loss": figures.playground_curve(out / "language" / "log.jsonl")},
            "CLIP, contrastive": {"loss": figures.playground_curve(out / "clip" / "log.jsonl")},
            "teachers, dense labels": {
                log.parent.name: figures.playground_curve(log) for log in sorted(out.glob("teachers/*/log.jsonl"))
            },
            **{
                title: stage_curves(out, number)
                for number, title in ((1, "stage 1, captions"), (2, "stage 2, answers"))
            },
        },
        folder / "losses.png",
    )
    answers = results[DISTILLED.name]["answers"]
    for arm in ARMS:
        write_examples(answers, out / "data" / "images", arm.stage(out, 2) / demo_examples.FOLDER)
    figures.contact_sheet(answers, out / "data" / "images", folder / "contact_sheet.png")
    figures.accuracy_bars(scores, folder / "accuracy.png")
    text = table(scores, gains(answers, results[PLAIN.name]["answers"]))
    (folder / "table.txt").write_text(text + "\n")
    print(f"\n{text}\n")
    for kind, quality in ((path.parent.name, json.loads(path.read_text())) for path in out.glob("*/*/quality.json")):
        print(f"teacher {kind}, on validation scenes: " + ", ".join(f"{k} {v:.1%}" for k, v in quality.items()))
    answer_one(out, answers[0])
    print(f"\nfigures: {folder}/losses.png, accuracy.png, contact_sheet.png")
    print(f"experts and features: {DISTILLED.stage(out, 2)}/report/report.md")
    teachers = " ".join([f"clip:path={out / 'clip'}", *teacher_specs(out, recipe)])
    print(f"talk to it:\n  python -m llava.serve.demo --model-path {DISTILLED.stage(out, 2)} --teachers {teachers}")


def write_examples(lines: Sequence[Mapping[str, str]], images: Path, folder: Path) -> None:
    """A held-out question of each kind, each about another picture, which the demo offers beside the checkpoint."""
    chosen: dict[str, Mapping[str, str]] = {}
    for line in lines:
        if line["category"] not in chosen and line["image"] not in {other["image"] for other in chosen.values()}:
            chosen[line["category"]] = line
    folder.mkdir(parents=True, exist_ok=True)
    entries = [{"text": line["text"], "image": Path(line["image"]).name} for line in chosen.values()]
    for line in chosen.values():
        shutil.copyfile(images / line["image"], folder / Path(line["image"]).name)
    (folder / demo_examples.LIST).write_text(json.dumps(entries, indent=1))


def stage_curves(out: Path, number: int) -> dict[str, figures.Curve]:
    """The language model's loss of both arms; what distilling adds to it is not part of either line."""
    plain = figures.trainer_curve(PLAIN.stage(out, number))
    return {PLAIN.name: plain, DISTILLED.name: figures.trainer_curve(DISTILLED.stage(out, number), LM_LOSS)}


def answer_one(out: Path, line: dict[str, str]) -> None:
    """Through the same door as any client: load the checkpoint, show it a picture, ask."""
    chat = load_chat(DISTILLED.stage(out, 2))
    picture = out / "data" / "images" / line["image"]
    with Image.open(picture) as image:
        prompt = chat.prompt([Turn(line["text"], (image.convert("RGB"),))])
    answer = chat.answer_all([prompt.text], [prompt.images], GREEDY, prompt.stop)[0]
    print(f"{picture}\n  {line['text']}?  {answer}   (truth: {line['answer']})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("playground/out"), help="folder of the run")
    parser.add_argument(
        "--recipe", choices=sorted(RECIPES), default="quick", help="lab trains longer, smoke only shows that it runs"
    )
    parser.add_argument("--fresh", action="store_true", help="remove what an earlier run left, and start over")
    options = parser.parse_args()
    start = time.monotonic()
    out = options.out.resolve()
    if options.fresh and out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what runs is stopped too
    try:
        run(out, RECIPES[options.recipe])
        report(out, RECIPES[options.recipe])
    except CommandFailed as failure:
        sys.exit(str(failure))
    except KeyboardInterrupt:
        sys.exit(f"\nstopped; run the same command again to go on from here ({out})")
    print(f"{time.monotonic() - start:.0f} seconds")


if __name__ == "__main__":
    main()
