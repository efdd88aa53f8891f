"""Writing a teacher cache: several processes at once, each its own shards, and again where the last run stopped."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from safetensors.torch import save
from torch import Tensor

from llava.model.checkpoint_io import atomic, write_json
from llava.model.multimodal_encoder.move_kd.cache import BLANK, MANIFEST, CacheError, Manifest, checksum

SHARD_BYTES = 512 * 1024**2


class Estimate(NamedTuple):
    """table: for the user, before anything is written. needed, free: bytes."""

    table: str
    needed: int
    free: int

    def check(self) -> None:
        """Raises ValueError if the disk has less space than is needed."""
        if self.needed > self.free:
            raise ValueError(
                f"not enough space: {_size(self.needed)} are needed, {_size(self.free)} are free; cache fewer pictures "
                "or teachers, or average the features with --pool 24x24"
            )


def estimate(manifests: Mapping[str, Manifest], pictures: int, root: Path) -> Estimate:
    """What caching that many pictures takes; what the folders below `root` hold already is not counted again."""
    lines = [f"{'teacher':<14}{'per picture':>14}{'in all':>12}{'there':>12}  folder"]
    needed = 0
    for name, manifest in manifests.items():
        folder, each = root / manifest.folder, manifest.bytes_per_sample
        there = sum(path.stat().st_size for path in folder.glob("shard-*.safetensors"))
        lines.append(f"{name:<14}{_size(each):>14}{_size(each * pictures):>12}{_size(there):>12}  {folder}")
        needed += max(each * pictures - there, 0)
    existing = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    lines.append(f"{pictures:,} pictures need {_size(needed)} more; {_size(free)} are free")
    return Estimate("\n".join(lines), needed, free)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


class CacheWriter:
    """One of `writers` processes that fill one folder; use as a context manager, or call `finish` at the end.

    Samples that any earlier writer stored are in `known` and are not wanted again. Shards appear under their final
    name only when they are whole; what a killed process left behind is removed when the same writer comes back.
    """

    def __init__(
        self,
        root: Path | str,
        manifest: Manifest,
        blank: Mapping[str, Tensor],
        *,
        writer: int = 0,
        writers: int = 1,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        """Raises CacheError if the folder holds something else, or if this writer runs already."""
        if not 0 <= writer < writers:
            raise ValueError(f"writer {writer} of {writers}: must be from 0 to {writers - 1}")
        self.folder = Path(root) / manifest.folder
        self.manifest = manifest
        self.writer, self.writers, self.shard_bytes = writer, writers, shard_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._acquire()
        _put_manifest(self.folder, manifest)
        self.known: set[str] = set()
        self._shards = self._take_stock()
        for mark in self.folder.glob("writer-*-of-*.json"):
            if mark == self._mark or not mark.stem.endswith(f"-of-{writers:03d}"):
                mark.unlink(missing_ok=True)  # of this writer's last run, or of a run by another number of writers
        self._next = 1 + max((int(name.split("-")[2].split(".")[0]) for name in self._shards), default=-1)
        self._pending: dict[str, Mapping[str, Tensor]] = {}
        if writer == 0 and BLANK not in self.known:
            self.add(BLANK, blank)

    @property
    def _mark(self) -> Path:
        return self.folder / f"writer-{self.writer:03d}-of-{self.writers:03d}.json"

    def add(self, key: str, sample: Mapping[str, Tensor]) -> None:
        """Store one sample, unless it is there. Raises ValueError if it has another form than the manifest says."""
        if key in self.known:
            return
        form = {name: (tuple(value.shape), str(value.dtype)) for name, value in sorted(sample.items())}
        if form != dict(self.manifest.features):
            raise ValueError(f"sample {key} has {form}, the cache holds {dict(self.manifest.features)}")
        self.known.add(key)
        self._pending[key] = sample
        if len(self._pending) * self.manifest.bytes_per_sample >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what is pending as one shard."""
        if not self._pending:
            return
        tensors = {f"{key}.{name}": value for key, sample in self._pending.items() for name, value in sample.items()}
        content = save({name: value.contiguous().clone() for name, value in tensors.items()})
        name = f"shard-{self.writer:03d}-{self._next:05d}.safetensors"
        listing = {
            "file": name,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "samples": {key: checksum(sample) for key, sample in self._pending.items()},
        }
        with atomic(self.folder / name) as temporary:
            temporary.write_bytes(content)
        write_json(listing, (self.folder / name).with_suffix(".json"))  # last: it makes the shard count
        self._shards.append(name)
        self._next += 1
        self._pending = {}

    def finish(self) -> None:
        """Write what is pending, and the mark that says this writer is done."""
        self.flush()
        write_json({"shards": self._shards}, self._mark)
        self.close()

    def close(self) -> None:
        self._lock.close()

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self.close() if kind else self.finish()

    def _acquire(self) -> IO[str]:
        lock = (self.folder / f"writer-{self.writer:03d}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise CacheError(f"writer {self.writer} of {self.folder} is running already in another process") from None
        return lock

    def _take_stock(self) -> list[str]:
        """Learn what is stored, by anyone; return this writer's shards, and remove its unfinished ones."""
        own = []
        for listing in sorted(self.folder.glob("shard-*.json")):
            shard = listing.with_suffix(".safetensors")
            samples = _intact_samples(listing, shard)
            if samples is None:
                listing.unlink(missing_ok=True)  # damaged: its samples are written again, by whoever meets them
                continue
            self.known.update(samples)
            if shard.name.startswith(f"shard-{self.writer:03d}-"):
                own.append(shard.name)
        for path in self.folder.glob(f"*shard-{self.writer:03d}-*"):
            if path.suffix != ".json" and path.name not in own:
                path.unlink()
        return own


def _intact_samples(listing: Path, shard: Path) -> Mapping[str, int] | None:
    """The samples of a shard that is as it was written, by its sha256; None if it or its listing is not."""
    try:
        entry = json.loads(listing.read_text())
        with shard.open("rb") as file:
            is_intact = hashlib.file_digest(file, "sha256").hexdigest() == entry["sha256"]
        return entry["samples"] if is_intact else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _put_manifest(folder: Path, manifest: Manifest) -> None:
    """Create the manifest, or check that the one there is the same; several writers may come at once."""
    content = json.dumps(manifest.to_json(), indent=1).encode()
    partial = folder / f"{MANIFEST}.{os.getpid()}.partial"
    partial.write_bytes(content)
    try:
        os.link(partial, folder / MANIFEST)
    except FileExistsError:
        there = Manifest.read(folder)
        if there.features != manifest.features:
            raise CacheError(f"{folder} holds {there.features}, this teacher gives {manifest.features}") from None
    finally:
        partial.unlink()
