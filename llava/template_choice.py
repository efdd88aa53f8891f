"""Which prompt template a checkpoint wants, and what ends an answer in it. Knows names and configs, no model."""

from collections.abc import Sequence
from typing import Any

from llava.conversation import Conversation, SeparatorStyle, conv_templates

# The first word found in the checkpoint's name decides, where its config says nothing.
TEMPLATE_BY_NAME = (
    ("llama-2", "llava_llama_2"),
    ("orca", "mistral_orca"),
    ("hermes", "chatml_direct"),
    ("v1.6-34b", "chatml_direct"),
    ("mistral", "mistral_instruct"),
    ("mixtral", "mistral_instruct"),
    ("qwen", "qwen_1_5"),
    ("llama3", "llava_llama_3"),
    ("llama-3", "llava_llama_3"),
    ("gemma", "gemma_instruct"),
    ("move-kd", "vicuna_v1"),
    ("v1", "llava_v1"),
    ("mpt", "mpt"),
)
TEMPLATE_BY_TYPE = {
    "llava_qwen": "qwen_1_5",
    "llava_qwen_moe": "qwen_1_5",
    "llava_mistral": "mistral_instruct",
    "llava_mixtral": "mistral_instruct",
    "llava_mpt": "mpt",
    "llava_gemma": "gemma_instruct",
    "move_llava_llama": "vicuna_v1",
}
# Styles whose turns all end with `sep`; the others end an answer with `sep2`.
ENDS_WITH_SEP = (
    SeparatorStyle.SINGLE,
    SeparatorStyle.MPT,
    SeparatorStyle.CHATML,
    SeparatorStyle.GEMMA,
    SeparatorStyle.LLAMA_3,
)


def choose_template(model_name: str, config: Any) -> str:
    """The key in `conv_templates` that suits a checkpoint: what training recorded, else its name, else its type."""
    recorded = config.to_dict().get("conversation_template")
    if recorded in conv_templates:
        return recorded
    lowered = model_name.lower()
    for word, template in TEMPLATE_BY_NAME:
        if word in lowered:
            return template
    return TEMPLATE_BY_TYPE.get(config.model_type, "vicuna_v1")


def check_template(name: str) -> str:
    """Raises ValueError for a name that is no template."""
    if name not in conv_templates:
        raise ValueError(f"no conversation template {name!r}; there are {', '.join(sorted(conv_templates))}")
    return name


def stop_string(conversation: Conversation) -> str | None:
    """What ends an answer in this template."""
    if conversation.stop_str:
        return conversation.stop_str if isinstance(conversation.stop_str, str) else conversation.stop_str[0]
    stop = conversation.sep if conversation.sep_style in ENDS_WITH_SEP else conversation.sep2
    return stop.strip() or None if stop else None


def until_stop(text: str, stops: Sequence[str], is_final: bool = True) -> str:
    """`text` up to the first stop string, stripped. Before the end, what may be the beginning of one is held back."""
    for stop in stops:
        text = text.split(stop)[0]
    if not is_final:
        longest = max((len(stop) for stop in stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in stops):
                text = text[:-length]
                break
    return text.strip()
