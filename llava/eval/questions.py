"""What a generator asks: questions with their pictures, read from question files. Knows no model and no torch."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Question:
    """id: the file's own, not always unique: TextVQA numbers pictures, MME asks two questions under one id.

    text: what the answer line records as prompt. message: what the model reads; `<image>` in it marks where pictures
    go, without one they come first. open_images: called in a thread, gives RGB pictures in order.
    extra: more keys of the answer line.
    """

    id: Any
    text: str
    message: str
    open_images: Callable[[], list[Image.Image]] = list
    extra: dict[str, Any] = field(default_factory=dict)


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """One object per line. Raises ValueError that names file and line."""
    rows = []
    with open(Path(path).expanduser(), encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}:{number} is not JSON: {error}") from None
    return rows


def read_json(path: str | Path) -> Any:
    """Raises ValueError that names the file."""
    try:
        return json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def require_keys(row: dict[str, Any], keys: Sequence[str], where: str) -> None:
    """Raises ValueError that names the place and the keys that are missing there."""
    missing = [key for key in keys if key not in row]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; it has {', '.join(sorted(row)) or 'nothing'}")


def open_rgb(path: Path) -> Image.Image:
    """Raises FileNotFoundError or ValueError that names the file."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"image {path} does not exist; check --image-folder") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {path} cannot be read: {error}") from error


@dataclass(frozen=True)
class ImageFiles:
    """Opens the named files below a folder."""

    paths: tuple[Path, ...] = ()

    @classmethod
    def below(cls, folder: str, names: str | Sequence[str] | None) -> "ImageFiles":
        listed = [names] if isinstance(names, str) else list(names or [])
        return cls(tuple(Path(folder).expanduser() / name for name in listed))

    def __call__(self) -> list[Image.Image]:
        return [open_rgb(path) for path in self.paths]
