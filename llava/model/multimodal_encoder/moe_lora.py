"""The module path and names under which MoVE-KD published its experts, for code that imports them.

Here experts are stacked tensors around an MLP, and the encoder layers stay transformers' own; what has no counterpart
says on use what took its place.
"""

from typing import Any, NoReturn

from transformers import CLIPVisionConfig

from llava.model.multimodal_encoder.move_kd.config import MoLEConfig
from llava.model.multimodal_encoder.move_kd.mole import MoLE
from llava.model.multimodal_encoder.move_kd.student import install_experts, num_used_layers
from llava.model.multimodal_encoder.vision_transformer import VisionTransformer

MoE_LoRA_CLIP = MoLE  # an MLP with experts: MoLE(mlp, MoLEConfig(...))


class MoECLIPVisionTransformer(VisionTransformer):
    """CLIP's image encoder with experts, freshly drawn; `forward` is VisionTransformer's."""

    def __init__(self, config: CLIPVisionConfig, mole: MoLEConfig, select_layer: int = -2) -> None:
        layers = config.num_hidden_layers
        super().__init__(config, layers, has_class_token=True)
        install_experts(self, mole, num_used_layers(layers, select_layer))


class _Replaced:
    instead = ""

    def __init__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"{type(self).__name__} does not exist here: {self.instead}.")


class LoRALayer(_Replaced):
    instead = "all experts of a projection are one move_kd.mole.StackedLoRA"


class MoECLIPEncoderLayer(_Replaced):
    instead = "a layer is transformers' CLIPEncoderLayer, whose mlp move_kd.student.install_experts replaces by a MoLE"


class MoECLIPEncoder(_Replaced):
    instead = "the layers are run by vision_transformer.VisionTransformer; build a MoECLIPVisionTransformer"
