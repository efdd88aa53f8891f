from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer, LlamaTokenizer

from llava.conversation import conv_templates
from llava.mm_utils import tokenizer_image_token
from playground.questions import QUESTION_WORDS, WORDS
from playground.tokenizer import VOCABULARY, load_tokenizer, make_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(made)
    return made


def test_it_has_the_special_tokens_of_vicuna(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.pad_token_id == 0
    assert len(tokenizer) == VOCABULARY
    assert tokenizer("red").input_ids[0] == tokenizer.bos_token_id


def test_every_word_of_the_world_is_one_token_after_a_space_and_at_the_start_of_a_line(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    for word in (*WORDS, *QUESTION_WORDS, "USER:", "ASSISTANT:"):
        assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1, word
    for word in QUESTION_WORDS:
        assert tokenizer.tokenize(f"\n{word}") == ["▁", "<0x0A>", word]


def test_ids_are_those_of_sentencepiece_and_text_comes_back(folder: Path) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = load_tokenizer(folder)
    for text in (conv_templates["v1"].system, "color of circle", "top left red circle , 7", "naïve 犬\n!"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert ids == pieces.encode(text)
        assert tokenizer.decode(ids) == text


def test_the_folder_alone_is_enough_for_every_way_of_loading(folder: Path) -> None:
    text = "color of circle ASSISTANT: red</s>"
    ids = LlamaTokenizer.from_pretrained(folder)(text).input_ids
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == ids


def test_a_question_in_the_template_is_short(folder: Path) -> None:
    template = conv_templates["v1"].copy()
    template.append_message(template.roles[0], "<image>\ncolor of circle")
    template.append_message(template.roles[1], None)
    assert len(tokenizer_image_token(template.get_prompt(), load_tokenizer(folder))) < 35
