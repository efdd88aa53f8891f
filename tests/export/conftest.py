"""Tiny checkpoints of every kind that can be exported, and their exports, each made once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from llava.export.hf import Source, export_hf
from llava.inference import Chat, Turn
from llava.model.checkpoint import save_student
from tests.model import layouts
from tests.tiny import PINPOINTS, save_tiny_llava, tiny_siglip_folder, tiny_tokenizer_folder

TILES = {
    "image_aspect_ratio": "anyres",
    "mm_patch_merge_type": "spatial_unpad",
    "image_grid_pinpoints": PINPOINTS,
}
OURS = {"moe_gate": "top1_ste", "moe_init_a": "kaiming", "moe_init_b": "zero", "moe_dropout": 0.0, "moe_layers": "used"}


def save_move_kd(directory: Path, moe: dict[str, Any] | None = None, **overrides: Any) -> Path:
    """A MoVE-KD student in `directory`/move-kd-tiny, its experts unlike each other."""
    model = layouts.tiny_move_kd(directory, moe=moe, **overrides)
    folder = tiny_tokenizer_folder(directory / "move-kd-tiny")
    save_student(model, folder)
    return folder


KINDS: dict[str, Callable[[Path], Path]] = {
    "pad": lambda directory: layouts.llava_15(directory)[0],
    "square_cls": lambda directory: save_tiny_llava(
        directory, "mistral", image_aspect_ratio="square", mm_vision_select_feature="cls_patch"
    ),
    "siglip": lambda directory: save_tiny_llava(directory, "qwen", tower=tiny_siglip_folder(directory)),
    "tiles": lambda directory: layouts.llava_16(directory)[0],
    "siglip_tiles": lambda directory: save_tiny_llava(directory, "qwen", tower=tiny_siglip_folder(directory), **TILES),
    "experts": lambda directory: layouts.move_kd(directory)[0],
    "experts_tiles": lambda directory: save_move_kd(directory, moe=layouts.MOE | OURS, **TILES),
}


class Exported(NamedTuple):
    source: Path
    directory: Path
    findings: list[Any]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """The export of a kind of model."""
    made: dict[str, Exported] = {}

    def export(kind: str) -> Exported:
        if kind not in made:
            torch.manual_seed(0)
            directory = tmp_path_factory.mktemp(kind)
            source = KINDS[kind](directory)
            output = directory / f"export-{kind}"
            made[kind] = Exported(source, output, export_hf(Source(str(source), device="cpu"), output))
        return made[kind]

    return export


def chat_of(source: Path) -> Chat:
    return Chat.load(str(source), device="cpu", torch_dtype="auto")


@torch.inference_mode()
def our_tokens(chat: Chat, turns: list[Turn], count: int = 6) -> Tensor:
    """(count,) ids that our model generates greedily."""
    prompt = chat.prompt(turns)
    inputs = chat.inputs([prompt.text], [prompt.images])
    return chat.model.generate(**inputs, do_sample=False, max_new_tokens=count, min_new_tokens=count)[0]
