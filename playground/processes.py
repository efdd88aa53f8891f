"""Commands that run side by side, each with a progress bar read from its own log.

Every command writes its output to a file; a bar follows the last `12/345 [` that its own tqdm printed there.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
PROGRESS = re.compile(rb"(\d+)/(\d+) \[")
TAIL = 4096


class CommandFailed(RuntimeError):
    """A command ended with an error; the message holds the end of its log."""


@dataclass(frozen=True)
class Command:
    """title and total: for the bar. threads: of the processor that it may use."""

    title: str
    arguments: Sequence[str]
    log: Path
    total: int
    threads: int = 1


def run_together(commands: Sequence[Command]) -> None:
    """Run all at once and wait. The first failure, or Ctrl-C, ends the others.

    Raises CommandFailed with the last lines of the log of the one that failed.
    """
    running = [(command, _start(command)) for command in commands]
    bars = [tqdm(desc=c.title, total=c.total, position=place, mininterval=0.5) for place, c in enumerate(commands)]
    try:
        while any(process.poll() is None for _, process in running):
            for (command, process), bar in zip(running, bars, strict=True):
                _follow(command.log, bar)
                if process.poll():
                    raise CommandFailed(_failure(command, process.returncode))
            time.sleep(0.3)
        for (command, process), bar in zip(running, bars, strict=True):
            _follow(command.log, bar)
            if process.returncode:
                raise CommandFailed(_failure(command, process.returncode))
    finally:
        for _, process in running:
            _stop(process)
        for bar in bars:
            bar.close()


def _start(command: Command) -> subprocess.Popen[bytes]:
    command.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(command.threads), "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    with command.log.open("wb") as log:
        return subprocess.Popen(
            list(command.arguments), stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tail(log: Path) -> bytes:
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - TAIL))
        return file.read()


def _follow(log: Path, bar: "tqdm[object]") -> None:
    # Libraries print bars of their own (loading or writing a file); the one with our total is the work itself.
    found = PROGRESS.findall(_tail(log)) if log.exists() else []
    done = max((int(count) for count, total in found if int(total) == bar.total), default=bar.n)
    if done != bar.n:
        bar.update(done - bar.n)


def _failure(command: Command, status: int) -> str:
    lines = _tail(command.log).decode(errors="replace").replace("\r", "\n").splitlines()
    end = "\n".join(f"  {line}" for line in lines[-12:] if line.strip())
    return f"{command.title} ended with status {status}; its log is {command.log}:\n{end}"


def python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]
