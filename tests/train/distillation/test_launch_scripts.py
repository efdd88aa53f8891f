"""scripts/move-kd: each script's flags, read by our own parser, are the run that its name promises."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llava.model.multimodal_encoder.move_kd.config import DISTILL_RECIPES, MoLEConfig
from llava.model.multimodal_encoder.move_kd.teachers import parse_specs
from llava.train.arguments import parse_run
from llava.train.run_config import Run
from tests.train.runs import ROOT

MOVE_KD = (ROOT / "scripts" / "move-kd").glob("*.sh")
SCRIPTS = sorted(path for path in MOVE_KD if "deepspeed llava/train" in path.read_text())
TEACHERS = {
    "v1.0": ("clip", "eva", "convnext"),
    "v1.1": ("clip", "sam", "eva", "convnext"),
    "next": ("clip", "sam", "eva", "convnext"),
}
PUBLISHED_EXPERTS = {
    "moe_encoder": True,
    "moe_encoder_dense": False,
    "moe_encoder_lora_rank": 32,
    "moe_encoder_lora_alpha": 1,
    "moe_encoder_num_experts": 3,
}


def script_flags(script: Path, stage_one: Path, **variables: str) -> list[str]:
    """What a script passes on to the launcher, run with these variables. stage_one: a folder, for pictures too."""
    for name in ("mm_projector.bin", "mole_encoder.bin", "encoder_adapter.bin"):
        (stage_one / name).touch()
    stub = 'deepspeed() { shift; printf "%s\\0" "$@"; }; export -f deepspeed; exec bash "$0"'
    env = {"PATH": "/usr/bin:/bin", "STAGE1": str(stage_one), "IMAGES": str(stage_one), **variables}
    result = subprocess.run(["bash", "-c", stub, str(script)], env=env, capture_output=True, check=True, cwd=ROOT)
    return [flag.decode() for flag in result.stdout.split(b"\0")[:-1]]


@pytest.fixture
def parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    monkeypatch.setattr("llava.train.training_arguments.prepare_deepspeed", lambda **_: None)
    monkeypatch.chdir(ROOT)
    return lambda script, **variables: parse_run(script_flags(script, tmp_path, **variables), "flash_attention_2")


each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)


def version(script: Path) -> str:
    return next(name for name in TEACHERS if name in script.name)


def test_every_version_has_both_stages() -> None:
    names = {path.name for path in SCRIPTS}
    assert names >= {f"{stage}-{name}.sh" for stage in ("pretrain", "finetune") for name in TEACHERS}


@each_script
def test_teachers_and_recipe_are_those_of_the_version(script: Path, parsed: Callable[..., Run]) -> None:
    run = parsed(script)
    assert run.distill is not None
    recipe = "ours" if version(script) == "next" else "release"
    assert run.distill.teachers == TEACHERS[version(script)]
    assert run.distill.config == DISTILL_RECIPES[recipe]
    assert run.distill.released == (recipe == "release")
    assert [line for line in run.warnings if f"by recipe {recipe!r}" in line]
    assert [spec.name for spec in parse_specs(run.distill.teachers)] == list(run.distill.teachers)


@each_script
def test_experts_are_those_of_the_recipe(script: Path, parsed: Callable[..., Run]) -> None:
    run = parsed(script)
    assert run.model.vision is not None
    assert run.model.vision.moe is not None
    if version(script) == "next":
        assert MoLEConfig.from_dict(run.model.vision.moe) == MoLEConfig()
    else:
        assert PUBLISHED_EXPERTS.items() <= run.model.vision.moe.items()


@each_script
def test_each_stage_trains_and_takes_over_what_it_should(script: Path, parsed: Callable[..., Run]) -> None:
    run = parsed(script)
    light = {"projector", "mole", "adapters"}
    if "pretrain" in script.name:
        trained = light | {"vision_tower"} if version(script) == "next" else light
        assert (run.stage.trainable, run.init_from) == (trained, ())
        assert run.save_whole == ("vision_tower" in trained)
        assert (run.model.template, run.hf.learning_rate) == ("plain", 1e-3)
        assert run.hf.per_device_train_batch_size == 16
        return
    files = [Path(path).name for path in run.init_from if Path(path).is_file()]
    assert files in ([], ["mm_projector.bin", "mole_encoder.bin", "encoder_adapter.bin"])
    if "lora" in script.name:
        assert run.stage.trainable == light | {"language_model"}
        assert run.stage.lora
    else:
        assert run.stage.trainable == light | {"language_model", "vision_tower"}
        assert run.hf.learning_rate == 2e-5
    assert run.sampling == "modality"
    assert run.data.image_aspect_ratio == ("anyres" if version(script) == "next" else "pad")
    assert run.hf.per_device_train_batch_size == 8


@each_script
def test_our_recipe_trains_the_tower_from_the_start(script: Path, parsed: Callable[..., Run]) -> None:
    run = parsed(script, RECIPE="ours")
    if "pretrain" in script.name:
        assert run.stage.trainable == {"projector", "mole", "adapters", "vision_tower"}
        assert run.learning_rates["vision_tower"] == (2e-6 if version(script) == "next" else 2e-5)
    else:
        [folder] = run.init_from
        assert Path(folder).is_dir()


@each_script
def test_one_variable_chooses_the_larger_model(script: Path, parsed: Callable[..., Run]) -> None:
    run = parsed(script, SIZE="13b")
    assert run.model.path == "lmsys/vicuna-13b-v1.5"
    assert "13b" in str(run.hf.output_dir)


def test_the_larger_model_is_finetuned_under_zero3(parsed: Callable[..., Run]) -> None:
    script = ROOT / "scripts" / "move-kd" / "finetune-v1.1.sh"
    stages = [parsed(script, SIZE=size).hf.deepspeed["zero_optimization"]["stage"] for size in ("7b", "13b")]
    assert stages == [2, 3]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_another_recipe_brings_its_own_values(stage: str, parsed: Callable[..., Run]) -> None:
    run = parsed(ROOT / "scripts" / "move-kd" / f"{stage}-v1.0.sh", RECIPE="ours")
    assert run.distill is not None
    assert run.distill.config == DISTILL_RECIPES["ours"]
    assert run.model.vision is not None
    assert run.model.vision.moe == MoLEConfig().to_dict()


@pytest.mark.parametrize(
    ("flags", "lacking"),
    [
        (["--kd", "False"], ["encoder_adapter.bin"]),
        (["--moe_encoder", "False", "--tune_encoder", "False"], ["mole_encoder.bin"]),
    ],
)
def test_files_of_parts_that_a_run_does_not_have_may_be_missing(
    flags: list[str], lacking: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scripts name all three; stage 1 under the same flags writes those of its parts."""
    monkeypatch.setattr("llava.train.training_arguments.prepare_deepspeed", lambda **_: None)
    monkeypatch.chdir(ROOT)
    given = script_flags(ROOT / "scripts" / "move-kd" / "finetune-v1.0.sh", tmp_path)
    for name in lacking:
        (tmp_path / name).unlink()
    run = parse_run([*given, *flags])
    there = [name for name in ("mm_projector.bin", "mole_encoder.bin", "encoder_adapter.bin") if name not in lacking]
    assert [Path(path).name for path in run.init_from] == there
    for name in lacking:
        assert any(f"{name} does not exist, and this run has nothing" in line for line in run.warnings)
    with pytest.raises(FileNotFoundError, match=f"{lacking[0]}: no such stage-1 file"):
        parse_run(given)


