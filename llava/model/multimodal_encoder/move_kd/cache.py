"""Teacher features on disk, for small or repeated runs: the same numbers as the live teacher's, without running it.

One folder per teacher, named after everything that decides its features: weights digest, source, dtype, options,
reduction and code version. In it lie shards (safetensors, each with a JSON beside it that lists its samples and
checksums) and one mark per writer that has finished. Samples are found by the content of what they show. A cache that
is incomplete, cut, stale or of another teacher is refused with the reason; nothing is ever recomputed silently.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import send_to_device
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llava.model.multimodal_encoder.move_kd.teachers.base import FrozenTeacher
from llava.model.multimodal_encoder.move_kd.types import TeacherFeatures, View, stack

FORMAT = 1
MANIFEST = "manifest.json"
BLANK = "blank"  # the key of what the teacher says about a sample without a picture
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}
Grid = tuple[int, int]


class CacheError(ValueError):
    """A cache that cannot be used, and why."""


def sample_key(view: View) -> str:
    """32 hexadecimal digits that stand for what the view shows: its own key, or else its pixels; and how it is cut."""
    digest = hashlib.blake2b(view.fit.encode(), digest_size=16)
    if view.key:
        digest.update(view.key.encode())
    else:
        digest.update(repr(view.image.size).encode())
        digest.update(view.image.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Manifest:
    """What a cache folder holds. features: shape and dtype of each tensor of a sample.

    pooled: None for exact features, else the grid they were averaged onto, which changes what is learned from them.
    """

    name: str
    teacher: Mapping[str, Any]
    digest: str
    grid: Grid
    width: int
    pooled: Grid | None
    features: Mapping[str, tuple[tuple[int, ...], str]]

    @property
    def key(self) -> str:
        """sha256 over everything that decides the features; the name a run gives the teacher does not."""
        content = [FORMAT, dict(self.teacher), self.digest, self.pooled]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def folder(self) -> str:
        return f"{self.teacher['kind']}-{self.key[:16]}"

    @property
    def bytes_per_sample(self) -> int:
        return sum(torch.Size(shape).numel() * DTYPES[dtype].itemsize for shape, dtype in self.features.values())

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "key": self.key, **{name: vars(self)[name] for name in self.__dataclass_fields__}}

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Raises CacheError for a folder that is no cache, is of another format, or was edited."""
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise CacheError(f"{folder} is no teacher cache: {path.name} cannot be read ({error})") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise CacheError(f"{folder} has another format than {FORMAT}, which this version reads; write it again")
        try:
            manifest = cls(
                name=content["name"],
                teacher=content["teacher"],
                digest=content["digest"],
                grid=tuple(content["grid"]),
                width=content["width"],
                pooled=tuple(content["pooled"]) if content["pooled"] else None,
                features={key: (tuple(shape), dtype) for key, (shape, dtype) in content["features"].items()},
            )
            is_intact = manifest.key == content["key"] and folder.name == manifest.folder
        except (KeyError, TypeError, ValueError) as error:
            raise CacheError(f"{path} is damaged: {error!r}") from None
        if not is_intact:
            raise CacheError(f"{folder} is not what its {MANIFEST} says, its key does not fit: renamed or edited")
        return manifest


def describe(teacher: FrozenTeacher, pooled: Grid | None = None) -> tuple[Manifest, dict[str, Tensor]]:
    """The manifest of a cache of this teacher, and its features of a blank. Raises ValueError for a finer grid."""
    if pooled is not None and (pooled[0] > teacher.grid[0] or pooled[1] > teacher.grid[1]):
        raise ValueError(f"teacher {teacher.name!r} has a grid of {teacher.grid}; it cannot be pooled to {pooled}")
    prepared = send_to_device(stack([teacher.source.blank()]), teacher.pixel_mean.device)
    [blank] = reduce_features(teacher(prepared), pooled)
    manifest = Manifest(
        name=teacher.name,
        teacher=teacher.signature(),
        digest=teacher.digest,
        grid=pooled or teacher.grid,
        width=teacher.width,
        pooled=pooled,
        features={key: (tuple(value.shape), str(value.dtype)) for key, value in sorted(blank.items())},
    )
    return manifest, blank


