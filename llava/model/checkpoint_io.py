"""Files of tensors: where they are, how they are read, how they are written without leaving half a file.

Knows nothing of models or of what a tensor's name means. Everything read from a user's file that turns out
broken is a CheckpointError that names the file and says what to do.
"""

import json
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download, split_torch_state_dict_into_shards
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
SHARD = re.compile(r"(model|pytorch_model)-\d{5}-of-\d{5}\.(safetensors|bin)")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
LFS_POINTER = b"version https://git-lfs"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: what was asked, what there is, what to do."""


def find_file(path: str | os.PathLike[str], name: str) -> Path | None:
    """`name` in a local directory, or in the hub repository `path`; None if there is no such file.

    Raises CheckpointError if `path` is neither a directory here nor a repository that can be reached.
    """
    directory = Path(path)
    if directory.is_dir():
        file = directory / name
        return file if file.is_file() else None
    if directory.exists():
        raise CheckpointError(f"{path} is a file, but a checkpoint is a directory. Pass the directory that holds it.")
    if not HUB_ID.fullmatch(str(path)):
        raise CheckpointError(f"the directory {path} does not exist (from {Path.cwd()}). Check the path.")
    return _fetch(str(path), name)


def _fetch(repository: str, name: str) -> Path | None:
    """A file of a hub repository, from the local cache or the network; None if the repository does not have it.

    Offline, a repository of which anything is cached counts as cached whole.
    """
    try:
        return Path(hf_hub_download(repository, name))
    except LocalEntryNotFoundError as error:
        cached = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type="model"), "snapshots")
        if cached.is_dir():
            return None
        reason: Exception = error
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = error
    raise CheckpointError(
        f"there is no directory {repository} (from {Path.cwd()}), and {name} of a hub repository of that name "
        f"cannot be fetched ({type(reason).__name__}: {str(reason).splitlines()[0]}). "
        "Check the path, or download the repository while online and pass its directory."
    ) from reason


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError if it is not one."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is not valid JSON ({error}). Copy the file again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds a {type(value).__name__}, not a JSON object. Copy the file again.")
    return value


def has_weights(path: str | os.PathLike[str]) -> bool:
    """Whether a directory or hub repository holds a whole checkpoint."""
    return not Path(path).is_file() and any(find_file(path, name) is not None for name in WEIGHT_FILES)


def find_weight_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files that together hold a checkpoint's tensors: a file as it is, else by the usual names.

    Raises CheckpointError if there are none, or if an index names a shard that is not there.
    """
    if Path(path).is_file():
        return [Path(path)]
    for name in WEIGHT_FILES:
        file = find_file(path, name)
        if file is not None:
            return _shards(path, file) if name.endswith(".json") else [file]
    raise CheckpointError(
        f"{path} has no weights: none of {', '.join(WEIGHT_FILES)} is there, only {_listing(path)}. "
        "If it holds a projector (mm_projector.bin) or a LoRA (adapter_config.json), pass the base model as well."
    )


