"""Question files to answer files: formats, resuming, sharding, batches, and what is refused."""

import base64
import io
import json
import multiprocessing
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava.eval import model_qa, model_vqa, model_vqa_loader, model_vqa_mmbench, model_vqa_science
from llava.eval.answering import checkpoint_fingerprint, chunk, prompt_of, run_program, with_images
from llava.eval.mmbench_table import present
from llava.eval.model_vqa_loader import mmtag_template
from llava.eval.questions import Question
from llava.inference import Chat, Decoding
from tests.eval.conftest import COLORS, read_rows, write_jsonl
from tests.tiny import NUM_PATCHES, save_tiny_llava, tiny_lm_folder

Flags = Callable[..., list[str]]


def encoded(color: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 30), color).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def texts(path: Path) -> list[str]:
    return [row["text"] for row in read_rows(path)]


def test_an_answer_line_has_the_published_keys(questions: Path, flags: Flags, tmp_path: Path) -> None:
    model_vqa_loader.main(flags(questions))
    rows = read_rows(tmp_path / "answers.jsonl")
    assert [row["question_id"] for row in rows] == list(range(5))
    assert list(rows[0]) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    assert (rows[1]["prompt"], rows[1]["model_id"], rows[1]["metadata"]) == ("What color really?", "llava-tiny", {})
    assert len({row["answer_id"] for row in rows}) == 5
    assert all(row["text"] == row["text"].strip() for row in rows)


def test_answers_are_those_of_the_model_asked_directly(
    questions: Path, flags: Flags, chat: Chat, pictures: Path, tmp_path: Path
) -> None:
    model_vqa.main(flags(questions))
    prompt = prompt_of(chat, "What color?", 1)
    assert prompt.endswith("USER: <image>\nWhat color? ASSISTANT:")
    expected = chat.answer_all([prompt], [[Image.open(pictures / "red.png")]], Decoding(0, max_new_tokens=6), "</s>")
    assert texts(tmp_path / "answers.jsonl")[0] == expected[0]


def test_batched_answers_are_the_single_ones(questions: Path, flags: Flags, tmp_path: Path) -> None:
    model_vqa.main(flags(questions, answers="one.jsonl"))
    model_vqa.main(flags(questions, "--batch-size", "3", answers="three.jsonl"))
    assert texts(tmp_path / "one.jsonl") == texts(tmp_path / "three.jsonl")


