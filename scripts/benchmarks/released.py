"""The parts of a distillation step done the released way, at the sizes of ours, for comparison alone.

Every layer of student and CLIP teacher runs, attention is eager and its maps are asked for; experts are called one by
one on the tokens that chose them; each encoder's pictures are prepared, one after the other, inside the step.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionModel

from llava.mm_utils import expand2square
from llava.model.multimodal_encoder.move_kd.config import MoLEConfig
from llava.model.multimodal_encoder.move_kd.types import Routing, StudentFeatures, TeacherFeatures


class Expert(nn.Module):
    def __init__(self, width_in: int, width_out: int, config: MoLEConfig) -> None:
        super().__init__()
        rank = config.rank
        self.dropout = nn.Dropout(config.dropout)
        self.reduce = nn.Linear(width_in, rank)
        self.expand = nn.Linear(rank, width_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(self.reduce(self.dropout(x)))


class GatherLoopMLP(nn.Module):
    """An MLP with top-1 experts, each called on the rows that chose it: two lookups of rows per expert and layer, each
    of which a GPU would have to tell the host about."""

    def __init__(self, mlp: nn.Module, config: MoLEConfig) -> None:
        super().__init__()
        fc1, fc2 = mlp.fc1, mlp.fc2
        self.mlp, self.scale = mlp, config.scale
        self.router = nn.Linear(fc1.in_features, config.experts)
        self.down = nn.ModuleList(Expert(fc1.in_features, fc1.out_features, config) for _ in range(config.experts))
        self.up = nn.ModuleList(Expert(fc2.in_features, fc2.out_features, config) for _ in range(config.experts))
        self.routing: Routing | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(T, N, D) to (T, N, D)."""
        probs = self.router(x).softmax(-1, dtype=torch.float32)
        choice = probs.argmax(-1)
        self.routing = Routing(probs, choice)
        rows, choice = x.flatten(0, 1), choice.flatten()
        hidden = self.add(self.down, rows, self.mlp.fc1(rows), choice)
        hidden = self.mlp.activation_fn(hidden)
        return self.add(self.up, hidden, self.mlp.fc2(hidden), choice).view(x.shape)

    def add(self, experts: nn.ModuleList, rows: Tensor, base: Tensor, choice: Tensor) -> Tensor:
        for index, expert in enumerate(experts):
            chosen = torch.where(choice == index)[0]
            base.index_add_(0, chosen, (self.scale * expert(rows[chosen])).to(base.dtype))
        return base


class ReleasedTower(nn.Module):
    """Takes the place of CLIPVisionTower in a student."""

    def __init__(self, config: Any, moe: MoLEConfig, select_layer: int = -2) -> None:
        super().__init__()
        config._attn_implementation = "eager"
        self.config, self.select_layer, self.is_loaded = config, select_layer, True
        self.net = CLIPVisionModel(config)
        self.net.set_attn_implementation("eager")
        self.net.requires_grad_(False)
        for layer in self.net.encoder.layers:
            layer.mlp = GatherLoopMLP(layer.mlp, moe)
        self.hidden_size = config.hidden_size
        self.image_size = config.image_size
        self.num_patches_per_side = config.image_size // config.patch_size

    def encode(self, images: Tensor) -> StudentFeatures:
        output = self.net(images, output_attentions=True, output_hidden_states=True)
        hidden = output.hidden_states[self.select_layer]
        routing = tuple(layer.mlp.routing for layer in self.net.encoder.layers)
        return StudentFeatures(hidden[:, 1:], hidden[:, 1:], hidden[:, 0], None, routing)


class ReleasedClip(nn.Module):
    """The CLIP teacher with every layer and every attention map."""

    def __init__(self, config: Any, select_layer: int = -2) -> None:
        super().__init__()
        config._attn_implementation = "eager"
        self.net = CLIPVisionModel(config).requires_grad_(False).eval()
        self.net.set_attn_implementation("eager")
        self.select_layer, self.width = select_layer, config.hidden_size
        self.grid = (config.image_size // config.patch_size,) * 2

    def encode(self, pixels: Tensor) -> TeacherFeatures:
        output = self.net(pixels, output_attentions=True, output_hidden_states=True)
        hidden = output.hidden_states[self.select_layer]
        attention = output.attentions[self.select_layer].mean(1)[:, 0, 1:]
        return TeacherFeatures(hidden[:, 1:], self.grid, hidden[:, 0], attention)


def prepare(pictures: Sequence[Image.Image], processors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Each encoder's pixels (M, 3, S, S) float32, made from the pictures with that encoder's own processor."""
    made = {}
    for name, processor in processors.items():
        canvas = tuple(int(channel * 255) for channel in processor.image_mean)
        squares = [expand2square(picture, canvas) for picture in pictures]
        rows = [processor.preprocess(square, return_tensors="pt")["pixel_values"][0] for square in squares]
        made[name] = torch.stack(rows)
    return made
