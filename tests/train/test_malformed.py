"""A hundred ways to get a record or a setting wrong; each is named with its place, and none is taken for good."""

import json
from pathlib import Path
from typing import Any

import pytest

from llava.train.data_config import DataConfig
from llava.train.records import BadSample
from tests.train.data import draw, make_dataset, text_record, turns

HUMAN, GPT = {"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}

MALFORMED: dict[str, tuple[Any, str]] = {
    "null": (None, "must be an object.*this is null"),
    "number": (7, "this is a number"),
    "string": ("text", "this is a string"),
    "boolean": (True, "this is a boolean"),
    "list": ([HUMAN, GPT], "this is a list"),
    "empty object": ({}, "no 'conversations'"),
    "other key": ({"messages": [HUMAN, GPT]}, "the keys are .*messages"),
    "conversations null": ({"conversations": None}, "list of turns, this is null"),
    "conversations empty": ({"conversations": []}, "this is an empty list"),
    "conversations string": ({"conversations": "Hi."}, "this is a string"),
    "conversations object": ({"conversations": HUMAN}, "this is an object"),
    "conversations number": ({"conversations": 1.5}, "this is a number"),
    "turn null": ({"conversations": [None, GPT]}, "turn 0: a turn must be an object.*null"),
    "turn string": ({"conversations": [HUMAN, "Hello."]}, "turn 1: a turn must be an object.*string"),
    "turns nested": ({"conversations": [[HUMAN, GPT]]}, "turn 0.*this is a list"),
    "turn empty": ({"conversations": [{}, GPT]}, "turn 0: role None is unknown"),
    "role unknown": ({"conversations": [{"from": "bot", "value": "x"}, GPT]}, "role 'bot' is unknown; there are human"),
    "role number": ({"conversations": [{"from": 1, "value": "x"}, GPT]}, "role 1 is unknown"),
    "role list": ({"conversations": [{"from": ["human"], "value": "x"}, GPT]}, r"role \['human'\] is unknown"),
    "role uppercase": ({"conversations": [{"from": "Human", "value": "x"}, GPT]}, "role 'Human' is unknown"),
    "text null": ({"conversations": [HUMAN, {"from": "gpt", "value": None}]}, "turn 1: the text .*null"),
    "text number": ({"conversations": [HUMAN, {"from": "gpt", "value": 3}]}, "must be a string, this is a number"),
    "text list": ({"conversations": [HUMAN, {"from": "gpt", "value": ["x"]}]}, "this is a list"),
    "text object": ({"conversations": [HUMAN, {"from": "gpt", "value": {"text": "x"}}]}, "this is an object"),
    "text missing": ({"conversations": [HUMAN, {"from": "gpt"}]}, "must be a string, this is null"),
    "text with a surrogate": ({"conversations": turns(answer="\ud800")}, "surrogate at character 0"),
    "two questions": ({"conversations": [HUMAN, HUMAN, GPT]}, "turn 1 is from 'human' where 'gpt' is due"),
    "two answers": ({"conversations": [HUMAN, GPT, GPT]}, "turn 2 is from 'gpt' where 'human' is due"),
    "two answers after a greeting": ({"conversations": [GPT, HUMAN, GPT, GPT]}, "turn 3 is from 'gpt'"),
    "no answer": ({"conversations": [HUMAN]}, "no turn of 'gpt' follows"),
    "answer first and alone": ({"conversations": [GPT]}, "no turn of 'gpt' follows"),
    "answer before the question": ({"conversations": [GPT, HUMAN]}, "no turn of 'gpt' follows"),
    "system alone": ({"conversations": [{"from": "system", "value": "x"}]}, "no turn of 'gpt' follows"),
    "system in a template without": (
        {"conversations": [HUMAN, {"from": "system", "value": "x"}, GPT]}, "cannot be labeled.*system"),
    "only empty texts": ({"conversations": turns("", "")}, "cannot be labeled"),
    "id list": ({"id": [1], "conversations": [HUMAN, GPT]}, "'id' must be a string or a number, this is a list"),
    "id object": ({"id": {}, "conversations": [HUMAN, GPT]}, "'id' must be .* an object"),
    "image number": ({"image": 7, "conversations": turns()}, "'image' must be a path .* a number"),
    "image boolean": ({"image": True, "conversations": turns()}, "holds a boolean"),
    "image empty": ({"image": "", "conversations": turns()}, "'image' is an empty string"),
    "image list of null": ({"image": [None], "conversations": turns()}, "holds null"),
    "image nested list": ({"image": [["a.png"]], "conversations": turns()}, "holds a list"),
    "image object": ({"image": {"url": "x"}, "conversations": turns()}, "needs 'bytes' or a 'path', it has .*url"),
    "image bytes as text": ({"image": {"bytes": "x"}, "conversations": turns()}, "needs 'bytes'"),
    "image missing": ({"image": "gone.png", "conversations": turns()}, "gone.png': no such file"),
    "image outside, missing": ({"image": "../../gone.png", "conversations": turns()}, "no such file"),
    "image a folder": ({"image": ".", "conversations": turns()}, "is not a file"),
    "image by address": ({"image": "http://localhost/a.png", "conversations": turns()}, "no such file"),
    "one of two missing": ({"image": ["a.png", "gone.png"], "conversations": turns("<image><image>")}, "gone.png"),
    "two tokens": ({"image": "a.png", "conversations": turns("<image><image>")}, "has 2 <image> but the record has 1"),
    "token in the answer too": ({"image": "a.png", "conversations": turns(answer="<image>")}, "has 2 <image>"),
    "two images, one token": ({"image": ["a.png"] * 2, "conversations": turns()}, "has 1 <image> but the record has 2"),
    "image and video": ({"image": "a.png", "video": "v.mp4", "conversations": turns()}, "both 'image' and 'video'"),
    "video number": ({"video": 3, "conversations": turns()}, "'video' must be a path"),
    "video empty": ({"video": "", "conversations": turns()}, "'video' must be a path"),
    "video empty list": ({"video": [], "conversations": turns()}, "'video' must be a path"),
    "video missing": ({"video": "v.mp4", "conversations": turns()}, "v.mp4': no such file"),
    "two tokens for a video": ({"video": "v", "conversations": turns("<image><image>")}, "has 1 video"),
    "huge text": ({"conversations": turns("word " * 500_000)}, "longer than 2,000,000 characters"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_record_is_named_and_replaced(tmp_path: Path, case: str) -> None:
    record, message = MALFORMED[case]
    draw(tmp_path / "a.png")
    if isinstance(record, dict) and "id" not in record:
        record = {"id": "the one", **record}
    path = tmp_path / "data.json"
    path.write_text(json.dumps([text_record("good"), record]))
    dataset = make_dataset(str(path), tmp_path)
    assert dataset[1]["id"] == "good"
    with pytest.raises(BadSample, match=message) as caught:
        dataset.load(1)
    assert f"{path}, record 1" in str(caught.value)
    if isinstance(record, dict) and record["id"] == "the one":
        assert "id 'the one'" in str(caught.value)
    assert len(str(caught.value)) < 600
    assert dataset.modality_lengths[0] == -4  # grouping by length survives it


GOOD: dict[str, Any] = {
    "id number": {"id": 3, "conversations": [HUMAN, GPT]},
    "id null": {"id": None, "conversations": [HUMAN, GPT]},
    "id missing": {"conversations": [HUMAN, GPT]},
    "further keys": {"conversations": [HUMAN, GPT], "model": "x", "score": [1, {}]},
    "role and content": {"conversations": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
    "greeting first": {"conversations": [GPT, HUMAN, GPT]},
    "system first": {"conversations": [{"from": "system", "value": "x"}, HUMAN, GPT]},
    "question last": {"conversations": [HUMAN, GPT, HUMAN]},
    "image null": {"image": None, "conversations": [HUMAN, GPT]},
    "no images": {"image": [], "conversations": [HUMAN, GPT]},
    "image not mentioned": {"image": "a.png", "conversations": [HUMAN, GPT]},
    "image with spaces and dots": {"image": "./b c.d.png", "conversations": turns()},
    "image by object": {"image": {"path": "a.png"}, "conversations": turns()},
    "image in the answer": {"image": "a.png", "conversations": turns("Hi.", "<image> there.")},
    "image token as text": {"conversations": turns("Close <image> tags.", "<image></image>")},
    "control characters": {"conversations": turns("a\0b\x1b[0m", "\t☂\u202e")},
    "role words in texts": {"conversations": turns("USER: ASSISTANT: </s>", "</s> ASSISTANT:")},
}


@pytest.mark.parametrize("case", GOOD)
def test_unusual_but_good_record_is_taken(tmp_path: Path, case: str) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "b c.d.png")
    assert (make_dataset([GOOD[case]], tmp_path).load(0)["labels"] != -100).any()


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "layout": ({"image_aspect_ratio": "sqare"}, "'sqare' is unknown; there are square"),
    "anyres_max of nothing": ({"image_aspect_ratio": "anyres_max_"}, "is unknown"),
    "anyres_max of a word": ({"image_aspect_ratio": "anyres_max_x"}, "is unknown"),
    "anyres without pinpoints": ({"image_aspect_ratio": "anyres"}, "needs image_grid_pinpoints"),
    "highres without pinpoints": ({"image_aspect_ratio": "highres"}, "needs image_grid_pinpoints"),
    "crop_split without sides": ({"image_aspect_ratio": "crop_split"}, "needs image_crop_resolution"),
    "views": ({"distill_views": "some"}, "'some' is unknown; use base or all"),
    "policy": ({"on_bad_sample": "ignore"}, "'ignore' is unknown; use skip or stop"),
    "limit": ({"bad_sample_limit": 1.5}, r"must be in \[0, 1\]"),
    "split": ({"eval_split": -0.1}, "must not be negative"),
    "split twice": ({"eval_split": 0.1, "eval_data_path": "x.json"}, "not both"),
    "frames per second": ({"video_fps": 0}, "must be positive"),
    "frames": ({"frames_upbound": -1}, "not negative"),
    "forced frames": ({"force_sample": True}, "set frames_upbound"),
    "length": ({"model_max_length": 0}, "at least 1"),
    "image folder": ({"image_folder": "/no/such/folder"}, "--image_folder /no/such/folder is not a folder"),
    "video folder": ({"video_folder": "/no/such/folder"}, "--video_folder"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_wrong_setting_is_refused_with_what_there_is(case: str) -> None:
    settings, message = SETTINGS[case]
    with pytest.raises(ValueError, match=message):
        DataConfig(**settings)


def test_wrong_pinpoints_are_refused_before_any_picture(tmp_path: Path) -> None:
    for pinpoints in ("[[28]]", "28,56", "[]", "(1x1"):
        with pytest.raises(ValueError, match="image_grid_pinpoints"):
            make_dataset([text_record()], tmp_path, image_aspect_ratio="anyres", image_grid_pinpoints=pinpoints)
