"""Small teachers, each with a skill that the tiny CLIP lacks, written in the formats their large models come in.

They see every picture at its full size (the student sees half of it) and learn from dense labels: `convnext` reads
textures and digits, `eva` names shapes and sizes patch by patch, `sam` outlines things.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import ConvNextConfig, ConvNextModel, SamVisionConfig, SamVisionModel

from llava.model.multimodal_encoder.move_kd.teachers._spec import PRESETS
from llava.model.multimodal_encoder.move_kd.teachers.eva02 import PREFIX, EvaBackbone, EvaConfig, rotary_table
from playground.training import TrainingLog, cosine_rate, seed_everything
from playground.world import GRID, SHAPES, SIZES, TEXTURES, Pictures, Scene, WorldConfig, draw_scenes, render

PATCH = 8  # side in pixels of what one token of each teacher stands for
WIDTH = 96
CHUNK = 250
KINDS = ("convnext", "eva", "sam")
EVA_FILE = "eva02_L_coco_det_sys_o365.pth"


@dataclass(frozen=True)
class TeacherTraining:
    """scenes: training pictures, none of which another piece is tested on. rate: peak of a cosine."""

    steps: int
    rate: float = 3e-3
    batch: int = 64
    scenes: int = 6000
    seed: int = 0


@dataclass(frozen=True)
class TeachersConfig:
    """One training per kind. Digits break through late: with fewer steps `convnext` has none to teach."""

    convnext: TeacherTraining = field(default_factory=lambda: TeacherTraining(360))
    eva: TeacherTraining = field(default_factory=lambda: TeacherTraining(240))
    sam: TeacherTraining = field(default_factory=lambda: TeacherTraining(200))

    def of(self, kind: str) -> TeacherTraining:
        return {"convnext": self.convnext, "eva": self.eva, "sam": self.sam}[kind]


class Skill(NamedTuple):
    """outputs: per token or cell, by what they tell. label: scenes and pictures to one tensor per output.

    A teacher's tokens are averaged over the blocks of `pool` x `pool` that share a label.
    """

    outputs: Mapping[str, int]
    label: Callable[[Sequence[Scene], Pictures], dict[str, Tensor]]
    pool: int
    preset: str


class Lessons(NamedTuple):
    """pixels: (S, 3, H, H) uint8. labels: long (S, P) classes, 0 for nothing there, or float (S, P, C) in 0 to 1."""

    pixels: Tensor
    labels: dict[str, Tensor]


def label_cells(scenes: Sequence[Scene], pictures: Pictures) -> dict[str, Tensor]:
    """Texture and digit of every cell, (S, 9)."""
    texture, digit = (torch.zeros(len(scenes), GRID * GRID, dtype=torch.long) for _ in range(2))
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            texture[row, thing.cell] = 1 + TEXTURES.index(thing.texture)
            digit[row, thing.cell] = 0 if thing.digit is None else 1 + int(thing.digit)
    return {"texture": texture, "digit": digit}


def label_patches(scenes: Sequence[Scene], pictures: Pictures) -> dict[str, Tensor]:
    """Shape and size of the thing that covers a quarter of a patch or more, (S, P)."""
    owner = torch.from_numpy(split_patches(pictures.owner))  # (S, P, 64); a patch lies in one cell, so in one thing
    place = torch.where((owner >= 0).float().mean(-1) >= 0.25, owner.amax(-1).long() + 1, 0)
    shape, size = (torch.zeros(len(scenes), 1 + max(len(s.things) for s in scenes), dtype=torch.long) for _ in "ab")
    for row, scene in enumerate(scenes):
        for index, thing in enumerate(scene.things, start=1):
            shape[row, index] = 1 + SHAPES.index(thing.shape)
            size[row, index] = 1 + SIZES.index(thing.size)
    return {"shape": shape.gather(1, place), "size": size.gather(1, place)}


def label_pixels(scenes: Sequence[Scene], pictures: Pictures) -> dict[str, Tensor]:
    """Which pixels of each patch belong to a thing, and which of those lie at its border, (S, P, 64)."""
    inside = pictures.owner >= 0
    padded = np.pad(inside, ((0, 0), (1, 1), (1, 1)))
    eroded = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1] & padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]
    masks = {"mask": inside, "edge": inside & ~eroded}
    return {name: torch.from_numpy(split_patches(mask)).float() for name, mask in masks.items()}


def split_patches(image: NDArray[Any]) -> NDArray[Any]:
    """(S, H, H) to (S, P, PATCH * PATCH) in reading order."""
    side = image.shape[1] // PATCH
    tiles = image.reshape(len(image), side, PATCH, side, PATCH).transpose(0, 1, 3, 2, 4)
    return np.ascontiguousarray(tiles.reshape(len(image), side * side, PATCH * PATCH))


SKILLS: Mapping[str, Skill] = {
    "convnext": Skill({"texture": 1 + len(TEXTURES), "digit": 11}, label_cells, 4, "clip"),
    "eva": Skill({"shape": 1 + len(SHAPES), "size": 1 + len(SIZES)}, label_patches, 1, "imagenet"),
    "sam": Skill({"mask": PATCH**2, "edge": PATCH**2}, label_pixels, 1, "imagenet"),
}


class ConvNextBody(nn.Module):
    """Patches of 4, one block of 32 channels, a stride of 2, one block of 96."""

    def __init__(self, side: int) -> None:
        super().__init__()
        config = ConvNextConfig(
            num_stages=2, depths=[1, 1], hidden_sizes=[32, WIDTH], patch_size=PATCH // 2, layer_scale_init_value=1.0
        )
        self.net = ConvNextModel(config)
        for parameter in self.net.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net.encoder(self.net.embeddings(pixels)).last_hidden_state

    def save(self, directory: Path) -> None:
        self.net.save_pretrained(directory)


class EvaBody(nn.Module):
    """Three blocks; the middle one sees the whole picture, the others windows as large as a cell."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.tokens = side // PATCH
        self.config = EvaConfig(WIDTH, 3, 3, PATCH, 2 * WIDTH, 4, frozenset({1}), self.tokens**2 + 1)
        self.net = EvaBackbone(self.config, side)
        nn.init.normal_(self.net.pos_embed, std=0.3)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net(pixels).permute(0, 3, 1, 2)

    def save(self, directory: Path) -> None:
        """As a detector's checkpoint: the backbone's tensors, and the rotary tables that tell its windows."""
        state = {PREFIX + key: value for key, value in self.net.state_dict().items()}
        sides = {f"blocks.{index}.attn.rope": 4 for index in range(self.config.depth)}
        sides |= {f"blocks.{index}.attn.rope": self.tokens for index in self.config.global_blocks}
        sides |= {"rope_win": self.config.window, "rope_glb": self.tokens}
        for name, side in sides.items():
            tables = rotary_table(side, WIDTH // self.config.heads, self.config.rope_grid)
            for part, table in zip(("cos", "sin"), tables, strict=True):
                state[f"{PREFIX}{name}.freqs_{part}"] = table
        torch.save({"ema_state": state}, directory / EVA_FILE)


class SamBody(nn.Module):
    """SAM's encoder: two blocks, the first one windowed, and the neck."""

    def __init__(self, side: int) -> None:
        super().__init__()
        config = SamVisionConfig(
            hidden_size=64,
            output_channels=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=side,
            patch_size=PATCH,
            window_size=4,
            global_attn_indexes=[1],
            mlp_dim=128,
        )
        self.net = SamVisionModel(config)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net(pixels).last_hidden_state

    def save(self, directory: Path) -> None:
        self.net.save_pretrained(directory)


BODIES: Mapping[str, Callable[[int], ConvNextBody | EvaBody | SamBody]] = {
    "convnext": ConvNextBody,
    "eva": EvaBody,
    "sam": SamBody,
}


def make_lessons(skill: Skill, scenes: Sequence[Scene], world: WorldConfig) -> Lessons:
    pixels, labels = [], []
    for start in range(0, len(scenes), CHUNK):
        chunk = scenes[start : start + CHUNK]
        pictures = render(chunk, world)
        pixels.append(torch.from_numpy(pictures.pixels).permute(0, 3, 1, 2))
        labels.append(skill.label(chunk, pictures))
    return Lessons(torch.cat(pixels), {name: torch.cat([part[name] for part in labels]) for name in skill.outputs})


class Pupil(nn.Module):
    """A teacher in training: its own normalization, the network, and one linear layer that reads the labels off."""

    mean: Tensor
    std: Tensor

    def __init__(self, kind: str, side: int) -> None:
        super().__init__()
        self.skill = SKILLS[kind]
        self.body = BODIES[kind](side)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in PRESETS[self.skill.preset])
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.head = nn.LazyLinear(sum(self.skill.outputs.values()))

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, H) uint8 to logits (B, P, C) by output."""
        tokens = self.body((pixels.float() / 255 - self.mean) / self.std)  # (B, D, side, side)
        tokens = F.avg_pool2d(tokens, self.skill.pool).flatten(2).transpose(1, 2)
        logits = self.head(tokens).split(list(self.skill.outputs.values()), dim=-1)
        return dict(zip(self.skill.outputs, logits, strict=True))


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.is_floating_point():
        return F.binary_cross_entropy_with_logits(logits, labels)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def score_of(logits: Tensor, labels: Tensor) -> float:
    """Accuracy where there is something, or the intersection over the union of masks."""
    if labels.is_floating_point():
        said, true = logits > 0, labels > 0.5
        return ((said & true).sum() / (said | true).sum()).item()
    there = labels > 0
    return (logits.argmax(-1) == labels)[there].float().mean().item()


def train(kind: str, config: TeacherTraining, world: WorldConfig, directory: Path) -> dict[str, float]:
    """Train, save, and return the quality of each output on validation scenes."""
    seed_everything(config.seed)
    skill = SKILLS[kind]
    lessons = make_lessons(skill, draw_scenes(world, "train", config.scenes), world)
    pupil = Pupil(kind, world.side)
    pupil(lessons.pixels[:1])  # gives the head its width
    optimizer = torch.optim.AdamW(pupil.parameters(), lr=config.rate, betas=(0.9, 0.99), weight_decay=0.01)
    with TrainingLog(directory / "log.jsonl", config.steps, kind) as log:
        for step in range(config.steps):
            for group in optimizer.param_groups:
                group["lr"] = cosine_rate(config.rate, step, config.steps)
            chosen = torch.randperm(len(lessons.pixels))[: config.batch]
            logits = pupil(lessons.pixels[chosen])
            loss = torch.stack([loss_of(logits[name], lessons.labels[name][chosen]) for name in logits]).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(pupil.parameters(), 1.0)
            optimizer.step()
            log.add(step, loss)
    pupil.body.save(directory)
    quality = measure(pupil, make_lessons(skill, draw_scenes(world, "validation", 300), world))
    (directory / "quality.json").write_text(json.dumps(quality))
    return quality


@torch.no_grad()
def measure(pupil: Pupil, lessons: Lessons) -> dict[str, float]:
    pupil.eval()
    logits = pupil(lessons.pixels)
    return {name: score_of(logits[name], lessons.labels[name]) for name in logits}
