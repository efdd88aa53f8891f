"""What a teacher makes of prepared pictures, written out."""

import torch
from torch import Tensor

from llava.model.multimodal_encoder.move_kd.types import ImageSpec


def standardized(pixels: Tensor, spec: ImageSpec) -> Tensor:
    """(M, 3, S, S) uint8 to float32 with the spec's mean and std."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    return (pixels.float() / 255.0 - mean) / std
