"""Examples that suit a checkpoint: those that lie beside it. None are made up for a checkpoint that has none."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.remote import SERVING_LIMITS, load_image

FOLDER = "demo_examples"
LIST = "examples.json"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
MOST = 12

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    text: str
    files: tuple[Path, ...]


def find_examples(checkpoint: str, folder: str | None = None) -> list[Example]:
    """The examples in `folder`, or else in the checkpoint's `demo_examples`; none if that does not exist.

    A folder holds an `examples.json`, a list of {"text": question, "image": file name or list of them}, or pictures,
    each with its question in a text file of the same name. Only files in the folder itself are taken, since what
    is listed is shown to everyone. Raises ValueError if `folder` is given and holds none.
    """
    directory = Path(folder or Path(checkpoint) / FOLDER).expanduser()
    if not directory.is_dir():
        if folder:
            raise ValueError(f"--examples {folder} is not a folder")
        return []
    found = _from_list(directory) if (directory / LIST).exists() else _from_pictures(directory)
    usable = [example for example in found if all(_is_usable(path, directory) for path in example.files)]
    if folder and not usable:
        raise ValueError(f"--examples {folder} holds neither a usable {LIST} nor pictures ({', '.join(PICTURES)})")
    return usable[:MOST]


def _from_list(directory: Path) -> list[Example]:
    try:
        entries: Any = json.loads((directory / LIST).read_text(encoding="utf-8"))
        return [Example(str(entry.get("text", "")), _files(directory, entry.get("image"))) for entry in entries]
    except (ValueError, AttributeError, TypeError) as error:
        logger.warning('%s is not a list of {"text": ..., "image": ...}: %s', directory / LIST, error)
        return []


def _files(directory: Path, names: str | list[str] | None) -> tuple[Path, ...]:
    listed = [names] if isinstance(names, str) else names or []
    return tuple(directory / name for name in listed)


def _from_pictures(directory: Path) -> list[Example]:
    pictures = sorted(path for path in directory.iterdir() if path.suffix.lower() in PICTURES)
    questions = (path.with_suffix(".txt") for path in pictures)
    texts = (question.read_text(encoding="utf-8").strip() if question.exists() else "" for question in questions)
    return [Example(text, (path,)) for text, path in zip(texts, pictures, strict=True)]


def _is_usable(path: Path, directory: Path) -> bool:
    try:
        if path.resolve().parent != directory.resolve():
            raise ValueError(f"{path} is not in {directory}")
        load_image(str(path), SERVING_LIMITS)
    except (ValueError, OSError) as error:
        logger.warning("an example is left out: %s", error)
        return False
    return True
