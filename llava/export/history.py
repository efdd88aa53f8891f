"""What a checkpoint says about how it was trained: its config.json and, if it is there, trainer_state.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.model.checkpoint_io import CheckpointError, find_file, read_json
from llava.model.multimodal_encoder.move_kd.config import MOLE_RECIPES, MoLEConfig

SHOWN_METRICS = ("loss", "train_loss", "lm", "eval_loss", "balance")
PER_TEACHER = ("kd/", "cosine/", "cka/")  # the last two whatever the objective, whose own name the term has


@dataclass(frozen=True)
class History:
    """teachers: by name, empty if none is known. metrics: last logged values by name."""

    steps: int | None
    epochs: float | None
    teachers: tuple[str, ...]
    metrics: Mapping[str, float]


def read_history(path: str) -> History:
    """Empty for a checkpoint without trainer_state.json or with one that cannot be read."""
    try:
        file = find_file(path, "trainer_state.json")
        state = {} if file is None else read_json(file)
    except CheckpointError:
        state = {}
    last: dict[str, Any] = {}
    for row in state.get("log_history") or []:
        last |= row
    teachers = tuple(sorted({name.partition("/")[2] for name in last if name.startswith(PER_TEACHER)}))
    shown = {
        name: float(value)
        for name, value in last.items()
        if isinstance(value, int | float) and (name in SHOWN_METRICS or name.startswith(PER_TEACHER))
    }
    return History(state.get("global_step"), state.get("epoch"), teachers, shown)


def is_local(name: str) -> bool:
    return Path(name).exists() or name.startswith(("/", ".", "~"))


def public_name(name: str) -> str:
    """A hub name as it is; of a local directory the last part, since the rest says nothing to others."""
    return Path(name).name if is_local(name) else name


def recipe_of(mole: MoLEConfig) -> str | None:
    """The named recipe that these experts are of, however many of whatever rank, if any."""
    sizes = {"experts": mole.experts, "rank": mole.rank}
    return next((name for name in MOLE_RECIPES if MoLEConfig.from_recipe(name, **sizes) == mole), None)
