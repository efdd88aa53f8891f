"""Caching with a training command: the features training asks for are all there, and its losses do not change."""

import json
from pathlib import Path
from typing import Any

import pytest

from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.move_kd.cache import CachedTeacher
from llava.model.multimodal_encoder.move_kd.cache_lookup import open_cached_teachers
from llava.train.arguments import parse_run
from llava.train.cache_teachers import cache_teachers, parse_options
from tests.tiny_teachers import make_case
from tests.train.runs import RUN_FLAGS, STAGE_TWO, World, command_line, make_world, train_in_process


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path / "world", samples=6)


def flags(world: World, root: Path, *extra: str) -> list[str]:
    teachers = ["clip", make_case("sam", root), make_case("dinov2", root)]
    named = {
        "data_path": world.folder / "chats.json",
        "output_dir": root / "out",
        "encoder_teachers": teachers,
        "teacher_cache": root / "cache",
        "teacher_dtype": "fp32",
    }
    return [*command_line(world.model_flags, RUN_FLAGS, STAGE_TWO, named), "--num_workers", "0", *extra]


def cached(arguments: list[str], location: str | None = None) -> dict[str, CachedTeacher]:
    """What training opens."""
    _, rest = parse_options(arguments)
    run = parse_run(rest)
    return open_cached_teachers(
        run.distill.teachers,
        location or run.distill.teacher_cache,
        student_tower=build_vision_tower(run.model.vision, delay_load=True),
        dtype=run.distill.teacher_dtype,
    )


def test_the_size_is_printed_and_nothing_is_written_in_a_dry_run(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache_teachers(flags(world, tmp_path, "--dry_run"))
    printed = capsys.readouterr().out
    assert "6 pictures need" in printed
    assert [line.split()[0] for line in printed.splitlines()[1:4]] == ["clip", "sam", "dinov2"]
    assert not (tmp_path / "cache").exists()


def test_a_training_command_writes_the_cache_and_goes_on_where_it_stopped(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = flags(world, tmp_path)
    cache_teachers(arguments)
    assert {len(teacher.cache) for teacher in cached(arguments).values()} == {6}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*/shard-*")}
    cache_teachers(arguments)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*/shard-*")}
    assert before == after
    assert "6 pictures need 0 B more" in capsys.readouterr().out


def test_writers_share_the_data(world: World, tmp_path: Path) -> None:
    for writer in ("0", "1"):
        cache_teachers(flags(world, tmp_path, "--writer", writer, "--writers", "2", "--batch_size", "2"))
    assert {len(teacher.cache) for teacher in cached(flags(world, tmp_path)).values()} == {6}


def test_a_pooled_cache_says_so(world: World, tmp_path: Path) -> None:
    arguments = flags(world, tmp_path, "--pool", "2x2")
    cache_teachers(arguments)
    found = cached(arguments, f"{tmp_path / 'cache'},pool=2x2")
    assert {teacher.grid for teacher in found.values()} == {(2, 2)}
    with pytest.raises(ValueError, match="features pooled to 2x2, the run exact features"):
        cached(arguments)


ANYRES = {
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": "[[28, 56], [56, 28], [56, 56]]",
    "mm_patch_merge_type": "spatial_unpad",
    "distill_views": "all",
    "model_max_length": 256,
}


@pytest.mark.parametrize("layout", [{}, ANYRES], ids=["pad", "anyres tiles"])
def test_training_losses_are_equal_to_the_bit_with_and_without_the_cache(
    layout: dict[str, Any], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mixed data: some samples have no picture, and their blanks come from the cache as well."""
    arguments = flags(world, tmp_path)
    for name in layout:
        arguments = without(arguments, f"--{name}") if f"--{name}" in arguments else arguments
    arguments += command_line(layout)
    cache_teachers(arguments)
    _, rest = parse_options(arguments)
    losses = []
    for name, command in (("cached", rest), ("live", without(rest, "--teacher_cache"))):
        folder = tmp_path / name
        train_in_process([*without(command, "--output_dir"), "--output_dir", str(folder)], monkeypatch)
        state = json.loads((folder / "trainer_state.json").read_text())
        losses.append([{key: value for key, value in row.items() if "loss" in key} for row in state["log_history"]])
    assert losses[0] == losses[1]
    assert len(losses[0]) >= 4


def without(arguments: list[str], flag: str) -> list[str]:
    start = arguments.index(flag)
    stop = next((i for i in range(start + 1, len(arguments)) if arguments[i].startswith("--")), len(arguments))
    return arguments[:start] + arguments[stop:]


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("--encoder_teachers", "no teachers to cache; add --encoder_teachers"),
        ("--teacher_cache", "--teacher_cache is missing"),
        ("--vision_tower", "vision_tower"),
    ],
)
def test_a_command_without_what_caching_needs_is_refused(drop: str, message: str, world: World, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        cache_teachers(without(flags(world, tmp_path), drop))
