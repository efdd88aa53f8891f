"""The world in exactly LLaVA's data format: JSON of conversations, PNG files beside it, JSONL questions.

DIR/images/SPLIT/NUMBER.png, DIR/pretrain.json (captions), DIR/finetune.json (several turns each),
DIR/validation.json, DIR/validation.jsonl and DIR/heldout.jsonl (questions with kind and answer).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from playground.questions import KINDS, Question, ask_everything, choose, placed_caption
from playground.world import Scene, Split, WorldConfig, draw_scenes, render

CHUNK = 100
QUESTION_SPLITS: tuple[Split, ...] = ("heldout", "validation")
PROMPT = "Describe the picture."


@dataclass(frozen=True)
class DataSize:
    """Numbers of scenes. conversations: how many, with other questions each, are about one fine-tuning scene."""

    pretrain: int = 3000
    finetune: int = 4000
    validation: int = 400
    heldout: int = 400
    conversations: int = 2
    turns: int = 10

    @property
    def pictures(self) -> int:
        return self.pretrain + self.finetune + self.validation + self.heldout


def write_data(directory: Path, world: WorldConfig, size: DataSize) -> None:
    """Pictures first, then the files that name them; equal arguments write equal files."""
    scenes = {
        "pretrain": draw_scenes(world, "train", size.pretrain),
        "finetune": draw_scenes(world, "train", size.finetune, start=size.pretrain),
        "validation": draw_scenes(world, "validation", size.validation),
        "heldout": draw_scenes(world, "heldout", size.heldout),
    }
    files = {
        "train": [*scenes["pretrain"], *scenes["finetune"]],
        "validation": scenes["validation"],
        "heldout": scenes["heldout"],
    }
    with tqdm(total=sum(map(len, files.values())), desc="Drawing pictures", mininterval=1.0) as bar:
        for split, split_scenes in files.items():
            for done in write_pictures(directory / "images" / split, split_scenes, world):
                bar.update(done)
    chance = np.random.default_rng((world.seed, 1))
    _dump(directory / "pretrain.json", [caption_record(scene) for scene in scenes["pretrain"]])
    for name in ("finetune", "validation"):
        records = [
            conversation_record(scene, number, size.turns, chance)
            for number in range(size.conversations if name == "finetune" else 1)
            for scene in scenes[name]
        ]
        _dump(directory / f"{name}.json", records)
    for name in QUESTION_SPLITS:
        lines = [json.dumps(line) for line in question_lines(scenes[name], chance)]
        (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def write_pictures(folder: Path, scenes: Sequence[Scene], world: WorldConfig) -> Iterator[int]:
    """Write one PNG a scene; yields how many were written since the last time."""
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(scenes), CHUNK):
        chunk = scenes[start : start + CHUNK]
        for scene, pixels in zip(chunk, render(chunk, world).pixels, strict=True):
            Image.fromarray(pixels).save(folder / f"{scene.seed[-1]:06d}.png", compress_level=1)
        yield len(chunk)


def picture_name(scene: Scene, split: Split) -> str:
    """Relative to the image folder."""
    return f"{split}/{scene.seed[-1]:06d}.png"


def _split(scene: Scene) -> Split:
    splits: tuple[Split, ...] = ("train", "validation", "heldout")
    return splits[scene.seed[1]]


def caption_record(scene: Scene) -> dict[str, Any]:
    return {
        "id": f"caption-{scene.seed[-1]:06d}",
        "image": picture_name(scene, _split(scene)),
        "conversations": [
            {"from": "human", "value": f"<image>\n{PROMPT}"},
            {"from": "gpt", "value": placed_caption(scene)},
        ],
    }


def conversation_record(scene: Scene, number: int, turns: int, chance: np.random.Generator) -> dict[str, Any]:
    """One conversation of up to `turns` questions about a scene; the first one shows the picture."""
    asked = choose(ask_everything(scene, chance), turns, chance)
    return {
        "id": f"{_split(scene)}-{scene.seed[-1]:06d}-{number}",
        "image": picture_name(scene, _split(scene)),
        "conversations": conversation(asked),
    }


def conversation(questions: Sequence[Question], image: str = "<image>\n") -> list[dict[str, str]]:
    turns: list[dict[str, str]] = []
    for question in questions:
        turns.append({"from": "human", "value": image * (not turns) + question.text})
        turns.append({"from": "gpt", "value": question.answer})
    return turns


def question_lines(scenes: Sequence[Scene], chance: np.random.Generator) -> list[dict[str, Any]]:
    """At most one question of each kind a scene, as LLaVA's question files, with the answer added."""
    lines = []
    for scene in scenes:
        questions = ask_everything(scene, chance)
        for kind in KINDS:
            of_kind = [question for question in questions if question.kind == kind]
            if not of_kind:
                continue
            question = of_kind[int(chance.integers(len(of_kind)))]
            lines.append(
                {
                    "question_id": f"{scene.seed[-1]:06d}-{kind}",
                    "image": picture_name(scene, _split(scene)),
                    "text": question.text,
                    "category": kind,
                    "answer": question.answer,
                }
            )
    return lines


def _dump(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(records, indent=0))
