"""lmms-eval on a local task: its own `llava` wrapper, our plugin in both interfaces, and our evaluator agree."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pillow

from llava.eval import model_vqa
from llava.eval.lmms_eval_plugin import TASKS, manifest
from llava.eval.runs import read_run
from llava.inference import Chat, Decoding
from tests.eval.conftest import COLORS, read_rows, write_jsonl

ROOT = Path(__file__).parents[2]
UTILS = """
def visual(document):
    return [document["image"].convert("RGB")]


def text(document, lmms_eval_specific_kwargs=None):
    return document["question"]


def long(document, lmms_eval_specific_kwargs=None):
    return "Look well. " * 200 + document["question"]


def pair(document, lmms_eval_specific_kwargs=None):
    picture = {"type": "image", "url": document["image"].convert("RGB")}
    parts = [{"type": "text", "text": "First "}, picture, {"type": "text", "text": "then "}, picture]
    system = {"role": "system", "content": [{"type": "text", "text": "Look well."}]}
    return [system, {"role": "user", "content": [*parts, {"type": "text", "text": document["question"]}]}]
"""
COMMON = """
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
metadata: [{{version: 0.0}}]
"""
GENERATE = """
output_type: generate_until
doc_to_target: answer
generation_kwargs: {max_new_tokens: 6, temperature: 0, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}]
"""
CHOICE = """
output_type: multiple_choice
doc_to_choice: [red, green, a dark blue one]
doc_to_target: 1
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def question(index: int) -> str:
    return "What color" + " really" * index + "?"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    rows = {
        "image": [Pillow.open(pictures / f"{color}.png").convert("RGB") for color in COLORS],
        "question": [question(index) for index in range(len(COLORS))],
        "answer": list(COLORS),
    }
    features = Features({"image": Image(), "question": Value("string"), "answer": Value("string")})
    Dataset.from_dict(rows, features=features).to_parquet(str(folder / "test.parquet"))
    (folder / "utils.py").write_text(UTILS)
    common = COMMON.format(data=folder / "test.parquet")
    (folder / "tiny_vqa.yaml").write_text("task: tiny_vqa" + common + GENERATE)
    (folder / "tiny_choice.yaml").write_text("task: tiny_choice" + common + CHOICE)
    (folder / "tiny_long.yaml").write_text("task: tiny_long" + common.replace("utils.text", "utils.long") + GENERATE)
    (folder / "tiny_pair.yaml").write_text(
        "task: tiny_pair" + common + GENERATE + "doc_to_messages: !function utils.pair\n"
    )
    return folder


def run(command: list[str], cache: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(cache)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=550)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.fixture(scope="module")
def answers(tasks: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("answers")
    worker = [sys.executable, str(ROOT / "tests/eval/lmms_worker.py"), str(tasks), str(checkpoint)]
    models = ["llava", "simple", "chat", "bfloat16", "float16", "losses"]
    run([*worker, str(folder / "answers.json"), *models], folder / "cache")
    return json.loads((folder / "answers.json").read_text())


def own_answers(flags: Callable[..., list[str]], folder: Path, opening: str = "") -> dict[str, str]:
    """The answers of `llava.eval.model_vqa` to the same questions, by number."""
    rows = [
        {"question_id": index, "image": f"{color}.png", "text": opening + question(index)}
        for index, color in enumerate(COLORS)
    ]
    model_vqa.main(flags(write_jsonl(folder / "q.jsonl", rows)))
    return {str(row["question_id"]): row["text"] for row in read_rows(folder / "answers.jsonl")}


@pytest.fixture
def own(tmp_path: Path, flags: Callable[..., list[str]]) -> dict[str, str]:
    return own_answers(flags, tmp_path)


def test_the_plugin_is_registered_by_the_entry_point_of_this_package() -> None:
    (found,) = [point for point in entry_points(group="lmms_eval.models") if point.name == "move_kd"]
    assert found.load() is manifest
    assert manifest().model_id == "move_kd"


def test_importing_the_plugin_imports_no_lmms_eval() -> None:
    code = "import sys, llava.eval.lmms_eval_plugin; assert not {'lmms_eval', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_stock_wrapper_the_plugin_and_our_evaluator_answer_alike(
    answers: dict[str, Any], own: dict[str, str]
) -> None:
    assert len(set(own.values())) > 2, "the checkpoint was to tell the questions apart"
    for model in ("llava", "simple", "chat"):
        assert answers[model]["tiny_vqa"] == own, model


