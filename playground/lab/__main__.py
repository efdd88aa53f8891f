"""Does distillation help, and which parts of it: arms times seeds in a queue, with statistics.

    python -m playground.lab [--out DIR] [--arms NAME ...] [--seeds N ...] [--set world.texture_period=8 ...]

Every run is an ordinary training run. What is finished is not run again; a run that failed is named, and the same
command runs it again. Afterwards DIR/report holds the tables and the plots of everything that DIR/results.jsonl has.
"""

import argparse
import fcntl
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from playground.lab.arms import ARMS
from playground.lab.report import LAYOUT, RESULTS, read_priors, write_priors, write_report
from playground.lab.results import Row, append_row, parse_row, read_rows
from playground.lab.run import Shared, digest_of_pieces, portable, stages
from playground.lab.world import make_shared, open_lab, read_settings
from playground.llava_data import QUESTION_SPLITS
from playground.processes import ROOT, CommandFailed, python
from playground.recipe import RECIPES

MAIN_ARMS = ("baseline", "paper", "ours", "ceiling")


@dataclass(frozen=True)
class Job:
    arm: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}"

    def row(self, out: Path) -> Path:
        """What the run writes at its end."""
        return out / "runs" / self.name / "row.json"


def log_of(out: Path, job: Job) -> Path:
    return out / "logs" / f"{job.name}.txt"


def slots() -> int:
    return torch.cuda.device_count() or len(os.sched_getaffinity(0))


def devices() -> list[str]:
    """GPUs by the names that CUDA_VISIBLE_DEVICES has for them; none without one."""
    there = [str(number) for number in range(torch.cuda.device_count())]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[: len(there)] if visible else there


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Raises ValueError if another lab is at work in this folder."""
    with (out / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another lab is at work in {out}; wait for it, or choose another --out") from None
        yield


@dataclass(frozen=True)
class Current:
    """Tells rows of this world, of the pieces made for it, and of the command lines that their arms have today."""

    shared: Shared
    out: Path
    world: str
    pieces: str

    def has(self, row: Row) -> bool:
        if (row.world, row.versions.get("pieces")) != (self.world, self.pieces) or row.arm not in ARMS:
            return False
        folder = self.out / "runs" / Job(row.arm, row.seed).name
        return row.flags == portable(stages(ARMS[row.arm], self.shared, row.seed, folder), self.shared, folder)

    def rows(self) -> list[Row]:
        return [row for row in read_rows(self.out / RESULTS) if self.has(row)]

    def done(self, jobs: Iterable[Job]) -> set[Job]:
        """Those with a row. Of a run that ended when no lab was there to take its row, it is taken now."""
        found = {Job(row.arm, row.seed) for row in self.rows()}
        for job in jobs:
            if job not in found and job.row(self.out).exists():
                row = parse_row(json.loads(job.row(self.out).read_text()))
                if self.has(row):
                    append_row(self.out / RESULTS, row)
                    found.add(job)
        return found


class Queue:
    """Runs jobs side by side, one a core or GPU, and writes the row of each that ends well."""

    def __init__(self, out: Path, jobs: Sequence[Job]) -> None:
        self.out = out
        self.jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in jobs:
            self.jobs.put(job)
        self.devices = devices()
        self.failed: dict[Job, str] = {}
        self.bar = tqdm(total=len(jobs), desc="Runs")
        self.lock = threading.Lock()
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.stopped = False

    def run(self, workers: int) -> dict[Job, str]:
        """The jobs that failed, and why. Ctrl-C stops what runs and leaves what is finished."""
        threads = [threading.Thread(target=self._work, args=(place,)) for place in range(workers)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            self.stopped = True
            for process in list(self.running.values()):
                process.terminate()
            for thread in threads:
                thread.join()
            raise
        finally:
            self.bar.close()
        return self.failed

    def _work(self, place: int) -> None:
        while not self.stopped:
            try:
                job = self.jobs.get_nowait()
            except queue.Empty:
                return
            try:
                self._run(job, place)
                with self.lock:
                    append_row(self.out / RESULTS, parse_row(json.loads(job.row(self.out).read_text())))
            except Exception as problem:  # of any kind: it is this run's, and the others go on
                if not self.stopped:
                    self.failed[job] = f"{type(problem).__name__}: {problem}"
            with self.lock:
                self.bar.update()

    def _run(self, job: Job, place: int) -> None:
        log = log_of(self.out, job)
        log.parent.mkdir(parents=True, exist_ok=True)
        job.row(self.out).unlink(missing_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[place % len(self.devices)]
        flags = ("--out", str(self.out), "--arm", job.arm, "--seed", str(job.seed))
        command = python("playground.lab.run", *flags)
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        self.running[place] = process
        if status := process.wait():
            raise subprocess.CalledProcessError(status, command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("playground/lab_out"))
    parser.add_argument(
        "--arms",
        nargs="+",
        choices=[*ARMS, "all"],
        default=MAIN_ARMS,
        metavar="ARM",
        help=f"of {', '.join(ARMS)}; or all",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="lab")
    parser.add_argument("--set", nargs="+", default=[], metavar="PART.ITEM=VALUE", help="another world or other pieces")
    parser.add_argument(
        "--split",
        choices=QUESTION_SPLITS,
        default="validation",
        help="questions of the report: choices are made on validation, heldout is for what was chosen",
    )
    parser.add_argument("--slots", type=int, default=slots(), help="runs at a time")
    options = parser.parse_args()
    if options.slots < 1:
        parser.error(f"--slots {options.slots}: at least one run at a time")
    out = options.out.resolve()
    arms = list(ARMS) if "all" in options.arms else options.arms
    # Whole seeds first: comparisons are paired.
    jobs = dict.fromkeys(Job(arm, seed) for seed in options.seeds for arm in arms)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what runs is stopped too
    try:
        shared, world = open_lab(out, options.recipe, read_settings(options.set))
        with alone_in(out):
            make_shared(out, options.slots)
            current = Current(shared, out, world, digest_of_pieces(shared))
            done = current.done(jobs)
            failed = Queue(out, [job for job in jobs if job not in done]).run(options.slots)
    except (ValueError, CommandFailed) as problem:
        sys.exit(str(problem))
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on with what is not finished")
    if rows := current.rows():
        write_priors(out, shared.folder / "data")
        print(write_report(rows, out / "report", LAYOUT, read_priors(out, options.split), options.split))
    if failed:
        logs = "\n".join(f"  {job.name}: {problem}; see {log_of(out, job)}" for job, problem in failed.items())
        sys.exit(f"{len(failed)} runs failed; the same command runs them again:\n{logs}")


if __name__ == "__main__":
    main()
