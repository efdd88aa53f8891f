import subprocess
from pathlib import Path

import pytest

from llava.model.multimodal_encoder.move_kd.config import DISTILL_RECIPES
from llava.train.arguments import parse_run
from llava.train.run_config import Run

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "scripts/move-kd/compare-7b.sh"
STUB = 'deepspeed() { shift; printf "%s\\0" "$@"; printf "END\\0"; }; export -f deepspeed; exec bash "$0" "$@"'
ARMS = ("llava", "llava-early", "paper", "ours-no-experts", "ours")


def runs_of(arm: str, folder: Path) -> list[Run]:
    """Both stages as the script would train them."""
    (stage1 := folder / f"{arm}-3-pretrain").mkdir()
    for name in ("mm_projector.bin", "mole_encoder.bin", "encoder_adapter.bin"):
        (stage1 / name).touch()
    (folder / "data.json").write_text("[]")
    env = {name: str(folder) for name in ("MODEL", "VISION_TOWER", "IMAGES", "OUT")}
    env |= {"DATA": str(folder / "data.json"), "PATH": "/usr/bin:/bin"}
    command = ["bash", "-c", STUB, SCRIPT, arm, "3"]
    shown = subprocess.run(command, env=env, capture_output=True, check=True, cwd=ROOT, text=True).stdout
    return [parse_run(flags.split("\0")[:-1], "sdpa") for flags in shown.split("END\0")[:-1]]


@pytest.mark.parametrize("arm", ARMS)
def test_arms_have_equal_batches_rates_and_seeds(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava.train.training_arguments.prepare_deepspeed", lambda **_: None)
    monkeypatch.chdir(ROOT)
    first, second = runs_of(arm, tmp_path)
    batches = [run.hf.per_device_train_batch_size * run.hf.gradient_accumulation_steps for run in (first, second)]
    assert batches == [32, 16]
    assert [run.hf.learning_rate for run in (first, second)] == [1e-3, 2e-5]
    assert {(run.hf.seed, run.hf.data_seed, run.hf.num_train_epochs) for run in (first, second)} == {(3, 3, 1)}
    assert ("vision_tower" in first.stage.trainable) == (arm in ("llava-early", "ours-no-experts", "ours"))
    assert {"vision_tower", "language_model"} <= second.stage.trainable
    recipe = DISTILL_RECIPES.get(arm.split("-")[0])
    for run in (first, second):
        config = run.distill and run.distill.config
        assert (config and (config.objectives, config.anchor_share)) == (
            recipe and (recipe.objectives, recipe.anchor_share)
        )
    assert second.init_from
    assert all(first.hf.output_dir in path for path in second.init_from), "stage 2 goes on from this arm's stage 1"


def test_an_arm_that_is_not_there_is_refused() -> None:
    refused = subprocess.run(["bash", SCRIPT, "release", "0"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "ARM one of llava, llava-early, paper, ours-no-experts, ours" in refused.stderr
