"""The first layer of a teacher that cuts a picture into patches, reading the picture as the bytes it arrives as."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava.model.multimodal_encoder.move_kd.teachers._spec import Triple


class ByteStem(nn.Module):
    """A convolution whose kernel is its stride, of standardized pixels or of their bytes.

    Of bytes, standardization is a part of weights and bias, and patches are the rows of one matrix: no pass over the
    picture is left for it. Bytes are counted from 128, so that what is subtracted with the bias is small.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, conv: nn.Conv2d, mean: Triple, std: Triple) -> None:
        """mean, std: of pixels between 0 and 1. Takes the convolution's parameters over, names included."""
        super().__init__()
        self.weight, self.bias, self.stride = conv.weight, conv.bias, conv.stride
        level, spread = (255.0 * torch.tensor(values).view(3, 1, 1) for values in (mean, std))
        self.register_buffer("offset", level - 128.0, persistent=False)
        self.register_buffer("scale", 1.0 / spread, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(M, 3, S, S), uint8 or standardized, to (M, D, H, W)."""
        if pixels.dtype != torch.uint8:
            return F.conv2d(pixels, self.weight, self.bias, self.stride)
        height, width = self.stride
        patches = pixels.unflatten(3, (-1, width)).unflatten(2, (-1, height)).permute(0, 2, 4, 1, 3, 5)
        signed = (patches.contiguous() ^ 128).view(torch.int8)  # the top bit flipped: 128 less
        rows = signed.to(self.weight.dtype).flatten(3)  # (M, H, W, 3 * height * width)
        weight = self.weight.float() * self.scale
        bias = -(weight * self.offset).sum((1, 2, 3))
        if self.bias is not None:
            bias = bias + self.bias
        return F.linear(rows, weight.flatten(1).to(rows.dtype), bias.to(rows.dtype)).permute(0, 3, 1, 2)


def read_bytes(net: nn.Module, stem: str, mean: Triple, std: Triple) -> None:
    """Put a ByteStem in the place of the convolution that is called `stem` in `net`."""
    parent, _, name = stem.rpartition(".")
    conv = net.get_submodule(stem)
    assert isinstance(conv, nn.Conv2d)
    assert conv.kernel_size == conv.stride
    setattr(net.get_submodule(parent), name, ByteStem(conv, mean, std))
