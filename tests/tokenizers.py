"""The small tokenizers of the parity vectors, loaded the way published checkpoints are."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tokenizers import normalizers
from transformers import LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.parity.vectors import tokenizer_folder


def sentencepiece_tokenizer(
    *, legacy: bool = False, added: Sequence[str] = (), add_bos: bool = True
) -> PreTrainedTokenizerBase:
    """The Llama tokenizer; `legacy` puts a word boundary in front of the text after a special token, as before 4.31.

    transformers 5 reads every Llama tokenizer as not legacy, so the old behavior is set on the backend.
    """
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(tokenizer_folder() / "spm_tiny.model", Path(folder) / "tokenizer.model")
        settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": add_bos, "pad_token": "<unk>"}
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(settings))
        tokenizer = LlamaTokenizer.from_pretrained(folder)
    if legacy:
        tokenizer.backend_tokenizer.pre_tokenizer = None
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    tokenizer.add_tokens(list(added), special_tokens=True)
    return tokenizer


def byte_level_tokenizer(*added: str) -> PreTrainedTokenizerBase:
    """A GPT-2 style tokenizer without BOS; `added` are special tokens with the next free ids, in order."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_folder() / "bpe_tiny.json"))
    tokenizer.add_tokens(list(added), special_tokens=True)
    return tokenizer


@cache
def llama() -> PreTrainedTokenizerBase:
    return sentencepiece_tokenizer()


@cache
def chatml() -> PreTrainedTokenizerBase:
    return byte_level_tokenizer("<|im_start|>", "<|im_end|>", "<|endoftext|>")
