"""The prompt templates of the ecosystem, by name. A template is a `Conversation` without turns of its own.

Copy one before use: `conv_templates["v1"].copy()`. The strings are what published checkpoints were trained with.
"""

from dataclasses import replace

from llava.conversation_base import Conversation
from llava.prompt_layout import SeparatorStyle

__all__ = ["Conversation", "SeparatorStyle", "conv_templates", "default_conversation"]

_CHAT = (
    "A chat between a curious {user} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {user}'s questions."
)
_HUMAN_CHAT = _CHAT.format(user="human")
_USER_CHAT = _CHAT.format(user="user")
_ASSIST = (
    "{able} to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
_TAGGED = "The visual content will be provided with the following format: <Image>visual content</Image>."
_TAGGED_CHAT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    + _ASSIST.format(able="The assistant is able")
    + _TAGGED
)
_VISION = "You are a helpful language and vision assistant. " + _ASSIST.format(able="You are able")
_ANSWER = "Answer the questions about the visual content that the user provides."
_LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)
_MPT = "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."
_ORCA = (
    "You are MistralOrca, a large language model trained by Alignment Lab AI. "
    "Write out your reasoning step-by-step to be sure you get the right answers!"
)
# The example that the first Vicuna was prompted with, part of its published template.
_ONE_SHOT_QUESTION = "What are the key differences between renewable and non-renewable energy sources?"
_ONE_SHOT_ANSWER = (
    "Renewable energy sources are those that can be replenished naturally in a relatively short amount of time, "
    "such as solar, wind, hydro, geothermal, and biomass. Non-renewable energy sources, on the other hand, are finite "
    "and will eventually be depleted, such as coal, oil, and natural gas. Here are some key differences between "
    "renewable and non-renewable energy sources:\n"
    "1. Availability: Renewable energy sources are virtually inexhaustible, while non-renewable energy sources are "
    "finite and will eventually run out.\n"
    "2. Environmental impact: Renewable energy sources have a much lower environmental impact than non-renewable "
    "sources, which can lead to air and water pollution, greenhouse gas emissions, and other negative effects.\n"
    "3. Cost: Renewable energy sources can be more expensive to initially set up, but they typically have lower "
    "operational costs than non-renewable sources.\n"
    "4. Reliability: Renewable energy sources are often more reliable and can be used in more remote locations than "
    "non-renewable sources.\n"
    "5. Flexibility: Renewable energy sources are often more flexible and can be adapted to different situations and "
    "needs, while non-renewable sources are more rigid and inflexible.\n"
    "6. Sustainability: Renewable energy sources are more sustainable over the long term, while non-renewable sources "
    "are not, and their depletion can lead to economic and social instability.\n"
)


def _single(system: str, version: str = "Unknown") -> Conversation:
    return Conversation(system, ("Human", "Assistant"), [], 0, SeparatorStyle.SINGLE, "###", version=version)


def _two(system: str, version: str = "v1") -> Conversation:
    return Conversation(system, ("USER", "ASSISTANT"), [], 0, SeparatorStyle.TWO, " ", "</s>", version)


def _inst(system: str, sep: str = "<s>", version: str = "llama_v2") -> Conversation:
    return Conversation(system, ("USER", "ASSISTANT"), [], 0, SeparatorStyle.LLAMA_2, sep, "</s>", version)


def _mpt(system: str) -> Conversation:
    roles = ("<|im_start|>user\n", "<|im_start|>assistant\n")
    head = f"<|im_start|>system\n{system}"
    return Conversation(head, roles, [], 0, SeparatorStyle.MPT, "<|im_end|>", version="mpt")


def _qwen(system: str) -> Conversation:
    roles = ("<|im_start|>user", "<|im_start|>assistant")
    head = f"<|im_start|>system\n{system}"
    return Conversation(head, roles, [], 0, SeparatorStyle.CHATML, "<|im_end|>", version="qwen")