def reduce_features(features: TeacherFeatures, pooled: Grid | None) -> list[dict[str, Tensor]]:
    """M samples' tensors by name, on the host in their own dtypes; averaged onto `pooled` if given.

    A pooled attention row keeps its sum.
    """
    named = {"patches": features.patches, "cls": features.cls, "cls_attention": features.cls_attention}
    tensors = {key: value for key, value in named.items() if value is not None}
    if pooled is not None:
        for key in {"patches", "cls_attention"} & tensors.keys():
            tensors[key] = _pool(tensors[key], features.grid, pooled)
        if "cls_attention" in tensors:
            shrink = pooled[0] * pooled[1] / (features.grid[0] * features.grid[1])
            tensors["cls_attention"] = tensors["cls_attention"] / shrink
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    return [{key: value[index] for key, value in tensors.items()} for index in range(len(features.patches))]


def _pool(tokens: Tensor, grid: Grid, pooled: Grid) -> Tensor:
    """(M, N[, D]) over `grid` to (M, N'[, D]) over `pooled`, means in float32."""
    square = tokens.unflatten(1, grid).float()
    square = square[..., None] if square.ndim == 3 else square
    averaged = F.adaptive_avg_pool2d(square.permute(0, 3, 1, 2), pooled).permute(0, 2, 3, 1).flatten(1, 2)
    return (averaged if tokens.ndim == 3 else averaged[..., 0]).to(tokens.dtype)


def checksum(sample: Mapping[str, Tensor]) -> int:
    """crc32 over the sample's bytes, tensors in name order."""
    value = 0
    for key in sorted(sample):
        value = zlib.crc32(sample[key].contiguous().reshape(-1).view(torch.uint8).numpy().data, value)
    return value


class TeacherCache:
    """A finished cache folder, read at random. Safe to hand to forked and spawned data workers."""

    def __init__(self, folder: Path | str) -> None:
        """Raises CacheError if anything that the writers finished is missing or has another size."""
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        self.places: dict[str, tuple[str, int]] = {}  # sample -> shard, checksum
        for name, samples in _finished_shards(self.folder).items():
            self.places.update({key: (name, crc) for key, crc in samples.items()})
        if BLANK not in self.places:
            raise CacheError(f"{self.folder} holds no features of a blank; it was not written to its end")
        self._open: dict[str, Any] = {}
        self._pid = os.getpid()

    def __len__(self) -> int:
        """Pictures, without the blank."""
        return len(self.places) - 1

    def __contains__(self, key: str) -> bool:
        return key in self.places

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": {}}  # file handles stay in the process that opened them

    def read(self, key: str) -> dict[str, Tensor]:
        """One sample's tensors, checked. Raises CacheError for one that is not there or is damaged."""
        if key not in self.places:
            raise CacheError(f"{self.folder} holds no sample {key}")
        shard, crc = self.places[key]
        try:
            handle = self._handle(shard)
            sample = {name: handle.get_tensor(f"{key}.{name}") for name in self.manifest.features}
        except (OSError, SafetensorError) as error:
            raise CacheError(f"{self.folder / shard} cannot be read: {error}") from None
        if checksum(sample) != crc:
            raise CacheError(f"{self.folder / shard}: sample {key} is damaged (checksum differs); write it again")
        return sample

    def _handle(self, shard: str) -> Any:
        if self._pid != os.getpid():  # a forked worker opens its own
            self._open, self._pid = {}, os.getpid()
        if shard not in self._open:
            self._open[shard] = safe_open(self.folder / shard, framework="pt")
        return self._open[shard]

    def verify(self) -> None:
        """Read every shard whole against its sha256. Raises CacheError for the first that differs."""
        for path in sorted(self.folder.glob("shard-*.json")):
            entry = _read_json(path)
            with (self.folder / entry["file"]).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                    raise CacheError(f"{self.folder / entry['file']} is damaged (sha256 differs); write it again")


