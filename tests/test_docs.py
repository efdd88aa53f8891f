"""The documentation against the code: recipe tables, flags, named tests, and examples that run."""

import dataclasses
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.multimodal_encoder.move_kd import objectives as objectives_package
from llava.model.multimodal_encoder.move_kd import teachers as teachers_package
from llava.model.multimodal_encoder.move_kd.config import DISTILL_RECIPES, MOLE_RECIPES
from llava.model.multimodal_encoder.move_kd.distiller import Distiller
from llava.model.multimodal_encoder.move_kd.plugins import load_plugin, plugin_names
from llava.model.multimodal_encoder.move_kd.types import View
from llava.train.distill_arguments import DISTILL_ITEMS, MOLE_ITEMS
from tests.move_kd import fakes
from tests.tiny import LANGUAGE_SETTINGS, NUM_PATCHES, tiny_clip_folder, tiny_config, tiny_images

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RECIPES = ("release", "paper", "ours")
TEACHERS = "llava.model.multimodal_encoder.move_kd.teachers"
RULES = {"objectives": "kd_objectives", "token_weights": "kd_token_weights", "teacher_weights": "kd_teacher_weights"}


def written(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(f"{name}={weight:g}" for name, weight in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def recipe_rows() -> list[tuple[str, ...]]:
    """(flag, value in each recipe) of every item of both configs, and of what the release sets for teachers."""
    rows = []
    for recipes, flags in (
        (DISTILL_RECIPES, {item: flag for flag, item in DISTILL_ITEMS.items()} | RULES),
        (MOLE_RECIPES, {item: flag for flag, item in MOLE_ITEMS.items()}),
    ):
        for item in dataclasses.fields(recipes["ours"]):
            if item.name == "anchor_is_target":  # follows from whether the anchor is among the teachers
                continue
            values = [written(getattr(recipes[name], item.name)) for name in RECIPES]
            rows.append((f"`--{flags[item.name]}`", *(f"`{value}`" for value in values)))
    for kind in plugin_names(TEACHERS):
        defaults = load_plugin(TEACHERS, kind).defaults
        rows += [(f"teacher `{kind}`", f"`{key}={value}`", "-", "-") for key, value in defaults.released.items()]
    return rows


def table_after(text: str, mark: str) -> list[tuple[str, ...]]:
    """The rows of the first table behind `mark`, without its heading."""
    lines = text.partition(mark)[2].splitlines()[1:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append(tuple(cell.strip() for cell in line.strip("|").split("|")))
    return rows[2:]


def test_the_recipes_on_the_method_page_are_those_in_the_code() -> None:
    assert table_after((DOCS / "method.md").read_text(), "<!-- recipes") == recipe_rows()


def test_the_teachers_on_the_method_page_are_those_in_the_code() -> None:
    told = {row[0]: row[1:4] for row in table_after((DOCS / "method.md").read_text(), "<!-- teachers")}
    for kind in plugin_names(TEACHERS):
        defaults = load_plugin(TEACHERS, kind).defaults
        path = f"`{defaults.paths[-1]}`" if defaults.paths[-1] else "any, as `hf:ID`"
        assert told.pop(f"`{kind}`") == (path, str(defaults.size or "its own"), defaults.licence)
    assert not told


def test_the_objectives_on_the_method_page_are_the_files() -> None:
    rows = table_after((DOCS / "method.md").read_text(), "<!-- objectives")
    assert sorted(row[0].strip("`") for row in rows) == plugin_names(objectives_package.__name__)


def test_every_test_that_the_ledger_names_exists() -> None:
    named = set(re.findall(r"\btest_[a-z0-9_]+\b(?!\.py|/)", (DOCS / "method.md").read_text()))
    written_tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("*.py"))
    assert len(named) > 40
    assert not {name for name in named if f"def {name}(" not in written_tests}


def test_the_ledger_has_every_defect_of_the_method() -> None:
    numbers = set()
    for line in (DOCS / "method.md").read_text().splitlines():
        numbers |= set(re.findall(r"\d+", line.split("|")[1])) if re.match(r"\| [\d, ]+ \|", line) else set()
    assert {12, 13, *range(21, 32), 30, 32, 33} <= {int(number) for number in numbers}


@pytest.mark.parametrize("page", ["method.md", "extending.md"])
def test_every_training_flag_on_a_page_can_be_parsed(page: str) -> None:
    text = (DOCS / page).read_text()
    known = set(training_parser()._option_string_actions)
    assert not {flag for flag in re.findall(r"(?<![\w-])--[a-z_]+", text) if flag not in known}


def training_parser() -> Any:
    from transformers import HfArgumentParser

    from llava.train.distill_arguments import DistillArguments
    from llava.train.model_arguments import DataArguments, ModelArguments
    from llava.train.training_arguments import TrainingArguments

    return HfArgumentParser((ModelArguments, DataArguments, TrainingArguments, DistillArguments))  # type: ignore[arg-type]


def example(path: str) -> str:
    """The Python under a file's name on the page about extending."""
    text = (DOCS / "extending.md").read_text()
    match = re.search(rf"`{re.escape(path)}`:\n\n```python\n(.+?)```", text, re.DOTALL)
    assert match is not None, f"no example of {path}"
    return match[1]


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes an example into a folder that counts as part of a plug-in package."""

    def install(package: Any, path: str) -> None:
        file = tmp_path / Path(path).name
        file.write_text(example(path))
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{file.stem}", raising=False)

    return install


def test_the_example_of_a_teacher_teaches(plugins: Any, tmp_path: Path) -> None:
    plugins(teachers_package, "teachers/edges.py")
    weights = nn.Conv2d(3, 16, 8, 8).state_dict()
    save_file(weights, tmp_path / "edges.safetensors")
    built = teachers_package.build_teachers([f"edges:path={tmp_path},size=32"])["edges"]
    view = View(Image.new("RGB", (50, 40), (200, 10, 10)), "pad")
    said = built(built.source.prepare(view)[None])
    assert (said.patches.shape, said.grid) == ((1, 16, 16), (4, 4))
    save_file({"weight": weights["weight"]}, tmp_path / "edges.safetensors")
    with pytest.raises(ValueError, match="bias"):
        teachers_package.build_teachers([f"edges:path={tmp_path}"])


def test_the_examples_of_objectives_are_terms_of_the_loss(plugins: Any) -> None:
    plugins(objectives_package, "objectives/huber.py")
    plugins(objectives_package, "objectives/relations.py")
    chosen = (("weighted_mse", 4.0), ("huber", 0.5), ("relations", 0.1))
    config = DISTILL_RECIPES["ours"]
    distiller = Distiller(
        fakes.FakeStudent(), fakes.teachers("clip", "eva"), dataclasses.replace(config, objectives=chosen)
    )
    result = distiller(fakes.batch(blank=1), fakes.features("clip", "eva"), images=fakes.tokens())
    assert {"huber/clip", "huber/eva", "relations/eva"} <= set(result["terms"])
    result["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in distiller.adapters.parameters())


def test_the_example_of_a_language_model_sees(tmp_path: Path) -> None:
    module: dict[str, Any] = {"__name__": "llava_phi"}
    exec(compile(example("language_model/llava_phi.py"), "llava_phi.py", "exec"), module)
    settings = tiny_config(tiny_clip_folder(tmp_path)).to_dict()
    kept = {key: settings[key] for key in (*LANGUAGE_SETTINGS, "mm_vision_tower", "mm_hidden_size")}
    model = module["LlavaPhiForCausalLM"](module["LlavaPhiConfig"](**kept)).eval()
    model.get_vision_tower().load_model()
    ids = torch.tensor([[1, IMAGE_TOKEN_INDEX, 5, 6]])
    output = model(ids, labels=ids, images=tiny_images(1))
    assert output.logits.shape == (1, 3 + NUM_PATCHES, LANGUAGE_SETTINGS["vocab_size"])
    assert torch.isfinite(output.loss)
    assert set(model.parts()) == {"projector", "mole", "vision_tower", "language_model"}


def test_the_example_of_a_projector_is_built_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from llava.model.multimodal_projector import builder

    monkeypatch.setattr(builder, "PROJECTORS", dict(builder.PROJECTORS))
    text = (DOCS / "extending.md").read_text()
    [block] = re.findall(r"builder.py`:\n\n```python\n(.+?)```", text, re.DOTALL)
    exec(block, {})
    config = SimpleNamespace(mm_projector_type="narrow", mm_hidden_size=16, hidden_size=24)
    projector = builder.build_vision_projector(config)
    assert projector(torch.randn(2, 5, 16)).shape == (2, 5, 24)
