"""Reading published weight files, strictly: a missing, partial, wrong or corrupt one is a ValueError that says what.

Nothing here executes code from a file (`weights_only=True`), and nothing leaves a tensor at its random start.
"""

import hashlib
import logging
import os
import re
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
BROKEN = (OSError, RuntimeError, ValueError, KeyError)
Model = TypeVar("Model", bound=nn.Module)


def find_file(location: str, names: Sequence[str], owner: str) -> Path:
    """The weight file at `location`: a file, a folder holding one of `names`, or `org/repo[:file]` on the Hub.

    owner: who asks, for messages. Raises ValueError saying what was looked for and what is there.
    """
    path = Path(location).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        found = [path / name for name in names if (path / name).is_file()]
        found += sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
        if not found:
            there = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
            raise ValueError(f"{owner}: no weight file in {path}: looked for {', '.join(names)}; there is {there}")
        return found[0]
    repository, _, name = location.partition(":")
    if location.startswith(("/", ".", "~")) or not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"{owner}: there is no file or folder {location}, and it is no Hub id (org/repo[:file])")
    return _download(repository, [name] if name else names, owner)


def _download(repository: str, names: Sequence[str], owner: str) -> Path:
    from huggingface_hub import hf_hub_download

    problem = ""
    for name in names:
        try:
            return Path(hf_hub_download(repository, name))
        except (OSError, ValueError) as error:
            problem = _first_line(error)
    raise ValueError(
        f"{owner}: no file or folder of this name here, and Hub repository {repository} gives none of "
        f"{', '.join(names)} ({problem}). Put the file on disk and name it with path=..."
    )


def read_checkpoint(path: Path, owner: str) -> dict[str, Any]:
    """The content of one .safetensors or torch pickle file. Raises ValueError for an empty, cut or unsafe file."""
    if path.stat().st_size == 0:
        raise ValueError(f"{owner}: {path} is empty (0 bytes); fetch it again")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # the unpickler raises whatever it stumbles over in a cut file or an error page
        raise ValueError(
            f"{owner}: {path} ({path.stat().st_size:,} bytes) cannot be read: {_first_line(error)} "
            "It is cut short, of another format, or holds more than tensors, which is not loaded; fetch it again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{owner}: {path} holds a {type(content).__name__}, not named tensors")
    return content


def strict_load(net: Model, state: Mapping[str, Tensor], *, where: str) -> Model:
    """Put exactly `state` into a module made on the meta device. Raises ValueError naming every difference."""
    wanted = {key: tensor.shape for key, tensor in net.state_dict().items()}
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(shape)}"
        for key, shape in wanted.items()
        if key in state and state[key].shape != shape
    ]
    refuse(where, missing=wanted.keys() - state.keys(), unexpected=state.keys() - wanted.keys(), shapes=shapes)
    net.load_state_dict(dict(state), assign=True)
    return net


def refuse(where: str, *, missing: Collection[str], unexpected: Collection[str], shapes: Collection[str] = ()) -> None:
    """Raise ValueError if anything is missing, unexpected or of another shape; all three are named."""
    faults = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    found = [f"{len(names)} {word}: {_some(names)}" for word, names in faults if names]
    if found:
        raise ValueError(f"{where} does not fit the network. Tensors {'; '.join(found)}")


def _some(names: Iterable[str], limit: int = 8) -> str:
    names = sorted(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def load_pretrained(
    model_class: Any,
    location: str,
    *,
    model_types: Sequence[str],
    owner: str,
    ignore: Sequence[str] = (),
    key_mapping: dict[str, str] | None = None,
) -> Any:
    """A transformers model from a folder or Hub id, float32, every tensor of it from the file.

    model_types: accepted `model_type` of config.json; empty accepts any. ignore: patterns of tensor names of the file
    that belong to other parts (a text tower, a decoder). Raises ValueError for anything missing, unexpected or broken.
    """
    check_model_type(location, model_types, owner)
    options: dict[str, Any] = {"key_mapping": key_mapping} if key_mapping else {}
    with outside_zero_init(), _quiet():
        try:
            model, info = model_class.from_pretrained(
                location, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
        except Exception as error:  # as above
            raise ValueError(f"{owner}: {_files(location)} cannot be loaded: {_reason(error)}") from error
    allowed = re.compile("|".join(ignore) or r"(?!)")
    unexpected = [key for key in info["unexpected_keys"] if not allowed.match(key)]
    shapes = {key: f"{key} {tuple(file)} instead of {tuple(own)}" for key, file, own in info["mismatched_keys"]}
    missing = [key for key in info["missing_keys"] if key not in shapes]
    refuse(f"{owner}: {location}", missing=missing, unexpected=unexpected, shapes=shapes.values())
    return model


def _files(location: str) -> str:
    """A folder with its weight files and their sizes, for messages."""
    folder = Path(location)
    if not folder.is_dir():
        return location
    files = [file for file in sorted(folder.iterdir()) if file.suffix in SUFFIXES]
    return f"{location} ({', '.join(f'{file.name}: {file.stat().st_size:,} bytes' for file in files) or 'no weights'})"


def check_model_type(location: str, model_types: Sequence[str], owner: str) -> str:
    """`model_type` of the config.json at `location`. Raises ValueError if there is none or it is not accepted."""
    from transformers import PretrainedConfig

    path = Path(location).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"{owner}: {path} has no config.json; a transformers model folder is expected")
    if path.is_file() or (not path.exists() and location.startswith(("/", ".", "~"))):
        raise ValueError(f"{owner}: there is no folder {location}; a transformers model folder or Hub id is expected")
    try:
        config, _ = PretrainedConfig.get_config_dict(location)
    except BROKEN as error:
        raise ValueError(
            f"{owner}: no readable config.json at {location}: {_first_line(error)} "
            "Put the model's folder on disk and name it with path=..."
        ) from error
    model_type = config.get("model_type", "")
    if model_types and model_type not in model_types:
        raise ValueError(f"{owner}: {location} holds a {model_type!r} model; accepted: {', '.join(model_types)}")
    return model_type


@contextmanager
def outside_zero_init() -> Iterator[None]:
    """Load whole tensors even while a ZeRO-3 run partitions the student's as they are made."""
    from transformers.integrations import deepspeed

    reference = deepspeed._hf_deepspeed_config_weak_ref
    active = reference() if reference is not None else None
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if active is not None:
            deepspeed.set_hf_deepspeed_config(active)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's report of missing and unexpected tensors: ours is an error, or nothing."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.CRITICAL)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def weights_digest(module: nn.Module) -> str:
    """sha256 over names, shapes, dtypes and bytes of every parameter and persistent buffer, in name order."""
    state = sorted(module.state_dict().items())
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        parts = pool.map(_tensor_digest, state)
        return hashlib.sha256(b"".join(parts)).hexdigest()


def _tensor_digest(entry: tuple[str, Tensor]) -> bytes:
    name, tensor = entry
    tensor = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def _reason(error: BaseException) -> str:
    """The error's own words on one line, cut to a readable length."""
    return " ".join((str(error).strip() or type(error).__name__).split())[:600]
