"""What all runs of a lab share: one world, its data, and the language model, CLIP and teachers trained on it.

    python -m playground.lab.world PIECE --out DIR

A lab's folder remembers its recipe in lab.json; each piece is made once, and again where the recipe changed.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llava.model.checkpoint_io import atomic
from playground.features import write_cache
from playground.lab.arms import TEACHERS
from playground.lab.plugins.truth import write_labels
from playground.lab.run import Shared, add_plugins
from playground.make import make_piece
from playground.processes import Command, python, run_side_by_side
from playground.recipe import RECIPES, Recipe
from playground.steps import Stamps
from playground.teachers import KINDS, label_cells, label_patches
from playground.world import draw_scenes, render

CHUNK = 250
TOLD = ("texture", "digit", "shape", "size")  # what the teachers `convnext` and `eva` are trained to tell
DATA = ("world", "data")
# By name of a piece: the parts of the recipe that it depends on, and the pieces that it needs.
PIECES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "language": (("world", "language"), ()),
    "clip": (("world", "clip"), ()),
    "data": (DATA, ()),
    **{f"teacher-{kind}": (("world", "teachers"), ()) for kind in KINDS},
    "truth": (DATA, ("data",)),
    "cache": ((*DATA, "clip", "teachers"), ("truth", "language", "clip", *(f"teacher-{kind}" for kind in KINDS))),
}
DECISIVE = ("world", "data", "language", "clip", "teachers", "pretrain", "finetune")


def read_settings(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`world.texture_period=8` as a part of the recipe and what it is to be. Raises ValueError."""
    settings: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, _, value = text.partition("=")
        part, _, item = name.partition(".")
        known = settable(part)
        if item not in known:
            there = f"{part} has {sorted(known)}" if known else f"the parts are {', '.join(filter(settable, DECISIVE))}"
            raise ValueError(f"--set {text}: expected PART.ITEM=VALUE, as in world.texture_period=8; {there}")
        settings.setdefault(part, {})[item] = read_value(text, item, value, known[item])
    return settings


def settable(part: str) -> dict[str, Any]:
    """Items of a part of the recipe, and what they are."""
    items = asdict(getattr(RECIPES["lab"], part)) if part in DECISIVE else {}
    # The rate of the tower in stage 1 is the same for all arms that train it, and no item.
    return {k: v for k, v in items.items() if not isinstance(v, dict) and (part, k) != ("pretrain", "tower_rate")}


def read_value(setting: str, item: str, text: str, present: Any) -> Any:
    """Of the kind of the item's present value: text, a whole number, a number, or a list of numbers."""
    if isinstance(present, str):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(present, tuple):
        is_fit = isinstance(value, list) and len(value) == len(present) and all(map(is_number, value))
        wanted = f"{len(present)} numbers in brackets"
    elif isinstance(present, float):
        is_fit, wanted = is_number(value), "a number that is not negative"
    else:
        least = 0 if item == "seed" else 1
        is_fit, wanted = type(value) is int and value >= least, f"a whole number, at least {least}"
    if not is_fit:
        raise ValueError(f"--set {setting}: {text!r} is not {wanted}")
    return value


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and value >= 0


def build_recipe(name: str, settings: Mapping[str, Mapping[str, Any]]) -> Recipe:
    recipe = RECIPES[name]
    return replace(recipe, **{part: replace(getattr(recipe, part), **items) for part, items in settings.items()})


def open_lab(out: Path, recipe: str, settings: Mapping[str, Mapping[str, Any]]) -> tuple[Shared, str]:
    """The lab in `out`, made or found. Raises ValueError for a recipe that cannot be, or if another was begun there."""
    wanted = {"recipe": recipe, "settings": settings}
    path = out / "lab.json"
    if path.exists() and json.loads(path.read_text()) != wanted:
        raise ValueError(f"{out} is a lab of {path.read_text()}, not of {json.dumps(wanted)}; choose another --out")
    build_recipe(recipe, settings)  # before anything is written: the folder would remember what cannot be
    if not path.exists():
        with atomic(path) as file:
            file.write_text(json.dumps(wanted))
    return load_shared(out)


def load_shared(out: Path) -> tuple[Shared, str]:
    """What the runs of a lab share, and the fingerprint of its world."""
    settings = json.loads((out / "lab.json").read_text())
    recipe = build_recipe(settings["recipe"], settings["settings"])
    return Shared(out / "shared", recipe), recipe.fingerprint(*DECISIVE)


@dataclass(frozen=True)
class Making:
    """Keeps the stamps of the pieces while they are made."""

    shared: Shared
    stamps: Stamps

    def fingerprint(self, piece: str) -> str:
        return self.shared.recipe.fingerprint(*PIECES[piece][0])

    def output(self, piece: str) -> Path:
        kind = piece.removeprefix("teacher-")
        return self.shared.folder / ("teachers" if piece == "truth" or kind != piece else "") / kind

    def is_done(self, piece: str) -> bool:
        return self.stamps.is_done(piece, self.fingerprint(piece), self.output(piece))

    def begin(self, piece: str) -> None:
        self.stamps.begin(piece, self.fingerprint(piece), self.output(piece))

    def finish(self, piece: str, seconds: float) -> None:
        self.stamps.finish(piece, self.fingerprint(piece), seconds)


def make_shared(out: Path, slots: int) -> None:
    """Make what is not there yet. Raises CommandFailed."""
    shared, _ = load_shared(out)
    making = Making(shared, Stamps(shared.folder))
    commands = [
        Command(
            piece,
            f"shared: {piece}",
            python("playground.lab.world", piece, "--out", str(out)),
            shared.folder / "logs" / f"{piece}.txt",
            0,
            1,
            needs,
        )
        for piece, (_, needs) in PIECES.items()
        if not making.is_done(piece)
    ]
    run_side_by_side(commands, slots, making)


def make(piece: str, shared: Shared) -> None:
    if piece == "truth":
        write_truth(shared)
    elif piece == "cache":
        add_plugins()
        specs = [shared.teacher(kind) for kind in (*TEACHERS, "sam", "truth")]
        write_cache(shared.folder, shared.recipe, specs, shared.cache)
    else:
        kind, _, teacher = piece.partition("-")
        make_piece("teachers" if teacher else kind, shared.recipe, shared.folder, [teacher] if teacher else [])


def write_truth(shared: Shared) -> None:
    """The labels of every patch of every training picture."""
    size, world = shared.recipe.data, shared.recipe.world
    scenes = draw_scenes(world, "train", size.pretrain + size.finetune)
    parts = []
    for start in range(0, len(scenes), CHUNK):
        chunk = scenes[start : start + CHUNK]
        pictures = render(chunk, world)
        parts.append(label_patches(chunk, pictures) | spread(label_cells(chunk, pictures), world.side // 8))
    images = [shared.folder / "data" / "images" / "train" / f"{scene.seed[-1]:06d}.png" for scene in scenes]
    write_labels(shared.folder / "teachers" / "truth", images, {n: torch.cat([p[n] for p in parts]) for n in TOLD})


def spread(labels: Mapping[str, torch.Tensor], side: int) -> dict[str, torch.Tensor]:
    """Labels of cells (S, 9) as labels of patches (S, side * side)."""
    grids = {name: values.view(-1, 1, 3, 3).float() for name, values in labels.items()}
    return {n: torch.nn.functional.interpolate(g, (side, side)).long().flatten(1) for n, g in grids.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("piece", choices=sorted(PIECES))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    make(options.piece, load_shared(options.out)[0])


if __name__ == "__main__":
    main()
