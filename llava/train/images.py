"""Pictures from files or from bytes in a record; one that cannot be used is named with what is wrong."""

import os
import re
import stat
import warnings
from io import BytesIO
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from llava.train.records import CONTENT, BadSample, ImageRef

# Pillow refuses pictures of more pixels than this; padded to a square they must stay below it as well.
MAX_PIXELS = 178_956_970
MAX_SIDE = 13_377  # its square root
MAX_ASPECT = 200  # resizing the shorter side to the tower's makes the longer one that many times as long
MAX_BYTES = 1 << 29


class Picture(NamedTuple):
    """image: RGB. data: the file's content. name: path, or what stands for it."""

    image: Image.Image
    data: bytes
    name: str


def load_picture(reference: ImageRef, folder: str | None, where: str) -> Picture:
    """The picture a record refers to. Raises BadSample naming the record, the file and what is wrong."""
    data, name = read_bytes(reference, folder, where)
    return Picture(decode(data, f"{where}: {name}"), data, name)


def read_bytes(reference: ImageRef, folder: str | None, where: str) -> tuple[bytes, str]:
    """(content, name) of a picture by path below `folder`, or of one that is inside the record."""
    name = reference if isinstance(reference, str) else reference.get("path")
    data = None if isinstance(reference, str) else reference.get("bytes")
    if isinstance(data, CONTENT):
        name = name or "picture inside the record"
        if not data:
            raise BadSample(f"{where}: {name} is empty (0 bytes)", "empty_image")
        return bytes(data), name
    assert isinstance(name, str)  # as parse_record has made sure
    path = os.path.join(folder, name) if folder else name
    return read_file(path, where, "image"), path


def read_file(path: str, where: str, what: str) -> bytes:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise BadSample(f"{where}: {path!r}: {reason}{other_suffix(path)}", f"missing_{what}") from None
    if not stat.S_ISREG(status.st_mode):
        raise BadSample(f"{where}: {path} is not a file", f"missing_{what}")
    if status.st_size == 0:
        raise BadSample(f"{where}: {path} is empty (0 bytes)", f"empty_{what}")
    if status.st_size > MAX_BYTES:
        raise BadSample(
            f"{where}: {path} has {status.st_size / 1e6:.0f} MB, more than {MAX_BYTES / 1e6:.0f}", f"huge_{what}"
        )
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BadSample(f"{where}: {path}: {error.strerror}", f"missing_{what}") from None


def other_suffix(path: str) -> str:
    """A hint when the same name is there with another suffix."""
    folder, name = os.path.split(path)
    stem = os.path.splitext(name)[0]
    try:
        similar = [entry.name for entry in os.scandir(folder or ".") if os.path.splitext(entry.name)[0] == stem]
    except (OSError, ValueError):
        return f" (nor is there a folder {folder!r}; check --image_folder)" if folder else ""
    return f" (there is {similar[0]})" if similar else ""


def open_lazily(data: bytes, what: str) -> Image.Image:
    """The picture with its header read. Raises BadSample for what is no picture, or too large a one to decode."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(BytesIO(data))
    except UnidentifiedImageError:
        raise BadSample(
            f"{what} is not a picture Pillow can read; it begins with {data[:12]!r}", "corrupt_image"
        ) from None
    except Image.DecompressionBombError:
        raise BadSample(f"{what} has more than {MAX_PIXELS:,} pixels; scale it down", "huge_image") from None
    except Exception as error:  # Pillow's format plug-ins raise whatever their parsing runs into
        raise BadSample(f"{what} cannot be opened: {error!r}", reason_of(error)) from None
    width, height = image.size
    if max(width, height) > MAX_SIDE or max(width, height) > MAX_ASPECT * min(width, height):
        limits = f"no side above {MAX_SIDE} pixels and none above {MAX_ASPECT} times the other"
        raise BadSample(f"{what} is {width}x{height} pixels, allowed is {limits}; scale or cut it", "huge_image")
    return image


def decode(data: bytes, what: str) -> Image.Image:
    """The picture as RGB. what: record and file, for messages."""
    image = open_lazily(data, what)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about palettes with transparency and broken EXIF data
            return image.convert("RGB")
    except Exception as error:  # as above
        raise BadSample(f"{what} cannot be decoded: {error!r}", reason_of(error)) from None


def reason_of(error: Exception) -> str:
    """Pillow has no type for a file that ends too early, but says so."""
    is_cut = isinstance(error, EOFError) or re.search("truncated|broken data", str(error), re.IGNORECASE)
    return "truncated_image" if is_cut else "corrupt_image"


def actual_format(data: bytes, name: str) -> tuple[str, str] | None:
    """(format by suffix, format by content) of a readable picture where the two differ, else None."""
    by_suffix = Image.registered_extensions().get(os.path.splitext(name)[1].lower())
    by_content = open_lazily(data, name).format
    same = {("JPEG", "MPO"), ("MPO", "JPEG")}  # a JPEG with a second picture behind it, as phones write
    if by_suffix is None or by_content is None or by_suffix == by_content or (by_suffix, by_content) in same:
        return None
    return by_suffix, by_content
