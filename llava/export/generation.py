"""generation_config.json of an exported model: the student's own, ending where its template ends an answer."""

import json
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from llava.conversation import Conversation
from llava.model.checkpoint_io import write_json
from llava.model.checkpoint_save import consistent_generation
from llava.template_choice import stop_string


def end_tokens(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, known: Any) -> list[int]:
    """Tokens that end an answer: those known already, the tokenizer's, and the template's stop if it is one token."""
    ends = [known] if isinstance(known, int) else list(known or [])
    ends += [tokenizer.eos_token_id, *(conversation.stop_token_ids or [])]
    stop = stop_string(conversation)
    if stop is not None and stop in tokenizer.get_vocab():
        ends.append(tokenizer.convert_tokens_to_ids(stop))
    return sorted({token for token in ends if token is not None and token < len(tokenizer)})


def write_generation_settings(
    settings: GenerationConfig, conversation: Conversation, tokenizer: PreTrainedTokenizerBase, directory: Path
) -> None:
    values = consistent_generation(json.loads(settings.to_json_string()))
    ends = end_tokens(conversation, tokenizer, values.get("eos_token_id"))
    values |= {"eos_token_id": ends[0] if len(ends) == 1 else ends, "pad_token_id": tokenizer.pad_token_id}
    write_json(values, directory / "generation_config.json")
