"""docs/training.md: its commands exist, its flags are those of the parser, its tables are the code's."""

import dataclasses
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from llava.model.multimodal_encoder.move_kd.config import DISTILL_RECIPES, MOLE_RECIPES
from llava.model.multimodal_encoder.move_kd.plugins import load_plugin, plugin_names
from llava.train.arguments import FlagParser, parse_run
from llava.train.distill_arguments import DISTILL_ITEMS, MOLE_ITEMS, DistillArguments
from llava.train.legacy_flags import NO_EFFECT
from llava.train.model_arguments import DataArguments, ModelArguments
from llava.train.training_arguments import UNSUPPORTED, TrainingArguments
from tests.train.runs import ROOT

PAGE = (ROOT / "docs" / "training.md").read_text()
OWN_OPTIONS = {  # of programs that are not the trainer
    "scripts/cache_teachers.py": {"--dry_run", "--pool"},
    "scripts/merge_lora_weights.py": {"--model-path", "--model-base", "--save-model-path"},
    "llava.train.data_check": {"--data_path", "--image_folder", "--workers"},
    "llava.train.check_teachers": {"--dtype"},
}


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line]


@pytest.mark.parametrize("command", commands(), ids=lambda command: " ".join(command.split())[:60])
def test_a_command_names_files_and_flags_that_exist(command: str) -> None:
    subprocess.run(["bash", "-n", "-c", command], check=True)
    words = shlex.split(command)
    files = [word for word in words if word.startswith(("scripts/", "llava/"))]
    modules = [after for word, after in itertools.pairwise(words) if word == "-m"]
    assert files or modules
    assert all((ROOT / file).is_file() for file in files)
    assert all((ROOT / (module.replace(".", "/") + ".py")).is_file() for module in modules)
    known = {*FlagParser().known_flags(), "--config", "--nproc_per_node"}
    for program in (*files, *modules):
        known |= OWN_OPTIONS.get(program, set())
    assert [word for word in words if word.startswith("--") and word not in known] == []


def test_the_run_that_is_printed_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    [content] = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "run.yaml").write_text(content)
    lines = [command.split("train.py ")[1] for command in commands() if "llava/train/train.py" in command]
    runs = [parse_run(shlex.split(line)) for line in lines]
    assert {run.model.path for run in runs} == {"lmsys/vicuna-7b-v1.5"}
    assert any(run.distill is not None for run in runs)


def test_every_flag_on_the_page_is_known() -> None:
    own = set().union(*OWN_OPTIONS.values()) | {"--config", "--nproc_per_node", "--model", "--teachers", "--help"}
    mentioned = set(re.findall(r"--[a-z_][a-z_0-9]*(?:-[a-z-]+)?", PAGE)) - own
    assert mentioned - set(FlagParser().known_flags()) == set()


def test_every_flag_of_ours_is_on_the_page() -> None:
    inherited = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    flags = {
        field.name
        for group in (ModelArguments, DataArguments, TrainingArguments, DistillArguments)
        for field in dataclasses.fields(group)
        if field.init and field.name not in inherited
    }
    unspoken = {*NO_EFFECT, *UNSUPPORTED, *OLD_SPELLINGS}
    absent = {name for name in flags - unspoken if f"`{name}`" not in PAGE and f"--{name}" not in PAGE}
    assert absent == set()


# Accepted for old command lines; transformers has other words for most of them.
OLD_SPELLINGS = """adafactor cache_dir delay_load dispatch_batches split_batches double_quant quant_type logging_dir
    lora_bias mm_resampler_type trainer_mode tune_mm_vision_resampler unfreeze_language_model vision_tower_pretrained
    warmup_ratio""".split()  # noqa: SIM905


def test_the_recipes_are_those_of_the_code() -> None:
    table = PAGE[PAGE.index("| flag | release | paper | ours |") :].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    for flag, *values in rows:
        name = re.findall(r"--(\w+)", flag)[0]
        for recipe, value in zip(("release", "paper", "ours"), values, strict=True):
            assert str(recipe_value(name, recipe)).removesuffix(".0") == value.replace("the rank", "32"), (name, recipe)


def recipe_value(flag: str, recipe: str) -> object:
    if flag in MOLE_ITEMS:
        return getattr(MOLE_RECIPES[recipe], MOLE_ITEMS[flag])
    items = {
        **DISTILL_ITEMS,
        "kd_memory_w": "anchor_share",
        "kd_token_weights": "token_weights",
        "kd_teacher_weights": "teacher_weights",
    }
    config = DISTILL_RECIPES[recipe]
    return config.objectives[0][1] if flag == "kd_w" else getattr(config, items[flag])


def test_the_teachers_default_weights_are_those_of_the_code() -> None:
    package = "llava.model.multimodal_encoder.move_kd.teachers"
    for name in plugin_names(package):
        for path in load_plugin(package, name).defaults.paths:
            if name not in ("clip", "hf"):
                assert f"`{path.partition(':')[0]}`" in PAGE


def test_the_hours_are_what_the_script_prints() -> None:
    shown = re.findall(r"\$ python (scripts/estimate_hours.py.*)\n((?:[^$`].*\n)+)", PAGE)
    assert len(shown) == 4
    for command, output in shown:
        found = subprocess.run(
            [sys.executable, *shlex.split(command)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert found.stdout == output


def test_other_pages_that_are_linked_exist() -> None:
    missing = [link for link in re.findall(r"\]\(([\w./-]+\.md)\)", PAGE) if not Path(ROOT, "docs", link).exists()]
    assert missing == []
