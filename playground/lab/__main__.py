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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from playground.lab.arms import ARMS
from playground.lab.report import LAYOUT, RESULTS, read_priors, write_priors, write_report
from playground.lab.results import Row, append_row, parse_row, read_rows
from playground.lab.run import Shared, portable, stages
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


def slots() -> int:
    return torch.cuda.device_count() or len(os.sched_getaffinity(0))


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Raises ValueError if another lab is at work in this folder."""
    with (out / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another lab is at work in {out}; wait for it, or choose another --out") from None
        yield


def is_current(row: Row, shared: Shared, out: Path, world: str) -> bool:
    """Whether the row is of this world and of the command lines that its arm has today."""
    if row.world != world or row.arm not in ARMS:
        return False
    folder = out / "runs" / Job(row.arm, row.seed).name
    return row.flags == portable(stages(ARMS[row.arm], shared, row.seed, folder), shared, folder)


class Queue:
    """Runs jobs side by side, one a core or GPU, and writes the row of each that ends well."""

    def __init__(self, out: Path, jobs: Sequence[Job]) -> None:
        self.out = out
        self.jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in jobs:
            self.jobs.put(job)
        self.failed: list[Job] = []
        self.bar = tqdm(total=len(jobs), desc="Runs")
        self.lock = threading.Lock()
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.stopped = False

    def run(self, workers: int) -> list[Job]:
        """The jobs that failed. Ctrl-C stops what runs and leaves what is finished."""
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
            status = self._run(job, place)
            with self.lock:
                if status == 0:
                    append_row(self.out / RESULTS, parse_row(json.loads(self._row(job).read_text())))
                elif not self.stopped:
                    self.failed.append(job)
                self.bar.update()

    def _row(self, job: Job) -> Path:
        return self.out / "runs" / job.name / "row.json"

    def _run(self, job: Job, place: int) -> int:
        log = self.out / "logs" / f"{job.name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        self._row(job).unlink(missing_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
        if torch.cuda.is_available():
            environment["CUDA_VISIBLE_DEVICES"] = str(place)
        flags = ("--out", str(self.out), "--arm", job.arm, "--seed", str(job.seed))
        with log.open("wb") as file:
            process = subprocess.Popen(
                python("playground.lab.run", *flags), stdout=file, stderr=subprocess.STDOUT, env=environment
            )
            self.running[place] = process
            return process.wait()


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
        default="heldout",
        help="questions of the report; every choice is made on validation",
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
            rows = [row for row in read_rows(out / RESULTS) if is_current(row, shared, out, world)]
            done = {Job(row.arm, row.seed) for row in rows}
            failed = Queue(out, [job for job in jobs if job not in done]).run(options.slots)
    except (ValueError, CommandFailed) as problem:
        sys.exit(str(problem))
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on with what is not finished")
    rows = [row for row in read_rows(out / RESULTS) if is_current(row, shared, out, world)]
    if rows:
        write_priors(out, shared.folder / "data")
        print(write_report(rows, out / "report", LAYOUT, read_priors(out, options.split), options.split))
    if failed:
        logs = "\n".join(f"  {job.name}: {out}/logs/{job.name}.txt" for job in failed)
        sys.exit(f"{len(failed)} runs failed; the same command runs them again:\n{logs}")


if __name__ == "__main__":
    main()
