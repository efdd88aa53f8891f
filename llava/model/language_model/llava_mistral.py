"""LLaVA on Mistral."""

from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig, MistralForCausalLM, MistralModel

from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel


class LlavaMistralConfig(MistralConfig):
    model_type = "llava_mistral"


class LlavaMistralModel(LlavaMetaModel, MistralModel):
    config_class = LlavaMistralConfig

    def __init__(self, config: LlavaMistralConfig) -> None:
        super().__init__(config)  # see LlavaLlamaModel


class LlavaMistralForCausalLM(LlavaMetaForCausalLM, MistralForCausalLM):
    config_class = LlavaMistralConfig

    def __init__(self, config: LlavaMistralConfig) -> None:
        super(MistralForCausalLM, self).__init__(config)  # see LlavaLlamaForCausalLM
        self._assemble(LlavaMistralModel(config))


AutoConfig.register("llava_mistral", LlavaMistralConfig, exist_ok=True)
AutoModelForCausalLM.register(LlavaMistralConfig, LlavaMistralForCausalLM, exist_ok=True)
