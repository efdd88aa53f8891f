"""The models and their configurations. An import error here is an error, not a missing name."""

from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.language_model.llava_mistral import LlavaMistralConfig, LlavaMistralForCausalLM
from llava.model.language_model.llava_qwen import LlavaQwenConfig, LlavaQwenForCausalLM
from llava.model.language_model.move_llava_llama import (
    EvalMoVELlavaLlamaForCausalLM,
    MoVELlavaLlamaConfig,
    MoVELlavaLlamaForCausalLM,
)

__all__ = [
    "EvalMoVELlavaLlamaForCausalLM",
    "LlavaConfig",
    "LlavaLlamaForCausalLM",
    "LlavaMistralConfig",
    "LlavaMistralForCausalLM",
    "LlavaQwenConfig",
    "LlavaQwenForCausalLM",
    "MoVELlavaLlamaConfig",
    "MoVELlavaLlamaForCausalLM",
]