def _finished_shards(folder: Path) -> dict[str, dict[str, int]]:
    """Samples and checksums by shard file. Raises CacheError unless a whole set of writers has finished."""
    marks = sorted(folder.glob("writer-*-of-*.json"))
    counts: dict[int, set[int]] = {}
    for mark in marks:
        _, writer, _, writers = mark.stem.split("-")
        counts.setdefault(int(writers), set()).add(int(writer))
    if not any(len(done) == writers for writers, done in counts.items()):
        state = ", ".join(f"{len(done)} of {writers}" for writers, done in counts.items()) or "none"
        raise CacheError(f"{folder} is not complete: {state} of its writers finished; run the writing again to resume")
    named = {name for mark in marks for name in _read_json(mark)["shards"]}
    named |= {listing.with_suffix(".safetensors").name for listing in folder.glob("shard-*.json")}
    return {name: _checked_shard(folder, name) for name in sorted(named)}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CacheError(f"{path} is damaged: {error}; run the writing again") from None


def _checked_shard(folder: Path, name: str) -> dict[str, int]:
    listing, shard = (folder / name).with_suffix(".json"), folder / name
    if not listing.is_file() or not shard.is_file():
        raise CacheError(f"{folder} is not whole: {name} or its listing is missing; run the writing again")
    entry = _read_json(listing)
    size = shard.stat().st_size
    if size != entry["bytes"]:
        raise CacheError(
            f"{shard} has {size:,} bytes instead of {entry['bytes']:,}: cut or overwritten; write it again"
        )
    return entry["samples"]


@dataclass(frozen=True)
class CachedSource:
    """Reads features in the data workers, in place of pictures."""

    cache: TeacherCache = field(compare=False)
    teacher: str

    @property
    def key(self) -> str:
        return f"cache_{self.cache.manifest.key[:32]}"

    def prepare(self, view: View) -> dict[str, Tensor]:
        """The sample's tensors as integers of the same bits: no mixed-precision code on the way may round them.

        Raises CacheError for a view that the cache does not know.
        """
        key = sample_key(view)
        if key not in self.cache:
            raise CacheError(
                f"the cache of teacher {self.teacher!r} in {self.cache.folder} ({len(self.cache):,} pictures) does not "
                f"hold {view.key or 'this picture'}: it was written from other data, or with another "
                "image_aspect_ratio or distill_views; write it with the flags of this run (scripts/cache_teachers.py)"
            )
        return _as_bits(self.cache.read(key))

    def blank(self) -> dict[str, Tensor]:
        """What the live teacher says about a blank."""
        return _as_bits(self.cache.read(BLANK))


def _as_bits(sample: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.view(BITS[value.dtype.itemsize]) for key, value in sample.items()}


class CachedTeacher:
    """A Teacher that was run before: its source reads the features, and calling it only names them."""

    def __init__(self, name: str, cache: TeacherCache) -> None:
        self.name = name
        self.cache = cache
        self.source = CachedSource(cache, name)
        self.grid, self.width, self.digest = cache.manifest.grid, cache.manifest.width, cache.manifest.digest

    def __call__(self, prepared: Mapping[str, Tensor]) -> TeacherFeatures:
        """prepared: a collated batch of what `source.prepare` gave, on any device."""
        dtypes = {key: DTYPES[dtype] for key, (_, dtype) in self.cache.manifest.features.items()}
        values = {key: value.view(dtypes[key]) for key, value in prepared.items()}
        return TeacherFeatures(values["patches"], self.grid, values.get("cls"), values.get("cls_attention"))
