"""Hostile pictures and addresses. Nothing but loopback is contacted: names are resolved by the tests."""

import io
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from llava.remote import SERVING_LIMITS, Limits, decode_image, decode_images, fetch_image, is_public, load_image

Answer = Callable[[BaseHTTPRequestHandler], None]


def picture_bytes(size: tuple[int, int] = (40, 30), form: str = "PNG", mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, "red" if mode == "RGB" else 1).save(buffer, form, **options)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A valid header of a huge picture, and next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


@contextmanager
def server(answer: Answer) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()


def give(data: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def anywhere(address: object) -> bool:
    return True


def resolve_to(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Names resolve to the next of `answers` each time; what was asked is returned."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, *args: object, **options: object) -> list[object]:
        addresses = answers[min(len(asked), len(answers) - 1)]
        asked.append(host)
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO"])
def test_every_accepted_format_becomes_rgb(form: str) -> None:
    image = decode_image(picture_bytes(form=form))
    assert (image.mode, image.size) == ("RGB", (40, 30))


def test_a_photograph_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(picture_bytes((40, 30), "JPEG", exif=exif)).size == (30, 40)


def test_unreadable_notes_about_the_camera_do_not_matter() -> None:
    assert decode_image(picture_bytes((40, 30), "JPEG", exif=b"Exif\0\0broken notes")).size == (40, 30)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.4",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        picture_bytes()[:40],
        picture_bytes(form="JPEG")[:100],
        b"\x89PNG\r\n\x1a\n" + b"\xff" * 100,
        b"GIF89a" + b"\xff" * 30,
        b"RIFF\x10\0\0\0WEBPVP8 " + b"\0" * 30,
        b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40,
    ],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^this is not a readable picture \(JPEG, .*, TIFF\)") as refused:
        decode_image(data)
    assert "BytesIO" not in str(refused.value)


@pytest.mark.parametrize("size", [(60_000, 60_000), (8_000, 8_000), (1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="pixels"):
        decode_image(png_that_claims(*size))


def test_a_bomb_in_a_text_chunk_is_refused() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    whole = picture_bytes()
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 80_000_000))
    with pytest.raises(ValueError, match="not a readable picture"):
        decode_image(whole[:33] + bomb + whole[33:])


def test_a_file_beyond_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 10 are accepted"):
        decode_image(picture_bytes(), Limits(bytes=10))


def test_serving_scales_a_long_picture_down_so_that_padding_it_stays_small() -> None:
    assert decode_image(picture_bytes((9000, 3)), SERVING_LIMITS).size == (4096, 1)
    assert decode_image(picture_bytes((9000, 3))).size == (9000, 3)


def test_many_pictures_share_one_limit_and_the_wrong_one_is_named() -> None:
    with pytest.raises(ValueError, match="picture 2: this is not a readable picture"):
        decode_images([picture_bytes(), b"no"])
    with pytest.raises(ValueError, match="picture 3 is one too many"):
        decode_images([picture_bytes((100, 1))] * 3, Limits(total_pixels=25_000))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "0",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.5.4",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:a9fe:a9fe]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fe80::1]",
        "[fe80::1%25lo]",
        "[fc00::1]",
        "[ff02::1]",
        "localhost",
        "user:password@127.0.0.1",
    ],
)
def test_addresses_that_are_not_public_are_refused_however_they_are_written(host: str) -> None:
    with pytest.raises(ValueError, match=r"not a public address|cannot be found"):
        fetch_image(f"http://{host}:1/picture.png", Limits(seconds=2))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111"])
def test_public_addresses_are_public(address: str) -> None:
    import ipaddress

    assert is_public(ipaddress.ip_address(address))


def test_a_name_with_one_private_address_among_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, ["93.184.216.34", "127.0.0.1"])
    with pytest.raises(ValueError, match=r"127\.0\.0\.1, which is not a public address"):
        fetch_image("http://picture.example/a.png")


