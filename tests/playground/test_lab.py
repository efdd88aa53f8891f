import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from playground.lab import __main__ as program
from playground.lab.__main__ import Current, Job, Queue, alone_in
from playground.lab.arms import ARMS, LADDER_RUNGS, LADDER_STEPS, TABLES, Arm
from playground.lab.results import Row, read_rows
from playground.lab.run import Shared, portable, stages, write_part_of_data
from playground.lab.world import build_recipe, open_lab, read_settings
from playground.questions import KINDS
from playground.recipe import RECIPES
from playground.steps import Stamps

EMPTY = Row("ours", 1, "world", {}, {}, {}, {}, {})
ROOT = Path(__file__).resolve().parents[2]
SMOKE = ("baseline", "release", "ours", "truth", "ceiling")


def lab(out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "playground.lab", "--out", str(out), "--recipe", "smoke", "--seeds", "0", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)


@pytest.mark.slow
def test_the_lab_runs_each_arm_once_and_reports_it(tmp_path: Path) -> None:
    done = lab(tmp_path, "--arms", *SMOKE)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_rows(tmp_path / "results.jsonl")
    assert {row.arm for row in rows} == set(SMOKE)
    assert all(set(row.right[split]) == set(KINDS) for row in rows for split in ("validation", "heldout"))
    asked = {tuple((kind, len(marks)) for kind, marks in row.right["heldout"].items()) for row in rows}
    assert len(asked) == 1, "every arm answers the same questions"
    assert {"kd/convnext", "residual/eva", "stage1/lm"} <= set(next(row for row in rows if row.arm == "ours").curves)
    assert "ours" in (tmp_path / "report" / "tables.md").read_text()

    before = (tmp_path / "results.jsonl").read_bytes()
    again = lab(tmp_path, "--arms", *SMOKE)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (tmp_path / "results.jsonl").read_bytes() == before, "finished runs are not run again"

    (tmp_path / "shared" / "language" / "model.safetensors").unlink()
    failed = lab(tmp_path, "--arms", "baseline", "--seeds", "1")
    assert failed.returncode == 1
    assert "1 runs failed" in failed.stderr
    assert str(tmp_path / "logs" / "baseline-1.txt") in failed.stderr
    other = lab(tmp_path, "--set", "world.noise=0.1")
    assert "choose another --out" in other.stderr


def flags_of(arm: Arm, stage: str) -> Mapping[str, list[str]]:
    """The last values of each flag."""
    found: dict[str, list[str]] = {}
    for part in stages(arm, Shared(Path("/shared"), RECIPES["lab"]), 3, Path("/run"))[stage]:
        if part.startswith("--"):
            found[(name := part)] = []
        else:
            found[name].append(part)
    return found


