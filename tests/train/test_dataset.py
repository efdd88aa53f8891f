"""Samples and batches: pictures, tiles, several images, videos, text only, and what teachers are shown."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.multimodal_encoder.move_kd.types import ImageSpec, View
from llava.train.collator import Collator
from llava.train.data_config import DataConfig
from llava.train.dataset import SupervisedDataset, make_data_module
from llava.train.prompts import training_template
from llava.train.records import BadSample, DataError
from tests.tokenizers import llama
from tests.train.data import (
    PINPOINTS,
    SIDE,
    draw,
    make_dataset,
    picture_record,
    processor,
    text_record,
    turns,
    write_json,
)

SPEC = ImageSpec(16, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
TWIN = ImageSpec(16, (0.5, 0.4, 0.3), (0.1, 0.1, 0.1))  # needs the same pixels
OTHER = ImageSpec(20, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
TEACHERS = {"a": SPEC, "b": TWIN, "c": OTHER}


def logged(path: Path, reason: str) -> list[str]:
    """Messages of a log of bad samples, each once however many processes met the sample."""
    entries = map(json.loads, path.read_text().splitlines())
    return sorted({entry["message"] for entry in entries if entry["reason"] == reason})


def test_item_of_one_picture(tmp_path: Path) -> None:
    item = make_dataset([picture_record(draw(tmp_path / "a.png"))], tmp_path)[0]
    assert item["id"] == "a.png"
    assert item["input_ids"].shape == item["labels"].shape
    assert (item["input_ids"] == IMAGE_TOKEN_INDEX).sum() == 1
    assert (item["labels"] != IGNORE_INDEX).any()
    assert [image.shape for image in item["image"]] == [(3, SIDE, SIDE)]
    assert item["image"][0].dtype == torch.float32
    assert item["image_sizes"] == [(40, 30)]
    assert item["modalities"] == ["image"]
    assert not item["blank"]
    assert item["views"] == {}


def test_text_only_sample_has_one_blank_image_and_one_blank_view_per_source() -> None:
    item = make_dataset([text_record()], sources=TEACHERS)[0]
    assert [image.shape for image in item["image"]] == [(3, SIDE, SIDE)]
    assert not item["image"][0].any()
    assert item["modalities"] == ["text"]
    assert item["image_sizes"] == [(SIDE, SIDE)]
    assert item["blank"]
    assert item["tile_of_view"] == [0]
    assert {key: [view.shape for view in views] for key, views in item["views"].items()} == {
        SPEC.key: [(3, 16, 16)],
        OTHER.key: [(3, 20, 20)],
    }


@pytest.mark.parametrize("layout", ["anyres", "anyres_max_4"])
def test_anyres_picture_has_its_base_and_tiles(tmp_path: Path, layout: str) -> None:
    record = picture_record(draw(tmp_path / "a.png", 60, 30))
    item = make_dataset([record], tmp_path, image_aspect_ratio=layout, image_grid_pinpoints=PINPOINTS)[0]
    assert item["image"][0].shape == (3, 3, SIDE, SIDE)


def test_several_pictures_are_padded_one_tile_each(tmp_path: Path) -> None:
    names = [draw(tmp_path / f"{index}.png", 40, 30, index) for index in range(3)]
    question = "<image>\n<image> and <image>?"
    record = {"image": names, "conversations": turns(question)}
    item = make_dataset([record], tmp_path, image_aspect_ratio="anyres", image_grid_pinpoints=PINPOINTS)[0]
    assert [image.shape for image in item["image"]] == [(3, SIDE, SIDE)] * 3
    padded = make_dataset([picture_record(names[1])], tmp_path, image_aspect_ratio="pad")[0]
    assert torch.equal(item["image"][1], padded["image"][0])
    assert item["modalities"] == ["image"] * 3
    assert item["image_sizes"] == [(40, 30)] * 3
    assert (item["input_ids"] == IMAGE_TOKEN_INDEX).sum() == 3


def test_list_of_one_picture_is_a_picture(tmp_path: Path) -> None:
    name = draw(tmp_path / "a.png", 60, 30)
    settings = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": PINPOINTS}
    listed = make_dataset([picture_record(name, image=[name])], tmp_path, **settings)[0]
    plain = make_dataset([picture_record(name)], tmp_path, **settings)[0]
    assert torch.equal(listed["image"][0], plain["image"][0])


def test_picture_that_the_text_does_not_mention_is_kept_and_not_shown(tmp_path: Path) -> None:
    record = picture_record(draw(tmp_path / "a.png"), conversations=turns("What is it?"))
    item = make_dataset([record], tmp_path)[0]
    assert (item["input_ids"] == IMAGE_TOKEN_INDEX).sum() == 0
    assert len(item["image"]) == 1


@pytest.mark.parametrize(("pictures", "placeholders"), [(1, 2), (2, 1), (2, 0), (2, 3)])
def test_placeholders_that_do_not_match_the_pictures_are_an_error(
    tmp_path: Path, pictures: int, placeholders: int
) -> None:
    names = [draw(tmp_path / f"{index}.png") for index in range(pictures)]
    record = {"id": "x", "image": names, "conversations": turns("<image>" * placeholders + " Well?")}
    with pytest.raises(BadSample, match=rf"id 'x'.*has {placeholders} <image> but the record has {pictures}") as caught:
        make_dataset([record], tmp_path).load(0)
    assert caught.value.reason == "image_token_mismatch"


def test_language_model_alone_gets_text_and_refuses_pictures() -> None:
    dataset = make_dataset([text_record(), picture_record("a.png")], is_multimodal=False)
    assert set(dataset[0]) == {"id", "input_ids", "labels"}
    assert set(Collator()([dataset[0]])) == {"input_ids", "labels", "attention_mask", "ids"}
    with pytest.raises(BadSample, match="--vision_tower"):
        dataset.load(1)


def test_multimodal_data_without_processor_is_refused() -> None:
    with pytest.raises(ValueError, match="image processor"):
        SupervisedDataset([], llama(), DataConfig(), None, training_template("v1"))


# -- teachers' views


def test_equal_sources_are_prepared_once(tmp_path: Path) -> None:
    item = make_dataset([picture_record(draw(tmp_path / "a.png"))], tmp_path, sources=TEACHERS)[0]
    assert list(item["views"]) == [SPEC.key, OTHER.key]
    assert item["views"][SPEC.key][0].dtype == torch.uint8
    assert item["tile_of_view"] == [0]


def test_views_of_all_tiles_count_tiles_within_the_sample(tmp_path: Path) -> None:
    record = picture_record(draw(tmp_path / "a.png", 60, 30))
    settings = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": PINPOINTS}
    item = make_dataset([record], tmp_path, TEACHERS, distill_views="all", **settings)[0]
    assert item["tile_of_view"] == [0, 1, 2]
    assert len(item["views"][SPEC.key]) == 3
    base = make_dataset([record], tmp_path, TEACHERS, **settings)[0]
    assert base["tile_of_view"] == [0]


def test_batch_numbers_tiles_over_all_samples_and_blanks_weigh_nothing(tmp_path: Path) -> None:
    draw(tmp_path / "wide.png", 60, 30)
    draw(tmp_path / "b.png", 30, 30)
    records = [
        text_record(),
        picture_record("wide.png"),
        {"image": ["b.png", "wide.png"], "conversations": turns("<image> or <image>?")},
        text_record(),
    ]
    settings = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": "[[56, 28], [28, 56]]"}
    dataset = make_dataset(records, tmp_path, TEACHERS, distill_views="all", **settings)
    batch = Collator(pad_token_id=0)([dataset[index] for index in range(4)])
    distill = batch["distill"]
    assert [image.shape[0] for image in batch["images"]] == [3, 3, 3, 3, 3]
    assert [image.ndim for image in batch["images"]] == [3, 4, 3, 3, 3]
    assert distill["tile_index"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert distill["weight"].tolist() == [0, 1, 1, 1, 1, 1, 0]
    assert distill["tile_weight"].tolist() == [0, 1, 1, 1, 1, 1, 0]
    assert distill["views"][SPEC.key].shape == (7, 3, 16, 16)
    assert batch["modalities"] == ["text", "image", "image", "image", "text"]
    base = make_dataset(records, tmp_path, TEACHERS, **settings)
    distill = Collator(pad_token_id=0)([base[index] for index in range(4)])["distill"]
    assert distill["tile_index"].tolist() == [0, 1, 4, 5, 6]
    assert distill["weight"].tolist() == [0, 1, 1, 1, 0]


def test_blanks_weigh_nothing_without_teachers_too(tmp_path: Path) -> None:
    draw(tmp_path / "b.png", 30, 30)
    dataset = make_dataset([text_record(), picture_record("b.png")], tmp_path)
    distill = Collator()([dataset[0], dataset[1]])["distill"]
    assert distill["tile_weight"].tolist() == [0, 1]
    assert distill["views"] == {}
    assert len(distill["tile_index"]) == 0


class Stored:
    """A source that gives a dict, as a feature cache does."""

    key = "stored"

    def prepare(self, view: View) -> dict[str, torch.Tensor]:
        return {"patches": torch.ones(4, 2), "cls": torch.ones(2)}

    def blank(self) -> dict[str, torch.Tensor]:
        return {"patches": torch.zeros(4, 2), "cls": torch.zeros(2)}


def test_stored_features_are_stacked_as_they_are_nested(tmp_path: Path) -> None:
    records = [picture_record(draw(tmp_path / "a.png")), text_record()]
    dataset = make_dataset(records, tmp_path, {"a": Stored()})
    views = Collator()([dataset[0], dataset[1]])["distill"]["views"]["stored"]
    assert views["patches"].shape == (2, 4, 2)
    assert views["cls"].tolist() == [[1, 1], [0, 0]]


def test_equal_single_tiles_are_one_tensor_and_others_a_list(tmp_path: Path) -> None:
    names = [draw(tmp_path / f"{index}.png", 30 + index, 30) for index in range(2)]
    dataset = make_dataset([*map(picture_record, names), text_record()], tmp_path)
    assert Collator()([dataset[index] for index in range(3)])["images"].shape == (3, 3, SIDE, SIDE)
    tiled = make_dataset(
        [picture_record(names[0])], tmp_path, image_aspect_ratio="anyres", image_grid_pinpoints=PINPOINTS
    )
    assert isinstance(Collator()([tiled[0], dataset[2]])["images"], list)


# -- text


def test_padding_follows_the_side_and_the_mask_the_lengths() -> None:
    items = [{"input_ids": torch.tensor(ids), "labels": torch.tensor(ids)} for ids in ([5, 0, 7], [6])]
    right = Collator(pad_token_id=None)(items)
    assert right["input_ids"].tolist() == [[5, 0, 7], [6, 0, 0]]
    assert right["attention_mask"].tolist() == [[True, True, True], [True, False, False]]
    left = Collator(pad_token_id=9, padding_side="left", model_max_length=2)(items)
    assert left["input_ids"].tolist() == [[5, 0], [9, 6]]
    assert left["labels"].tolist() == [[5, 0], [IGNORE_INDEX, 6]]
    assert left["attention_mask"].tolist() == [[True, True], [False, True]]


def test_cut_answer_is_reported_and_used(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    records = [{"id": "long", "conversations": turns("Hi.", "word " * 50)}]
    whole = len(make_dataset(records).load(0)["input_ids"])
    dataset = make_dataset(records, model_max_length=whole - 10, bad_sample_log=str(log))
    assert len(dataset[0]["input_ids"]) == whole - 10
    assert len(dataset[0]["labels"]) == whole - 10  # noted once
    assert dataset.bad.reasons == {"truncated_answer": 1}
    assert "10 answer tokens" in logged(log, "truncated_answer")[0]
    exact = make_dataset(records, model_max_length=whole)
    assert exact[0] is not None
    assert not exact.bad.reasons


def test_sample_without_anything_to_learn_is_bad_and_not_a_silent_zero() -> None:
    records = [{"id": "far", "conversations": turns("word " * 200, "Yes.")}]
    with pytest.raises(BadSample, match=r"id 'far'.*cannot be labeled") as caught:
        make_dataset(records, model_max_length=60).load(0)
    assert caught.value.reason == "not_labeled"


def test_picture_beyond_the_cut_is_bad(tmp_path: Path) -> None:
    name = draw(tmp_path / "a.png")
    two = turns(answer="word " * 50) + turns()
    record = {"image": [name, name], "conversations": two}
    with pytest.raises(BadSample, match="pictures"):
        make_dataset([record], tmp_path, model_max_length=80).load(0)


def test_lengths_count_words_and_sign_the_modality() -> None:
    records = [
        picture_record("a.png"),
        text_record(),
        {"conversations": 3},
        None,
        {"video": "v", "conversations": turns()},
    ]
    dataset = make_dataset(records)
    assert dataset.modality_lengths == [6, -4, -1, -1, 6]
    assert dataset.lengths == [134, 4, 1, 1, 134]
    mixed = make_dataset(records, early_mix_text=True)
    assert mixed.modality_lengths == [6, 4, 1, 1, 6]


# -- bad samples


def test_bad_sample_is_replaced_by_the_next_good_one_and_counted(tmp_path: Path) -> None:
    draw(tmp_path / "good.png")
    log = tmp_path / "bad.jsonl"
    records = [
        picture_record("good.png", id="0"),
        picture_record("gone.png"),
        {"id": "no turns"},
        picture_record("good.png", id="3"),
        picture_record("gone too.png"),
        *[text_record(str(index)) for index in range(5)],
    ]
    dataset = make_dataset(records, tmp_path, bad_sample_log=str(log))
    order = [0, 1, 2, 3, 4, 1, 9]
    assert [dataset[index]["id"] for index in order] == ["0", "3", "3", "3", "0", "3", "4"]
    assert dataset.bad.reasons == {"missing_image": 2, "bad_conversation": 1}
    assert len(logged(log, "missing_image")) == 2
    assert "gone too.png" in logged(log, "missing_image")[1]
    again = make_dataset(records, tmp_path)
    assert [again[index]["id"] for index in order[3:]] == ["3", "0", "3", "4"]  # whatever came before


def test_last_sample_is_replaced_by_the_first() -> None:
    dataset = make_dataset([text_record("first"), text_record("second"), {}])
    assert dataset[2]["id"] == "first"


def test_stop_raises_at_the_first_bad_sample() -> None:
    with pytest.raises(BadSample, match="records, record 0"):
        make_dataset([{}, text_record()], on_bad_sample="stop")[0]


def test_too_many_bad_samples_stop_the_run_with_their_reasons() -> None:
    dataset = make_dataset([*[{"id": str(index)} for index in range(12)], *[text_record()] * 100])
    with pytest.raises(DataError, match=r"11 of the first 11 .*0.01 allows: 11 bad_conversation.*data_check"):
        [dataset[index] for index in range(12)]
    strict = make_dataset([text_record(), text_record(), {}], bad_sample_limit=0)
    with pytest.raises(DataError, match="1 of the first"):
        strict[2]


def test_nothing_usable_is_an_error_and_no_endless_search() -> None:
    with pytest.raises(DataError, match="bad_conversation"):
        make_dataset([{}, {}])[0]
    with pytest.raises(DataError, match="none of the 1 samples"):
        make_dataset([{}], bad_sample_limit=1)[0]


def test_bad_samples_are_not_hidden_by_a_programming_error(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset([text_record(), text_record()])
    monkeypatch.setattr("llava.train.labeling.preprocess", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dataset[0]


# -- workers and the data module


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_give_the_same_batches(tmp_path: Path, method: str) -> None:
    for index in range(4):
        draw(tmp_path / f"{index}.png", seed=index)
    records = [*[picture_record(f"{index}.png") for index in range(4)], picture_record("gone.png"), text_record()]
    path = write_json(tmp_path / "a.json", records)
    dataset = make_dataset(path, tmp_path, {"a": SPEC}, bad_sample_log=str(tmp_path / "log.jsonl"))
    here = list(DataLoader(dataset, batch_size=2, collate_fn=Collator(0)))
    loader = DataLoader(dataset, batch_size=2, collate_fn=Collator(0), num_workers=1, multiprocessing_context=method)
    for batch, expected in zip(loader, here, strict=True):
        assert torch.equal(batch["input_ids"], expected["input_ids"])
        assert torch.equal(batch["images"], expected["images"])
        assert torch.equal(batch["distill"]["views"][SPEC.key], expected["distill"]["views"][SPEC.key])
    assert len(logged(tmp_path / "log.jsonl", "missing_image")) == 1


def test_pickled_dataset_does_not_hold_the_records(tmp_path: Path) -> None:
    long = [{"id": str(index), "conversations": turns("Hi.", "word " * 1000)} for index in range(300)]
    dataset = make_dataset(write_json(tmp_path / "a.json", long))
    dataset.lengths  # noqa: B018  counted once, kept as an array
    rest = len(pickle.dumps(make_dataset([])))
    assert len(pickle.dumps(dataset)) - rest < 300 * 20 < (tmp_path / "a.json").stat().st_size / 100


def module(tmp_path: Path, **settings: Any) -> dict[str, Any]:
    records = [text_record(str(index)) for index in range(40)]
    config = DataConfig(data_path=write_json(tmp_path / "a.json", records), **settings)
    return make_data_module(llama(), config, processor(), training_template("v1"))


def test_data_module_splits_off_validation(tmp_path: Path) -> None:
    plain = module(tmp_path)
    assert len(plain["train_dataset"]) == 40
    assert plain["eval_dataset"] is None
    split = module(tmp_path, eval_split=0.2)
    assert len(split["train_dataset"]) + len(split["eval_dataset"]) == 40
    ids = [
        {part[index]["id"] for index in range(len(part))} for part in (split["train_dataset"], split["eval_dataset"])
    ]
    assert not ids[0] & ids[1]
    own = module(tmp_path, eval_data_path=write_json(tmp_path / "b.json", [text_record()]))
    assert len(own["eval_dataset"]) == 1
    batch = own["data_collator"]([own["eval_dataset"][0]])
    assert json.dumps(batch["modalities"]) == '["text"]'
