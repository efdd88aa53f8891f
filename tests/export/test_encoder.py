"""`export encoder`: the tower alone, as another project would load it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, CLIPImageProcessorPil, CLIPVisionModel

from llava.export.encoder import export_encoder
from llava.export.hf import Source
from llava.model.checkpoint import CheckpointError
from tests.export.conftest import Exported, chat_of
from tests.tiny import VISION_WIDTH, save_tiny_llava, tiny_clip_folder, tiny_llava, tiny_siglip_folder

CLASSES = {"tiles": "CLIPVisionModel", "siglip_tiles": "SiglipVisionModel", "experts_tiles": "ClipMoleVisionModel"}


@pytest.mark.parametrize("kind", CLASSES)
def test_features_and_pixels_are_the_towers(exported: Callable[[str], Exported], tmp_path: Path, kind: str) -> None:
    findings = export_encoder(Source(str(exported(kind).source), device="cpu"), tmp_path)
    assert [finding.holds for finding in findings] == [True, True]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [CLASSES[kind]]
    assert (tmp_path / "modeling_clip_mole.py").exists() == (kind == "experts_tiles")
    model = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(model).__name__ == CLASSES[kind]


@pytest.mark.parametrize(
    ("make_tower", "settings"),
    [
        (tiny_clip_folder, {}),
        (tiny_clip_folder, {"mm_vision_select_feature": "cls_patch"}),
        (tiny_clip_folder, {"mm_vision_select_feature": "slicefour_patch", "mm_hidden_size": 5 * VISION_WIDTH}),
        (tiny_siglip_folder, {}),
    ],
    ids=["patch", "cls_patch", "slicefour", "siglip"],
)
def test_the_card_shows_how_to_get_the_features(
    tmp_path: Path, make_tower: Callable[..., Path], settings: dict[str, Any]
) -> None:
    source = save_tiny_llava(tmp_path, tower=make_tower(tmp_path, num_hidden_layers=8), **settings)
    export_encoder(Source(str(source), device="cpu"), tmp_path / "out")
    [code] = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {"PATH": tmp_path / "out", "picture": Image.new("RGB", (40, 40), "blue")}
    exec(code, names)
    pixels = names["processor"](images=[names["picture"]], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(names["features"], chat_of(source).model.get_vision_tower().encode(pixels).features)


def test_a_plain_clip_tower_can_be_trained_on_again(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    source = exported("pad").source
    export_encoder(Source(str(source), device="cpu"), tmp_path / "tower")
    assert isinstance(CLIPVisionModel.from_pretrained(tmp_path / "tower"), CLIPVisionModel)
    assert CLIPImageProcessorPil.from_pretrained(tmp_path / "tower").crop_size["height"] == 28
    images = torch.randn(1, 3, 28, 28)
    rebuilt = tiny_llava(tmp_path, tower=tmp_path / "tower").get_vision_tower()
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(images), chat_of(source).model.get_vision_tower()(images))


def test_the_processor_pads_where_the_student_was_shown_padded_pictures(
    exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    export_encoder(Source(str(exported("experts").source), device="cpu"), tmp_path)
    assert AutoImageProcessor.from_pretrained(tmp_path).do_pad


def test_a_dtype_can_be_chosen(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    export_encoder(Source(str(exported("experts").source), dtype="bfloat16", device="cpu"), tmp_path)
    assert AutoModel.from_pretrained(tmp_path, trust_remote_code=True).dtype == torch.bfloat16


def test_a_multi_scale_tower_is_refused(tmp_path: Path) -> None:
    source = save_tiny_llava(tmp_path, s2=True, s2_scales="28,56", mm_hidden_size=64)
    with pytest.raises(CheckpointError, match="take the encoder itself"):
        export_encoder(Source(str(source), device="cpu"), tmp_path / "out")