@pytest.mark.parametrize("name", ["multinode.sh", "slurm.sh"])
def test_scripts_for_several_machines_take_any_of_them(name: str, tmp_path: Path) -> None:
    """multinode.sh puts torchrun where the scripts say deepspeed, and passes further flags on."""
    torchrun = tmp_path / "torchrun"
    torchrun.write_text('#!/bin/sh\necho "$@"\n')
    torchrun.chmod(0o755)
    for command in ("scontrol", "srun"):
        (tmp_path / command).write_text(
            '#!/bin/bash\n[ "${0##*/}" = scontrol ] && { echo head; exit; }\n'
            'while [[ $1 == -* ]]; do echo "srun $1"; shift; done; exec "$@"\n'
        )
        (tmp_path / command).chmod(0o755)
    slurm = {"SLURM_NNODES": "2", "SLURM_GPUS_PER_NODE": "8", "SLURM_JOB_NODELIST": "head,next", "SLURM_NODEID": "1"}
    slurm |= {"SLURM_CPUS_PER_TASK": "64"}
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "NODES": "2", "NODE": "1", "HEAD": "head", "GPUS": "8", **slurm}
    command = ["bash", f"scripts/{name}", "scripts/move-kd/pretrain-v1.1.sh", "--max_steps", "7"]
    found = subprocess.run(command, env=env, capture_output=True, check=True, cwd=ROOT, text=True).stdout
    assert "--nnodes 2 --node_rank 1 --master_addr head" in found
    assert "--nproc_per_node 8 llava/train/train_mem.py" in found
    assert "--encoder_teachers clip sam eva convnext" in found
    assert found.rstrip().endswith("--max_steps 7")
    assert ("srun --cpus-per-task=64" in found) == (name == "slurm.sh")
