"""The benchmarks run, at sizes too small to say anything about speed, and compare what they say they compare."""

import importlib
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "scripts" / "benchmarks"
MODULES = ("timing", "sizes", "released", "data", "variants", "isolated", "step", "full")


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmarks, which are scripts and no package."""
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


def run(name: str, flags: str, benchmarks: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> str:
    monkeypatch.setattr(benchmarks("timing"), "keep_memory", lambda: None)  # it would hold for the whole test run
    monkeypatch.setattr(sys, "argv", [name, *flags.split()])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


def test_experts_are_timed_against_the_plain_mlp_and_a_gather_loop(
    benchmarks: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    shown = run("mole", "--tiles 1 --tokens 4 --width 32 --rounds 2 --device cpu", benchmarks, monkeypatch, capsys)
    for variant in ("plain MLP", "masked experts", "gather loop"):
        assert shown.count(variant) == 2


def test_a_whole_step_is_timed_against_the_released_way(
    benchmarks: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    flags = "--sizes tiny --rounds 1 --steps 1 --batch 2 --workers 1 --threads 1"
    shown = run("step", flags, benchmarks, monkeypatch, capsys)
    for variant in ("released way", "ours", "ours, features cached"):
        assert shown.count(f"| {variant} |") == 2


def test_a_variant_that_fails_says_so(benchmarks: Any) -> None:
    isolated, variants = benchmarks("isolated"), benchmarks("variants")
    with isolated.own_process() as process, pytest.raises(AttributeError, match="no attribute 'sizes'"):
        process.submit(isolated.build, variants.our_variant, None, 1).result()


def test_the_full_mode_needs_a_gpu_and_runs_without_one_at_tiny_sizes(
    benchmarks: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="needs a GPU"):
            run("step", "--full", benchmarks, monkeypatch, capsys)
    flags = "--full --sizes tiny --steps 1 --batch 1 --workers 0 --peak_tflops 1"
    shown = run("step", flags, benchmarks, monkeypatch, capsys)
    for word in ("plain LLaVA", "time over plain", "MFU", "peak GiB", "What is left"):
        assert word in shown


def test_masked_experts_and_the_gather_loop_are_one_function(benchmarks: Any) -> None:
    """With the same weights both give the same numbers, so their times may be compared."""
    from transformers import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPMLP

    from llava.model.multimodal_encoder.move_kd.config import MoLEConfig
    from llava.model.multimodal_encoder.move_kd.mole import MoLE

    mlp = CLIPMLP(CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_attention_heads=1))
    config = MoLEConfig(rank=4, alpha=1, gate="top1", init_b="kaiming")
    ours, loop = MoLE(mlp, config), benchmarks("released").GatherLoopMLP(mlp, config)
    loop.router = ours.router
    with torch.no_grad():
        for bank, experts in ((ours.moe_down, loop.down), (ours.moe_up, loop.up)):
            for index, expert in enumerate(experts):
                expert.reduce.weight.copy_(bank.reduce_weight[index])
                expert.reduce.bias.copy_(bank.reduce_bias[index])
                expert.expand.weight.copy_(bank.expand_weight[index].t())
                expert.expand.bias.copy_(bank.expand_bias[index])
    x = torch.randn(2, 9, 16)
    torch.testing.assert_close(loop(x), ours(x))


def test_the_released_way_trains_what_ours_trains(benchmarks: Any, tmp_path: Path) -> None:
    variants, sizes = benchmarks("variants"), benchmarks("sizes")
    settings = variants.Settings(
        sizes.SIZES["tiny"], ["clip", "eva"], "pretrain", torch.float32, torch.device("cpu"), 1, 0, tmp_path
    )
    counts = []
    for build in (variants.released_variant, variants.our_variant):
        [batch] = build(settings).loader(1)
        variant = build(settings)
        variant.step(batch)
        tower = variant.distiller.student.get_vision_tower()
        trained = [name for name, value in tower.named_parameters() if value.requires_grad]
        counts.append(len({name.partition("layers.")[2].partition(".")[0] for name in trained}))
        assert all("router" in name or "up" in name or "down" in name for name in trained)
    assert counts == [2, 1]  # as released, experts are in the layer that is not used too


def test_a_ratio_is_the_median_of_the_rounds_own_ratios(benchmarks: Any) -> None:
    assert benchmarks("timing").median_ratio([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == (2.0, 1.0, 3.0)


def test_the_ledger_quotes_the_effects_that_are_measured(benchmarks: Any) -> None:
    effects = benchmarks("effects")
    ledger = (FOLDER.parents[1] / "docs" / "method.md").read_text()
    alike, own = effects.neighbors()[2:]
    assert "is {} among even pictures and {} among its like".format(*alike.split(", ")) in ledger
    assert own == "0.50, 0.50"
    whole, tied = effects.position_weights()[2].split(" M, ")
    assert f"{tied.removesuffix(' M')} of {whole} M parameters tied to one resolution" in ledger
    assert "{}, checkpointed {} |".format(*effects.kept_for_backward()[2:]) in ledger
    assert f"off by {effects.eva_pixels()[2]} on average" in ledger
    assert f"a text's blank has {effects.blanks()[2]} of the distillation" in ledger
    assert effects.blanks()[3] == "0%"
    assert f"a blank's values are {effects.blank_pixels()[2]} on average" in ledger
    assert float(effects.other_block()[2]) < 0.1
    assert "those of the right block (correlation below 0.1), ours 1" in ledger
