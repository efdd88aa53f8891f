"""A tiny checkpoint, pictures, and helpers that write question files and run generators in this process."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava.inference import Chat
from tests.tiny import save_tiny_llava

COLORS = ("red", "green", "blue", "white", "black")
Row = dict[str, Any]


def write_jsonl(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_tiny_llava(tmp_path_factory.mktemp("evaluated"), tokenizer_model_max_length=512)


@pytest.fixture(scope="session")
def chat(checkpoint: Path) -> Chat:
    return Chat.load(str(checkpoint), template="vicuna_v1", device="cpu", torch_dtype="float32")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index, color in enumerate(COLORS):
        Image.new("RGB", (40 + 7 * index, 30), color).save(folder / f"{color}.png")
    return folder


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [
        {"question_id": index, "image": f"{color}.png", "text": "What color" + " really" * index + "?"}
        for index, color in enumerate(COLORS)
    ]
    return write_jsonl(tmp_path / "questions.jsonl", rows)


@pytest.fixture
def flags(checkpoint: Path, pictures: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Flags of a generator on the CPU: greedy, 6 new tokens, into answers.jsonl unless told otherwise."""

    def build(question_file: Path, *more: str, answers: str = "answers.jsonl") -> list[str]:
        fixed = {
            "--model-path": checkpoint,
            "--image-folder": pictures,
            "--question-file": question_file,
            "--answers-file": tmp_path / answers,
            "--conv-mode": "vicuna_v1",
            "--temperature": 0,
            "--max_new_tokens": 6,
            "--workers": 0,
            "--device": "cpu",
        }
        return [str(item) for pair in fixed.items() for item in pair] + list(more)

    return build
