"""Teachers in ZeRO-3 engines of their own, over two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava.model.multimodal_encoder.move_kd.teachers import build_teachers, shard_teachers
from tests.tiny_teachers import make_case

ROOT = Path(__file__).parents[2]
SHARDED = ["eva", "clip", "sam", "dinov3", "pix2struct", "convnext"]


def test_sharding_needs_a_distributed_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="distributed run with deepspeed or torchrun"):
        shard_teachers(build_teachers([make_case("dinov2", tmp_path)]))


@pytest.mark.slow
def test_sharded_teachers_hold_no_whole_weights_and_answer_to_the_bit(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    specs = [make_case(name, tmp_path) for name in SHARDED]
    specs.append(make_case("dinov2", tmp_path) + ",dtype=bf16")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29741"]
    command += ["-m", "tests.move_kd.shard_worker", str(tmp_path), *specs]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    for rank in (0, 1):
        report = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert report["zero3_restored"]
        assert set(report["resident"].values()) == {0}
        assert len(report["resident"]) == len(specs)
        assert all(value for key, value in report.items() if key.endswith(("_equal", "_digest"))), report
        assert all(loss > 0 for loss in report["losses"])