def test_questions_that_are_too_long_are_answered_alike_too(
    answers: dict[str, Any], tmp_path: Path, flags: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    own = own_answers(flags, tmp_path, "Look well. " * 200)
    assert "than the 512 tokens that llava-tiny reads: 5;" in capsys.readouterr().out
    for model in ("llava", "simple", "chat"):
        assert answers[model]["tiny_long"] == own, model


def test_half_precision_answers_every_question(answers: dict[str, Any]) -> None:
    for model in ("bfloat16", "float16"):
        assert sorted(answers[model]["tiny_vqa"]) == ["0", "1", "2", "3", "4"]


def test_chat_messages_keep_their_pictures_in_place(answers: dict[str, Any], chat: Chat, pictures: Path) -> None:
    conversation = chat.conversation()
    asked = f"Look well.\nFirst <image>\nthen <image>\n{question(1)}"
    conversation.append_message(conversation.roles[0], asked)
    conversation.append_message(conversation.roles[1], None)
    images = [Pillow.open(pictures / "green.png")] * 2
    expected = chat.answer_all([conversation.get_prompt()], [images], Decoding(0, max_new_tokens=6), "</s>")
    assert answers["chat"]["tiny_pair"]["1"] == expected[0]


def test_losses_of_given_answers_are_the_stock_wrappers(answers: dict[str, Any]) -> None:
    """Ours come from one padded batch; the stock wrapper asks one by one, with pictures rounded to float16."""
    found = answers["losses"]
    assert found["simple"] == pytest.approx(found["llava"], abs=1e-3)
    assert len({round(loss, 3) for loss in found["simple"]}) == 3


def test_choices_are_ranked_and_greedy_answers_recognized(answers: dict[str, Any]) -> None:
    for losses in answers["simple"]["tiny_choice"].values():
        assert len(losses) == 3
        assert all(loss > 0 and greedy is False for loss, greedy in losses)


@pytest.mark.slow
def test_two_processes_share_the_questions(
    tasks: Path, checkpoint: Path, answers: dict[str, Any], tmp_path: Path
) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    worker = [str(ROOT / "tests/eval/lmms_worker.py"), str(tasks), str(checkpoint), str(tmp_path / "a.json")]
    run([*launch, *worker, "chat", "simple"], tmp_path / "cache")
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["chat"] == answers["chat"]
    assert found["simple"]["tiny_vqa"] == answers["simple"]["tiny_vqa"]


def test_the_plugin_leaves_lmms_evals_own_properties_alone() -> None:
    """The evaluator reads them as numbers when several processes share the questions."""
    code = (
        "from lmms_eval.api.model import lmms; from llava.eval.lmms_eval_plugin import chat, simple\n"
        "assert simple.SimpleMoveKD.rank is chat.ChatMoveKD.rank is lmms.rank\n"
        "assert simple.SimpleMoveKD.world_size is chat.ChatMoveKD.world_size is lmms.world_size"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.slow
def test_the_launcher_writes_logs_that_compare_reads(
    tasks: Path, checkpoint: Path, own: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    script = ["bash", "scripts/eval/lmms.sh", str(checkpoint), "tiny_vqa", "--include_path", str(tasks)]
    run([*script, "--device", "cpu"], tmp_path / "cache")
    (log,) = (tmp_path / "out").rglob("*_samples_tiny_vqa.jsonl")
    assert {str(row["doc_id"]): row["filtered_resps"] for row in read_rows(log)} == own
    assert set(read_run(str(log)).benchmarks["tiny_vqa"]) == {"0", "1", "2", "3", "4"}


def test_the_group_of_paper_columns_scores_locally_and_asks_with_ocr_tokens() -> None:
    group = yaml.safe_load((TASKS / "llava_paper.yaml").read_text())
    named = {task if isinstance(task, str) else task["task"] for task in group["task"]}
    assert named == {"gqa", "textvqa_val", "pope_full", "scienceqa_img", "mme", "mmbench_en_dev_static"}
    (textvqa,) = [task for task in group["task"] if isinstance(task, dict)]
    assert textvqa["lmms_eval_specific_kwargs"]["default"]["ocr"] is True
