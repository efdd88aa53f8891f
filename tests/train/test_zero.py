"""Two processes, one of which never sees a picture, under every way to share the work."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import read_state_dict
from llava.train.report import FOLDER
from tests.tiny_teachers import SMALL, make_eva, randomize
from tests.train.runs import RUN_FLAGS, World, command_line, losses, one_rank_without_pictures, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def flags(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything trains: language model, tower, experts, adapters; teachers of two kinds; gradients recomputed."""
    folder = tmp_path_factory.mktemp("mixed")
    wide = Dinov2Config(**SMALL, image_size=28, patch_size=7, mlp_ratio=100)  # so that sharding leaves it nowhere whole
    randomize(Dinov2Model(wide)).save_pretrained(folder / "dinov2")
    return {
        "version": "v1",
        "data_path": one_rank_without_pictures(world, folder),
        "encoder_teachers": ["clip", f"eva:path={make_eva(folder)},size=64,heads=2", f"dinov2:path={folder}/dinov2"],
        "moe_encoder_lora_rank": 4,
        "tune_all": True,
        "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": "[[28, 56], [56, 28]]",
        "mm_patch_merge_type": "spatial_unpad",
        "per_device_train_batch_size": 1,
        "max_steps": 4,
    }


@pytest.fixture(scope="module")
def expected(world: World, flags: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of two processes without DeepSpeed."""
    out = tmp_path_factory.mktemp("torch")
    run(command_line(world.model_flags, RUN_FLAGS, flags, {"output_dir": out}), 2)
    return losses(out)


@pytest.mark.parametrize(
    ("launcher", "config", "shards"),
    [("deepspeed", "zero2", False), ("torchrun", "zero3", False), ("torchrun", "zero2", True)],
)
def test_a_rank_without_pictures_neither_hangs_nor_changes_the_loss(
    world: World, flags: dict[str, Any], expected: list[float], tmp_path: Path, launcher: str, config: str, shards: bool
) -> None:
    """To the end of the run, where whoever holds a part of student or teachers must take part in the report."""
    extra = {"output_dir": tmp_path, "deepspeed": f"scripts/{config}.json", "shard_teachers": shards, "report": True}
    run(command_line(world.model_flags, RUN_FLAGS, flags, extra), 2, launcher)
    assert losses(tmp_path) == pytest.approx(expected, rel=1e-4)
    assert (tmp_path / FOLDER / "teachers.png").exists()
    state = read_state_dict(tmp_path)
    assert all(tensor.numel() and torch.isfinite(tensor).all() for tensor in state.values())
    _, model, _, _ = load_pretrained_model(str(tmp_path), None, "llava-tiny", device="cpu")
    assert model.parts()["mole"]
