"""Every number of a playground run: the world, the pieces trained on it, and the two stages."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from playground.clip import ClipTraining
from playground.language import LanguageTraining
from playground.llava_data import DataSize
from playground.teachers import TeachersConfig, TeacherTraining
from playground.world import WorldConfig

CELL = 32  # pixels; of other cells the teachers' windows would see parts


@dataclass(frozen=True)
class StageTraining:
    """rate: of the projector in stage 1 and of projector and language model in stage 2. tower_rate: stage 2 only."""

    steps: int
    rate: float
    batch: int = 16
    tower_rate: float = 1e-3
    save_steps: int = 200


@dataclass(frozen=True)
class Distillation:
    """What the distilling arm has besides: who teaches it beside CLIP, and experts in its tower."""

    teachers: tuple[str, ...] = ("eva", "convnext")
    experts: int = 3
    rank: int = 8
    weight: float = 4.0


@dataclass(frozen=True)
class Recipe:
    name: str
    world: WorldConfig = field(default_factory=WorldConfig)
    data: DataSize = field(default_factory=DataSize)
    language: LanguageTraining = field(default_factory=LanguageTraining)
    clip: ClipTraining = field(default_factory=ClipTraining)
    teachers: TeachersConfig = field(default_factory=TeachersConfig)
    distill: Distillation = field(default_factory=Distillation)
    pretrain: StageTraining = field(default_factory=lambda: StageTraining(1000, 3e-3))
    finetune: StageTraining = field(default_factory=lambda: StageTraining(600, 1e-3))

    def __post_init__(self) -> None:
        """Raises ValueError for pieces that do not fit each other."""
        if self.world.cell != CELL:
            raise ValueError(f"cells of {self.world.cell} pixels: the teachers' windows are made for {CELL}")
        side, patch = self.clip.side, self.clip.patch
        if side % patch or self.language.patches != side // patch:
            raise ValueError(
                f"a CLIP of {side} x {side} pixels in patches of {patch}, and a language model that learns to read "
                f"{self.language.patches} x {self.language.patches} patches; clip.side must be clip.patch times "
                "language.patches"
            )

    def fingerprint(self, *parts: str) -> str:
        """Changes when one of the named parts does."""
        chosen = {part: asdict(self)[part] for part in parts}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


# `quick` is long enough for a difference to show, `lab` for most of it: textures are learned late.
RECIPES: Mapping[str, Recipe] = {
    "lab": Recipe("lab"),
    "quick": Recipe(
        "quick",
        data=DataSize(pretrain=1600, finetune=2000),
        language=LanguageTraining(steps=1300),
        clip=ClipTraining(steps=600),
        pretrain=StageTraining(550, 3e-3),
        finetune=StageTraining(350, 1e-3),
    ),
    "smoke": Recipe(
        "smoke",
        data=DataSize(pretrain=64, finetune=64, validation=8, heldout=16, conversations=1, turns=4),
        language=LanguageTraining(scenes=100, steps=12, batch=4, captions=2),
        clip=ClipTraining(scenes=200, easy_scenes=100, steps=8, batch=16),
        teachers=TeachersConfig(*(TeacherTraining(4, batch=8, scenes=40) for _ in range(3))),
        pretrain=StageTraining(4, 3e-3, batch=8, save_steps=2),
        finetune=StageTraining(4, 1e-3, batch=8, save_steps=2),
    ),
}
