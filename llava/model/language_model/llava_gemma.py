"""LLaVA on Gemma."""

from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GemmaConfig, GemmaForCausalLM, GemmaModel

from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel


class LlavaGemmaConfig(GemmaConfig):
    """scales_pictures: whether pictures are multiplied like text; False where their weights were (transformers' own
    Llava, and what `llava.export` writes)."""

    model_type = "llava_gemma"
    scales_pictures: bool = True


class LlavaGemmaModel(LlavaMetaModel, GemmaModel):
    config_class = LlavaGemmaConfig

    def __init__(self, config: LlavaGemmaConfig) -> None:
        super().__init__(config)  # see LlavaLlamaModel

    # When LLaVA-NeXT's models were trained, Gemma scaled whatever it was fed; now its embedding table does.
    @property
    def picture_scale(self) -> float:
        return self.config.hidden_size**0.5 if self.config.scales_pictures else 1.0

    def project(self, features: Tensor) -> Tensor:
        return super().project(features) * self.picture_scale

    def newline(self, features: Tensor) -> Tensor | None:
        newline = super().newline(features)
        return None if newline is None else newline * self.picture_scale


class LlavaGemmaForCausalLM(LlavaMetaForCausalLM, GemmaForCausalLM):
    config_class = LlavaGemmaConfig

    def __init__(self, config: LlavaGemmaConfig) -> None:
        super(GemmaForCausalLM, self).__init__(config)  # see LlavaLlamaForCausalLM
        self._assemble(LlavaGemmaModel(config))


AutoConfig.register("llava_gemma", LlavaGemmaConfig, exist_ok=True)
AutoModelForCausalLM.register(LlavaGemmaConfig, LlavaGemmaForCausalLM, exist_ok=True)
