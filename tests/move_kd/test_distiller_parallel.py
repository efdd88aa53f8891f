"""Distillation over two processes, parameters sharded, with processes that see different experts or no picture."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_sharded_training_gives_the_losses_of_replicated_training(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29767"]
    command += ["-m", "tests.move_kd.distill_worker", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    reports = [json.loads((tmp_path / f"rank{rank}" / "report.json").read_text()) for rank in (0, 1)]
    for report in reports:
        for plain, sharded, half in zip(
            *(report[kind]["losses"] for kind in ("plain", "sharded", "half")), strict=True
        ):
            assert sharded.keys() == plain.keys() == {"lm", "balance", "kd/clip", "kd/eva"}
            for name, value in plain.items():
                assert sharded[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
                assert half[name] == pytest.approx(value, rel=0.1, abs=1e-3), name
        assert report["half"]["buffers"] == ["torch.float32", "torch.int64"]
    # The process without a picture adds nothing, and both end with the same statistics.
    assert reports[1]["plain"]["losses"][1]["kd/eva"] == 0.0
    for kind in ("plain", "sharded", "half"):
        assert reports[0][kind]["images"] == reports[1][kind]["images"] == 10
        assert reports[0][kind]["mean"] == reports[1][kind]["mean"]
