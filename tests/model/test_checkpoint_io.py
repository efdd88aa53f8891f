"""Files of tensors: what is broken is named, and nothing is left half written."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llava.model.checkpoint_io import (
    CheckpointError,
    find_file,
    read_state_dict,
    write_bin,
    write_json,
    write_safetensors,
)


def tensors(count: int = 4) -> dict[str, torch.Tensor]:
    return {f"layer.{index}.weight": torch.randn(8, 8) for index in range(count)}


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def sharded_bin(directory: Path, state: dict[str, torch.Tensor]) -> dict[str, str]:
    """As published for llava-v1.5: pytorch_model-0000i-of-0000n.bin and an index."""
    weight_map = {}
    for number, (name, tensor) in enumerate(state.items(), start=1):
        weight_map[name] = f"pytorch_model-{number:05d}-of-{len(state):05d}.bin"
        torch.save({name: tensor}, directory / weight_map[name])
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return weight_map


def test_every_layout_of_files_reads_the_same(tmp_path: Path) -> None:
    state = tensors()
    for name in ("one_bin", "many_bin", "one_safetensors", "many_safetensors"):
        (tmp_path / name).mkdir()
    torch.save(state, tmp_path / "one_bin" / "pytorch_model.bin")
    sharded_bin(tmp_path / "many_bin", state)
    save_file(state, tmp_path / "one_safetensors" / "model.safetensors")
    write_safetensors(state, tmp_path / "many_safetensors", max_shard_size=600)
    assert len(list((tmp_path / "many_safetensors").glob("model-*-of-*.safetensors"))) > 1
    for folder in tmp_path.iterdir():
        assert_equal(read_state_dict(folder), state)


def test_a_bin_of_the_old_torch_format_reads(tmp_path: Path) -> None:
    state = tensors()
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert_equal(read_state_dict(tmp_path), state)


def test_a_shard_that_the_index_names_but_is_not_there_is_named(tmp_path: Path) -> None:
    shard = sharded_bin(tmp_path, tensors())["layer.2.weight"]
    (tmp_path / shard).unlink()
    with pytest.raises(CheckpointError, match=f"{shard} is not there"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_an_empty_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=rf"{name} is empty \(0 bytes\)"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("keep", [7, 200, -9])
def test_a_file_cut_short_is_named(tmp_path: Path, name: str, keep: int) -> None:
    file = tmp_path / name
    save_file(tensors(), file) if file.suffix == ".safetensors" else torch.save(tensors(), file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=name):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_of_noise_or_html_is_named(tmp_path: Path, name: str) -> None:
    for content in (b"<html>not found</html>" * 20, bytes(range(256)) * 8, b"error code: 522", b"rate limit"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            read_state_dict(tmp_path)


def test_a_git_lfs_pointer_is_recognized(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        read_state_dict(tmp_path)


def test_a_bin_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1), "path": Path("x")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="something else than tensors"):
        read_state_dict(tmp_path)


def test_a_bin_that_is_no_flat_dict_is_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(1)], tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_state_dict(tmp_path)
    torch.save({"model": {"weight": torch.ones(1)}}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="but model are something else"):
        read_state_dict(tmp_path)


def test_a_directory_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "mm_projector.bin")
    with pytest.raises(CheckpointError, match=r"only mm_projector\.bin.*pass the base model"):
        read_state_dict(tmp_path)


def test_a_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the directory .*gone does not exist"):
        read_state_dict(tmp_path / "gone")


def test_a_hub_name_says_when_it_cannot_be_reached() -> None:
    with pytest.raises(CheckpointError, match=r"no directory nobody/no-such-model.*pass its directory"):
        find_file("nobody/no-such-model", "config.json")


def test_a_broken_index_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {')
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        read_state_dict(tmp_path)
    write_json({"metadata": {}}, tmp_path / "model.safetensors.index.json")
    with pytest.raises(CheckpointError, match="has no 'weight_map'"):
        read_state_dict(tmp_path)


def test_writing_leaves_no_temporary_file_and_removes_older_weights(tmp_path: Path) -> None:
    sharded_bin(tmp_path, tensors())
    write_safetensors(tensors(), tmp_path, max_shard_size=600)
    state = tensors(2)
    write_safetensors(state, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert_equal(read_state_dict(tmp_path), state)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "mm_projector.bin"
    write_bin({"weight": torch.ones(2)}, file)
    with pytest.raises(AttributeError):
        write_bin({"weight": "no tensor"}, file)  # type: ignore[dict-item]
    assert_equal(read_state_dict(file), {"weight": torch.ones(2)})
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]


def test_a_slice_is_written_without_the_tensor_it_is_cut_from(tmp_path: Path) -> None:
    whole = torch.randn(1000, 100)
    write_bin({"row": whole[3]}, tmp_path / "row.bin")
    assert (tmp_path / "row.bin").stat().st_size < 4000
    assert_equal(read_state_dict(tmp_path / "row.bin"), {"row": whole[3]})


def test_written_weights_have_the_mode_that_the_user_gives_new_files(tmp_path: Path) -> None:
    write_safetensors({"a": torch.zeros(2)}, tmp_path)
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == plain.stat().st_mode