conv_vicuna_v0 = replace(
    _single(_HUMAN_CHAT), messages=[["Human", _ONE_SHOT_QUESTION], ["Assistant", _ONE_SHOT_ANSWER]], offset=2
)
conv_vicuna_v1 = _two(_USER_CHAT)
conv_llava_v0 = _single(_HUMAN_CHAT)
conv_llava_v1 = _two(_HUMAN_CHAT)
conv_llava_v0_mmtag = _single(_TAGGED_CHAT, "v0_mmtag")
conv_llava_v1_mmtag = _two(_TAGGED_CHAT, "v1_mmtag")
conv_llava_plain = Conversation("", ("", ""), [], 0, SeparatorStyle.PLAIN, "\n")
conv_llama_2 = _inst(_LLAMA_2)
conv_llava_llama_2 = _inst(_VISION)
conv_llava_llama_2_simple = _inst(_ANSWER)
conv_llava_llama_2_mmtag = _inst(_ANSWER + _TAGGED, version="llama_v2_mmtag")
conv_mistral_instruct = _inst("", sep="")
conv_llava_llama_3 = Conversation(
    _VISION,
    ("user", "assistant"),
    [],
    0,
    SeparatorStyle.LLAMA_3,
    "<|eot_id|>",
    version="llama_v3",
    tokenizer_id="meta-llama/Meta-Llama-3-8B-Instruct",
    stop_token_ids=[128009],
)
conv_mpt = _mpt(_MPT)
conv_chatml_direct = _mpt("Answer the questions.")
conv_mistral_direct = conv_chatml_direct.copy()
conv_mistral_orca = _mpt(_ORCA)
conv_mistral_zephyr = replace(
    conv_mpt.copy(),
    system="<|system|>\nYou are a helpful AI assistant.",
    roles=("<|user|>\n", "<|assistant|>\n"),
    sep="</s>",
)
conv_qwen = _qwen("You are a helpful assistant.")
conv_qwen_2_5 = _qwen("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
conv_gemma_instruct = Conversation(
    "",
    ("<start_of_turn>user\n", "<start_of_turn>model\n"),
    [],
    0,
    SeparatorStyle.GEMMA,
    "<end_of_turn>\n",
    version="gemma",
)

conv_templates: dict[str, Conversation] = {
    "default": conv_vicuna_v0,
    "v0": conv_vicuna_v0,
    "v1": conv_vicuna_v1,
    "vicuna_v1": conv_vicuna_v1,
    "llava_v0": conv_llava_v0,
    "llava_v1": conv_llava_v1,
    "v0_mmtag": conv_llava_v0_mmtag,
    "llava_v0_mmtag": conv_llava_v0_mmtag,
    "v1_mmtag": conv_llava_v1_mmtag,
    "llava_v1_mmtag": conv_llava_v1_mmtag,
    "plain": conv_llava_plain,
    "v0_plain": conv_llava_plain,
    "llama_2": conv_llama_2,
    "llava_llama_2": conv_llava_llama_2,
    "llava_llama_2_simple": conv_llava_llama_2_simple,
    "llava_llama_2_mmtag": conv_llava_llama_2_mmtag,
    "mistral_instruct": conv_mistral_instruct,
    "llava_mistral_instruct": conv_mistral_instruct,
    "llava_llama_3": conv_llava_llama_3,
    "mpt": conv_mpt,
    "mpt_text": conv_mpt,
    "chatml_direct": conv_chatml_direct,
    "mistral_direct": conv_mistral_direct,
    "mistral_orca": conv_mistral_orca,
    "mistral_zephyr": conv_mistral_zephyr,
    "qwen_1_5": conv_qwen,
    "qwen_2": conv_qwen,
    "qwen_2_5": conv_qwen_2_5,
    "gemma_instruct": conv_gemma_instruct,
}

default_conversation = conv_vicuna_v1
