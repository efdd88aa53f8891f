"""The names under which MoVE-KD published its model: LLaVA on Llama, with experts in the vision tower.

There is one class for training and for inference: distillation wraps the model from outside, and the experts follow
from `config.moe`.
"""

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM

from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM, LlavaLlamaModel

MOE_DEFAULTS: dict[str, Any] = {
    "moe_encoder": True,
    "moe_encoder_dense": False,
    "moe_encoder_lora_rank": 32,
    "moe_encoder_lora_alpha": 1,
    "moe_encoder_num_experts": 3,
}
KD_DEFAULTS: dict[str, Any] = {"kd_mode": True}


class MoVELlavaLlamaConfig(LlavaConfig):
    """`moe` and `kd` hold MoVE-KD's settings; each of them may also be given flat, and the dicts take precedence."""

    model_type = "move_llava_llama"

    def __post_init__(self, moe: Any = None, kd: Any = None, **kwargs: Any) -> None:
        self.moe = {key: kwargs.pop(key, value) for key, value in MOE_DEFAULTS.items()} | (moe or {})
        self.kd = {key: kwargs.pop(key, value) for key, value in KD_DEFAULTS.items()} | (kd or {})
        super().__post_init__(**kwargs)


MoVELlavaLlamaModel = LlavaLlamaModel  # the inner model has nothing of its own


class MoVELlavaLlamaForCausalLM(LlavaLlamaForCausalLM):
    config_class = MoVELlavaLlamaConfig


class EvalMoVELlavaLlamaForCausalLM(MoVELlavaLlamaForCausalLM):
    """The same model; upstream had another class for inference."""


AutoConfig.register("move_llava_llama", MoVELlavaLlamaConfig, exist_ok=True)
AutoModelForCausalLM.register(MoVELlavaLlamaConfig, MoVELlavaLlamaForCausalLM, exist_ok=True)
