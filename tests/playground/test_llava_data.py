import json
from pathlib import Path

import pytest
from PIL import Image

from llava.conversation import conv_templates
from llava.train.prompts import preprocess
from playground.llava_data import DataSize, write_data
from playground.questions import KINDS
from playground.tokenizer import load_tokenizer, make_tokenizer
from playground.world import WorldConfig

SIZE = DataSize(pretrain=4, finetune=5, validation=3, heldout=6, conversations=2, turns=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, WorldConfig(), SIZE)
    return folder


def records(data: Path, name: str) -> list[dict]:
    return json.loads((data / f"{name}.json").read_text())


def test_every_record_has_a_picture_that_opens_and_turns_that_alternate(data: Path) -> None:
    for name, count in (("pretrain", 4), ("finetune", 10), ("validation", 3)):
        found = records(data, name)
        assert len(found) == count
        assert len({record["id"] for record in found}) == count
        for record in found:
            with Image.open(data / "images" / record["image"]) as picture:
                picture.load()
                assert (picture.size, picture.mode, picture.format) == ((96, 96), "RGB", "PNG")
            turns = record["conversations"]
            assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
            assert turns[0]["value"].startswith("<image>\n")
            assert not [turn for turn in turns[1:] if "<image>" in turn["value"]]


def test_splits_share_no_picture(data: Path) -> None:
    files = {split: [p.read_bytes() for p in (data / "images" / split).iterdir()] for split in ("train", "heldout")}
    assert len(set(files["train"])) == SIZE.pretrain + SIZE.finetune
    assert len(set(files["heldout"])) == SIZE.heldout
    assert not set(files["train"]) & set(files["heldout"])
    assert {record["image"].split("/")[0] for record in records(data, "validation")} == {"validation"}


def test_the_conversations_about_one_picture_differ(data: Path) -> None:
    by_image: dict[str, list[str]] = {}
    for record in records(data, "finetune"):
        by_image.setdefault(record["image"], []).append(json.dumps(record["conversations"]))
    assert all(len(set(texts)) == SIZE.conversations for texts in by_image.values())


def test_held_out_questions_have_kind_and_answer_and_at_most_one_of_each_kind_a_picture(data: Path) -> None:
    lines = [json.loads(line) for line in (data / "heldout.jsonl").read_text().splitlines()]
    assert len({line["question_id"] for line in lines}) == len(lines)
    assert len({(line["image"], line["category"]) for line in lines}) == len(lines)
    for line in lines:
        assert line.keys() == {"question_id", "image", "text", "category", "answer"}
        assert line["category"] in KINDS
        assert (data / "images" / line["image"]).is_file()


def test_equal_arguments_write_equal_files(data: Path, tmp_path: Path) -> None:
    write_data(tmp_path, WorldConfig(), SIZE)
    files = [path.relative_to(data) for path in data.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert all((tmp_path / file).read_bytes() == (data / file).read_bytes() for file in files)


@pytest.mark.parametrize(("name", "template"), [("pretrain", "plain"), ("finetune", "v1")])
def test_the_training_code_labels_every_answer(data: Path, tmp_path: Path, name: str, template: str) -> None:
    make_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    found = records(data, name)
    labeled = preprocess([r["conversations"] for r in found], tokenizer, conv_templates[template], has_image=True)
    for record, row in zip(found, labeled, strict=True):
        assert row.error is None
        answers = [turn["value"] for turn in record["conversations"][1::2]]
        learned = tokenizer.decode(row.labels[row.labels != -100], skip_special_tokens=True)
        assert learned.split() == " ".join(answers).split()
