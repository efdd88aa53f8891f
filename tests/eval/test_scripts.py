"""The launch scripts of the benchmarks, run as printed on a tiny checkpoint."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llava.mm_utils import get_model_name_from_path
from tests.eval.conftest import COLORS, read_rows, write_jsonl

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "scripts" / "eval").glob("*.sh"))


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / "eval" / script), *arguments],
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=550,
    )


def test_every_column_of_the_paper_has_a_script() -> None:
    names = {script.stem for script in SCRIPTS}
    local = {"gqa", "textvqa", "pope", "sqa", "mme", "mmbench", "mmbench_cn", "seed"}
    assert local | {"vqav2", "vizwiz", "mmvet", "llavabench", "lmms"} <= names


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_bash_without_syntax_errors(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_what_is_missing_is_said_in_one_line(tmp_path: Path) -> None:
    done = run("gqa.sh")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "CHECKPOINT" in done.stderr
    done = run("pope.sh", "somewhere", EVAL_DIR=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == f"{tmp_path}/pope/coco is missing; docs/evaluation.md tells where it comes from.\n"
    done = run("llavabench.sh", "somewhere", EVAL_DIR=str(tmp_path), JUDGE="")
    assert done.stderr == "JUDGE names no command that reviews; docs/evaluation.md shows one.\n"


@pytest.mark.parametrize("checkpoint", ["run/llava-7b", "llava-7b/", "/a/run-b/checkpoint-450/", "checkpoint-450"])
def test_results_are_named_like_their_model(checkpoint: str) -> None:
    source = f'. "{ROOT}/scripts/eval/common.sh" "{checkpoint}"; echo "$name"'
    done = subprocess.run(["bash", "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout == get_model_name_from_path(checkpoint) + "\n"


@pytest.mark.slow
def test_llavabench_has_its_answers_reviewed_and_summarized(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "llava-bench-in-the-wild"
    shutil.copytree(pictures, folder / "images")
    rows = [{"question_id": n, "image": f"{color}.png", "text": "What?"} for n, color in enumerate(COLORS)]
    write_jsonl(folder / "questions.jsonl", [{**row, "category": "conv"} for row in rows])
    write_jsonl(folder / "context.jsonl", [{"image": row["image"], "caption": "One color."} for row in rows])
    write_jsonl(folder / "answers_gpt4.jsonl", rows)
    (folder / "rule.json").write_text(json.dumps({"llava_bench_conv": {"role": "Assistant", "prompt": "Rate."}}))
    options = ("--max_new_tokens", "4", "--device", "cpu", "--workers", "0")
    done = run("llavabench.sh", str(checkpoint), *options, EVAL_DIR=str(tmp_path), NAME="tiny", JUDGE="echo 8 6")
    assert done.returncode == 0, done.stderr
    assert "judge: echo 8 6" in done.stdout
    assert "all 75.0 80.0 60.0" in done.stdout


@pytest.mark.slow
def test_pope_runs_in_chunks_and_prints_its_settings(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pope"
    rows = [
        {"question_id": index, "image": f"{color}.png", "text": f"Is it {index}?", "category": "random"}
        for index, color in enumerate(COLORS)
    ]
    write_jsonl(folder / "llava_pope_test.jsonl", rows)
    write_jsonl(folder / "coco" / "coco_pope_random.json", [{"label": "yes"}] * 5)
    shutil.copytree(pictures, folder / "val2014")
    options = ("--max_new_tokens", "4", "--device", "cpu", "--workers", "0")
    done = run("pope.sh", str(checkpoint), *options, EVAL_DIR=str(tmp_path), CHUNKS="2", NAME="tiny")
    assert done.returncode == 0, done.stderr
    assert "POPE of tiny\nadversarial, popular and random" in done.stdout
    assert "template vicuna_v1, temperature 0, torch " in done.stdout
    assert "Mean F1 score: " in done.stdout
    answers = folder / "answers" / "tiny.jsonl"
    assert [row["question_id"] for row in read_rows(answers)] == [0, 1, 2, 3, 4]
    assert len(read_rows(tmp_path / "scores" / "tiny" / "pope.jsonl")) == 5
