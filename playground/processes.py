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
from typing import Protocol

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
PROGRESS = re.compile(rb"(\d+)/(\d+) \[")
TAIL = 4096


class CommandFailed(RuntimeError):
    """A command ended with an error; the message holds the end of its log."""


@dataclass(frozen=True)
class Command:
    """title and total: for the bar, a total of 0 if it is not known before. threads: of the
    processor that it may use. needs: names of commands that must be done first."""

    name: str
    title: str
    arguments: Sequence[str]
    log: Path
    total: int
    threads: int = 1
    needs: tuple[str, ...] = ()


class Observer(Protocol):
    """Is told when a command begins, and when it has ended well."""

    def begin(self, name: str) -> None: ...
    def finish(self, name: str, seconds: float) -> None: ...


@dataclass
class _Running:
    command: Command
    process: subprocess.Popen[bytes]
    started: float


def run_side_by_side(commands: Sequence[Command], slots: int, observer: Observer) -> None:
    """Run all, at most `slots` at once, each as soon as what it needs is done; earlier ones in the list go first.

    What a command needs and is not in the list counts as done. The first failure, or Ctrl-C, ends the others.
    Raises CommandFailed with the last lines of the log of the one that failed, and ValueError where commands wait for
    each other.
    """
    waiting, running, done = list(commands), list[_Running](), set[str]()
    listed = {command.name for command in commands}
    bars = {c.name: tqdm(desc=c.title, total=c.total, position=i, mininterval=0.5) for i, c in enumerate(commands)}
    try:
        while waiting or running:
            ready = [c for c in waiting if all(need in done or need not in listed for need in c.needs)]
            if waiting and not ready and not running:
                raise ValueError(f"{[command.name for command in waiting]} wait for each other")
            for command in ready[: slots - len(running)]:
                waiting.remove(command)
                observer.begin(command.name)
                running.append(_Running(command, _start(command), time.monotonic()))
            time.sleep(0.3)
            for item in [item for item in running if _has_ended(item, bars[item.command.name])]:
                running.remove(item)
                done.add(item.command.name)
                observer.finish(item.command.name, time.monotonic() - item.started)
    finally:
        for item in running:
            _stop(item.process)
        for bar in bars.values():
            bar.close()


def _has_ended(item: _Running, bar: "tqdm[object]") -> bool:
    """Raises CommandFailed if it has, badly."""
    status = item.process.poll()
    _follow(item.command.log, bar)
    if status:
        raise CommandFailed(_failure(item.command, status))
    return status is not None


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
    if not bar.total and found:
        bar.total = int(found[-1][1])
    done = max((int(count) for count, total in found if int(total) == bar.total), default=bar.n)
    if done != bar.n:
        bar.update(done - bar.n)


def _failure(command: Command, status: int) -> str:
    lines = _tail(command.log).decode(errors="replace").replace("\r", "\n").splitlines()
    end = "\n".join(f"  {line}" for line in lines[-12:] if line.strip())
    return f"{command.title} ended with status {status}; its log is {command.log}:\n{end}"


def python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]
