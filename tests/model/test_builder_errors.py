"""What is wrong with a checkpoint is said once and clearly: what was asked, what there is, what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import CheckpointError, read_state_dict
from llava.model.checkpoint_io import write_safetensors
from tests.tiny import save_tiny_llava, tiny_lm_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_llava(tmp_path)


def load(folder: Path, base: Path | None = None, **options: Any) -> Any:
    return load_pretrained_model(str(folder), None if base is None else str(base), "name", **options)


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads((folder / "config.json").read_text())
    change(raw)
    (folder / "config.json").write_text(json.dumps(raw))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = read_state_dict(folder)
    change(state)
    write_safetensors(state, folder)


def expect(folder: Path, message: str, base: Path | None = None) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(folder, base)


def test_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    expect(tmp_path / "gone" / "llava", "the directory .* does not exist")


def test_a_file_in_place_of_a_directory(folder: Path) -> None:
    expect(folder / "config.json", "is a file, but a checkpoint is a directory")


def test_a_directory_without_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    expect(folder, r"has no config\.json")


def test_a_config_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llava_llama",')
    expect(folder, "is not valid JSON")


def test_a_config_that_is_a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")
    expect(folder, "holds a list, not a JSON object")


def test_an_unknown_model_type(folder: Path) -> None:
    change_config(folder, lambda raw: raw.update(model_type="llava_zebra", architectures=["LlavaZebraForCausalLM"]))
    expect(folder, r"model_type 'llava_zebra', which is neither a LLaVA type .*llava_qwen")


def test_a_model_type_that_is_no_language_model(folder: Path) -> None:
    change_config(folder, lambda raw: (raw.update(model_type="vit"), raw.pop("mm_vision_tower")))
    expect(folder, "model_type 'vit', which is neither a LLaVA type")


def test_a_llava_config_that_names_no_tower(folder: Path) -> None:
    change_config(folder, lambda raw: raw.pop("mm_vision_tower"))
    expect(folder, r"names no mm_vision_tower.*overwrite_config")


def test_a_tower_that_is_not_there(folder: Path) -> None:
    change_config(folder, lambda raw: raw.update(mm_vision_tower="/nowhere/clip-vit"))
    expect(folder, "/nowhere/clip-vit")


def test_a_tower_with_holes(folder: Path) -> None:
    hole = "model.vision_tower.vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight"
    change_weights(folder, lambda state: state.pop(hole))
    expect(folder, rf"holds only \d+ of the \d+ tensors of its vision tower that are read; missing are {hole}")


def test_the_end_of_a_tower_may_be_missing(folder: Path) -> None:
    unread = ("encoder.layers.2.", "post_layernorm.")
    change_weights(folder, lambda state: [state.pop(name) for name in [*state] if any(end in name for end in unread)])
    assert load(folder)[1].get_vision_tower().select_layer == -2


def test_a_tower_on_the_hub_that_cannot_be_reached(folder: Path) -> None:
    change_config(folder, lambda raw: raw.update(mm_vision_tower="openai/clip-vit-none-such"))
    expect(folder, r"vision tower 'openai/clip-vit-none-such'.*Download it")


def test_a_projector_type_that_does_not_exist(folder: Path) -> None:
    change_config(folder, lambda raw: raw.update(mm_projector_type="mlp2x_relu"))
    expect(folder, "mlp2x_relu")


def test_a_resampler_that_is_not_built(folder: Path) -> None:
    change_config(folder, lambda raw: raw.update(mm_resampler_type="qformer"))
    expect(folder, "mm_resampler_type 'qformer'")


def test_a_missing_tensor(folder: Path) -> None:
    change_weights(folder, lambda state: state.pop("model.mm_projector.2.bias"))
    expect(folder, r"1 tensors are missing: model\.mm_projector\.2\.bias")


def test_a_missing_language_model_tensor(folder: Path) -> None:
    change_weights(folder, lambda state: state.pop("model.layers.1.mlp.up_proj.weight"))
    expect(folder, r"missing: model\.layers\.1\.mlp\.up_proj\.weight")


def test_an_unexpected_tensor(folder: Path) -> None:
    change_weights(folder, lambda state: state.update({"model.layers.7.norm.weight": torch.ones(4)}))
    expect(folder, r"1 tensors are not known to the model: model\.layers\.7\.norm\.weight")


def test_a_tensor_of_the_wrong_shape(folder: Path) -> None:
    change_weights(folder, lambda state: state.update({"model.norm.weight": torch.ones(65)}))
    expect(folder, r"model\.norm\.weight is \(65,\), the model has \(64,\)")


def test_a_tensor_of_whole_numbers(folder: Path) -> None:
    integers = torch.ones(64, dtype=torch.int8)
    change_weights(folder, lambda state: state.update({"model.norm.weight": integers}))
    expect(folder, r"not floating point: model\.norm\.weight is torch\.int8")


def test_a_checkpoint_that_was_saved_quantized(folder: Path) -> None:
    change_config(folder, lambda raw: raw.update(quantization_config={"quant_method": "gptq"}))
    expect(folder, "was saved quantized .*gptq")
    change_config(folder, lambda raw: raw.update(quantization_config=None))
    load(folder)


def test_weights_that_are_cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    expect(folder, "cut short")


def test_a_directory_without_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (folder / name).unlink()
    expect(folder, "has no tokenizer")


def test_a_broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"nonsense")
    expect(folder, "tokenizer in .* cannot be loaded")


def test_a_projector_directory_without_base(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.mm_projector.0.weight": torch.ones(1)}, folder / "mm_projector.bin")
    expect(folder, "pass the base model")


def test_a_base_of_another_size(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.mm_projector.0.weight": torch.ones(64, 32)}, folder / "mm_projector.bin")
    base = tiny_lm_folder(tmp_path / "other", hidden_size=32)
    expect(folder, r"embed_tokens\.weight is \(900, 32\), the model has \(900, 64\)", base)


def test_a_base_with_neither_projector_nor_adapter_on_it(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    expect(folder, r"holds none of mm_projector\.bin", tiny_lm_folder(tmp_path))


def test_an_image_processor_that_is_not_there(folder: Path) -> None:
    tower = Path(json.loads((folder / "config.json").read_text())["mm_vision_tower"])
    for file in tower.glob("*processor*"):
        file.unlink()
    expect(folder, "image processor")


def test_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    expect(tmp_path / "empty", r"has no config\.json")


def test_a_dtype_that_is_none(folder: Path) -> None:
    with pytest.raises(ValueError, match="'float17' is no floating dtype"):
        load(folder, torch_dtype="float17")


def test_both_bit_widths_at_once(folder: Path) -> None:
    with pytest.raises(ValueError, match="Choose one"):
        load(folder, load_8bit=True, load_4bit=True)


def test_a_plain_language_model_with_a_missing_tensor(tmp_path: Path) -> None:
    base = tiny_lm_folder(tmp_path)
    change_weights(base, lambda state: state.pop("model.norm.weight"))
    expect(base, r"model\.norm\.weight")


def test_a_copy_that_lost_a_shard(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    write_safetensors(read_state_dict(folder), copy, max_shard_size=100_000)
    lost = sorted(copy.glob("model-*.safetensors"))[1]
    lost.unlink()
    expect(copy, f"{lost.name} is not there")