def test_the_address_that_was_checked_is_the_one_that_is_contacted(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: a second look-up of the same name would give another address."""
    asked = resolve_to(monkeypatch, ["93.184.216.34"], ["127.0.0.1"])
    contacted: list[tuple[str, int]] = []

    def create_connection(address: tuple[str, int], timeout: float) -> socket.socket:
        contacted.append(address)
        raise OSError("not in a test")

    monkeypatch.setattr(socket, "create_connection", create_connection)
    with pytest.raises(ValueError, match="not in a test"):
        fetch_image("http://rebind.example:8080/a.png")
    assert (asked, contacted) == (["rebind.example"], [("93.184.216.34", 8080)])


def test_a_redirect_to_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    is_here = lambda address: str(address) == "127.0.0.1"
    redirect = give(b"", 302, Location="http://10.0.0.7/secret.png")
    with server(redirect) as url, pytest.raises(ValueError, match=r"10\.0\.0\.7, which is not a public address"):
        fetch_image(url, is_allowed=is_here)


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/a", "gopher://127.0.0.1/"])
def test_a_redirect_away_from_the_web_is_refused(location: str) -> None:
    with server(give(b"", 302, Location=location)) as url, pytest.raises(ValueError, match="only http and https"):
        fetch_image(url, is_allowed=anywhere)


def test_redirects_are_followed_but_not_forever() -> None:
    with (
        server(give(b"", 302, Location="/again")) as url,
        pytest.raises(ValueError, match="redirects more than 3 times"),
    ):
        fetch_image(url, is_allowed=anywhere)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host/a.png", "/etc/passwd", "http://", "http://[::1", "http://a:b/"]
)
def test_only_web_addresses_are_fetched(url: str) -> None:
    with pytest.raises(ValueError, match=r"only http and https|is no address"):
        fetch_image(url)


def test_a_picture_is_fetched_by_name_path_and_query(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str | None]] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append((handler.path, handler.headers["Host"]))
        give(picture_bytes())(handler)

    with server(answer) as url:
        port = url.rpartition(":")[2]
        resolve_to(monkeypatch, ["127.0.0.1"])
        image = fetch_image(f"http://pictures.example:{port}/a b/ü.png?x=1&y=a/b", is_allowed=anywhere)
    assert image.size == (40, 30)
    assert seen == [("/a%20b/%C3%BC.png?x=1&y=a/b", f"pictures.example:{port}")]


def test_a_download_beyond_the_limit_stops() -> None:
    def pour(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"\0" * 65536)
        except OSError:
            pass

    with server(pour) as url, pytest.raises(ValueError, match="larger than 1,000,000 bytes"):
        fetch_image(url, Limits(bytes=1_000_000), anywhere)


@pytest.mark.parametrize("part", ["header", "body"])
def test_a_host_that_drips_is_left_at_the_deadline(part: str) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        try:
            if part == "body":
                handler.send_response(200)
                handler.end_headers()
            while True:
                handler.wfile.write(b"x")
                time.sleep(0.02)
        except OSError:
            pass

    start = time.monotonic()
    with server(drip) as url, pytest.raises(ValueError, match=r"took longer than 0\.3 s"):
        fetch_image(url, Limits(seconds=0.3), anywhere)
    assert time.monotonic() - start < 2


def test_an_answer_that_is_no_picture_says_so() -> None:
    with server(give(b"<html>", 200)) as url, pytest.raises(ValueError, match="not a readable picture"):
        fetch_image(url, is_allowed=anywhere)
    with server(give(b"", 404)) as url, pytest.raises(ValueError, match="answered with status 404"):
        fetch_image(url, is_allowed=anywhere)


def test_a_picture_on_disk_is_loaded_and_its_absence_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture_bytes())
    (tmp_path / "b.png").write_text("no picture")
    assert load_image(str(tmp_path / "a.png")).size == (40, 30)
    with pytest.raises(ValueError, match=r"b\.png: this is not a readable picture"):
        load_image(str(tmp_path / "b.png"))
    with pytest.raises(FileNotFoundError, match=r"no picture at .*c\.png"):
        load_image(str(tmp_path / "c.png"))
