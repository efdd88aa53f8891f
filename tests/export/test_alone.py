"""Exports in a process that has transformers and no `llava`: the same answers, token by token."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava.export.encoder import export_encoder
from llava.export.hf import Source
from llava.inference import Turn
from llava.mm_utils import process_images
from tests.export import alone
from tests.export.conftest import KINDS, Exported, chat_of, our_tokens

ENCODERS = ("pad", "siglip", "experts")


@pytest.fixture(scope="session")
def results(exported: Callable[[str], Exported], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program found, by kind; encoders under `encoder_` and their kind."""
    folder = tmp_path_factory.mktemp("alone")
    arguments = [f"{kind}={exported(kind).directory}" for kind in KINDS]
    for kind in ENCODERS:
        export_encoder(Source(str(exported(kind).source), device="cpu"), folder / kind)
        arguments.append(f"encoder_{kind}={folder / kind}")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, alone.__file__, str(folder / "results.json"), *arguments]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


def expected(source: Path) -> list[list[int]]:
    """The tokens of our model for the program's chats."""
    chat, found = chat_of(source), []
    for messages in alone.chats():
        turns: list[Turn] = []
        for message in messages:
            text = next(item["text"] for item in message["content"] if item["type"] == "text")
            images = tuple(item["image"] for item in message["content"] if item["type"] == "image")
            if message["role"] == "assistant":
                turns[-1] = Turn(turns[-1].text, turns[-1].images, text)
            else:
                turns.append(Turn(text, images))
        found.append(our_tokens(chat, turns, alone.COUNT).tolist())
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_alone_answers_token_by_token_as_we_do(
    results: dict[str, Any], exported: Callable[[str], Exported], kind: str
) -> None:
    wanted = expected(exported(kind).source)
    assert len({tuple(tokens) for tokens in wanted}) > 1
    assert results[kind]["single"] == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_and_a_saved_copy_answer_alike(results: dict[str, Any], kind: str) -> None:
    assert results[kind]["batched"] == results[kind]["single"]
    assert results[kind]["again"] == results[kind]["single"]


@pytest.mark.parametrize("kind", ["experts", "experts_tiles"])
@pytest.mark.parametrize(("bits", "name"), [(4, "Linear4bit"), (8, "Linear8bitLt")])
def test_quantizing_leaves_the_vision_tower_whole(results: dict[str, Any], kind: str, bits: int, name: str) -> None:
    kinds = results[kind][f"linear_{bits}"]
    assert kinds.pop("language") == [name]
    assert kinds == {part: ["Linear"] for part in ("vision_tower", "multi_modal_projector", "lm_head")}
    assert [len(tokens) for tokens in results[kind][f"answers_{bits}"]] == [alone.COUNT] * 3


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_encoder_alone_gives_the_features_that_the_projector_sees(
    results: dict[str, Any], exported: Callable[[str], Exported], kind: str
) -> None:
    chat = chat_of(exported(kind).source)
    tower = chat.model.get_vision_tower()
    pictures: list[Image.Image] = [alone.picture(60, 31, 1), alone.picture(28, 45, 2)]
    with torch.no_grad():
        wanted = tower.encode(process_images(pictures, chat.image_processor, chat.model.config)).features
    states = [torch.tensor(state) for state in results[f"encoder_{kind}"]["states"]]
    given = states[-2][:, 1:] if tower.has_class_token else states[-1]
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-5)
    assert len(states) == len(tower.vision_tower.vision_model.encoder.layers) + 1
