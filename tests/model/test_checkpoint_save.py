"""Saving and loading again: whole students, parts, differences."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llava.model import MoVELlavaLlamaForCausalLM
from llava.model.apply_delta import apply_delta
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import (
    CheckpointError,
    gather_state_dict,
    load_parts,
    load_student,
    read_state_dict,
    save_parts,
    save_student,
)
from llava.model.consolidate import consolidate_ckpt
from llava.model.make_delta import make_delta
from llava.model.utils import auto_upgrade
from tests.model import layouts
from tests.tiny import save_tiny_llava, tiny_llava, tiny_lm_folder


def parts_of(model: Any) -> dict[str, dict[str, torch.Tensor]]:
    return {name: gather_state_dict(part) for name, part in model.parts().items()}


def shuffled(model: Any) -> Any:
    """The same model with other weights in its light parts."""
    with torch.no_grad():
        for name in ("projector", "mole"):
            for parameter in model.parts()[name].values():
                parameter.normal_()
    return model


@pytest.mark.parametrize("layout", [layouts.llava_15, layouts.llava_16, layouts.onevision, layouts.move_kd])
def test_a_saved_student_has_the_published_names_and_loads_the_same(tmp_path: Path, layout: Any) -> None:
    folder, made = layout(tmp_path)
    save_student(load_student(None, folder), tmp_path / "again", max_shard_size=150_000)
    saved = read_state_dict(tmp_path / "again")
    published = {
        name
        for name in read_state_dict(folder)
        if not any(word in name for word in ("inv_freq", "position_ids", "_adapter_"))
    }
    tower = {name for name in saved if name.startswith(layouts.TOWER)}
    assert saved.keys() - tower == published - tower
    assert tower
    assert published & tower in (set(), tower)
    assert torch.equal(layouts.logits(load_student(None, tmp_path / "again")), layouts.logits(made))


def test_a_saved_config_has_the_keys_that_other_programs_read(tmp_path: Path) -> None:
    model = tiny_llava(tmp_path, rope_parameters={"rope_theta": 5e6, "rope_type": "default"}).half()
    save_student(model, tmp_path / "out")
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["model_type"] == "llava_llama"
    assert raw["architectures"] == ["LlavaLlamaForCausalLM"]
    assert raw["torch_dtype"] == raw["dtype"] == "float16"
    assert raw["rope_theta"] == raw["rope_parameters"]["rope_theta"] == 5e6
    assert load_student(None, tmp_path / "out").config.rope_parameters["rope_theta"] == 5e6
    assert load_student(None, tmp_path / "out").dtype == torch.float16


def test_tied_embeddings_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    model = tiny_llava(tmp_path, "qwen", tie_word_embeddings=True)
    save_student(model, tmp_path / "out")
    assert "lm_head.weight" not in read_state_dict(tmp_path / "out")
    again = load_student(None, tmp_path / "out")
    assert again.lm_head.weight is again.get_input_embeddings().weight
    assert torch.equal(layouts.logits(again), layouts.logits(model))


def test_a_state_with_the_distillers_prefix_saves_the_same(tmp_path: Path) -> None:
    model = tiny_llava(tmp_path)
    state = {f"student.{name}": tensor for name, tensor in model.state_dict().items()}
    save_student(model, tmp_path / "out", state | {"adapters.eva.weight": torch.ones(2)})
    assert read_state_dict(tmp_path / "out").keys() == model.state_dict().keys()


def test_an_incomplete_state_is_not_written(tmp_path: Path) -> None:
    model = tiny_llava(tmp_path)
    state = dict(model.state_dict())
    state.pop("model.norm.weight")
    with pytest.raises(CheckpointError, match=r"such as model\.norm\.weight"):
        save_student(model, tmp_path / "out", state)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_saving_where_one_loaded_from_keeps_the_checkpoint_whole(tmp_path: Path) -> None:
    folder = save_tiny_llava(tmp_path)
    model = load_student(None, folder)
    expected = layouts.logits(model)
    save_student(model, folder)
    assert torch.equal(layouts.logits(model), expected)
    assert torch.equal(layouts.logits(load_student(None, folder)), expected)


def test_parts_have_published_names_and_load_into_another_student(tmp_path: Path) -> None:
    made = layouts.tiny_move_kd(tmp_path)
    parts = parts_of(made)
    written = save_parts(tmp_path / "out", projector=parts["projector"], mole=parts["mole"])
    assert written == ["mm_projector.bin", "mole_encoder.bin"]
    projector = torch.load(tmp_path / "out" / "mm_projector.bin")
    assert set(projector) == {f"model.mm_projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    mole = torch.load(tmp_path / "out" / "mole_encoder.bin")
    prefix = "model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp."
    assert mole[prefix + "moe_down.1.lora_A.weight"].shape == (4, 32)
    assert mole[prefix + "moe_up.2.lora_B.weight"].shape == (32, 4)
    assert len(mole) == 3 * (3 * 8 + 2)
    expected = layouts.logits(made)
    other = shuffled(made)
    assert not torch.equal(layouts.logits(other), expected)
    assert load_parts(other, tmp_path / "out") == ["projector", "mole"]
    assert torch.equal(layouts.logits(other), expected)


class Wrapper(nn.Module):
    """As a distiller names its modules."""

    def __init__(self, student: nn.Module, width: int = 4) -> None:
        super().__init__()
        self.student = student
        self.adapters = nn.ModuleDict({"eva": nn.Linear(width, width), "sam": nn.BatchNorm1d(width)})


def adapters_state(model: Wrapper) -> dict[str, torch.Tensor]:
    return {f"adapters.{name}": tensor for name, tensor in model.adapters.state_dict().items()}


def test_a_distillers_parts_load_by_their_own_names(tmp_path: Path) -> None:
    made = Wrapper(layouts.tiny_move_kd(tmp_path))
    parts = parts_of(made.student)
    prefixed = {f"student.{name}": tensor for name, tensor in parts["mole"].items()}
    save_parts(tmp_path / "out", projector=parts["projector"], mole=prefixed, adapters=adapters_state(made))
    expected, adapters = layouts.logits(made.student), {k: v.clone() for k, v in adapters_state(made).items()}
    other = Wrapper(shuffled(made.student))
    other.adapters["sam"].running_mean.fill_(5)
    assert load_parts(other, tmp_path / "out") == ["projector", "mole", "adapters"]
    assert torch.equal(layouts.logits(other.student), expected)
    assert all(torch.equal(adapters_state(other)[name], adapters[name]) for name in adapters)


def test_adapters_of_a_teacher_that_this_run_lacks_are_left_out(tmp_path: Path) -> None:
    made = Wrapper(tiny_llava(tmp_path))
    save_parts(tmp_path / "out", adapters=adapters_state(made))
    other = Wrapper(made.student)
    del other.adapters["eva"]
    assert load_parts(other, tmp_path / "out") == ["adapters"]
    assert load_parts(made.student, tmp_path / "out") == []


def test_adapters_that_the_file_lacks_are_named(tmp_path: Path) -> None:
    made = Wrapper(tiny_llava(tmp_path))
    state = adapters_state(made)
    state.pop("adapters.eva.bias")
    save_parts(tmp_path / "out", adapters=state)
    with pytest.raises(CheckpointError, match=r"adapters\.eva\.bias"):
        load_parts(made, tmp_path / "out")


def test_a_part_in_a_file_of_another_name_is_recognized(tmp_path: Path) -> None:
    made = layouts.tiny_move_kd(tmp_path)
    parts = parts_of(made)
    save_parts(tmp_path / "out", projector=parts["projector"], mole=parts["mole"])
    for name, part in (("mm_projector", "projector"), ("mole_encoder", "mole")):
        file = tmp_path / f"checkpoint-{part}.bin"
        (tmp_path / "out" / f"{name}.bin").rename(file)
        assert load_parts(made, file) == [part]


def test_parts_that_do_not_fit_are_named(tmp_path: Path) -> None:
    made = layouts.tiny_move_kd(tmp_path)
    parts = parts_of(made)
    save_parts(tmp_path / "out", mole=parts["mole"])
    with pytest.raises(CheckpointError, match="not known"):
        load_parts(tiny_llava(tmp_path), tmp_path / "out")
    parts["projector"].pop("model.mm_projector.2.bias")
    save_parts(tmp_path / "out", projector=parts["projector"])
    with pytest.raises(CheckpointError, match=r"1 tensors missing \['model\.mm_projector\.2\.bias'\]"):
        load_parts(made, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"holds none of mm_projector\.bin"):
        load_parts(made, tiny_lm_folder(tmp_path))


def test_a_student_begins_as_a_language_model_without_vision(tmp_path: Path) -> None:
    student = load_student(None, tiny_lm_folder(tmp_path, "mistral"), dtype=torch.bfloat16)
    assert type(student).__name__ == "LlavaMistralForCausalLM"
    assert student.get_vision_tower() is None
    assert student.dtype == torch.bfloat16


def test_the_class_of_a_student_can_be_chosen(tmp_path: Path) -> None:
    overwrite = {"model_type": "move_llava_llama", "moe": {"moe_encoder": False}}
    student = load_student(MoVELlavaLlamaForCausalLM, tiny_lm_folder(tmp_path), overwrite_config=overwrite)
    assert type(student) is MoVELlavaLlamaForCausalLM


def test_a_difference_and_its_base_give_the_model_back(tmp_path: Path) -> None:
    base = tiny_lm_folder(tmp_path)
    target = save_tiny_llava(tmp_path, vocab_size=903)
    (target / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    make_delta(base, target, tmp_path / "delta")
    apply_delta(base, tmp_path / "target", tmp_path / "delta")
    assert load_pretrained_model(str(tmp_path / "target"), None, "x")[1].generation_config.eos_token_id == [2, 7]
    original, restored = read_state_dict(target), read_state_dict(tmp_path / "target")
    assert original.keys() == restored.keys()
    for name, tensor in original.items():
        torch.testing.assert_close(restored[name], tensor, rtol=0, atol=1e-6)
    assert load_pretrained_model(str(tmp_path / "target"), None, "x")[2] is not None


def test_a_difference_to_a_base_of_another_size_is_refused(tmp_path: Path) -> None:
    base = tiny_lm_folder(tmp_path, intermediate_size=64)
    with pytest.raises(CheckpointError, match="in the base"):
        make_delta(base, save_tiny_llava(tmp_path), tmp_path / "delta")


def test_differences_and_consolidating_do_not_write_over_what_they_read(tmp_path: Path) -> None:
    base, target = tiny_lm_folder(tmp_path), save_tiny_llava(tmp_path)
    for call in (
        lambda: make_delta(base, target, base),
        lambda: make_delta(base, target, target),
        lambda: apply_delta(base, base, target),
        lambda: consolidate_ckpt(target, target),
    ):
        with pytest.raises(CheckpointError, match="name another directory"):
            call()


def test_consolidating_writes_safetensors_in_float16_with_the_tower(tmp_path: Path) -> None:
    folder, _ = layouts.llava_15(tmp_path)
    consolidate_ckpt(folder, tmp_path / "out")
    state = read_state_dict(tmp_path / "out")
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    assert any(name.startswith(layouts.TOWER) for name in state)
    assert load_pretrained_model(str(tmp_path / "out"), None, "x")[0]("a").input_ids


def test_the_first_releases_config_is_upgraded(tmp_path: Path) -> None:
    folder = save_tiny_llava(tmp_path)
    raw = json.loads((folder / "config.json").read_text())
    layouts.write_settings(folder, raw | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    assert load_pretrained_model(str(folder), None, "x")[2] is not None  # the loader reads it as it is
    assert auto_upgrade(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llava_llama"
    assert not auto_upgrade(folder)
