"""Batches as the model takes them."""

import json
from pathlib import Path

import pytest

from llava.train.data_config import DataConfig
from llava.train.dataset import make_data_module
from llava.train.prompts import training_template
from tests.tiny import tiny_llava
from tests.tokenizers import llama
from tests.train.data import PINPOINTS, draw, picture_record, processor, turns, write_json


@pytest.mark.parametrize("layout", ["anyres", "anyres_max_4"])
def test_a_sample_has_as_many_tokens_alone_as_beside_others(tmp_path: Path, layout: str) -> None:
    names = [draw(tmp_path / f"{index}.png", 60, 30, index) for index in range(3)]
    several = {"image": names[:2], "conversations": turns("<image>\n<image>?")}
    settings = {"image_aspect_ratio": layout, "image_grid_pinpoints": PINPOINTS}
    path = write_json(tmp_path / "records.json", [several, picture_record(names[2])])
    config = DataConfig(data_path=path, image_folder=str(tmp_path), **settings)
    module = make_data_module(llama(), config, processor(), training_template("v1"))
    pinpoints = json.loads(PINPOINTS)
    model = tiny_llava(tmp_path, **settings | {"image_grid_pinpoints": pinpoints}, mm_patch_merge_type="spatial_unpad")
    lengths = []
    for indices in ([0], [0, 1]):
        batch = module["data_collator"]([module["train_dataset"][index] for index in indices])
        spliced = model.prepare_inputs_labels_for_multimodal(
            batch["input_ids"], None, batch["attention_mask"], None, None, batch["images"], None, batch["image_sizes"]
        )
        lengths.append(spliced[2][0].sum().item())
    assert lengths[0] == lengths[1]
