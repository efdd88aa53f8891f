"""Topic E of both code bases: tile geometry, image functions, image tokens, stop words.

Three things differ on purpose, and are asserted as they should be:
* LLaVA-NeXT refuses range pinpoints for unusual tile sizes; here any tile size works.
* LLaVA-NeXT's stop words of several tokens raise; here they stop as those of LLaVA 1.5 do.
* After the first stop nothing is generated, so only the first stop is compared: LLaVA 1.5 forgets a stop word that
  lies further back than its own number of tokens.

The slow Llama tokenizer of transformers 4 no longer exists. Its legacy behavior is rebuilt exactly; in its newer one
a text that follows `<image>` and begins with a space gets one word boundary more than any tokenizer gives today, so
ids are compared without such boundaries there.
"""

import base64
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import PIL
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerBase

from llava import anyres, mm_utils
from tests.parity.vectors import Case, cases
from tests.tokenizers import byte_level_tokenizer, sentencepiece_tokenizer

CASES = [*cases("E_mm_utils_llava"), *cases("E_mm_utils_next")]


def having(key: str) -> Any:
    """The cases whose file holds `key`; there is at least one of each, else the parametrized test would be skipped."""
    found = [case for case in CASES if key in case.meta]
    assert found, f"no parity case holds {key!r}"
    return pytest.mark.parametrize("case", found, ids=[f"{case.topic}-{case}" for case in found])


def pil(pixels: Tensor) -> Image.Image:
    mode = {2: "L", 3: "RGB"}.get(pixels.dim() if pixels.dim() == 2 else pixels.shape[-1], "RGBA")
    return Image.fromarray(pixels.numpy(), mode)


def pixels_of(image: Image.Image) -> Tensor:
    channels = len(image.getbands())
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, channels).squeeze(-1)


@having("select_best_resolution")
def test_best_resolution_is_the_published_choice(case: Case) -> None:
    for row in case.meta["select_best_resolution"]:
        assert list(mm_utils.select_best_resolution(row["size"], row["resolutions"])) == row["expected"], row


@having("get_anyres_image_grid_shape")
def test_grid_of_tiles_has_the_published_shape(case: Case) -> None:
    for row in case.meta["get_anyres_image_grid_shape"]:
        shape = mm_utils.get_anyres_image_grid_shape(row["size"], row["grid_pinpoints"], row["patch_size"])
        if "error" in row:
            assert min(shape) >= 1, row
        else:
            assert list(shape) == row["expected"], row


@having("unpad_image")
def test_unpadding_keeps_the_published_rows_and_columns(case: Case) -> None:
    for row in case.meta["unpad_image"]:
        height, width = row["grid_hw"]
        cut = anyres.unpad_image(torch.arange(height * width).view(1, height, width), row["original_size"])
        assert list(cut.shape[1:]) == row["expected_shape"], row
        if cut.numel():
            assert [cut.flatten()[0].item(), cut.flatten()[-1].item()] == [row["first"], row["last"]], row


@having("get_model_name_from_path")
def test_model_name_is_the_published_one(case: Case) -> None:
    for row in case.meta["get_model_name_from_path"]:
        assert mm_utils.get_model_name_from_path(row["path"]) == row["expected"]


def processor_of(meta: dict[str, Any]) -> CLIPImageProcessorPil:
    settings = meta["processor"]
    return CLIPImageProcessorPil(
        size={"shortest_edge": settings["size"]},
        crop_size={"height": settings["crop"], "width": settings["crop"]},
        image_mean=settings["mean"],
        image_std=settings["std"],
    )


def pictures(case: Case) -> dict[str, Image.Image]:
    return {entry["key"]: pil(case.tensors[f"{entry['key']}.input"]) for entry in case.meta["cases"]}