def test_sampling_is_the_same_resumed_and_sharded(questions: Path, flags: Flags, tmp_path: Path) -> None:
    sampled = ("--temperature", "1.5")
    model_vqa.main(flags(questions, *sampled, answers="whole.jsonl"))
    expected = texts(tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    (tmp_path / "whole.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    model_vqa.main(flags(questions, *sampled, answers="whole.jsonl"))
    assert texts(tmp_path / "whole.jsonl") == expected
    parts = []
    for index in range(2):
        name = f"part{index}.jsonl"
        model_vqa.main(flags(questions, *sampled, "--num-chunks", "2", "--chunk-idx", str(index), answers=name))
        parts += texts(tmp_path / name)
    assert parts == expected
    model_vqa.main(flags(questions, *sampled, "--seed", "1", answers="other.jsonl"))
    assert texts(tmp_path / "other.jsonl") != expected


def test_chunks_are_contiguous_and_cover_everything_once() -> None:
    assert [list(chunk(range(5), 3, index)) for index in range(3)] == [[0, 1], [2, 3], [4]]
    assert [len(chunk(range(4), 3, index)) for index in range(3)] == [2, 2, 0]
    assert list(chunk([], 2, 1)) == []
    with pytest.raises(ValueError, match="from 0 to 1"):
        chunk(range(4), 2, 2)


def test_an_empty_chunk_leaves_an_empty_file_and_loads_no_model(questions: Path, flags: Flags, tmp_path: Path) -> None:
    given = flags(questions, "--num-chunks", "9", "--chunk-idx", "8")
    given[given.index("--model-path") + 1] = str(tmp_path / "nowhere")
    model_vqa.main(given)
    assert (tmp_path / "answers.jsonl").read_bytes() == b""


def test_a_finished_file_is_said_to_be_finished(
    questions: Path, flags: Flags, capsys: pytest.CaptureFixture[str]
) -> None:
    model_vqa.main(flags(questions))
    assert "nothing is left" not in capsys.readouterr().out
    model_vqa.main(flags(questions))
    assert "answers.jsonl holds the answers to all 5 questions\n" in capsys.readouterr().out


def test_what_cannot_change_an_answer_does_not_stop_a_resumed_run(
    questions: Path, flags: Flags, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    given = flags(questions, answers="model/answers.jsonl")
    given[given.index("--model-path") + 1] = str(folder)
    model_vqa.main([*given, "--test_size", "2"])
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(folder)
    (tmp_path / "copy").rename(folder)
    (folder / "scores.json").write_text("{}")
    given[given.index("--model-path") + 1] = f"{folder.parent}/./model/"
    model_vqa.main(given)
    assert len(read_rows(folder / "answers.jsonl")) == 5


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "mm_projector.bin", "adapter_model.safetensors"])
def test_a_file_that_decides_answers_changes_the_fingerprint(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"a" * 100)
    before = checkpoint_fingerprint(str(tmp_path))
    (tmp_path / name).write_bytes(b"a" * 99 + b"b")
    assert checkpoint_fingerprint(str(tmp_path)) != before


def test_large_files_are_sampled_everywhere(tmp_path: Path) -> None:
    """A projector of 40 MiB in the middle of frozen weights does not go unnoticed."""
    path = tmp_path / "model.safetensors"
    prints = set()
    for start in (None, 70, 101, 143):
        with open(path, "wb") as file:
            file.truncate(144 * 2**20)
            if start is not None:
                file.seek(start * 2**20)
                file.write(b"x" * min(40, 144 - start) * 2**20)
        prints.add(checkpoint_fingerprint(str(tmp_path)))
    assert len(prints) == 4


def test_a_wrong_model_path_leaves_no_files(questions: Path, flags: Flags, tmp_path: Path) -> None:
    given = flags(questions, answers="new/answers.jsonl")
    given[given.index("--model-path") + 1] = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="nowhere does not exist"):
        model_vqa.main(given)
    assert not (tmp_path / "new").exists()


def test_mistakes_and_ctrl_c_end_the_program_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: BaseException) -> None:
        raise error

    for error, status, said in (
        (ValueError("no such\nmodel"), 1, "error: no such model"),
        (KeyboardInterrupt(), 130, "inter"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run_program(partial(fail, error))
        assert stopped.value.code == status
        assert capsys.readouterr().err.strip().startswith(said)


@pytest.mark.parametrize(
    ("flag", "value", "said"), [("--batch-size", "0", "--batch-size must be"), ("--temperature", "-1", "temperature")]
)
def test_a_wrong_setting_is_said_before_the_model_is_loaded(
    questions: Path, flags: Flags, tmp_path: Path, flag: str, value: str, said: str
) -> None:
    given = flags(questions, flag, value)
    given[given.index("--model-path") + 1] = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=said):
        model_vqa.main(given)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_question_that_is_too_long_is_answered_and_counted(
    flags: Flags, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], batch_size: int
) -> None:
    """Reference: the same prompt without what the model cuts off."""
    torch.manual_seed(0)
    cutting = save_tiny_llava(tmp_path, tokenizer_model_max_length=128)
    rows = [{"question_id": i, "image": "red.png", "text": "Why " * n + "so?"} for i, n in enumerate((3, 900, 5))]
    given = flags(write_jsonl(tmp_path / "q.jsonl", rows), "--batch-size", str(batch_size))
    given[given.index("--model-path") + 1] = str(cutting)
    model_vqa.main(given)
    assert [row["question_id"] for row in read_rows(tmp_path / "answers.jsonl")] == [0, 1, 2]
    assert "longer with their pictures than the 128 tokens that llava-tiny reads: 1;" in capsys.readouterr().out
    chat = Chat.load(str(cutting), template="vicuna_v1", device="cpu", torch_dtype="float32")
    inputs = chat.inputs([prompt_of(chat, rows[1]["text"], 1)], [[Image.open(pictures / "red.png")]])
    kept = {name: inputs[name][:, : 128 - NUM_PATCHES + 1] for name in ("inputs", "attention_mask")}
    tokens = chat.model.generate(**{**inputs, **kept}, **Decoding(0, max_new_tokens=6).arguments())
    assert texts(tmp_path / "answers.jsonl")[1] == chat.tokenizer.decode(tokens[0], skip_special_tokens=True).strip()


