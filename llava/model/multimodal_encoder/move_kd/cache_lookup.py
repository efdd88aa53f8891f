"""Finding, below one directory, the cache of each teacher that a run asks for, or saying why none of them fits."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava.model.multimodal_encoder.move_kd.cache import CachedTeacher, CacheError, Grid, Manifest, TeacherCache
from llava.model.multimodal_encoder.move_kd.teachers import TeacherSpec, build_teacher, parse_specs
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

    A spec with `digest=` vouches for its weights; they need not be there then. location: see `parse_location`.
    Raises CacheError if a cache is missing, stale, incomplete or pooled without being asked for.
    """
    directory, pooled = parse_location(location)
    found = _manifests(directory)
    context = BuildContext(dtype=dtype, student_tower=student_tower)
    teachers = {}
    for spec in parse_specs(specs, released=released):
        wanted = _wanted(spec, context) if spec.digest is None else _vouched(spec, context)
        folder = _match(spec, wanted | {"pooled": pooled}, found, directory)
        teachers[spec.name] = CachedTeacher(spec.name, TeacherCache(folder))
    return teachers


def _manifests(directory: Path) -> dict[Path, Manifest]:
    if not directory.is_dir():
        raise CacheError(f"there is no teacher cache {directory}; write it with scripts/cache_teachers.py")
    folders = sorted(path.parent for path in directory.glob("*/manifest.json"))
    return {folder: Manifest.read(folder) for folder in folders}


def _wanted(spec: TeacherSpec, context: BuildContext) -> dict[str, Any]:
    teacher = build_teacher(spec, context)
    return {**teacher.signature(), "digest": teacher.digest}


def _vouched(spec: TeacherSpec, context: BuildContext) -> dict[str, Any]:
    """What the spec itself says; the rest is taken from the cache whose digest it names."""
    said: dict[str, Any] = {"kind": spec.kind, "digest": spec.digest}
    said["dtype"] = str(spec.dtype or context.dtype).removeprefix("torch.")
    said |= {key: list(value) for key, value in (("mean", spec.mean), ("std", spec.std)) if value is not None}
    return said


def _match(spec: TeacherSpec, wanted: Mapping[str, Any], found: Mapping[Path, Manifest], directory: Path) -> Path:
    """The folder that agrees in everything wanted. Raises CacheError with what each candidate differs in."""
    reasons = []
    for folder, manifest in found.items():
        if manifest.teacher["kind"] != spec.kind:
            continue
        differences = _differences(wanted, manifest)
        if not differences:
            return folder
        reasons.append(f"{folder.name} has {'; '.join(differences)}")
    there = "\n  ".join(reasons) or f"there are caches of {sorted({m.teacher['kind'] for m in found.values()})} only"
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
