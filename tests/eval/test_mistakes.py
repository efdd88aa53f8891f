"""Scorers and converters say in one line what is wrong with what they were given."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    "llava/eval/eval_gqa.py": "--question-file {} --result-file {}",
    "llava/eval/eval_mmbench.py": "--annotation-file {} --result-file {}",
    "llava/eval/eval_mme.py": "--data-dir {} --result-file {}",
    "llava/eval/eval_pope.py": "--annotation-dir {} --question-file {} --result-file {}",
    "llava/eval/eval_science_qa.py": "--base-dir {} --result-file {} --output-file {}.out --output-result {}.out",
    "llava/eval/eval_textvqa.py": "--annotation-file {} --result-file {}",
    "llava/eval/evaluate_interleave.py": "--result-dir {}",
    "llava/eval/summarize_gpt_review.py": "-f {}",
    "scripts/eval/compare.py": "{} {}",
    "scripts/convert_answer_to_mme.py": "--experiment none --dir {}",
    "scripts/convert_gqa_for_eval.py": "--src {} --dst {}.out",
    "scripts/convert_mmbench_for_submission.py": "--annotation-file {} --result-dir {} --upload-dir {} --experiment no",
    "scripts/convert_mmvet_for_eval.py": "--src {} --dst {}.out",
    "scripts/convert_seed_for_submission.py": "--annotation-file {} --result-file {} --result-upload-file {}.out",
    "scripts/convert_sqa_to_llava.py": "convert_to_llava --base-dir {} --split test",
    "scripts/convert_vizwiz_for_submission.py": "--annotation-file {} --result-file {} --result-upload-file {}.out",
    "scripts/convert_vqav2_for_submission.py": "--dir {} --ckpt none --split test",
}


def said(program: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.delenv("LLAVA_DEBUG", raising=False)
    monkeypatch.setattr(sys, "argv", [program, *PROGRAMS[program].replace("{}", str(place)).split()])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / program), run_name="__main__")
    assert stopped.value.code == 1, stopped.value.code
    [line] = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_file_that_is_not_there_is_named(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = said(program, tmp_path / "nothing", monkeypatch, capsys)
    assert line.startswith("error: ")
    assert str(tmp_path / "nothing") in line


@pytest.mark.parametrize(
    "program", [name for name, flags in PROGRAMS.items() if "-file {}" in flags or "src {}" in flags]
)
def test_a_file_that_is_no_json_is_named(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"questions": [\n')
    line = said(program, broken, monkeypatch, capsys)
    assert line.startswith("error: ")
    assert str(broken) in line
