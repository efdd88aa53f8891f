"""Which checkpoint of an output directory to go on from, and how a complete one is told from a half-written one.

A checkpoint counts only once its marker is there. The marker is written last and lists every file with its size,
so that a crash while writing, a full disk or an interrupted copy is noticed before any state is loaded.
"""

import json
import re
import shutil
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llava.model.checkpoint_io import write_json
from llava.train.environment import gather_objects, rank, say

MARKER = "complete.json"
CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")


@dataclass(frozen=True)
class Engine:
    """What wrote a checkpoint, and must read it: DeepSpeed's shards fit only the same stage and process count.

    batch: samples of a step, over all processes, by which steps are counted; None where a checkpoint does not say.
    """

    name: str
    processes: int
    batch: int | None = None

    def __str__(self) -> str:
        return f"{self.name} with {self.processes} process{'es' * (self.processes > 1)}"

    @property
    def is_sharded(self) -> bool:
        return self.name.startswith("zero")


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Every `checkpoint-N` of a directory, by N, complete or not."""
    folder = Path(output_dir)
    found = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    numbered = [(int(match[1]), path) for path in found if (match := CHECKPOINT.match(path.name))]
    return [path for _, path in sorted(numbered)]


def mark_complete(directory: str | Path, step: int, engine: Engine, resumable: bool = True) -> None:
    """Write the marker: the last thing that happens to a checkpoint. resumable: it holds more than the model."""
    folder = Path(directory)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    write_json({"step": step, "resumable": resumable, "engine": asdict(engine), "files": sizes}, folder / MARKER)


def read_marker(directory: str | Path) -> dict[str, Any]:
    return json.loads((Path(directory) / MARKER).read_text())


def defect(directory: str | Path) -> str | None:
    """Why a checkpoint is not complete; None if it is."""
    folder = Path(directory)
    if not (folder / MARKER).is_file():
        return f"it has no {MARKER}, so it was not written to the end"
    try:
        sizes = read_marker(folder)["files"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return f"its {MARKER} cannot be read"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None


def obstacle(directory: str | Path) -> str | None:
    """Why a checkpoint cannot be resumed from; None if it can."""
    problem = defect(directory)
    if problem is None and not read_marker(directory)["resumable"]:
        return "it holds the model alone (--save_only_model)"
    return problem


def complete_everywhere(output_dir: str | Path) -> list[str]:
    """Names of the checkpoints that every process can resume from: machines may have disks of their own.

    Every process must call it. Raises ValueError where there are some, but none that all of them see.
    """
    seen: list[list[str]] = gather_objects([path.name for path in checkpoints(output_dir) if obstacle(path) is None])
    common = [name for name in seen[0] if all(name in names for names in seen)]
    if not common and any(seen):
        listed = "; ".join(f"process {rank} has {', '.join(names) or 'none'}" for rank, names in enumerate(seen))
        raise ValueError(
            f"no checkpoint in {output_dir} is there for every process ({listed}). Put it on a disk that all machines "
            "see, or train with --save_on_each_node True; --overwrite_output_dir True begins again"
        )
    return common


def last_checkpoint(output_dir: str | Path, among: Collection[str] | None = None) -> Path | None:
    """The newest checkpoint to resume from, of those `among` names if given. Newer ones that cannot be used are named
    in a warning and passed over."""
    for path in reversed(checkpoints(output_dir)):
        problem = obstacle(path)
        if problem is None and among is not None and path.name not in among:
            problem = "it is not complete on every machine"
        if problem is None:
            return path
        say(f"skipping {path}: {problem}")
    return None


def checkpoint_to_resume(output_dir: str | Path, asked: str | None, engine: Engine) -> str | None:
    """The checkpoint to go on from: the one `asked` for, else the newest complete one; None to begin at step 0.

    asked: a directory, or True / "latest" for the newest one, or False to begin anew beside what is there.
    Raises FileNotFoundError or ValueError for one that is missing, not complete, or of another engine.
    """
    if asked is not None and str(asked).lower() in ("false", "none"):
        return None
    if asked is None or str(asked).lower() in ("true", "latest"):
        found = last_checkpoint(output_dir, complete_everywhere(output_dir))
        if found is None and asked is not None:
            raise FileNotFoundError(f"--resume_from_checkpoint {asked}: {output_dir} has no complete checkpoint")
    else:
        found = Path(asked)
        if not found.is_dir():
            raise FileNotFoundError(f"--resume_from_checkpoint {asked}: no such directory")
        if (problem := obstacle(found)) is not None:
            raise ValueError(f"--resume_from_checkpoint {asked}: {problem}")
    if found is None:
        return None
    _check_engine(found, engine)
    return str(found)


def _check_engine(checkpoint: Path, engine: Engine) -> None:
    writer = Engine(**read_marker(checkpoint)["engine"])
    same = (writer.name, writer.processes) == (engine.name, engine.processes)
    if not same and (writer.is_sharded or engine.is_sharded):
        raise ValueError(
            f"{checkpoint} was written by {writer}, and this run is {engine}. Resume with the same "
            "--deepspeed file and as many processes, or begin anew with another --output_dir."
        )
    if writer.batch not in (None, engine.batch):
        raise ValueError(
            f"{checkpoint} was written with {writer.batch} samples a step, and this run has {engine.batch}: its steps "
            "would not be counted in the same epochs. Choose --gradient_accumulation_steps so that processes times "
            f"--per_device_train_batch_size times that is {writer.batch}, or begin anew with another --output_dir."
        )


def remove_checkpoints(output_dir: str | Path) -> None:
    for path in checkpoints(output_dir):
        shutil.rmtree(path)


def keep_newest(output_dir: str | Path, limit: int | None, best: str | None = None) -> None:
    """Delete all but the newest `limit` complete checkpoints and the best one, and what is left of older broken ones.

    limit: None or 0 keeps every complete checkpoint.
    """
    complete = [path for path in checkpoints(output_dir) if defect(path) is None]
    if not complete:
        return
    kept = set(complete[-limit:]) if limit else set(complete)
    if best is not None:
        kept.add(Path(best))
    newest = complete[-1]
    for path in checkpoints(output_dir):
        if path == newest:
            break
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def resumable(output_dir: str) -> Iterator[None]:
    """Ctrl-C ends training with status 130 and says where the same command would go on."""
    try:
        yield
    except KeyboardInterrupt:
        if rank() == 0:
            found = last_checkpoint(output_dir)
            place = f"goes on from {found}" if found else "begins again: there is no complete checkpoint yet"
            print(f"\ninterrupted; the same command {place}", file=sys.stderr, flush=True)
        sys.exit(130)
