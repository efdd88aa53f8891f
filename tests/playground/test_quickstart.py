import json
import subprocess
import sys
from pathlib import Path

import pytest

from playground import quickstart
from playground.processes import Command, CommandFailed, run_side_by_side
from playground.questions import KINDS

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ("losses.png", "accuracy.png", "contact_sheet.png")


class Diary:
    def __init__(self) -> None:
        self.entries: list[str] = []

    def begin(self, name: str) -> None:
        self.entries.append(f"begin {name}")

    def finish(self, name: str, seconds: float) -> None:
        self.entries.append(f"finish {name}")


def command(name: str, folder: Path, code: str = "pass", needs: tuple[str, ...] = ()) -> Command:
    return Command(name, name, [sys.executable, "-c", code], folder / f"{name}.txt", 1, needs=needs)


def smoke(out: Path) -> str:
    arguments = [sys.executable, "-m", "playground.quickstart", "--recipe", "smoke", "--out", str(out)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_smoke_recipe_trains_and_compares_both_arms_and_the_second_run_reuses_all(tmp_path: Path) -> None:
    printed = smoke(tmp_path)
    head = next(line for line in printed.splitlines() if line.startswith("question"))
    assert head.split() == ["question", "asked", "prior", "LLaVA", "MoVE-KD", "difference"]
    assert {line.split()[0] for line in printed.splitlines() if " +- " in line} >= {*KINDS, "visual", "all"}
    assert all((tmp_path / "report" / name).stat().st_size > 0 for name in FIGURES)
    results = [json.loads(path.read_text()) for path in sorted((tmp_path / "results").glob("*/result.json"))]
    assert len(results) == 2
    assert [a["question_id"] for a in results[0]["answers"]] == [a["question_id"] for a in results[1]["answers"]]

    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "steps").iterdir()}
    assert "MoVE-KD, stage 2: already there" in smoke(tmp_path)
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "steps").iterdir()}


def test_both_arms_get_the_same_flags_but_for_the_teachers(tmp_path: Path) -> None:
    pipeline = quickstart.Pipeline(tmp_path, quickstart.RECIPES["quick"])
    plain, distilled = (pipeline.arm(arm) for arm in (quickstart.PLAIN, quickstart.DISTILLED))
    for one, other in zip(plain[:2], distilled[:2], strict=True):
        added = other.arguments[other.arguments.index("--encoder_teachers") :]
        shared = [part.replace("move-kd-", "") for part in other.arguments[: -len(added)]]
        port = shared.index("--master_port") + 1
        assert [*shared[:port], *shared[port + 1 :]] == [*one.arguments[:port], *one.arguments[port + 1 :]]


def test_a_command_starts_when_what_it_needs_is_done(tmp_path: Path) -> None:
    diary = Diary()
    run_side_by_side([command("late", tmp_path, needs=("early",)), command("early", tmp_path)], 2, diary)
    assert diary.entries == ["begin early", "finish early", "begin late", "finish late"]


def test_a_failing_command_ends_the_run_and_shows_its_log(tmp_path: Path) -> None:
    diary = Diary()
    with pytest.raises(CommandFailed, match="out of paint"):
        run_side_by_side([command("bad", tmp_path, "raise SystemExit('out of paint')")], 2, diary)
    assert diary.entries == ["begin bad"]


def test_commands_that_wait_for_each_other_are_refused(tmp_path: Path) -> None:
    circle = [command("a", tmp_path, needs=("b",)), command("b", tmp_path, needs=("a",))]
    with pytest.raises(ValueError, match="wait for each other"):
        run_side_by_side(circle, 2, Diary())
