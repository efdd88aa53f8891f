"""A sentencepiece tokenizer in Vicuna's layout, in which every word of the world is one token."""

import json
from pathlib import Path

import sentencepiece
from transformers import LlamaTokenizer

from llava.conversation import conv_templates
from playground.questions import QUESTION_WORDS, WORDS

VOCABULARY = 624
MAX_LENGTH = 2048


def world_words(version: str = "v1") -> list[str]:
    """Every word of captions, questions, answers and turns."""
    roles = [f"{role}:" for role in conv_templates[version].roles]
    return list(dict.fromkeys((*WORDS, *QUESTION_WORDS, *roles)))


def corpus(version: str = "v1") -> list[str]:
    """Text whose most frequent merges are whole words, first bare (as at the start of a line), then after a space.

    The digits glued to words make the inside of a word more frequent than the space before it.
    """
    words = world_words(version)
    glued = " ".join(f"{digit}{word}" for word in words if len(word) > 1 for digit in "0123456789")
    return [conv_templates[version].system, " ".join(words)] * 20 + [glued] * 4


def make_tokenizer(directory: Path, version: str = "v1") -> None:
    """Write tokenizer.model and its configs: byte fallback, ids 0 <unk>, 1 <s>, 2 </s>, padding with <unk>."""
    directory.mkdir(parents=True, exist_ok=True)
    text = directory / "corpus.txt"
    text.write_text("\n".join(corpus(version)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(directory / "tokenizer"),
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_by_unicode_script=False,
        split_by_number=False,
        num_threads=1,
        minloglevel=2,
    )
    text.unlink()
    (directory / "tokenizer.vocab").unlink()
    _write_configs(directory)
    _check(directory, version)


def _check(directory: Path, version: str) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    words = [*world_words(version), *conv_templates[version].system.split()]
    if split := [word for word in words if len(pieces.encode(word)) > 1]:
        raise ValueError(f"tokenizer: {split} are several tokens with a vocabulary of {VOCABULARY}; raise it")


def _write_configs(directory: Path) -> None:
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": MAX_LENGTH,
        "padding_side": "right",
        **special,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    (directory / "special_tokens_map.json").write_text(json.dumps(special, indent=2))


def load_tokenizer(directory: Path) -> LlamaTokenizer:
    return LlamaTokenizer.from_pretrained(directory)
