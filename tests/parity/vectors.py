"""Recorded numbers of the published implementations, one case per JSON (and safetensors) file.

`--parity-dir DIR` (or LLAVA_PARITY_DIR) points the suite at another set in the same layout.
"""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

BUNDLED = Path(__file__).parent / "vectors"


def root() -> Path:
    return Path(os.environ.get("LLAVA_PARITY_DIR", BUNDLED))


@dataclass(frozen=True)
class Case:
    topic: str
    name: str
    path: Path  # the JSON file

    @cached_property
    def meta(self) -> Any:
        return json.loads(self.path.read_text())

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.path.with_suffix(".safetensors"))

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors below `prefix.`, with the prefix removed."""
        start = prefix + "."
        return {key.removeprefix(start): value for key, value in self.tensors.items() if key.startswith(start)}

    def __str__(self) -> str:
        return self.name


def cases(topic: str) -> list[Case]:
    """All cases of a topic, by file name; folders that hold a `case.json` count as one case each.

    Raises FileNotFoundError when there is none: a parity test without vectors must not pass.
    """
    folder = root() / topic
    found = [Case(topic, path.stem, path) for path in sorted(folder.glob("*.json"))]
    found += [Case(topic, path.parent.name, path) for path in sorted(folder.glob("*/case.json"))]
    if not found:
        raise FileNotFoundError(f"no parity case of topic {topic!r} in {folder}")
    return found


def tokenizer_folder() -> Path:
    folder = root() / "tokenizers"
    return folder if folder.is_dir() else BUNDLED / "tokenizers"
