"""The model card says what the checkpoint knows about itself, and nothing else."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from llava.export.card import teacher_licence
from llava.export.hf import Source, export_hf
from llava.export.history import public_name, read_history, recipe_of
from llava.model.multimodal_encoder.move_kd.config import MoLEConfig
from tests.export.conftest import Exported, save_move_kd

ROWS = [
    {"step": 1, "loss": 9.0, "kd/clip": 1.0},
    {
        "step": 20,
        "loss": 2.5,
        "lm": 2.0,
        "kd/clip": 0.25,
        "kd/dinov3": 0.125,
        "cosine/clip": 0.75,
        "expert_load/0/1": 0.3,
    },
    {"step": 20, "train_loss": 3.5, "train_runtime": 100.0},
]


def write_history(folder: Path) -> None:
    state = {"global_step": 20, "epoch": 0.5, "log_history": ROWS}
    (folder / "trainer_state.json").write_text(json.dumps(state))


def test_a_trained_student_names_recipe_teachers_metrics_and_licences(tmp_path: Path) -> None:
    source = save_move_kd(tmp_path, training_data="mix.json")
    write_history(source)
    export_hf(Source(str(source), device="cpu"), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for line in (
        "- Method: MoVE-KD. 3 experts of rank 4 per layer, gate `top1`, scale 0.25, in all layers (recipe `release`).",
        "- Teachers: clip, dinov3.",
        "- Last stage: 20 steps, 0.50 epochs.",
        "- Data of the last stage: `mix.json`.",
        " M parameters: ",
        "- Last logged `kd/dinov3`: 0.125",
        "- Last logged `train_loss`: 3.5",
        "- Teacher dinov3: DINOv3 License (terms extend to what is made with it).",
        "- Language model (llama): Llama 2 Community License",
    ):
        assert line in card
    assert "expert_load" not in card
    assert "vLLM, SGLang, llama.cpp and Ollama cannot serve this model" in card


def test_the_front_matter_is_yaml_and_the_example_is_python(exported: Callable[[str], Exported]) -> None:
    for kind, tags in (("pad", ["llava"]), ("experts", ["llava", "move-kd", "custom_code"])):
        card = (exported(kind).directory / "README.md").read_text()
        front = yaml.safe_load(card.split("---")[1])
        assert front["pipeline_tag"] == "image-text-to-text"
        assert front["tags"] == tags
        code = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
        compile(code[0], "card", "exec")
        assert ("trust_remote_code=True" in code[0]) == (kind == "experts")


def test_a_plain_model_speaks_of_no_experts_and_names_what_differs(exported: Callable[[str], Exported]) -> None:
    card = (exported("tiles").directory / "README.md").read_text()
    assert "vLLM" not in card
    assert "MoVE-KD" not in card
    assert "transformers rounds and LLaVA cuts off" in card
    assert "`LlavaNextForConditionalGeneration`" in card


@pytest.mark.parametrize("content", [None, "{", "[]", '{"log_history": null}'])
def test_a_checkpoint_without_a_readable_history_has_none(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "trainer_state.json").write_text(content)
    history = read_history(str(tmp_path))
    assert (history.steps, history.teachers, dict(history.metrics)) == (None, (), {})


def test_teachers_are_known_whatever_the_objective(tmp_path: Path) -> None:
    row = {"loss": 1.0, "huber/dinov2": 0.5, "cka/dinov2": 0.25, "residual/dinov2": 0.1}
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [row]}))
    assert read_history(str(tmp_path)).teachers == ("dinov2",)


def test_names_of_local_directories_lose_their_path(tmp_path: Path) -> None:
    assert public_name(str(tmp_path / "model")) == "model"
    assert public_name("openai/clip-vit-large-patch14-336") == "openai/clip-vit-large-patch14-336"


def test_every_teachers_licence_is_known_or_left_to_its_source() -> None:
    assert teacher_licence("eva") == teacher_licence("eva02") == "MIT"
    assert teacher_licence("sam") == "Apache-2.0"
    assert teacher_licence("my-own") == "see the checkpoint that it was built from"


def test_a_recipe_is_known_whatever_the_number_and_rank_of_its_experts() -> None:
    for name in ("release", "paper", "ours"):
        assert recipe_of(MoLEConfig.from_recipe(name, experts=5, rank=8)) == name
    assert recipe_of(MoLEConfig(gate="soft")) is None