def differing(first: str, second: str) -> set[str]:
    """Flags of either stage in which two arms differ."""
    found: set[str] = set()
    for stage in ("stage1", "stage2"):
        one, other = flags_of(ARMS[first], stage), flags_of(ARMS[second], stage)
        found |= {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
    return {name.removeprefix("--") for name in found}


@pytest.mark.parametrize(
    ("arm", "flags"),
    [
        ("frozen", {"mm_tunable_parts"}),
        ("baseline-early", {"mm_tunable_parts", "mm_vision_tower_lr"}),
        ("baseline-time", {"max_steps"}),
        ("ours-teacher-heads", {"kd_heads"}),
        ("ours-raw", {"kd_standardize"}),
        ("ours-even-tokens", {"kd_token_weights"}),
        ("ours-top1", {"moe_gate"}),
        ("ours-kaiming", {"moe_init_b"}),
        ("ours-unbalanced", {"moe_encoder_balance_w"}),
        ("ours-late", {"mm_tunable_parts", "mm_vision_tower_lr"}),
        ("ours-no-experts", {"moe_encoder", "tune_encoder", "moe_encoder_num_experts", "moe_encoder_lora_rank"}),
        ("without-eva", {"encoder_teachers"}),
        ("weight-16", {"kd_w"}),
        ("cosine", {"kd_objectives"}),
        ("own-experts", {"kd_experts"}),
        ("only-convnext", {"encoder_teachers", "teacher_cache", "kd_recipe", "moe_encoder", "tune_encoder"}
         | {"moe_encoder_num_experts", "moe_encoder_lora_rank"}),
        ("ladder-adapters", {"kd_heads"}),
        ("ladder-tokens", {"kd_token_weights"}),
        ("paper", {"kd_teacher_weights"}),
        ("tune-1.0-0.3", {"mm_vision_tower_lr"}),
        ("ours-little", {"encoder_teachers", "teacher_cache", "kd_recipe", "moe_encoder", "tune_encoder"}
         | {"moe_encoder_num_experts", "moe_encoder_lora_rank"}),
    ],
)  # fmt: skip
def test_an_arm_differs_from_its_reference_in_what_it_says_only(arm: str, flags: set[str]) -> None:
    against = {"paper": "ladder-tokens", "ours-no-experts": "ours"}.get(arm, ARMS[arm].against)
    assert against is not None
    assert differing(arm, against) == flags


def test_every_arm_is_in_a_table_and_compared_with_an_arm_that_exists() -> None:
    shown = {name for names in TABLES.values() for name in names} | set(LADDER_RUNGS)
    assert shown == set(ARMS)
    assert all(arm.against is None or arm.against in ARMS for arm in ARMS.values())
    assert set(LADDER_STEPS) == set(LADDER_RUNGS) - {"baseline"}


def test_settings_change_the_world_and_its_fingerprint(tmp_path: Path) -> None:
    settings = read_settings(["world.texture_period=8", "world.digits=0123", "clip.side=96", "language.patches=12"])
    recipe = build_recipe("lab", settings)
    assert (recipe.world.texture_period, recipe.clip.side) == (8, 96)
    assert recipe.world.noise == RECIPES["lab"].world.noise
    _, one = open_lab(tmp_path / "a", "lab", settings)
    _, other = open_lab(tmp_path / "b", "lab", {})
    assert one != other


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("world.texture_perriod=8", "world has .*'texture_period'"),
        ("teachers.convnext=300", "the parts are world, data, language, clip, pretrain, finetune"),
        ("pretrain.tower_rate=1", "pretrain has"),
        ("clip.steps=many", "a whole number, at least 1"),
        ("pretrain.steps=1.5", "a whole number, at least 1"),
        ("data.heldout=0", "a whole number, at least 1"),
        ("world.noise=-1", "a number that is not negative"),
        ("world.background=3", "2 numbers in brackets"),
        ("world.cell=40", "the teachers' windows are made for 32"),
        ("clip.side=64", "learns to read 6 x 6 patches"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(setting: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        build_recipe("lab", read_settings([setting]))


def test_a_setting_that_is_refused_leaves_the_folder_to_the_next_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there can be 1 to 5"):
        open_lab(tmp_path, "lab", read_settings(["world.max_things=9"]))
    open_lab(tmp_path, "lab", {})


def test_one_lab_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(ValueError, match="another lab is at work"), alone_in(tmp_path):
        pass
    with alone_in(tmp_path):
        pass


def test_a_lab_without_slots_is_refused(tmp_path: Path) -> None:
    refused = lab(tmp_path, "--slots", "0")
    assert refused.returncode == 2
    assert "at least one run at a time" in refused.stderr


def test_what_was_made_and_is_gone_is_made_again(tmp_path: Path) -> None:
    stamps, output = Stamps(tmp_path), tmp_path / "piece"
    output.mkdir()
    stamps.finish("piece", "a", 1.0)
    assert stamps.is_done("piece", "a", output)
    output.rmdir()
    assert not stamps.is_done("piece", "a", output)


def test_digits_given_as_a_number_stay_text() -> None:
    assert build_recipe("lab", read_settings(["world.digits=1234"])).world.digits == "1234"


def test_a_part_of_the_data_is_replaced_whole_under_a_run_that_reads_it(tmp_path: Path) -> None:
    shared = Shared(tmp_path, RECIPES["lab"])
    (tmp_path / "data").mkdir()
    records = [{"image": f"{number}.png"} for number in range(8)]
    for name in ("pretrain", "finetune"):
        (tmp_path / "data" / f"{name}.json").write_text(json.dumps(records))
    write_part_of_data(shared, 0.25)
    part = tmp_path / "data" / "finetune-0.25.json"
    with part.open() as read_by_another_run:
        (tmp_path / "data" / "finetune.json").write_text(json.dumps(records[:4]))
        write_part_of_data(shared, 0.25)
        assert json.load(read_by_another_run) == records[:2]
    assert json.loads(part.read_text()) == records[:1]
    assert len(list(part.parent.iterdir())) == 4


def test_the_row_of_a_run_that_no_lab_was_there_to_take_is_taken_once(tmp_path: Path) -> None:
    current = Current(Shared(tmp_path / "shared", RECIPES["lab"]), tmp_path, "world", "pieces")
    folder = tmp_path / "runs" / "ours-0"
    flags = portable(stages(ARMS["ours"], current.shared, 0, folder), current.shared, folder)
    row = Row("ours", 0, "world", flags, {"pieces": "pieces"}, {}, {}, {})
    folder.mkdir(parents=True)
    (folder / "row.json").write_text(json.dumps(asdict(row)))
    jobs = [Job("ours", 0), Job("ours", 1)]
    assert current.done(jobs) == current.done(jobs) == {Job("ours", 0)}
    assert current.rows() == [row]
    for other in (replace(current, world="other"), replace(current, pieces="other")):
        assert other.done(jobs) == set()


def test_a_run_that_ends_without_a_row_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = f"open(r'{tmp_path}/runs/ours-1/row.json', 'w').write({json.dumps(json.dumps(asdict(EMPTY)))})"
    commands = {"0": "pass", "1": write, "2": "raise SystemExit(3)"}
    monkeypatch.setattr(program, "python", lambda *flags: [sys.executable, "-c", commands[flags[-1]]])
    (tmp_path / "runs" / "ours-1").mkdir(parents=True)
    failed = Queue(tmp_path, [Job("ours", seed) for seed in range(3)]).run(1)
    assert {job.seed: problem.split(":")[0] for job, problem in failed.items()} == {
        0: "FileNotFoundError",
        2: "CalledProcessError",
    }
    assert read_rows(tmp_path / "results.jsonl") == [EMPTY]
