"""A byte-level tokenizer with every chat token, and ways to label."""

from typing import Any

from llava.constants import IGNORE_INDEX
from llava.conversation import conv_templates
from llava.prompt_layout import SeparatorStyle
from llava.train.prompts import Labeled, preprocess
from tests.tokenizers import byte_level_tokenizer, llama

LLAMA_3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", *LLAMA_3_TOKENS)
BYTES = byte_level_tokenizer(*CHAT_TOKENS)

# template -> what follows an answer that training learns with it
ENDS = {
    "v1": "</s>",
    "llava_v1": "</s>",
    "v1_mmtag": "</s>",
    "llava_llama_2": " </s>",
    "mistral_instruct": " </s>",
    "mpt": "<|im_end|>",
    "mistral_zephyr": "</s>",
    "qwen_1_5": "<|im_end|>\n",
    "llava_llama_3": "<|eot_id|>",
    "gemma_instruct": "<end_of_turn>\n",
    "v0": "\n",
    "plain": "\n",
}


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]


def label(name: str, conversation: list[dict[str, Any]], tokenizer=None, **options: Any) -> Labeled:
    options.setdefault("has_image", any("<image>" in str(turn.get("value", "")) for turn in conversation))
    (labeled,) = preprocess([conversation], tokenizer or llama(), conv_templates[name], **options)
    return labeled


def learned_runs(labeled: Labeled, tokenizer) -> list[str]:
    """The text of every stretch of learned tokens."""
    runs: list[list[int]] = [[]]
    for token in labeled.labels.tolist():
        if token == IGNORE_INDEX:
            runs.append([])
        else:
            runs[-1].append(token)
    return [tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs if run]


def always_learned(name: str, tokenizer) -> set[int]:
    special = {
        SeparatorStyle.CHATML: ("<|im_start|>", "<|im_end|>", "\n"),
        SeparatorStyle.LLAMA_3: LLAMA_3_TOKENS[1:],
    }
    found = special.get(conv_templates[name].sep_style, ())
    return {tokenizer(text, add_special_tokens=False).input_ids[0] for text in found}
