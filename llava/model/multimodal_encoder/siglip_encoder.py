"""SigLIP as LLaVA-NeXT's vision tower: the last encoder layer is dropped, the output of the one before is used."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, SiglipVisionConfig

from llava.model.multimodal_encoder.move_kd.types import StudentFeatures
from llava.model.multimodal_encoder.vision_tower import VisionTower
from llava.model.multimodal_encoder.vision_transformer import VisionConfig

Picture = Image.Image | np.ndarray | Tensor
Pictures = Picture | Sequence[Picture]


class SigLipImageProcessor:
    """Squashes a picture to (size, size) by bicubic resampling and maps its values to -1 .. 1."""

    def __init__(self, size: int = 384) -> None:
        self.image_mean = (0.5, 0.5, 0.5)
        self.image_std = (0.5, 0.5, 0.5)
        self.size = (size, size)
        self.crop_size = {"height": size, "width": size}
        self.resample = Image.Resampling.BICUBIC
        self.rescale_factor = 1 / 255

    def preprocess(self, images: Pictures, return_tensors: str | None = "pt") -> BatchFeature:
        """`pixel_values` of one picture or many: PIL images, or uint8 arrays (H, W, C) or (F, H, W, C) for a video."""
        if isinstance(images, Image.Image) or (isinstance(images, np.ndarray | Tensor) and images.ndim == 3):
            images = [images]
        pictures: list[Any] = list(images)
        return BatchFeature({"pixel_values": [self._pixels(picture) for picture in pictures]}, return_tensors)

    __call__ = preprocess

    def _pixels(self, picture: Picture) -> np.ndarray:
        if not isinstance(picture, Image.Image):
            picture = Image.fromarray(np.asarray(picture, dtype=np.uint8))
        resized = picture.convert("RGB").resize(self.size, self.resample)
        pixels = np.asarray(resized, dtype=np.float32) * np.float32(self.rescale_factor)
        mean, std = np.array(self.image_mean, dtype=np.float32), np.array(self.image_std, dtype=np.float32)
        return ((pixels - mean) / std).transpose(2, 0, 1)


class SigLipVisionTower(VisionTower):
    """SigLIP without its last layer and pooling head. `mm_vision_select_layer` and `_feature` do not apply to it."""

    config_class = SiglipVisionConfig
    has_class_token = False

    def __init__(self, vision_tower: str, args: Any, delay_load: bool = False) -> None:
        super().__init__(vision_tower, args, delay_load)
        self.num_run_layers = self._num_layers(self.config)
        if self.settings.moe is not None:
            raise ValueError(
                "mixture-of-LoRA experts (config.moe) need a CLIP vision tower; this one is SigLIP. "
                "--moe_encoder False trains it without."
            )

    def _num_layers(self, config: VisionConfig) -> int:
        assert isinstance(config, SiglipVisionConfig)
        # Without a head it is what `llava.export` wrote: the layer that LLaVA drops is gone already.
        return config.num_hidden_layers - int(config.vision_use_head)

    def _processor(self) -> SigLipImageProcessor:
        return SigLipImageProcessor(self.image_size)

    def encode(self, images: Tensor, with_cls_attention: bool = False) -> StudentFeatures:
        if with_cls_attention:
            raise ValueError("SigLIP has no class token whose attention could be given")
        last = self.num_run_layers
        patches = self._hidden_states(images, {last}, last)[last]
        return StudentFeatures(features=patches, patches=patches)
