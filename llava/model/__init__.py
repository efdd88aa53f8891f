"""The models and their configurations. An import error here is an error, not a missing name."""

from llava.model.language_model.llava_gemma import LlavaGemmaConfig, LlavaGemmaForCausalLM
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.language_model.llava_mistral import LlavaMistralConfig, LlavaMistralForCausalLM
from llava.model.language_model.llava_mixtral import LlavaMixtralConfig, LlavaMixtralForCausalLM
from llava.model.language_model.llava_mpt import LlavaMptConfig, LlavaMptForCausalLM
from llava.model.language_model.llava_qwen import LlavaQwenConfig, LlavaQwenForCausalLM
from llava.model.language_model.llava_qwen_moe import LlavaQwenMoeConfig, LlavaQwenMoeForCausalLM
from llava.model.language_model.move_llava_llama import (
    EvalMoVELlavaLlamaForCausalLM,
    MoVELlavaLlamaConfig,
    MoVELlavaLlamaForCausalLM,
)

__all__ = [
    "EvalMoVELlavaLlamaForCausalLM",
    "LlavaConfig",
    "LlavaGemmaConfig",
    "LlavaGemmaForCausalLM",
    "LlavaLlamaForCausalLM",
    "LlavaMistralConfig",
    "LlavaMistralForCausalLM",
    "LlavaMixtralConfig",
    "LlavaMixtralForCausalLM",
    "LlavaMptConfig",
    "LlavaMptForCausalLM",
    "LlavaQwenConfig",
    "LlavaQwenForCausalLM",
    "LlavaQwenMoeConfig",
    "LlavaQwenMoeForCausalLM",
    "MoVELlavaLlamaConfig",
    "MoVELlavaLlamaForCausalLM",
]