def config(ratio: str | None, meta: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(image_aspect_ratio=ratio, image_grid_pinpoints=meta["pinpoints"])


@having("cases")
def test_canvas_tiles_and_squares_are_pixel_for_pixel_the_published_ones(case: Case) -> None:
    tile, background = case.meta["processor"]["crop"], tuple(case.meta["background"])
    for entry, (key, picture) in zip(case.meta["cases"], pictures(case).items(), strict=True):
        expected = case.group(key)
        best = mm_utils.select_best_resolution(picture.size, case.meta["pinpoints"])
        assert list(best) == entry["best_resolution"]
        canvas = mm_utils.resize_and_pad_image(picture, best)
        tiles = mm_utils.divide_to_patches(canvas, tile)
        assert len(tiles) == entry["tiles"]
        assert torch.equal(pixels_of(canvas), expected["resize_and_pad"]), key
        assert torch.equal(torch.stack([pixels_of(image) for image in tiles]), expected["divide_to_patches"]), key
        assert torch.equal(pixels_of(mm_utils.expand2square(picture, background)), expected["expand2square"]), key


@having("cases")
def test_squares_keep_their_mode_and_ragged_tiles_are_black_outside(case: Case) -> None:
    for mode in ("mode_L", "mode_RGBA"):
        expected = case.tensors[f"{mode}.expand2square"]
        corner = expected[0, 0].tolist()
        background = corner if isinstance(corner, int) else tuple(corner)
        square = mm_utils.expand2square(pil(case.tensors[f"{mode}.input"]), background)
        assert torch.equal(pixels_of(square), expected), mode
    expected = case.tensors["ragged.divide_to_patches"]
    tiles = mm_utils.divide_to_patches(pil(case.tensors["ragged.input"]), expected.shape[1])
    assert torch.equal(torch.stack([pixels_of(image) for image in tiles]), expected)


def tolerance(meta: dict[str, Any], picture: Image.Image) -> float:
    """1e-5, but one gray level for a tall picture that is made both wider and shorter by another Pillow release.

    Pillow 13 scales the shrinking direction first, Pillow 12 always the width; between the two it rounds to bytes.
    """
    side = meta["processor"]["size"]
    is_rounded_otherwise = picture.width < side < picture.height and PIL.__version__ != meta["pillow"]
    return 1.01 / 255 / min(meta["processor"]["std"]) if is_rounded_otherwise else 1e-5


@having("cases")
@pytest.mark.parametrize("ratio", ["pad", "square", None, "anyres"])
def test_processed_picture_has_the_published_values(case: Case, ratio: str | None) -> None:
    processor = processor_of(case.meta)
    for key, picture in pictures(case).items():
        got = mm_utils.process_images([picture], processor, config(ratio, case.meta))
        if ratio == "anyres":
            expected = case.tensors[f"{key}.process_anyres"]
            assert torch.equal(got[0], mm_utils.process_anyres_image(picture, processor, case.meta["pinpoints"]))
            got = got[0]
        else:
            expected = case.tensors[f"{key}.process_{ratio or 'square'}"]
        error = (got - expected).abs()
        assert error.max() <= tolerance(case.meta, picture), key
        assert error.mean() <= 2e-3, key


@having("cases")
def test_batches_are_stacked_exactly_when_all_shapes_agree(case: Case) -> None:
    processor, batch = processor_of(case.meta), list(pictures(case).values())
    several = mm_utils.process_images(batch, processor, config("anyres", case.meta))
    assert type(several).__name__ == case.meta["anyres_batch_returns"]
    same = mm_utils.process_images([batch[0]] * 2, processor, config("anyres", case.meta))
    assert isinstance(same, Tensor)
    assert same.dim() == 5
    padded = mm_utils.process_images(batch, processor, config("pad", case.meta))
    assert list(padded.shape) == case.meta["pad_batch_shape"]
    for ratio in ("square", None):  # upstream NeXT raises on None
        assert (
            list(mm_utils.process_images(batch, processor, config(ratio, case.meta)).shape)
            == case.meta["square_batch"][1]
        )


@having("antialias_note")
def test_highres_and_crop_split_have_the_published_values(case: Case) -> None:
    processor, side = processor_of(case.meta), case.meta["processor"]["size"]
    settings = SimpleNamespace(
        image_aspect_ratio="crop_split", image_crop_resolution=2 * side, image_split_resolution=side
    )
    for key, picture in pictures(case).items():
        if f"{key}.crop_split" not in case.tensors:
            continue
        split = mm_utils.process_images([picture], processor, settings)[0]
        torch.testing.assert_close(split, case.tensors[f"{key}.crop_split"], atol=1e-5, rtol=1e-4)
        highres = mm_utils.process_highres_image(picture, processor, f"{side},{2 * side}")
        torch.testing.assert_close(highres, case.tensors[f"{key}.highres"], atol=1e-5, rtol=1e-4)


@having("png_base64")
def test_picture_is_read_from_base64(case: Case) -> None:
    picture = mm_utils.load_image_from_base64(case.meta["png_base64"])
    with Image.open(BytesIO(base64.b64decode(case.meta["png_base64"]))) as expected:
        assert picture.size == expected.size
    first = case.meta["cases"][0]
    assert torch.equal(pixels_of(picture), case.tensors[f"{first['key']}.input"])


TOKENIZERS = {
    "spm_legacy": lambda: sentencepiece_tokenizer(legacy=True),
    "spm_not_legacy": sentencepiece_tokenizer,
    "bpe_chat": lambda: byte_level_tokenizer("<|im_start|>", "<|im_end|>"),
}


def without_word_boundaries(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    boundary = tokenizer.convert_tokens_to_ids("▁")
    return [token for token in ids if token != boundary]


@having("tokenizer_image_token")
@pytest.mark.parametrize("name", TOKENIZERS)
def test_prompt_has_the_published_ids(case: Case, name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    rows = [row for row in case.meta["tokenizer_image_token"] if row["tokenizer"] == name]
    assert rows
    for row in rows:
        options = {key: row[key] for key in ("image_token_index",) if key in row}
        got, expected = mm_utils.tokenizer_image_token(row["prompt"], tokenizer, **options), row["expected"]
        if name == "spm_not_legacy" and any(text.startswith(" ") for text in row["prompt"].split("<image>")[1:]):
            got, expected = (without_word_boundaries(ids, tokenizer) for ids in (got, expected))
        assert got == expected, row["prompt"]


@having("stopping")
def test_generation_stops_first_where_the_published_code_stops(case: Case) -> None:
    tokenizer = TOKENIZERS[case.meta["stopping_tokenizer"]]()
    reference = next(other for other in CASES if "stopping" in other.meta and other.topic == "E_mm_utils_llava")
    for row in case.meta["stopping"]:
        if "error" in row:  # NeXT cannot stop at several tokens: the same row of 1.5 tells what is right
            rows = reference.meta["stopping"]
            same = ("keywords", "prompt_ids", "generated_ids")
            row = next(other for other in rows if all(other[key] == row[key] for key in same))
        prompt, new = torch.tensor([row["prompt_ids"]]), torch.tensor([row["generated_ids"]])
        for whole in (True, False):  # with the prompt repeated, and new tokens only
            criteria = mm_utils.KeywordsStoppingCriteria(row["keywords"], tokenizer, prompt)
            assert criteria.keyword_ids == row["keyword_ids"]
            start = prompt if whole else prompt[:, :0]
            steps = [criteria(torch.cat([start, new[:, :step]], 1), None) for step in range(1, new.shape[1] + 1)]
            first = [*steps, True].index(True)
            assert first == [*row["stop_after_step"], True].index(True), row


@having("stopping_batch")
def test_batch_stops_when_every_row_has(case: Case) -> None:
    tokenizer = TOKENIZERS[case.meta["stopping_tokenizer"]]()
    for row in case.meta["stopping_batch"]:
        prompt = torch.tensor([[1, 2, 3]] * len(row["generated_ids"]))
        criteria = mm_utils.KeywordsStoppingCriteria(["</s>"], tokenizer, prompt)
        output = torch.cat([prompt, torch.tensor(row["generated_ids"])], 1)
        assert criteria(output, None) is row["expected"]
