"""Token ids, pixels and stop tokens of an export against LLaVA's own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, PreTrainedTokenizerBase

from llava.export.processor import collapsed_ids, exported_tokenizer
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.tokenizer import end_tokens
from tests.export import alone
from tests.export.conftest import Exported, chat_of
from tests.tokenizers import byte_level_tokenizer, chatml, llama, sentencepiece_tokenizer

TEXTS = (
    "USER: <image>\nWhat is this? ASSISTANT:",
    "<image>",
    "<image> <image>\n<image>x<image><image>",
    "a</s>USER: <image>\nb</s> c <image>\n\n",
    "  spaces in front <image>  and behind ",
    "no picture",
    "ü<image>ü\n<image>\r\n",
    "",
)
TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "llama": llama,
    "llama without BOS": lambda: sentencepiece_tokenizer(add_bos=False),
    "legacy llama": lambda: sentencepiece_tokenizer(legacy=True),
    "llama with im_start": lambda: sentencepiece_tokenizer(added=("<im_start>", "<im_end>")),
    "byte level": chatml,
    "knows <image>": lambda: byte_level_tokenizer("<image>", "<|im_end|>"),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_every_text_has_the_ids_that_llava_gives(kind: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[kind]()
    exported = exported_tokenizer(tokenizer)
    exported.save_pretrained(tmp_path)
    again = type(exported).from_pretrained(tmp_path)
    image = exported.convert_tokens_to_ids("<image>")
    for text in TEXTS:
        wanted = tokenizer_image_token(text, tokenizer)
        assert collapsed_ids(exported(text).input_ids, image) == wanted, text
        assert collapsed_ids(again(text).input_ids, image) == wanted, text
    assert again.pad_token not in (None, again.unk_token)
    assert again.all_special_tokens


def test_the_original_tokenizer_is_left_as_it_was() -> None:
    tokenizer = llama()
    before = len(tokenizer)
    exported_tokenizer(tokenizer)
    assert len(tokenizer) == before
    assert tokenizer("<image>\na").input_ids != tokenizer_image_token("<image>\na", tokenizer)


SIZES = [(28, 28), (29, 28), (28, 29), (100, 7), (7, 100), (61, 40), (1, 50), (333, 250)]


@pytest.mark.parametrize("kind", ["pad", "square_cls", "siglip", "tiles", "siglip_tiles"])
def test_pictures_of_any_shape_have_llavas_pixels(exported: Callable[[str], Exported], kind: str) -> None:
    made = exported(kind)
    chat = chat_of(made.source)
    processor = AutoProcessor.from_pretrained(made.directory, backend="pil").image_processor
    for index, size in enumerate(SIZES):
        picture = alone.picture(*size, seed=index)
        ours = process_images([picture], chat.image_processor, chat.model.config)[0]
        theirs = processor([picture], return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5, msg=str(size))


def test_a_grey_picture_is_read_as_color(exported: Callable[[str], Exported]) -> None:
    made = exported("pad")
    chat = chat_of(made.source)
    picture = Image.new("L", (40, 20), 90)
    ours = process_images([picture], chat.image_processor, chat.model.config)[0]
    processor = AutoProcessor.from_pretrained(made.directory, backend="pil").image_processor
    torch.testing.assert_close(processor([picture], return_tensors="pt")["pixel_values"][0], ours, rtol=0, atol=1e-5)


def test_an_answer_ends_where_its_template_ends_it() -> None:
    tokenizer = chatml()
    tokenizer.eos_token = "<|endoftext|>"
    end, text = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert end_tokens(tokenizer, text, "<|im_end|>") == sorted([end, text])
    assert end_tokens(tokenizer, [text], "</s>") == [text]
    # "###" is no single token, and a token of a larger vocabulary does not exist here.
    assert end_tokens(tokenizer, None, "###") == [text]
    assert end_tokens(tokenizer, 128_009, None) == [text]
