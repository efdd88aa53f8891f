"""The variants that are compared: ours, ours from cached features, one built the released way, and plain LLaVA.

Each is a step over batches of its own data loader; everything else (sizes, stage, dtype, threads, optimizer) is equal.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from data import Photographs
from released import GatherLoopMLP, ReleasedClip, ReleasedTower, prepare
from sizes import Sizes, build_student, build_teachers, clip_config, processor
from timing import Clock, Usage
from torch import Tensor, nn
from torch.utils.data import DataLoader

from llava.model.multimodal_encoder.move_kd.cache import (
    CachedTeacher,
    TeacherCache,
    describe,
    reduce_features,
    sample_key,
)
from llava.model.multimodal_encoder.move_kd.cache_writer import CacheWriter
from llava.model.multimodal_encoder.move_kd.config import DistillConfig, MoLEConfig
from llava.model.multimodal_encoder.move_kd.distiller import Distiller
from llava.train.collator import Collator
from llava.train.stages import FINETUNE, PRETRAIN, apply_stage

PARTS = (
    "data wait",
    "images",
    "teachers",
    "student encoder",
    "language model",
    "heads and loss",
    "backward",
    "optimizer",
)


@dataclass
class Settings:
    """What both variants have in common."""

    sizes: Sizes
    teachers: list[str]
    stage: str
    dtype: torch.dtype
    device: torch.device
    batch: int
    workers: int
    folder: Path
    checkpointing: bool = False


@dataclass
class Variant:
    """forward: a batch from `loader` to the loss. clock: seconds by part."""

    name: str
    distiller: Distiller
    forward: Callable[[Any], Tensor]
    loader: Callable[[int], Iterable[Any]]
    optimizer: torch.optim.Optimizer
    clock: Clock

    def step(self, batch: Any) -> None:
        loss = self.forward(batch)
        with self.clock.part("backward"):
            loss.backward()
        with self.clock.part("optimizer"):
            torch.nn.utils.clip_grad_norm_(self.distiller.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def epoch(self, steps: int) -> Usage:
        """What `steps` steps take from a standing start, their data workers included."""
        start = Usage.now()
        batches = iter(self.loader(steps))
        for _ in range(steps):
            with self.clock.part("data wait"):
                batch = next(batches)
            self.step(batch)
        del batches  # ends the workers, so that their time is known
        return Usage.now().since(start)

    def shares(self) -> dict[str, float]:
        """Seconds by part, nested ones taken apart."""
        seconds = dict(self.clock.seconds)
        student, distiller = seconds.pop("student"), seconds.pop("distiller")
        seconds["language model"] = student - seconds["student encoder"]
        seconds["heads and loss"] = distiller - student
        return {part: seconds.get(part, 0.0) for part in PARTS}


def optimizer_for(distiller: Distiller, stage: str) -> torch.optim.Optimizer:
    """AdamW over what the stage trains."""
    tower = distiller.student.get_vision_tower()
    behind = set() if isinstance(tower, ReleasedTower) else unused_layers(tower)
    names = frozenset(name for name, value in distiller.named_parameters() if id(value) in behind)
    apply_stage(distiller.parts(), PRETRAIN if stage == "pretrain" else FINETUNE, unused=names)
    for module in tower.modules():
        if isinstance(module, GatherLoopMLP):  # its experts, which the library does not know as such
            module.requires_grad_(True)
            module.mlp.requires_grad_(stage == "finetune")
    trained = [parameter for parameter in distiller.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-5)


def unused_layers(tower: Any) -> set[int]:
    model = tower.vision_tower.vision_model
    modules = [*model.encoder.layers[max(tower.layers) :], model.post_layernorm]
    return {id(parameter) for module in modules for parameter in module.parameters()}


def watch(variant: Variant, encoder: nn.Module) -> Variant:
    variant.clock.watch("student encoder", encoder)
    variant.clock.watch("student", variant.distiller.student)
    variant.clock.watch("distiller", variant.distiller)
    return variant


def distilled(settings: Settings, name: str, teachers: dict[str, Any], recipe: str = "ours") -> Variant:
    """Our step. teachers: live or cached; none for plain LLaVA without experts."""
    sizes, device, dtype = settings.sizes, settings.device, settings.dtype
    moe = MoLEConfig.from_recipe(recipe, rank=sizes.rank) if teachers else None
    with device:
        student = build_student(sizes, settings.folder / name, moe).to(dtype)
        student.leave_out_idle_logits()  # as llava.train does
        config = DistillConfig.from_recipe(recipe) if teachers else None
        distiller = Distiller(student, teachers, config).to(dtype).train()
    if settings.checkpointing:
        distiller.gradient_checkpointing_enable({"use_reentrant": False})
    sources = {name: teacher.source for name, teacher in teachers.items()}
    collator = Collator(pad_token_id=0)

    def loader(steps: int) -> Iterable[Any]:
        dataset = Photographs(steps * settings.batch, sizes.vocabulary, processor(sizes.image), sources)
        pin = device.type == "cuda"
        return DataLoader(dataset, settings.batch, num_workers=settings.workers, collate_fn=collator, pin_memory=pin)

    def forward(batch: Any) -> Tensor:
        batch = move(batch, device)
        batch.pop("ids")
        features = None
        if teachers:
            with variant.clock.part("teachers"), torch.no_grad():
                views = batch["distill"]["views"]
                features = {name: teacher(views[teacher.source.key]) for name, teacher in teachers.items()}
        return distiller(**batch, features=features)["loss"]

    variant = Variant(name, distiller, forward, loader, optimizer_for(distiller, settings.stage), Clock(device))
    return watch(variant, student.get_vision_tower().vision_tower.vision_model)


def our_variant(settings: Settings) -> Variant:
    teachers = build_teachers(settings.sizes, settings.teachers, settings.dtype, settings.device)
    return distilled(settings, "ours", teachers)


def plain_variant(settings: Settings) -> Variant:
    return distilled(settings, "plain LLaVA", {})


def cached_variant(settings: Settings) -> Variant:
    """Ours with features that were stored before: exact ones, of every picture, by the library's own cache."""
    live = build_teachers(settings.sizes, settings.teachers, settings.dtype, settings.device)
    views = Photographs(16, settings.sizes.vocabulary, processor(settings.sizes.image)).views()
    cached = {}
    for name, teacher in live.items():
        manifest, blank = describe(teacher)
        with CacheWriter(settings.folder / "cache", manifest, blank) as writer:
            for view in views:
                prepared = teacher.source.prepare(view)[None].to(settings.device)
                writer.add(sample_key(view), reduce_features(teacher(prepared), None)[0])
        cached[name] = CachedTeacher(name, TeacherCache(settings.folder / "cache" / manifest.folder))
    return distilled(settings, "ours, features cached", cached)


