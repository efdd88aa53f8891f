"""The command that says what teachers are, and which of them cannot be used."""

from pathlib import Path

import pytest
import torch

from llava.train.check_teachers import main
from tests.tiny_teachers import CASES, make_case


def table_of(printed: str) -> list[str]:
    """Without what libraries print while they are imported."""
    lines = printed.splitlines()
    return lines[next(index for index, line in enumerate(lines) if line.startswith("teacher ")) :]


def test_every_teacher_is_listed_with_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    specs = [f"{make_case(name, tmp_path)},name={name}" for name in CASES]
    assert main([*specs, "--repeats", "1", "--device", "cpu"]) == 0
    lines = table_of(capsys.readouterr().out)
    assert lines[0].split() == [
        "teacher", "parameters", "grid", "tokens", "width", "image", "memory", "ms/image", "digest", "licence",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[1:]] == list(CASES)
    sam = next(line for line in lines if line.startswith("sam"))
    assert "4 x 4" in sam
    assert "64 px" in sam
    assert "Apache-2.0" in sam


def test_failures_are_named_and_the_others_still_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    specs = [make_case("sam", tmp_path), f"eva:path={tmp_path / 'nowhere.pth'}", "samm", "dinov2:size=big"]
    assert main([*specs, "--repeats", "1", "--device", "cpu"]) == 1
    printed = capsys.readouterr()
    assert [line.split()[0] for line in table_of(printed.out)] == ["teacher", "sam"]
    failures = printed.err.splitlines()
    assert len([line for line in failures if line.startswith("failed: ")]) == 3
    assert "nowhere.pth" in printed.err
    assert "unknown teacher 'samm'" in printed.err


def test_features_that_overflow_are_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.move_kd.test_teacher_weights import edit

    spec = make_case("dinov2", tmp_path)
    edit(tmp_path / "dinov2", lambda state: state["layernorm.weight"].fill_(torch.inf))
    assert main([spec, "--device", "cpu"]) == 1
    assert "are not finite" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--batch_size", "--repeats"])
def test_nothing_to_time_is_a_mistake(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["clip", flag, "0"])
    assert "must be at least 1" in capsys.readouterr().err
