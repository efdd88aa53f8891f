"""A checkpoint's tokenizer, with the image tokens that its config asks for."""

import os
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.model.checkpoint_gather import full_shape
from llava.model.checkpoint_io import CheckpointError, find_file, read_json
from llava.model.vision_modules import whole

TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json")


def has_tokenizer(path: str | os.PathLike[str]) -> bool:
    return any(find_file(path, name) is not None for name in TOKENIZER_FILES)


def load_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer in a directory or hub repository. Raises CheckpointError if there is none or it is broken."""
    if not has_tokenizer(path):
        raise CheckpointError(
            f"{path} has no tokenizer: none of {', '.join(TOKENIZER_FILES)} is there. "
            "Copy them from the language model that it was trained from."
        )
    settings = find_file(path, "tokenizer_config.json")
    sentencepiece = find_file(path, "tokenizer.model")
    try:
        if (settings is None or "tokenizer_class" not in read_json(settings)) and _is_llama_alone(path, sentencepiece):
            # AutoTokenizer would build a generic tokenizer from the bare file, with other ids.
            return LlamaTokenizer.from_pretrained(path, add_bos_token=True)
        model = find_file(path, "config.json")
        if model is not None and "auto_map" in read_json(model):
            # Given a config, it does not ask to run the code that `llava.export` writes beside a student.
            return AutoTokenizer.from_pretrained(path, config=PreTrainedConfig(), trust_remote_code=False)
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the tokenizer in {path} cannot be loaded: {error}") from error


def _is_llama_alone(path: str | os.PathLike[str], sentencepiece: Path | None) -> bool:
    return sentencepiece is not None and find_file(path, "tokenizer.json") is None


def add_image_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """`<im_patch>` and `<im_start>`, `<im_end>` where the config uses them; the embeddings grow if they must.

    `mm_use_im_patch_token` absent means true, as in the first checkpoints. New rows are the mean of the old ones.
    """
    settings: dict[str, Any] = model.config.to_dict()
    if settings.get("mm_use_im_patch_token", True):
        tokenizer.add_tokens([DEFAULT_IMAGE_PATCH_TOKEN], special_tokens=True)
    if settings.get("mm_use_im_start_end", False):
        tokenizer.add_tokens([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN], special_tokens=True)
    grow_embeddings(model, len(tokenizer))


def grow_embeddings(model: PreTrainedModel, rows: int) -> None:
    """Give the embeddings and the head at least `rows` rows; they are never cut, since many models pad them."""
    before = full_shape(_table(model.get_input_embeddings()))[0]
    if rows <= before:
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        with whole(_table(module)) as table:
            table[before:] = table[:before].float().mean(dim=0).to(table.dtype)


def _table(module: nn.Module | None) -> nn.Parameter:
    assert module is not None
    assert isinstance(module.weight, nn.Parameter)
    return module.weight


def end_tokens(tokenizer: PreTrainedTokenizerBase, known: int | list[int] | None, stop: str | None) -> list[int]:
    """Tokens that end an answer: those known already, the tokenizer's, and a template's stop if it is one token."""
    ends = [known] if isinstance(known, int) else known or []
    own = (tokenizer.eos_token_id, tokenizer.get_vocab().get(stop or ""))
    return sorted({token for token in (*ends, *own) if token is not None and token < len(tokenizer)})


def context_length(config: PreTrainedConfig) -> int:
    """How many tokens a conversation may have."""
    settings = config.to_dict()
    names = ("max_sequence_length", "max_position_embeddings", "tokenizer_model_max_length")
    return next((int(settings[name]) for name in names if settings.get(name)), 2048)
