"""Weight differences: what make_delta and apply_delta share."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from llava.model.checkpoint_config import read_config
from llava.model.checkpoint_io import (
    CheckpointError,
    check_output,
    find_file,
    read_state_dict,
    write_json,
    write_safetensors,
)
from llava.model.checkpoint_names import publish_experts, upgrade_state_dict
from llava.model.tokenizer import has_tokenizer, load_tokenizer

# Rows that the target added to the base's vocabulary are kept as they are.
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")


def combine(
    base: Mapping[str, Tensor], other: Mapping[str, Tensor], operation: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    """`operation(other, base)` for tensors that both have, in the dtype of `other`; the rest of `other` as it is.

    Raises CheckpointError if `other` lacks a tensor of `base`, or one has another shape.
    """
    lacking = sorted(base.keys() - other.keys())
    if lacking:
        raise CheckpointError(f"{len(lacking)} tensors of the base are not in the other model, such as {lacking[0]}.")
    combined = {}
    for name, tensor in other.items():
        combined[name] = tensor
        if name not in base:
            continue
        rows = len(base[name]) if name in VOCABULARY else len(tensor)
        if base[name].shape != tensor[:rows].shape:
            raise CheckpointError(
                f"{name} is {tuple(base[name].shape)} in the base, {tuple(tensor.shape)} in the other model."
            )
        combined[name] = tensor.clone()
        combined[name][:rows] = operation(tensor[:rows].float(), base[name].float()).to(tensor.dtype)
    return combined


def rewrite(
    base_path: str | os.PathLike[str],
    other_path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    operation: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Combine the weights of two directories and write them to a third, with config, generation
    settings and tokenizer of the second. Raises CheckpointError if the third is one of the two."""
    check_output(output, base_path, other_path)
    base, other = (upgrade_state_dict(read_state_dict(path)) for path in (base_path, other_path))
    config = read_config(other_path)
    directory = Path(output)
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(publish_experts(combine(base, other, operation)), directory)
    if has_tokenizer(other_path):
        load_tokenizer(other_path).save_pretrained(directory)
    if (generation := find_file(other_path, "generation_config.json")) is not None:
        shutil.copyfile(generation, directory / generation.name)
    write_json(config, directory / "config.json")