def _shards(path: str | os.PathLike[str], index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no 'weight_map', so its shards cannot be found. Copy the file again.")
    names = sorted(set(weight_map.values()))
    files = {name: find_file(path, name) for name in names}
    missing = [name for name, file in files.items() if file is None]
    if missing:
        raise CheckpointError(
            f"{index} names {len(names)} shards, but {', '.join(missing)} is not there. "
            "The copy of the checkpoint is incomplete: fetch the missing file."
        )
    return [file for file in files.values() if file is not None]


def check_output(output: str | os.PathLike[str], *sources: str | os.PathLike[str] | None) -> None:
    """Raises CheckpointError if the output is one of the checkpoints read, which writing would destroy."""
    for source in sources:
        if source is not None and Path(output).resolve() == Path(source).resolve():
            raise CheckpointError(f"the output {output} is a checkpoint that is read; name another directory.")


def _listing(path: str | os.PathLike[str]) -> str:
    if not Path(path).is_dir():
        return "other files"
    names = sorted(entry.name for entry in Path(path).iterdir())
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "nothing (it is empty)"


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Every tensor of a checkpoint: a .bin or .safetensors file, or a directory (or hub id) of one or many.

    CPU tensors, mapped from the files rather than copied where the format allows.
    Raises CheckpointError for a file that is missing, empty, cut short, or holds something else than tensors.
    """
    state: dict[str, Tensor] = {}
    for file in find_weight_files(path):
        state.update(read_tensors(file))
    return state


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of one file. Raises CheckpointError."""
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist. {file.parent} holds {_listing(file.parent)}.")
    if file.stat().st_size == 0:
        raise CheckpointError(f"{file} is empty (0 bytes). Copy the file again.")
    with file.open("rb") as stream:
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            raise CheckpointError(f"{file} is a git-lfs pointer, not the weights. Run 'git lfs pull' there.")
    return _read_safetensors(file) if file.suffix == ".safetensors" else _read_bin(file)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt", device="cpu") as reader:
            return {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} ({file.stat().st_size} bytes) is cut short or not a safetensors file: {error}. Copy it again."
        ) from error


def _read_bin(file: Path) -> dict[str, Tensor]:
    with file.open("rb") as stream:
        zipped = stream.read(4) == b"PK\x03\x04"
    try:
        value = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds something else than tensors, or is no torch file: {str(error).splitlines()[0]} "
            "Save a flat dict of tensors with torch.save."
        ) from error
    except Exception as error:  # the unpickler raises whatever it stumbles over
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{file} ({file.stat().st_size} bytes) is cut short or not a torch file: {reason}. Copy it again."
        ) from error
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{file} holds a {type(value).__name__}, not a dict of tensors.")
    others = [str(name) for name, tensor in value.items() if not isinstance(tensor, Tensor)]
    if others:
        raise CheckpointError(f"{file} should hold tensors only, but {', '.join(others[:5])} are something else.")
    return {name: tensor.detach() for name, tensor in value.items()}


@contextmanager
def atomic(file: Path) -> Iterator[Path]:
    """A temporary name beside `file` to write to; it takes the final name only when everything was written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the user's umask gives; safetensors would leave it to the owner alone
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def write_bin(tensors: Mapping[str, Tensor], file: Path) -> None:
    """A flat dict of tensors as `torch.save` writes it, complete or not at all."""
    with atomic(file) as temporary:
        torch.save({name: _storable(tensor) for name, tensor in tensors.items()}, temporary)


def write_json(value: Mapping[str, Any], file: Path) -> None:
    with atomic(file) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_safetensors(tensors: Mapping[str, Tensor], directory: Path, max_shard_size: int | str = "5GB") -> None:
    """`tensors` as model.safetensors, or as shards with an index. Weight files of an earlier save are removed.

    The index goes first and comes last, so that a crash in between leaves a directory that is seen as incomplete.
    """
    state = {name: _storable(tensor) for name, tensor in tensors.items()}
    split = split_torch_state_dict_into_shards(state, max_shard_size=max_shard_size)
    for name in WEIGHT_FILES:
        if name.endswith(".json"):
            (directory / name).unlink(missing_ok=True)
    for name, keys in split.filename_to_tensors.items():
        with atomic(directory / name) as temporary:
            save_file({key: state[key] for key in keys}, temporary, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(index, directory / "model.safetensors.index.json")
    for file in directory.iterdir():
        stale = file.name in ("model.safetensors", "pytorch_model.bin") or SHARD.fullmatch(file.name)
        if stale and file.name not in split.filename_to_tensors:
            file.unlink()


def _storable(tensor: Tensor) -> Tensor:
    """A tensor of its own, contiguous and on the CPU: neither format keeps views or shared storage apart."""
    tensor = tensor.detach().to("cpu").contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()
