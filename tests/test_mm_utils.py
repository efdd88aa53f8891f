from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from llava.mm_utils import (
    KeywordsStoppingCriteria,
    get_model_name_from_path,
    image_layout,
    process_images,
    tokenizer_image_token,
)
from tests.tokenizers import chatml, llama

PROCESSOR = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


def test_tensor_is_returned_on_request_and_another_kind_is_refused() -> None:
    ids = tokenizer_image_token("a<image>b", llama(), return_tensors="pt")
    assert ids.dtype == torch.int64
    assert ids.tolist() == tokenizer_image_token("a<image>b", llama())
    with pytest.raises(ValueError, match="Unsupported tensor type: np"):
        tokenizer_image_token("a", llama(), return_tensors="np")


@pytest.mark.parametrize("tokenizer", [llama(), chatml()], ids=["bos", "no bos"])
@pytest.mark.parametrize("prompt", ["", "<image>", "<image><image>", "a <image>\n<image> b", "<image"])
def test_each_image_gives_one_placeholder_and_bos_comes_once(tokenizer, prompt: str) -> None:
    ids = tokenizer_image_token(prompt, tokenizer)
    assert ids.count(-200) == prompt.count("<image>")
    assert ids.count(1) == (tokenizer is llama())


def test_layout_is_read_anew_at_each_call() -> None:
    config = SimpleNamespace(image_aspect_ratio="pad", image_grid_pinpoints=[[8, 16], [16, 8]])
    picture = Image.new("RGB", (20, 10))
    assert process_images([picture], PROCESSOR, config).shape == (1, 3, 8, 8)
    for ratio in ("anyres", "anyres_max_9"):
        config.image_aspect_ratio = ratio
        assert process_images([picture], PROCESSOR, config).shape == (1, 3, 3, 8, 8)
    assert process_images([picture], PROCESSOR, SimpleNamespace()).shape == (1, 3, 8, 8)
    assert image_layout(SimpleNamespace()).aspect_ratio is None


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
@pytest.mark.parametrize("ratio", ["pad", "anyres", None])
def test_pictures_of_any_mode_are_processed(mode: str, ratio: str | None) -> None:
    config = SimpleNamespace(image_aspect_ratio=ratio, image_grid_pinpoints=[[8, 16], [16, 8]])
    pixels = process_images([Image.new(mode, (20, 10))], PROCESSOR, config)
    assert pixels.shape[-3:] == (3, 8, 8)
    assert pixels.isfinite().all()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 3), (2, 3), (4, 1)])
@pytest.mark.parametrize("ratio", ["pad", "anyres", None])
def test_tiny_pictures_are_not_taken_for_channels(size: tuple[int, int], ratio: str | None) -> None:
    config = SimpleNamespace(image_aspect_ratio=ratio, image_grid_pinpoints=[[8, 16], [16, 8]])
    pixels = process_images([Image.new("RGB", size, (255, 0, 0))], PROCESSOR, config)
    assert pixels.shape[-3:] == (3, 8, 8)
    red, green, _ = pixels.reshape(-1, 3, 64).mean(dim=(0, 2))
    assert red > green


def test_anyres_without_pinpoints_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="image_grid_pinpoints"):
        process_images([Image.new("RGB", (4, 4))], PROCESSOR, SimpleNamespace(image_aspect_ratio="anyres"))


@pytest.mark.parametrize("pinpoints", [None, "", "[[448, 448]]", [[448, 448]]])
def test_highres_says_which_pinpoints_it_takes(pinpoints: object) -> None:
    config = SimpleNamespace(image_aspect_ratio="highres", image_grid_pinpoints=pinpoints)
    with pytest.raises(ValueError, match="needs image_grid_pinpoints to list sides in pixels, such as '448,672', not"):
        process_images([Image.new("RGB", (30, 20))], PROCESSOR, config)


def test_crop_split_without_resolutions_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="image_crop_resolution"):
        process_images([Image.new("RGB", (4, 4))], PROCESSOR, SimpleNamespace(image_aspect_ratio="crop_split"))


def test_checkpoint_folder_is_named_with_its_run() -> None:
    assert get_model_name_from_path("/runs/llava-7b/checkpoint-5/") == "llava-7b_checkpoint-5"
    assert get_model_name_from_path("checkpoint-5") == "checkpoint-5"
    assert get_model_name_from_path("liuhaotian/llava-v1.5-7b") == "llava-v1.5-7b"


def stopped(keyword: str, prompt: str, answer: str, repeats_prompt: bool) -> bool:
    tokenizer = llama()
    question = tokenizer(prompt, return_tensors="pt").input_ids
    new = tokenizer(answer, return_tensors="pt", add_special_tokens=False).input_ids
    criteria = KeywordsStoppingCriteria([keyword], tokenizer, question)
    return criteria(torch.cat([question, new], dim=1) if repeats_prompt else new, None)


@pytest.mark.parametrize("repeats_prompt", [True, False])
def test_stop_word_counts_in_the_answer_only(repeats_prompt: bool) -> None:
    assert stopped("###", "Say ###", "A dog.###", repeats_prompt)
    assert not stopped("###", "Say ###", "A dog.", repeats_prompt)
    assert stopped("</s>", "Q", "A dog.</s>", repeats_prompt)


def test_stop_word_is_found_when_more_tokens_spell_it_than_its_own_ids() -> None:
    tokenizer, prompt = llama(), torch.tensor([[1]])
    criteria = KeywordsStoppingCriteria(["the lamp"], tokenizer, prompt)
    letters = tokenizer.convert_tokens_to_ids(["▁", "t", "h", "e", "▁", "l", "a", "m", "p"])
    assert len(letters) > len(criteria.keyword_ids[0])
    assert criteria(torch.tensor([letters]), None)
    assert not criteria(torch.tensor([letters[:-1]]), None)


def test_answer_as_long_as_the_prompt_is_not_taken_for_it() -> None:
    tokenizer, prompt = llama(), torch.tensor([[1, 261, 262]])
    criteria = KeywordsStoppingCriteria(["</s>"], tokenizer, prompt)
    assert criteria(torch.tensor([[261, 262, 2]]), None)
    assert not criteria(prompt, None)
    assert not criteria(torch.tensor([[270]]), None)
