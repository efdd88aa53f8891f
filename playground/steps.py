"""Which steps of a run are complete: a stamp per step, written last, that names what the step was made from."""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stamps:
    """folder: of the run. A step counts as done only while its stamp's fingerprint is the one asked for and what it
    made is there."""

    folder: Path

    def _path(self, step: str) -> Path:
        return self.folder / "steps" / f"{step}.json"

    def is_done(self, step: str, fingerprint: str, output: Path) -> bool:
        stamp = self._read(step)
        return stamp.get("fingerprint") == fingerprint and stamp.get("done") is True and output.exists()

    def begin(self, step: str, fingerprint: str, output: Path) -> None:
        """What another fingerprint left in `output` is removed; what the same one left is kept, to be resumed."""
        if self._read(step).get("fingerprint") != fingerprint and output.exists():
            shutil.rmtree(output)
        self._write(step, {"fingerprint": fingerprint, "done": False})

    def finish(self, step: str, fingerprint: str, seconds: float) -> None:
        self._write(step, {"fingerprint": fingerprint, "done": True, "seconds": round(seconds, 1), "at": time.time()})

    def _read(self, step: str) -> dict[str, object]:
        try:
            return json.loads(self._path(step).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def _write(self, step: str, stamp: dict[str, object]) -> None:
        path = self._path(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".writing")
        temporary.write_text(json.dumps(stamp))
        temporary.rename(path)
