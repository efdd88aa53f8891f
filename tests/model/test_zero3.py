"""Loading and saving where two processes hold half of every parameter each."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.model import layouts

ROOT = Path(__file__).parents[2]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("layout", [layouts.move_kd, layouts.llava_15])
def test_a_student_loads_partitioned_and_its_files_hold_whole_tensors(tmp_path: Path, layout: object) -> None:
    pytest.importorskip("deepspeed")
    folder, _ = layout(tmp_path)  # type: ignore[operator]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.model.zero3_worker", str(folder), str(tmp_path)]
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)[-4000:]
    assert (tmp_path / "done").exists()