def test_an_answers_file_without_a_folder_is_written_here(
    questions: Path, flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = flags(questions, "--test_size", "1")
    given[given.index("--answers-file") + 1] = "here.jsonl"
    model_vqa.main(given)
    assert len(read_rows(tmp_path / "here.jsonl")) == 1


def test_a_broken_picture_is_named_and_costs_no_earlier_answer(pictures: Path, flags: Flags, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    names = [str(pictures / "red.png"), str(tmp_path / "broken.png")]
    rows = [{"question_id": f"q{index}", "image": name, "text": "What?"} for index, name in enumerate(names)]
    with pytest.raises(ValueError, match=r"question 'q1': image .*broken\.png cannot be read"):
        model_vqa.main(flags(write_jsonl(tmp_path / "q.jsonl", rows), "--workers", "1"))
    assert [row["question_id"] for row in read_rows(tmp_path / "answers.jsonl")] == ["q0"]


def test_a_missing_picture_is_named_with_its_question(flags: Flags, tmp_path: Path) -> None:
    rows = [{"question_id": 7, "image": "gone.png", "text": "What?"}]
    with pytest.raises(ValueError, match=r"question 7: image .*gone\.png does not exist; check --image-folder"):
        model_vqa.main(flags(write_jsonl(tmp_path / "q.jsonl", rows)))


def test_a_question_file_is_checked_before_the_model_is_loaded(flags: Flags, tmp_path: Path) -> None:
    rows = [{"question_id": 1, "text": "What?"}, {"text": "What?"}]
    with pytest.raises(ValueError, match=r"question 2 lacks question_id; it has text"):
        model_vqa.main(flags(write_jsonl(tmp_path / "q.jsonl", rows)))
    (tmp_path / "torn.jsonl").write_text('{"question_id": 1, "text": "a"}\n{"question_id": 2, "te')
    with pytest.raises(ValueError, match=r"torn\.jsonl:2 is not JSON"):
        model_vqa.main(flags(tmp_path / "torn.jsonl"))


def test_a_text_that_places_other_than_its_pictures_is_named(flags: Flags, tmp_path: Path) -> None:
    rows = [{"question_id": 3, "image": "red.png", "text": "<image> or <image>?"}]
    with pytest.raises(ValueError, match=r"question 3: the prompt names 2 picture\(s\)"):
        model_vqa.main(flags(write_jsonl(tmp_path / "q.jsonl", rows)))


def test_one_id_may_have_several_questions_and_one_question_may_be_asked_twice(flags: Flags, tmp_path: Path) -> None:
    rows = [{"question_id": "a", "image": "red.png", "text": text} for text in ("One?", "Two?", "One?")]
    path = write_jsonl(tmp_path / "q.jsonl", rows)
    model_vqa.main(flags(path))
    expected = texts(tmp_path / "answers.jsonl")
    assert [row["prompt"] for row in read_rows(tmp_path / "answers.jsonl")] == ["One?", "Two?", "One?"]
    kept = (tmp_path / "answers.jsonl").read_bytes().splitlines(keepends=True)[:1]
    (tmp_path / "answers.jsonl").write_bytes(b"".join(kept))
    model_vqa.main(flags(path))
    assert texts(tmp_path / "answers.jsonl") == expected


def test_interleaved_questions_keep_their_pictures_in_place(flags: Flags, chat: Chat, tmp_path: Path) -> None:
    samples = [
        {
            "sample_id": 4,
            "image": ["red.png", "blue.png"],
            "conversations": [
                {"from": "human", "value": "First <image> then <image>: which is red?"},
                {"from": "gpt", "value": "the first"},
            ],
            "metadata": {"dataset": "NLVR2_Mantis", "question_type": "multi-choice"},
        }
    ]
    path = tmp_path / "interleaved.json"
    path.write_text(json.dumps(samples))
    model_vqa.main(flags(path, "--extra-prompt", "Look. "))
    (row,) = read_rows(tmp_path / "answers.jsonl")
    keys = "dataset sample_id prompt pred_response gt_response shortuuid model_id question_type"
    assert list(row) == keys.split()
    assert (row["sample_id"], row["gt_response"], row["dataset"]) == (4, "the first", "NLVR2_Mantis")
    assert row["prompt"] == "Look. First <image> then <image>: which is red?"
    assert "USER: Look. First <image> then <image>: which" in prompt_of(chat, row["prompt"], 2)


def test_science_questions_take_pictures_or_none(flags: Flags, tmp_path: Path) -> None:
    samples = [
        {"id": "1", "image": "red.png", "conversations": [{"from": "human", "value": "Which?\n<image>"}]},
        {"id": "2", "conversations": [{"from": "human", "value": "Why?"}]},
    ]
    path = tmp_path / "science.json"
    path.write_text(json.dumps(samples))
    model_vqa_science.main(flags(path, "--single-pred-prompt", "--batch-size", "2"))
    rows = read_rows(tmp_path / "answers.jsonl")
    suffix = "\nAnswer with the option's letter from the given choices directly."
    assert [row["prompt"] for row in rows] == ["<image>\nWhich?" + suffix, "Why?" + suffix]
    model_vqa_science.main(flags(path, "--answer-prompter", answers="reasoned.jsonl"))
    assert all("\n The answer is" in text for text in texts(tmp_path / "reasoned.jsonl"))


def test_mmbench_rotates_options_and_records_their_letters(flags: Flags, tmp_path: Path) -> None:
    header = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]
    rows = [
        ["0", "Which?", "A hint.", "cat", "dog", "cow", "", "B", "x", encoded("red")],
        ["1", "Where?", "", "here", "there", "nan", "far", "A", "x", encoded("blue")],
    ]
    path = tmp_path / "bench.tsv"
    path.write_text("\n".join("\t".join(row) for row in [header, *rows]) + "\n")
    model_vqa_mmbench.main(flags(path, "--all-rounds", "--single-pred-prompt"))
    answers = read_rows(tmp_path / "answers.jsonl")
    assert [(row["question_id"], row["round_id"]) for row in answers] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert answers[0]["prompt"] == "A hint.\nWhich?\nA. cat\nB. dog\nC. cow"
    assert answers[1]["prompt"] == "A hint.\nWhich?\nA. dog\nB. cow\nC. cat"
    assert (answers[1]["options"], answers[1]["option_char"]) == (["dog", "cow", "cat"], ["B", "C", "A"])
    before = (tmp_path / "answers.jsonl").read_bytes()
    model_vqa_mmbench.main(flags(path, "--all-rounds", "--single-pred-prompt"))
    assert (tmp_path / "answers.jsonl").read_bytes() == before


def test_cells_that_pandas_takes_for_missing_are_missing() -> None:
    """Reference: pandas.read_csv, which LLaVA reads the tables with; it takes `None` in any case for missing itself."""
    assert not any(
        present(cell) for cell in (None, "", "NA", "N/A", "n/a", "NULL", "null", "nan", "-NaN", "None", "none")
    )
    assert all(present(cell) for cell in ("na", "Null", "Nadia", "0", "#"))


def test_mmbench_asks_for_the_letter_in_the_language_of_the_table(tmp_path: Path) -> None:
    path = tmp_path / "bench.tsv"
    path.write_text(f"index\tquestion\tA\tB\timage\n3\tWhich?\tcat\tdog\t{encoded('red')}\n")
    for language, suffix in (("en", "\nAnswer with the option's letter"), ("cn", "\n请直接回答选项字母。")):
        args = type("Args", (), {"question_file": path, "all_rounds": False, "single_pred_prompt": True})
        args.lang = language  # type: ignore[attr-defined]
        (question,) = model_vqa_mmbench.read_questions(args)  # type: ignore[arg-type]
        assert question.message.startswith("Which?\nA. cat\nB. dog" + suffix)


def test_a_language_model_alone_answers_text(flags: Flags, tmp_path: Path) -> None:
    rows = [{"question_id": 1, "text": "Why?", "category": "x"}, {"question_id": 2, "text": "How is it done?"}]
    given = flags(write_jsonl(tmp_path / "q.jsonl", rows), "--batch-size", "2")
    at = given.index("--model-path")
    given[at : at + 2] = ["--model-name", str(tiny_lm_folder(tmp_path))]
    model_qa.main(given)
    answers = read_rows(tmp_path / "answers.jsonl")
    assert [row["model_id"] for row in answers] == ["llama-tiny", "llama-tiny"]
    assert all("Why?" not in row["text"] for row in answers)


def test_a_plain_checkpoint_is_asked_in_the_tagged_template() -> None:
    assert mmtag_template("v1", "llava-plain-7b") == "v1_mmtag"
    assert mmtag_template("v1", "llava-plain-finetune") == "v1"
    assert mmtag_template("v1_mmtag", "llava-plain-7b") == "v1_mmtag"
    assert mmtag_template("v1", "llava-7b") == "v1"


def test_only_the_loader_looks_for_plain_in_a_name(
    questions: Path, flags: Flags, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain-seed0").symlink_to(checkpoint)
    for module in (model_vqa, model_vqa_loader):
        given = flags(questions, "--test_size", "1", answers=f"{module.__name__}.jsonl")
        given[given.index("--model-path") + 1] = str(tmp_path / "plain-seed0")
        given[given.index("--conv-mode") + 1] = "v1"
        module.main(given)
    told = [name for name in capsys.readouterr().out.splitlines() if "_mmtag" in name]
    assert told == ["plain-seed0 is a plain checkpoint: using the template v1_mmtag"]
    modes = [
        json.loads((tmp_path / f"{module.__name__}.jsonl.run.json").read_text())["settings"]["conv_mode"]
        for module in (model_vqa, model_vqa_loader)
    ]
    assert modes == ["v1", "v1_mmtag"]


def test_pictures_are_opened_ahead_without_processes_that_a_kill_would_leave(
    questions: Path, flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children: list[int] = []
    answer_all = Chat.answer_all

    def counted(*given: Any) -> list[str]:
        children.append(len(multiprocessing.active_children()))
        return answer_all(*given)

    monkeypatch.setattr(Chat, "answer_all", counted)
    model_vqa.main(flags(questions, "--workers", "2"))
    assert children == [0] * 5
    assert [row["question_id"] for row in read_rows(tmp_path / "answers.jsonl")] == list(range(5))


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_come_in_order_and_only_so_many_in_advance(workers: int) -> None:
    started: list[int] = []
    asked = [Question(index, "", "", partial(started.append, index)) for index in range(9)]  # type: ignore[arg-type]
    for index, (question, _) in enumerate(with_images(asked, workers, 3)):
        assert question.id == index
        assert index < len(started) <= index + 3


def test_a_killed_run_loses_at_most_one_answer(flags: Flags, tmp_path: Path) -> None:
    """Reference: the same questions answered without an interruption."""
    rows = [{"question_id": i, "image": f"{COLORS[i % 5]}.png", "text": f"What is {i}?"} for i in range(24)]
    path = write_jsonl(tmp_path / "q.jsonl", rows)
    answers = tmp_path / "killed.jsonl"
    # A fork has everything imported already: a fresh interpreter would take most of the test's time.
    process = multiprocessing.get_context("fork").Process(
        target=model_vqa.main, args=(flags(path, answers="killed.jsonl"),)
    )
    process.start()
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline:
        if answers.exists() and answers.read_bytes().count(b"\n") >= 3:
            process.kill()
            break
        time.sleep(0.005)
    process.join(10)
    kept = [line for line in answers.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    assert 3 <= len(kept) < 24, "the run was to be killed in the middle"
    model_vqa.main(flags(path, answers="killed.jsonl"))
    assert answers.read_bytes().splitlines(keepends=True)[: len(kept)] == kept
    model_vqa.main(flags(path, answers="whole.jsonl"))
    assert texts(answers) == texts(tmp_path / "whole.jsonl")
