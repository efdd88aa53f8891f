"""A student and teachers of a few hundred weights, for tests of the loss that need no language model."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from llava.model.multimodal_encoder.move_kd.config import MoLEConfig
from llava.model.multimodal_encoder.move_kd.mole import MoLE, record_routing
from llava.model.multimodal_encoder.move_kd.student import expert_parameters
from llava.model.multimodal_encoder.move_kd.types import StudentFeatures, TeacherFeatures

WIDTH, SIDE = 8, 4
TOKENS = SIDE**2
SHAPES = {"clip": ((4, 4), 8), "eva": ((8, 8), 6), "convnext": ((6, 6), 10), "sam": ((12, 12), 5)}


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)
        self.activation_fn = nn.GELU()


class FakeStudent(nn.Module):
    """Tokens through two expert layers; its language model's loss is a fixed function of them."""

    def __init__(self, moe: MoLEConfig | None = None) -> None:
        super().__init__()
        moe = moe or MoLEConfig(rank=2, init_b="kaiming")
        self.layers = nn.ModuleList(MoLE(Mlp(), moe) for _ in range(2))
        self.head = nn.Linear(WIDTH, 1)
        self.config = SimpleNamespace(hidden_size=WIDTH, num_hidden_layers=3)
        self.hidden_size, self.num_patches_per_side, self.select_layer = WIDTH, SIDE, -2
        self.is_gradient_checkpointing = False
        self.solos = 0

    def get_vision_tower(self) -> "FakeStudent":
        return self

    def show_solos(self, count: int) -> None:
        self.solos = count
        for layer in self.layers:
            layer.solos = count

    def parts(self) -> dict[str, dict[str, nn.Parameter]]:
        experts = expert_parameters(self)
        rest = {name: parameter for name, parameter in self.named_parameters() if name not in experts}
        return {"mole": experts, "language_model": rest}

    def forward(self, images: Tensor | None, labels: Tensor | None = None) -> Any:
        """images: (T, 1 + N, D) tokens."""
        if images is None:
            return SimpleNamespace(loss=self.head.weight.square().mean(), vision=None)
        solos = self.solos if self.training else 0
        hidden = images.repeat(1 + solos, 1, 1)
        with record_routing(self.layers) as routing:
            for layer in self.layers:
                hidden = hidden + layer(hidden)
        hidden, *alone = hidden.split(len(images))
        seen = torch.stack(alone)[:, :, 1:] if alone else None
        vision = StudentFeatures(hidden[:, 1:], hidden[:, 1:], hidden[:, 0], None, tuple(routing), seen)
        return SimpleNamespace(loss=self.head(hidden).square().mean(), vision=vision)


def teachers(*names: str) -> dict[str, Any]:
    return {name: SimpleNamespace(grid=SHAPES[name][0], width=SHAPES[name][1]) for name in names}


def features(*names: str, images: int = 3) -> dict[str, TeacherFeatures]:
    """What the named teachers say; only CLIP has a class token."""
    said = {}
    for name in names:
        (height, width), channels = SHAPES[name]
        patches = torch.randn(images, height * width, channels) * 3 + 1
        if name == "clip":
            attention = torch.rand(images, height * width).softmax(-1) * 0.9
            said[name] = TeacherFeatures(patches, (height, width), torch.randn(images, channels), attention)
        else:
            said[name] = TeacherFeatures(patches, (height, width))
    return said


def batch(tiles: int = 3, blank: int | None = None) -> dict[str, Tensor]:
    weight = torch.ones(tiles)
    if blank is not None:
        weight[blank] = 0.0
    return {"tile_index": torch.arange(tiles), "weight": weight, "tile_weight": weight.clone()}


def tokens(tiles: int = 3) -> Tensor:
    return torch.randn(tiles, 1 + TOKENS, WIDTH)
