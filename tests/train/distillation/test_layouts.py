"""Distilling whatever a batch holds: pads, tiles, several pictures, text alone; and however the step is computed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from tests.train.distillation.conftest import Lab, assert_terms_sum_to_the_loss, rows, terms

TEACHERS = ("clip", "eva", "convnext")
ANYRES = {
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": "[[28, 56], [56, 28], [56, 56]]",
    "mm_patch_merge_type": "spatial_unpad",
    "model_max_length": 256,
}


def several_pictures(lab: Lab) -> Path:
    """Samples with two pictures, one and none, in batches together."""
    records = []
    for index in range(9):
        pictures = [f"{picture}.png" for picture in range(index, index + index % 3)]
        question = "<image>\n" * len(pictures) + "What?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "red"}]
        records.append({"id": f"s{index}", "conversations": turns, **({"image": pictures} if pictures else {})})
    path = lab.folder / "several.json"
    path.write_text(json.dumps(records))
    return path


LAYOUTS: dict[str, dict[str, Any]] = {
    "cropped": {"image_aspect_ratio": "square"},
    "padded": {"image_aspect_ratio": "pad"},
    "whole picture of tiles": ANYRES,
    "every tile": {**ANYRES, "distill_views": "all"},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("data", ["chats", "several"])
def test_every_layout_is_distilled(layout: dict[str, Any], data: str, lab: Lab) -> None:
    path = several_pictures(lab) if data == "several" else lab.data(data)
    flags = {"encoder_teachers": lab.specs(*TEACHERS), "data_path": path, "group_by_modality_length": False}
    out = lab.finetune(flags, layout, {"max_steps": 4})
    assert_terms_sum_to_the_loss(out)
    assert all(row["kd/eva"] > 0 for row in rows(out))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_student_and_clip_teacher_see_the_same_pixels(layout: dict[str, Any], lab: Lab) -> None:
    """Experts start at zero, so before the first update the student is its own teacher."""
    flags = {"encoder_teachers": ["clip"], "data_path": lab.data("captions"), "max_steps": 1, "kd_w": 1.0}
    [row] = rows(lab.finetune(flags, layout))
    assert row["residual/clip"] < 5e-3
    assert row["cosine/clip"] > 0.99


def test_text_alone_costs_nothing_and_is_not_measured(lab: Lab) -> None:
    plain = {"tune_encoder": False, "tune_encoder_adapter": False}
    text = {"data_path": lab.data("texts"), "max_steps": 3}
    out = lab.finetune({"encoder_teachers": lab.specs(*TEACHERS)}, text)
    for row in rows(out):
        assert row["loss"] == row["lm"]
        assert {name: value for name, value in terms(row).items() if name != "lm" and value != 0} == {}
        assert not [name for name in row if name.startswith(("cosine/", "weight/", "expert_load/"))]
    # Gradients are zero rather than absent, so that the language model trains as it would by itself.
    alone = lab.finetune(plain, text, out="plain")
    assert [row["lm"] for row in rows(out)] == pytest.approx([row["lm"] for row in rows(alone)], rel=1e-6)


def test_accumulated_batches_distil_as_one_large_batch(lab: Lab) -> None:
    """Captions have equally many tokens, and every sample one picture, so that means of means are means.

    Without standardization, whose statistics see the first half before the second.
    """
    flags = {"encoder_teachers": lab.specs("clip", "eva"), "kd_standardize": False, "kd_balance": "pooled"}
    large = lab.pretrain(flags, {"per_device_train_batch_size": 4}, out="large")
    small = lab.pretrain(flags, {"gradient_accumulation_steps": 2}, out="small")
    for one, two in zip(rows(large), rows(small), strict=True):
        assert terms(two) == pytest.approx(terms(one), rel=1e-3)


def test_recomputing_changes_no_loss(lab: Lab) -> None:
    flags = {"encoder_teachers": lab.specs("clip", "eva"), "max_steps": 3}
    usual = lab.finetune(flags, out="usual")
    changed = lab.finetune(flags, {"gradient_checkpointing": False}, out="changed")
    for row, other in zip(rows(usual), rows(changed), strict=True):
        assert terms(other) == pytest.approx(terms(row), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("recomputes", [True, False])
def test_a_compiled_tower_changes_no_loss(recomputes: bool, lab: Lab) -> None:
    """Attention, router and experts of a layer are compiled, with or without being recomputed."""
    flags = {"encoder_teachers": lab.specs("clip", "eva"), "gradient_checkpointing": recomputes}
    usual = lab.finetune(flags, out="usual")
    torch._dynamo.reset()
    counters.clear()
    changed = lab.finetune(flags, {"torch_compile_backend": "aot_eager"}, out="changed")
    assert counters["stats"]["unique_graphs"] == 3
    assert counters["stats"]["calls_captured"] > 50
    for row, other in zip(rows(usual), rows(changed), strict=True):
        assert terms(other) == pytest.approx(terms(row), rel=1e-4, abs=1e-6)


def test_half_precision_stays_near_full_precision(lab: Lab) -> None:
    flags = {"encoder_teachers": lab.specs("clip", "eva", "sam")}
    full = lab.finetune(flags, out="full")
    half = lab.finetune(flags, {"bf16": True}, out="half")
    assert terms(rows(half)[0]) == pytest.approx(terms(rows(full)[0]), rel=0.05, abs=0.01)
    adapters = torch.load(half / "encoder_adapter.bin", weights_only=True)
    statistics = {name: tensor.dtype for name, tensor in adapters.items() if "statistics" in name}
    assert set(statistics.values()) == {torch.float32, torch.int64}
