"""Where image features go in the text, against LLaVA 1.5 (D_splice) and LLaVA-NeXT (D_splice_next).

The recorded features stand in for tower and projector; everything after them is ours.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parity.vectors import Case, cases
from tests.tiny import tiny_clip_folder, tiny_config

CASES = [*cases("D_splice"), *cases("D_splice_next")]
VISION_WIDTH = 8


def model_with(case: Case, directory: Path) -> Any:
    """A LLaVA model whose encoder gives the recorded features."""
    from llava.model import LlavaLlamaForCausalLM

    table = case.tensors["weight.model.embed_tokens.weight"]
    side = case.meta["tower_image_size"]
    tower = tiny_clip_folder(directory, image_size=side, patch_size=side, hidden_size=VISION_WIDTH)
    settings = {"hidden_size": table.shape[1], "vocab_size": table.shape[0], "mm_hidden_size": VISION_WIDTH}
    model = LlavaLlamaForCausalLM(tiny_config(tower, **settings, **case.meta["config"]))
    model.get_input_embeddings().weight.data.copy_(table)
    if model.get_model().image_newline is not None:
        model.get_model().image_newline.data.copy_(case.tensors["input.image_newline"])
    model._encode = lambda tiles: (case.tensors["input.image_features"], None)
    return model.eval()


def images_of(case: Case) -> Tensor | list[Tensor]:
    side, counts = case.meta["tower_image_size"], case.meta["tiles_per_image"]
    pixels = [torch.zeros(count, 3, side, side) for count in counts]
    container = case.meta["container"]
    if container == "tensor":
        return torch.cat(pixels)
    return torch.stack(pixels) if container == "5d" else pixels


def spliced(case: Case, directory: Path) -> tuple[Any, ...]:
    given, tensors = case.meta["passed"], case.tensors
    mask = tensors["input.attention_mask"].bool() if given["attention_mask"] else None
    extra = {} if case.meta["modalities"] is None else {"modalities": case.meta["modalities"]}
    with torch.no_grad():
        return model_with(case, directory).prepare_inputs_labels_for_multimodal(
            tensors["input.input_ids"],
            torch.arange(tensors["input.input_ids"].shape[1])[None] if given["position_ids"] else None,
            mask,
            None,
            tensors["input.labels"] if given["labels"] else None,
            images_of(case),
            image_sizes=case.meta["image_sizes"],
            **extra,
        )


def images_needed(case: Case) -> int:
    return sum(max(1, row.count("I")) for row in case.meta["rows"])


def is_kept_from_truncation(case: Case) -> bool:
    """NeXT drops the samples beyond the last modality; we take them for images."""
    modalities = case.meta["modalities"]
    return modalities is not None and len(modalities) < len(case.meta["rows"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.topic}-{case}")
def test_features_labels_and_masks_land_where_upstream_puts_them(case: Case, tmp_path: Path) -> None:
    if len(case.meta["tiles_per_image"]) < images_needed(case):
        # Upstream shows the last image again (NeXT) or fails with an IndexError (1.5).
        with pytest.raises(ValueError, match="images are needed"):
            spliced(case, tmp_path)
        return
    ids, positions, mask, cache, embeds, labels = spliced(case, tmp_path)
    assert ids is None
    assert cache is None
    if "upstream_error" in case.meta:
        check_the_error_is_gone(case, embeds)
        return
    expected = case.group("expected")
    if is_kept_from_truncation(case):
        assert len(embeds) == len(case.meta["rows"])
    rows, length = expected["inputs_embeds"].shape[:2]
    torch.testing.assert_close(embeds[:rows, :length], expected["inputs_embeds"], rtol=1e-4, atol=1e-5)
    for name, ours in (("position_ids", positions), ("attention_mask", mask), ("labels", labels)):
        if name in case.meta["returned_none"]:
            assert ours is None, name
            continue
        theirs = expected[name].bool() if ours.dtype == torch.bool else expected[name]
        torch.testing.assert_close(ours[:rows, :length], theirs)
    if mask is not None:
        assert str(mask.dtype) == case.meta["attention_mask_dtype"]
    if not is_kept_from_truncation(case):
        assert list(embeds.shape) == case.meta["shape"]


def check_the_error_is_gone(case: Case, embeds: Tensor) -> None:
    """LLaVA 1.5 takes several tiles only with anyres; NeXT reads four as two by two, and so do we."""
    side = case.meta["patches_per_side"]
    text = sum(part for row in case.meta["rows"] for part in row if part != "I")
    assert case.meta["tiles_per_image"] == [5]
    assert embeds.shape[1] == text + 5 * side**2
