"""LLaVA on Mixtral."""

from transformers import AutoConfig, AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM, MixtralModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel


class LlavaMixtralConfig(MixtralConfig):
    model_type = "llava_mixtral"


class LlavaMixtralModel(LlavaMetaModel, MixtralModel):
    config_class = LlavaMixtralConfig

    def __init__(self, config: LlavaMixtralConfig) -> None:
        super().__init__(config)  # see LlavaLlamaModel


class LlavaMixtralForCausalLM(LlavaMetaForCausalLM, MixtralForCausalLM):
    config_class = LlavaMixtralConfig

    def __init__(self, config: LlavaMixtralConfig) -> None:
        super(MixtralForCausalLM, self).__init__(config)  # see LlavaLlamaForCausalLM
        self.router_aux_loss_coef = config.router_aux_loss_coef
        self.num_experts = config.num_local_experts
        self.num_experts_per_tok = config.num_experts_per_tok
        self._assemble(LlavaMixtralModel(config))


AutoConfig.register("llava_mixtral", LlavaMixtralConfig, exist_ok=True)
AutoModelForCausalLM.register(LlavaMixtralConfig, LlavaMixtralForCausalLM, exist_ok=True)
# Checkpoints hold the language model's experts one by one, transformers stacks them when it knows the model type.
register_checkpoint_conversion_mapping("llava_mixtral", get_checkpoint_conversion_mapping("mixtral"), overwrite=True)
