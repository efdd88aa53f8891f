import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "mole.py"


def test_the_expert_benchmark_compares_three_variants(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--tiles", "1", "--tokens", "4", "--rounds", "1", "--device", "cpu"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    table = capsys.readouterr().out
    for variant in ("plain MLP", "masked experts", "gather loop"):
        assert table.count(variant) == 2
