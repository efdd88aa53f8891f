"""From nothing to a trained LLaVA that answers: the whole of it on a world small enough for a laptop.

    python -m playground.quickstart [--out playground/out] [--fresh]

Draws the world, makes a tiny language model and a tiny CLIP, trains both stages through llava/train/train_mem.py,
evaluates on held-out scenes, answers one question and draws figures. What is complete is reused, the rest resumed.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from llava.inference import Turn
from playground import figures
from playground.evaluate import BATCH, GREEDY, load_chat, read_scores, table
from playground.processes import Command, CommandFailed, python, run_together
from playground.recipe import RECIPES, Recipe
from playground.stages import finetune_command, pretrain_command
from playground.steps import Stamps

DATA = ("world", "data")
PIECES = {"data": DATA, "language": ("world", "language"), "clip": ("world", "clip")}
STAGE1 = ("world", "data", "language", "clip", "pretrain")
STAGE2 = (*STAGE1, "finetune")


@dataclass(frozen=True)
class Step:
    """output: the folder or file it makes. parts: of the recipe that it depends on. total: of its progress bar.
    threads: of the processor."""

    name: str
    title: str
    output: Path
    parts: tuple[str, ...]
    arguments: Sequence[str]
    total: int
    threads: int = 1


class Pipeline:
    """Runs steps that are not done yet, side by side where they do not need each other."""

    def __init__(self, out: Path, recipe: Recipe) -> None:
        self.out, self.recipe, self.stamps = out, recipe, Stamps(out)

    def run(self, *steps: Step) -> None:
        """Raises CommandFailed naming the log of the step that failed."""
        prints = {step.name: self.recipe.fingerprint(*step.parts) for step in steps}
        waiting = [step for step in steps if not self.stamps.is_done(step.name, prints[step.name])]
        for step in steps:
            if step not in waiting:
                print(f"{step.title}: already there")
        if not waiting:
            return
        for step in waiting:
            self.stamps.begin(step.name, prints[step.name], step.output)
        start = time.monotonic()
        logs = self.out / "logs"
        run_together([Command(s.title, s.arguments, logs / f"{s.name}.txt", s.total, s.threads) for s in waiting])
        for step in waiting:
            self.stamps.finish(step.name, prints[step.name], time.monotonic() - start)

    def piece(self, name: str, title: str) -> Step:
        arguments = python("playground.make", name, "--recipe", self.recipe.name, "--out", str(self.out))
        total = {
            "data": self.recipe.data.pictures,
            "language": self.recipe.language.steps,
            "clip": self.recipe.clip.steps,
        }
        return Step(name, title, self.out / name, PIECES[name], arguments, total[name])

    def pretrain(self) -> Step:
        target = self.out / "stage1"
        arguments = pretrain_command(self.out, self.recipe, target)
        return Step("stage1", "Stage 1", target, STAGE1, arguments, self.recipe.pretrain.steps, threads=2)

    def finetune(self) -> Step:
        target = self.out / "stage2"
        arguments = finetune_command(self.out, self.recipe, self.out / "stage1", target)
        return Step("stage2", "Stage 2", target, STAGE2, arguments, self.recipe.finetune.steps, threads=2)

    def evaluation(self) -> Step:
        target = self.out / "results" / "llava"
        files = {"--model": self.out / "stage2", "--data": self.out / "data", "--to": target / "result.json"}
        flags = [part for flag, path in files.items() for part in (flag, str(path))]
        lines = (self.out / "data" / "heldout.jsonl").read_text().count("\n")
        batches = -(-lines // BATCH)
        return Step(
            "evaluation", "Evaluation", target, STAGE2, python("playground.evaluate", *flags), batches, threads=2
        )


def run(out: Path, recipe: Recipe) -> None:
    pipeline = Pipeline(out, recipe)
    pipeline.run(
        pipeline.piece("language", "Language model"), pipeline.piece("clip", "CLIP"), pipeline.piece("data", "World")
    )
    pipeline.run(pipeline.pretrain())
    pipeline.run(pipeline.finetune())
    pipeline.run(pipeline.evaluation())


def report(out: Path) -> None:
    """The table, one answered question, and the figures."""
    result = json.loads((out / "results" / "llava" / "result.json").read_text())
    scores = read_scores(out / "results" / "llava" / "result.json")
    report_folder = out / "report"
    report_folder.mkdir(exist_ok=True)
    figures.loss_curves(
        {
            "language model, text only": {"loss": figures.playground_curve(out / "language" / "log.jsonl")},
            "CLIP, contrastive": {"loss": figures.playground_curve(out / "clip" / "log.jsonl")},
            "stage 1, captions": {"loss": figures.trainer_curve(out / "stage1")},
            "stage 2, conversations": {"loss": figures.trainer_curve(out / "stage2")},
        },
        report_folder / "losses.png",
    )
    figures.contact_sheet(result["answers"], out / "data" / "images", report_folder / "contact_sheet.png")
    figures.accuracy_bars({"LLaVA": scores}, report_folder / "accuracy.png")
    text = table({"LLaVA": scores})
    (report_folder / "table.txt").write_text(text + "\n")
    print(f"\n{text}\n")
    answer_one(out, result["answers"][0])
    print(f"\nfigures: {report_folder}/losses.png, accuracy.png, contact_sheet.png")


def answer_one(out: Path, line: dict[str, str]) -> None:
    """Through the same door as any client: load the checkpoint, show it a picture, ask."""
    chat = load_chat(out / "stage2")
    picture = out / "data" / "images" / line["image"]
    with Image.open(picture) as image:
        prompt = chat.prompt([Turn(line["text"], (image.convert("RGB"),))])
    answer = chat.answer_all([prompt.text], [prompt.images], GREEDY, prompt.stop)[0]
    print(f"{picture}\n  {line['text']}?  {answer}   (truth: {line['answer']})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("playground/out"), help="folder of the run")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="quick", help="smoke only shows that it runs")
    parser.add_argument("--fresh", action="store_true", help="remove what an earlier run left, and start over")
    options = parser.parse_args()
    start = time.monotonic()
    out = options.out.resolve()
    if options.fresh and out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        run(out, RECIPES[options.recipe])
        report(out)
    except CommandFailed as failure:
        sys.exit(str(failure))
    except KeyboardInterrupt:
        sys.exit(f"\nstopped; run the same command again to go on from here ({out})")
    print(f"{time.monotonic() - start:.0f} seconds")


if __name__ == "__main__":
    main()
