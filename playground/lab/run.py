"""One arm with one seed: both stages through llava/train/train.py, then its answers to the questions of two splits.

    python -m playground.lab.run --out DIR --arm ours --seed 3

Everything happens in this process; what it found is written to DIR/runs/ARM-SEED/row.json.
"""

import argparse
import hashlib
import json
import platform
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from llava.eval.questions import read_jsonl
from llava.model.checkpoint_io import atomic
from llava.model.multimodal_encoder import builder
from llava.model.multimodal_encoder.move_kd import teachers as teachers_package
from llava.model.multimodal_encoder.move_kd.teachers import build_teachers
from llava.train.train import train
from playground.evaluate import answer_all, is_right, load_chat
from playground.lab.arms import ARMS, Arm
from playground.lab.ceiling import TeachersTower
from playground.lab.results import Row
from playground.llava_data import QUESTION_SPLITS
from playground.recipe import Recipe, StageTraining
from playground.stages import EARLY_TOWER, ROOT, finetune_flags, pretrain_flags, teacher_spec

PLUGINS = Path(__file__).with_name("plugins")
PARTS = {
    "trained": "mm_mlp_adapter,mm_vision_tower,mm_language_model",
    "early": "mm_mlp_adapter,mm_vision_tower,mm_language_model",
    "frozen": "mm_mlp_adapter,mm_language_model",
    "teachers": "mm_mlp_adapter,mm_language_model",
}
NO_CURVES = ("learning_rate", "epoch", "step", "loss", "images_per_second", "teacher_share")
LOGGING_STEPS = 50
MADE = "{out}"  # stands for the lab's folder in the flags of a row


@dataclass(frozen=True)
class Shared:
    """What all runs of one world have in common: `folder` holds data, language model, CLIP, teachers and cache."""

    folder: Path
    recipe: Recipe

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def teacher(self, kind: str) -> str:
        """Its spec, as `--encoder_teachers` takes it."""
        return kind if kind == "clip" else teacher_spec(self.folder, self.recipe, kind)


def add_plugins() -> None:
    """Make the lab's own teachers known by name."""
    if str(PLUGINS) not in teachers_package.__path__:
        teachers_package.__path__.append(str(PLUGINS))


def stages(arm: Arm, shared: Shared, seed: int, folder: Path) -> dict[str, list[str]]:
    """The command line of each stage."""
    recipe = replace(
        shared.recipe,
        pretrain=stretched(shared.recipe.pretrain, arm.length * arm.pretrain),
        finetune=stretched(shared.recipe.finetune, arm.length, arm.rates),
    )
    first, second = folder / "stage1", folder / "stage2"
    logging_steps = min(LOGGING_STEPS, recipe.pretrain.steps, recipe.finetune.steps)
    extra = ["--seed", str(seed), "--data_seed", str(seed), "--report", "False", "--save_steps", "1000000"]
    extra += ["--logging_steps", str(logging_steps), *arm.flags]
    if arm.teachers:
        specs = [shared.teacher(kind) for kind in arm.teachers]
        if "release" in arm.flags:  # which would show EVA pictures with CLIP's mean, and this one never saw such
            specs = [f"{spec},mean=imagenet" if spec.startswith("eva:") else spec for spec in specs]
        extra += ["--encoder_teachers", *specs, "--teacher_cache", str(shared.cache)]
    return {
        "stage1": [
            *pretrain_flags(shared.folder, recipe, first),
            *extra,
            *data_flags(arm, shared, "pretrain"),
            *(EARLY_TOWER if arm.tower == "early" else ()),
        ],
        "stage2": [
            *finetune_flags(shared.folder, recipe, first, second),
            *extra,
            *data_flags(arm, shared, "finetune"),
            *("--mm_tunable_parts", PARTS[arm.tower]),
        ],
    }


def data_flags(arm: Arm, shared: Shared, name: str) -> list[str]:
    if arm.data == 1.0:
        return []
    return ["--data_path", str(shared.folder / "data" / f"{name}-{arm.data}.json")]


def write_part_of_data(shared: Shared, share: float) -> None:
    """The first scenes only, in files beside the whole ones. Other runs may be reading them, so they are never half
    written."""
    for name in ("pretrain", "finetune"):
        records = json.loads((shared.folder / "data" / f"{name}.json").read_text())
        images = sorted({record["image"] for record in records})
        kept = set(images[: round(share * len(images))])
        target = shared.folder / "data" / f"{name}-{share}.json"
        with atomic(target) as file:
            file.write_text(json.dumps([record for record in records if record["image"] in kept], indent=0))


