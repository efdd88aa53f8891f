"""The first layer of a teacher that cuts a picture into patches, reading the picture as the bytes it arrives as."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava.model.multimodal_encoder.move_kd.teachers._spec import Triple

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class ByteStem(nn.Module):
    """A frozen convolution whose kernel is its stride, of standardized pixels or of their bytes.

    Of bytes, standardization is a part of weights and bias, and patches are the rows of one matrix: no pass over the
    picture is left for it. Bytes are counted from 128, so that what is subtracted with the bias is small.
    """

    byte_weight: Tensor
    byte_bias: Tensor

    def __init__(self, conv: nn.Conv2d, mean: Triple, std: Triple) -> None:
        """mean, std: of pixels between 0 and 1. Takes the convolution's parameters over, names included."""
        super().__init__()
        self.weight, self.bias, self.stride = conv.weight, conv.bias, conv.stride
        level, spread = (255.0 * conv.weight.new_tensor(values, dtype=torch.float32) for values in (mean, std))
        weight = conv.weight.detach().float() * (1.0 / spread).view(3, 1, 1)
        bias = -(weight * (level.view(3, 1, 1) - 128.0)).sum((1, 2, 3))
        if conv.bias is not None:
            bias = bias + conv.bias.detach()
        self.register_buffer("byte_weight", weight.flatten(1).to(conv.weight.dtype), persistent=False)
        self.register_buffer("byte_bias", bias.to(conv.weight.dtype), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(M, 3, S, S), uint8 or standardized, to (M, D, H, W)."""
        if pixels.dtype != torch.uint8:
            return F.conv2d(pixels, self.weight, self.bias, self.stride)
        rows = signed_patches(pixels, *self.stride).to(self.byte_weight.dtype)
        return F.linear(rows, self.byte_weight, self.byte_bias).permute(0, 3, 1, 2)


def signed_patches(pixels: Tensor, height: int, width: int) -> Tensor:
    """(M, 3, S, S) uint8 to patches of height x width, (M, H, W, 3 * height * width) int8, counted from 128."""
    size = math.gcd(width, 8)  # bytes move as words, as wide as the patch allows
    words = pixels.contiguous().view(WORDS[size])
    patches = words.unflatten(3, (-1, width // size)).unflatten(2, (-1, height)).permute(0, 2, 4, 1, 3, 5)
    rows = patches.clone(memory_format=torch.contiguous_format).view(torch.uint8).flatten(3)
    return rows.bitwise_xor_(128).view(torch.int8)  # the top bit flipped: 128 less


def read_bytes(net: nn.Module, stem: str, mean: Triple, std: Triple) -> None:
    """Put a ByteStem in the place of the convolution that is called `stem` in `net`."""
    parent, _, name = stem.rpartition(".")
    conv = net.get_submodule(stem)
    assert isinstance(conv, nn.Conv2d)
    assert conv.kernel_size == conv.stride
    setattr(net.get_submodule(parent), name, ByteStem(conv, mean, std))
