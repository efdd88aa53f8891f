"""generation_config.json of an exported model: the student's own, ending where its template ends an answer."""

import json
from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerBase

from llava.conversation import Conversation
from llava.model.checkpoint_io import write_json
from llava.model.checkpoint_save import consistent_generation
from llava.model.tokenizer import end_tokens
from llava.template_choice import stop_string


def write_generation_settings(
    settings: GenerationConfig, conversation: Conversation, tokenizer: PreTrainedTokenizerBase, directory: Path
) -> None:
    values = consistent_generation(json.loads(settings.to_json_string()))
    ends = end_tokens(tokenizer, values.get("eos_token_id"), stop_string(conversation))
    values |= {"eos_token_id": ends[0] if len(ends) == 1 else ends, "pad_token_id": tokenizer.pad_token_id}
    write_json(values, directory / "generation_config.json")