def stretched(stage: StageTraining, length: float, rates: tuple[float, float] = (1.0, 1.0)) -> StageTraining:
    rate, tower_rate = rates
    return replace(
        stage, steps=round(stage.steps * length), rate=stage.rate * rate, tower_rate=stage.tower_rate * tower_rate
    )


def measured(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of this process, and what the work returned."""
    start = time.process_time()
    answer = work()
    return time.process_time() - start, answer


def run_arm(arm: Arm, shared: Shared, seed: int, folder: Path, world: str) -> Row:
    """Train and evaluate. `folder` is made anew; the trained models are removed once their answers are known."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    add_plugins()
    if arm.tower == "teachers":
        specs = [shared.teacher(kind) for kind in ARMS["ours"].teachers if kind != "clip"]
        TeachersTower.teachers = build_teachers(specs)  # type: ignore[assignment]
        TeachersTower.side = shared.recipe.world.side
        builder.CLIPVisionTower = TeachersTower  # type: ignore[misc]
    if arm.data < 1.0:
        write_part_of_data(shared, arm.data)
    commands = stages(arm, shared, seed, folder)
    seconds = {}
    for stage, flags in commands.items():
        sys.argv = ["train.py", *flags]
        seconds[stage], _ = measured(lambda: train("sdpa"))
    seconds["evaluation"], right = measured(lambda: judge(folder / "stage2", shared.folder / "data"))
    curves = {f"stage1/{name}": curve for name, curve in read_curves(folder / "stage1").items()}
    curves |= read_curves(folder / "stage2")
    for stage in commands:
        shutil.rmtree(folder / stage)
    made_of = {**versions(), "pieces": digest_of_pieces(shared)}
    return Row(arm.name, seed, world, portable(commands, shared, folder), made_of, seconds, right, curves)


def judge(model: Path, data: Path) -> dict[str, dict[str, str]]:
    """By split and kind of question, a 1 or 0 for each answer."""
    chat = load_chat(model)
    found: dict[str, dict[str, str]] = {}
    for split in QUESTION_SPLITS:
        lines = read_jsonl(data / f"{split}.jsonl")
        marks: dict[str, str] = defaultdict(str)
        for line, answer in zip(lines, answer_all(chat, lines, data / "images"), strict=True):
            marks[line["category"]] += str(int(is_right(line, answer)))
        found[split] = dict(marks)
    return found


def read_curves(stage: Path) -> dict[str, list[tuple[int, float]]]:
    history = json.loads((stage / "trainer_state.json").read_text())["log_history"]
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for entry in history:
        values = {"lm": entry["loss"], **entry} if "loss" in entry else {}
        for name in values.keys() - set(NO_CURVES):
            curves[name].append((entry["step"], round(float(values[name]), 4)))
    return dict(curves)


def portable(commands: Mapping[str, Sequence[str]], shared: Shared, folder: Path) -> dict[str, list[str]]:
    """The flags with the lab's folder replaced by a word, so that rows of two machines can be compared."""
    places = ((str(folder), f"{MADE}/run"), (str(shared.folder), f"{MADE}/shared"))
    found = {}
    for stage, flags in commands.items():
        for place, word in places:
            flags = [flag.replace(place, word) for flag in flags]
        found[stage] = list(flags)
    return found


def versions() -> dict[str, str]:
    libraries = {name: version(name) for name in ("torch", "transformers", "numpy")}
    return {"python": platform.python_version(), **libraries, "source": digest_of_source()}


def digest_of_source() -> str:
    """Of every Python file of llava and playground: rows of one digest were made by one and the same code."""
    digest = hashlib.sha256()
    for path in sorted(path for name in ("llava", "playground") for path in (ROOT / name).rglob("*.py")):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def digest_of_pieces(shared: Shared) -> str:
    """Of the weights and data that all runs share: rows of one digest can be compared, whatever code made them."""
    digest = hashlib.sha256()
    data = [shared.folder / "data" / name for name in ("pretrain.json", "finetune.json", "heldout.jsonl")]
    weights = [
        path
        for piece in ("language", "clip", "teachers")
        for path in (shared.folder / piece).rglob("*")
        if path.suffix in (".safetensors", ".pt", ".pth", ".bin")
    ]
    for path in sorted([*data, *weights]):
        digest.update(str(path.relative_to(shared.folder)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def main() -> None:
    from playground.lab.world import load_shared

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arm", choices=sorted(ARMS), required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shared, world = load_shared(options.out)
    folder = options.out / "runs" / f"{options.arm}-{options.seed}"
    row = run_arm(ARMS[options.arm], shared, options.seed, folder, world)
    with atomic(folder / "row.json") as file:
        file.write_text(json.dumps(asdict(row)))


if __name__ == "__main__":
    main()
