"""What teachers say of the training pictures, computed once for both stages, as scripts/cache_teachers.py does it."""

from collections.abc import Sequence
from pathlib import Path

from llava.train.cache_teachers import cache_teachers
from playground.recipe import Recipe
from playground.stages import pretrain_flags

TEMPLATES = {"pretrain": "plain", "finetune": "v1"}  # by name of the data


def write_cache(out: Path, recipe: Recipe, specs: Sequence[str], cache: Path) -> None:
    """specs: teachers, as `--encoder_teachers` takes them. `out` holds the data, language model and CLIP."""
    flags = pretrain_flags(out, recipe, out / "unused")
    for name, template in TEMPLATES.items():
        data = ["--data_path", str(out / "data" / f"{name}.json"), "--version", template]
        own = ["--teacher_cache", str(cache), "--batch_size", "64", "--num_workers", "1"]
        cache_teachers([*flags, *data, "--encoder_teachers", *specs, *own])
