"""LLaVA on MPT, whose inner model is called `transformer`."""

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, MptConfig, MptForCausalLM, MptModel

from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel


class LlavaMptConfig(MptConfig):
    model_type = "llava_mpt"


class LlavaMptModel(LlavaMetaModel, MptModel):
    config_class = LlavaMptConfig

    def __init__(self, config: LlavaMptConfig) -> None:
        super().__init__(config)  # see LlavaLlamaModel


class LlavaMptForCausalLM(LlavaMetaForCausalLM, MptForCausalLM):
    config_class = LlavaMptConfig

    def __init__(self, config: LlavaMptConfig) -> None:
        super(MptForCausalLM, self).__init__(config)  # see LlavaLlamaForCausalLM
        self.transformer = LlavaMptModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_model(self) -> LlavaMptModel:
        assert isinstance(self.transformer, LlavaMptModel)
        return self.transformer


AutoConfig.register("llava_mpt", LlavaMptConfig, exist_ok=True)
AutoModelForCausalLM.register(LlavaMptConfig, LlavaMptForCausalLM, exist_ok=True)
