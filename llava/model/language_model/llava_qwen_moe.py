"""LLaVA on Qwen's mixture-of-experts models."""

from transformers import AutoConfig, AutoModelForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM, Qwen2MoeModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel


class LlavaQwenMoeConfig(Qwen2MoeConfig):
    model_type = "llava_qwen_moe"


class LlavaQwenMoeModel(LlavaMetaModel, Qwen2MoeModel):
    config_class = LlavaQwenMoeConfig

    def __init__(self, config: LlavaQwenMoeConfig) -> None:
        super().__init__(config)  # see LlavaLlamaModel


class LlavaQwenMoeForCausalLM(LlavaMetaForCausalLM, Qwen2MoeForCausalLM):
    config_class = LlavaQwenMoeConfig

    def __init__(self, config: LlavaQwenMoeConfig) -> None:
        super(Qwen2MoeForCausalLM, self).__init__(config)  # see LlavaLlamaForCausalLM
        self.router_aux_loss_coef = config.router_aux_loss_coef
        self.num_experts = config.num_experts
        self.num_experts_per_tok = config.num_experts_per_tok
        self._assemble(LlavaQwenMoeModel(config))


AutoConfig.register("llava_qwen_moe", LlavaQwenMoeConfig, exist_ok=True)
AutoModelForCausalLM.register(LlavaQwenMoeConfig, LlavaQwenMoeForCausalLM, exist_ok=True)
# Checkpoints hold the language model's experts one by one, transformers stacks them when it knows the model type.
register_checkpoint_conversion_mapping("llava_qwen_moe", get_checkpoint_conversion_mapping("qwen2_moe"), overwrite=True)
