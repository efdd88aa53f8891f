"""Pictures that are fine in any mode, and pictures that are not, each named with what is wrong."""

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava.train.images import actual_format, load_picture
from llava.train.records import BadSample, ImageRef
from tests.train.data import draw


def encoded(format: str, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = BytesIO()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))
    noise.convert(mode).save(buffer, format)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("format", "mode"),
    [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "L"), ("PNG", "1"), ("PNG", "I;16"), ("JPEG", "CMYK"),
     ("JPEG", "L"), ("GIF", "P"), ("WEBP", "RGBA"), ("BMP", "RGB"), ("TIFF", "F")],
)  # fmt: skip
def test_pictures_of_every_mode_become_rgb(format: str, mode: str) -> None:
    image = Image.new(mode, (5, 4)) if mode in ("I;16", "F") else None
    buffer = BytesIO()
    if image is not None:
        image.save(buffer, format)
    data = buffer.getvalue() or encoded(format, mode, (5, 4))
    picture = load_picture({"bytes": data}, None, "here")
    assert (picture.image.mode, picture.image.size) == ("RGB", (5, 4))


def test_picture_by_path_is_found_below_the_folder_or_anywhere(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    draw(tmp_path / "deep" / "a.png")
    absolute = str(tmp_path / "deep" / "a.png")
    for reference, folder in (("deep/a.png", str(tmp_path)), (absolute, "elsewhere"), (absolute, None)):
        assert load_picture(reference, folder, "here").image.size == (40, 30)
    assert load_picture("../deep/a.png", str(tmp_path / "deep"), "here").image.size == (40, 30)
    assert load_picture({"path": "deep/a.png", "bytes": None}, str(tmp_path), "here").data


BROKEN: dict[str, tuple[bytes, str, str]] = {
    "0 bytes": (b"", "empty_image", "empty"),
    "text": (b"<html>404</html>", "corrupt_image", "no.* picture|not a picture"),
    "zeros": (bytes(1000), "corrupt_image", "not a picture"),
    "cut JPEG": (encoded("JPEG")[:400], "truncated_image", "[Tt]runcated"),
    "cut PNG": (encoded("PNG")[:400], "truncated_image", "decoded"),
    "PNG with a broken chunk": (encoded("PNG").replace(b"IDAT", b"IDAX"), "corrupt_image", "not a picture"),
    "only a header": (encoded("PNG")[:10], "corrupt_image", "not a picture"),
    "cut GIF": (encoded("GIF", "P")[:900], "truncated_image", "decoded"),
    "bomb": (png_header(60_000, 60_000), "huge_image", "pixels; scale it down"),
    "long strip": (png_header(20_000, 10), "huge_image", "20000x10"),
    "thin strip": (png_header(5000, 2), "huge_image", "200 times"),
    "data missing": (png_header(50, 50), "truncated_image|corrupt_image", "decoded"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_picture_names_record_file_and_reason(tmp_path: Path, case: str) -> None:
    data, reason, message = BROKEN[case]
    (tmp_path / "a.jpg").write_bytes(data)
    for reference in ("a.jpg", {"bytes": data, "path": "a.jpg"}):
        with pytest.raises(BadSample, match=message) as caught:
            load_picture(reference, str(tmp_path), "file.json, record 7")
        assert caught.value.reason in reason.split("|")
        assert "file.json, record 7" in str(caught.value)
        assert "a.jpg" in str(caught.value)


def test_missing_pictures_say_what_there_is(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    cases: list[tuple[ImageRef, str | None, str]] = [
        ("a.jpg", str(tmp_path), r"no such file \(there is a\.png\)"),
        ("b/a.png", str(tmp_path), "nor is there a folder .*--image_folder"),
        (".", str(tmp_path), "is not a file"),
        ("pipe.png", str(tmp_path), "is not a file"),
        ("a\0.png", str(tmp_path), "null"),
        ("a" * 5000, str(tmp_path), "too long"),
        ("/dev/zero", None, "is not a file"),
        ("https://example.com/a.png", None, "no such file"),
        ("a.png/b.png", str(tmp_path), "Not a directory"),
    ]
    for reference, folder, message in cases:
        with pytest.raises(BadSample, match=message) as caught:
            load_picture(reference, folder, "here")
        assert caught.value.reason == "missing_image"


def test_format_is_told_from_the_content() -> None:
    assert actual_format(encoded("GIF", "P"), "a.jpg") == ("JPEG", "GIF")
    assert actual_format(encoded("PNG"), "a.JPG") == ("JPEG", "PNG")
    assert actual_format(encoded("JPEG"), "a.jpeg") is None
    assert actual_format(encoded("PNG"), "picture inside the record") is None