def released_variant(settings: Settings) -> Variant:
    sizes, device, dtype = settings.sizes, settings.device, settings.dtype
    moe = MoLEConfig.from_recipe("release", rank=sizes.rank)
    with device:
        student = build_student(sizes, settings.folder / "released", None)
        student.model.vision_tower = tower = ReleasedTower(clip_config(sizes), moe)
        teachers: dict[str, Any] = build_teachers(sizes, settings.teachers, dtype, device)
        teachers["clip"] = ReleasedClip(clip_config(sizes)).to(dtype)
        distiller = Distiller(student, teachers, DistillConfig.from_recipe("release")).to(dtype).train()
    if "sam" in teachers:
        teachers["sam"].net.set_attn_implementation("eager")  # the only one that the pinned transformers had
    sides = {name: sizes.image if name == "clip" else sizes.teacher_image for name in teachers}
    processors = {"student": processor(sizes.image), **{name: processor(side) for name, side in sides.items()}}
    collator = Collator(pad_token_id=0)

    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        pictures = [item.pop("picture") for item in items]
        return collator(items) | {"pictures": pictures}

    def loader(steps: int) -> Iterable[Any]:
        dataset = Photographs(steps * settings.batch, sizes.vocabulary)
        return DataLoader(dataset, settings.batch, num_workers=settings.workers, collate_fn=collate)

    def forward(batch: Any) -> Tensor:
        batch = move(batch, device)
        batch.pop("ids")
        pictures = batch.pop("pictures")
        with variant.clock.part("images"):
            pixels = {name: value.to(device, dtype) for name, value in prepare(pictures, processors).items()}
        with variant.clock.part("teachers"), torch.no_grad():
            features = {name: teacher.encode(pixels[name]) for name, teacher in teachers.items()}
        ones = torch.ones(len(pictures), device=device)
        distill = {"tile_index": torch.arange(len(pictures), device=device), "weight": ones, "tile_weight": ones}
        loss = distiller(distill=distill, features=features, images=pixels["student"], **batch)["loss"]
        if device.type == "cuda":
            torch.cuda.empty_cache()  # in every step, as released
        return loss

    variant = Variant(
        "released way", distiller, forward, loader, optimizer_for(distiller, settings.stage), Clock(device)
    )
    return watch(variant, tower.net)


def move(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {key: move(item, device) for key, item in value.items()}
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
