"""Finding, below one directory, the cache of each teacher that a run asks for, or saying why none of them fits."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava.model.multimodal_encoder.move_kd.cache import CachedTeacher, CacheError, Grid, Manifest, TeacherCache
from llava.model.multimodal_encoder.move_kd.teachers import (
    TeacherSpec,
    build_teacher,
    parse_specs,
    vouched_signature,
)
from llava.model.multimodal_encoder.move_kd.teachers.base import BuildContext


def parse_location(text: str) -> tuple[Path, Grid | None]:
    """`DIR`, or `DIR,pool=24x24` for features averaged onto that grid, which a run must ask for. Raises ValueError."""
    directory, comma, rest = text.partition(",")
    if not comma:
        return Path(directory), None
    key, _, value = rest.partition("=")
    if key != "pool":
        raise ValueError(f"teacher cache {text!r}: {rest!r} is not understood; write DIR or DIR,pool=24x24")
    return Path(directory), parse_grid(value)


def parse_grid(text: str) -> Grid:
    """`24x24` as (24, 24). Raises ValueError."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise ValueError(f"{text!r} is no grid; write rows x columns, as in 24x24")
    return int(match[1]), int(match[2])


def open_cached_teachers(
    specs: Sequence[str],
    location: str,
    *,
    student_tower: nn.Module | None = None,
    dtype: torch.dtype = torch.float32,
    released: bool = False,
) -> dict[str, CachedTeacher]:
    """Cached teachers by name, each checked against its weights: they are loaded once, on the host, and dropped.

    A spec with `digest=` vouches for its weights; they need not be there then, and what they alone say (such as a
    size that neither spec nor defaults give) is taken from the cache. location: see `parse_location`.
    Raises CacheError if a cache is missing, stale, incomplete or pooled without being asked for.
    """
    directory, pooled = parse_location(location)
    found = _manifests(directory)
    context = BuildContext(dtype=dtype, student_tower=student_tower)
    teachers = {}
    for spec in parse_specs(specs, released=released):
        folder = _match(spec, context, pooled, found, directory)
        teachers[spec.name] = CachedTeacher(spec.name, TeacherCache(folder))
    return teachers


def _manifests(directory: Path) -> dict[Path, Manifest]:
    if not directory.is_dir():
        raise CacheError(f"there is no teacher cache {directory}; write it with scripts/cache_teachers.py")
    folders = sorted(path.parent for path in directory.glob("*/manifest.json"))
    return {folder: Manifest.read(folder) for folder in folders}


def _wanted(spec: TeacherSpec, context: BuildContext, manifests: Sequence[Manifest]) -> list[dict[str, Any]]:
    """What the cache of this teacher must say, for each of `manifests`: where the spec vouches for the weights, what
    they alone decide is as that cache has it."""
    if spec.digest is not None:
        return [vouched_signature(spec, context, it.teacher) | {"digest": spec.digest} for it in manifests]
    teacher = build_teacher(spec, context)
    return [teacher.signature() | {"digest": teacher.digest}] * len(manifests)


def _match(
    spec: TeacherSpec, context: BuildContext, pooled: Grid | None, found: Mapping[Path, Manifest], directory: Path
) -> Path:
    """The one folder that agrees in everything. Raises CacheError with what each candidate differs in."""
    folders = [folder for folder, manifest in found.items() if manifest.teacher["kind"] == spec.kind]
    wanted = _wanted(spec, context, [found[folder] for folder in folders])
    differences = {
        folder: _differences(values | {"pooled": pooled}, found[folder])
        for folder, values in zip(folders, wanted, strict=True)
    }
    fitting = [folder.name for folder in folders if not differences[folder]]
    if len(fitting) > 1:
        raise CacheError(f"{', '.join(fitting)} in {directory} all fit teacher {spec.name!r}; add size=... to its spec")
    if fitting:
        return directory / fitting[0]
    there = "\n  ".join(f"{folder.name} has {'; '.join(reasons)}" for folder, reasons in differences.items())
    there = there or f"there are caches of {sorted({m.teacher['kind'] for m in found.values()})} only"
    raise CacheError(
        f"no cache in {directory} is of teacher {spec.name!r} as this run has it:\n  {there}\n"
        "Write it with scripts/cache_teachers.py and the flags of this run"
    )


def _differences(wanted: Mapping[str, Any], manifest: Manifest) -> list[str]:
    there = {**manifest.teacher, "digest": manifest.digest, "pooled": manifest.pooled}
    found = []
    for key, value in wanted.items():
        is_equal = there[key].startswith(value) if key == "digest" else there.get(key) == value
        if not is_equal:
            found.append(f"{_words(key, there.get(key))}, the run {_words(key, value)}")
    return found


def _words(key: str, value: Any) -> str:
    if key == "digest":
        return f"weights {value[:12]}"
    if key == "pooled":
        return "exact features" if value is None else f"features pooled to {value[0]}x{value[1]}"
    return f"{key} {value}"
