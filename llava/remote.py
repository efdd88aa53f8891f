"""Pictures from elsewhere: paths, http(s) addresses under limits of size, time and address, and untrusted bytes.

Private, loopback, link-local and reserved addresses are refused, also after a redirect, and the connection
is made to the very address that was checked.
"""

import http.client
import io
import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # a camera's MPO is a JPEG
REDIRECTS = (301, 302, 303, 307, 308)
NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Limits:
    """bytes: of a file. pixels: of a picture. seconds: for a download, in all. redirects: that are followed.

    side: a picture whose longer side is longer is scaled down to it; None leaves sizes as they are.
    total_pixels: of the squares that several pictures of one request take when they are padded.
    """

    bytes: int = 20 * 2**20
    pixels: int = 50_000_000
    seconds: float = 10.0
    redirects: int = 3
    side: int | None = None
    total_pixels: int = 400_000_000


DEFAULT_LIMITS = Limits()
# No encoder looks at more than this; and what is padded to a square must not grow beyond all bounds.
SERVING_LIMITS = Limits(side=4096)


def decode_image(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Image.Image:
    """RGB picture, upright, from untrusted bytes. Raises ValueError for anything but a picture within the limits."""
    if len(data) > limits.bytes:
        raise ValueError(f"the picture's file has {len(data):,} bytes; at most {limits.bytes:,} are accepted")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height <= limits.pixels:
            image.load()
            return _shrink(_upright(image).convert("RGB"), limits.side)
    except Image.DecompressionBombError:
        raise ValueError(f"the picture has too many pixels; at most {limits.pixels:,} are accepted") from None
    except UnidentifiedImageError:
        raise ValueError(f"this is not a readable picture ({', '.join(FORMATS)})") from None
    except Exception as error:  # decoders of broken files raise whatever they stumble over
        raise ValueError(f"this is not a readable picture ({', '.join(FORMATS)}): {error}") from None
    raise ValueError(f"the picture has {width} x {height} pixels; at most {limits.pixels:,} are accepted")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its camera says; as it is where the note about that cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # notes of broken files fail in as many ways as the files
        return image


def _shrink(image: Image.Image, side: int | None) -> Image.Image:
    if side is not None and max(image.size) > side:
        scale = side / max(image.size)
        width, height = (max(1, round(length * scale)) for length in image.size)
        return image.resize((width, height), Image.Resampling.BICUBIC)
    return image


def decode_images(files: Iterable[bytes], limits: Limits = SERVING_LIMITS) -> list[Image.Image]:
    """Several pictures of one request. Raises ValueError that says which picture is wrong, and how."""
    images: list[Image.Image] = []
    area = 0
    for number, data in enumerate(files, 1):
        try:
            images.append(decode_image(data, limits))
        except ValueError as error:
            raise ValueError(f"picture {number}: {error}") from None
        area += max(images[-1].size) ** 2
        if area > limits.total_pixels:
            raise ValueError(f"picture {number} is one too many: together they have more pixels than are accepted")
    return images


def load_image(location: str, limits: Limits = DEFAULT_LIMITS) -> Image.Image:
    """An RGB picture from a path or an http(s) address. Raises ValueError or FileNotFoundError that names it."""
    if location.lower().startswith(("http://", "https://")):
        return fetch_image(location, limits)
    path = Path(location).expanduser()
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no picture at {path}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    try:
        return decode_image(data, limits)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def is_public(address: Address) -> bool:
    """Whether an address, and every IPv4 address that it may stand for, belongs to the public internet."""
    return all(
        found.is_global and not found.is_multicast and not found.is_reserved and not found.is_unspecified
        for found in _embedded(address)
    )


def _embedded(address: Address) -> list[Address]:
    """The address as it is reached: an IPv4 address written as IPv6 is taken out, one behind a gateway comes along."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped:
        return [address.ipv4_mapped]
    if address in NAT64:
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    tunnels = [address.sixtofour, *(address.teredo or ())]
    return [address, *(tunnel for tunnel in tunnels if tunnel is not None)]


def public_addresses(host: str, port: int, seconds: float, is_allowed: Callable[[Address], bool]) -> list[str]:
    """The addresses of `host`. Raises ValueError if any of them is not allowed, or none is found in time."""
    answers: queue.Queue[Any] = queue.Queue()

    def resolve() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=resolve, daemon=True).start()
    try:
        found = answers.get(timeout=max(0.01, seconds))
    except queue.Empty:
        raise ValueError(f"the host {host!r} was not found within {seconds:.0f} s") from None
    if isinstance(found, Exception):
        raise ValueError(f"the host {host!r} cannot be found: {found}")
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        if not is_allowed(ipaddress.ip_address(address.split("%")[0])):
            raise ValueError(f"{host!r} is at {address}, which is not a public address; it is not fetched")
    return addresses


def fetch_image(
    url: str, limits: Limits = DEFAULT_LIMITS, is_allowed: Callable[[Address], bool] = is_public
) -> Image.Image:
    """RGB picture at an http(s) address. Raises ValueError that says which limit or rule was broken."""
    deadline = time.monotonic() + limits.seconds
    start = url
    for _ in range(limits.redirects + 1):
        try:
            with _requested(url, deadline, is_allowed) as response:
                location = response.headers.get("Location")
                if response.status not in REDIRECTS or not location:
                    data = _read(response, url, limits)
                    break
                url = urljoin(url, location)
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() >= deadline:
                raise ValueError(f"{start} took longer than {limits.seconds:g} s") from None
            raise ValueError(f"{url} cannot be fetched: {error}") from None
    else:
        raise ValueError(f"{start} redirects more than {limits.redirects} times")
    try:
        return decode_image(data, limits)
    except ValueError as error:
        raise ValueError(f"{start}: {error}") from None


def _split(url: str) -> tuple[SplitResult, str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{url!r} is no address: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"only http and https addresses are fetched, not {url!r}")
    return parts, host, port or (443 if parts.scheme == "https" else 80)


@contextmanager
def _requested(url: str, deadline: float, is_allowed: Callable[[Address], bool]) -> Iterator[http.client.HTTPResponse]:
    """The response to a GET; whatever still runs at the deadline fails with an OSError then."""
    parts, host, port = _split(url)
    addresses = public_addresses(host, port, deadline - time.monotonic(), is_allowed)
    plain = _connect(addresses, port, deadline)
    # A timeout of the socket starts anew with every byte; this one does not.
    handle = plain.dup()  # TLS takes the socket itself away
    watchdog = threading.Timer(max(0.0, deadline - time.monotonic()), _hang_up, [handle])
    watchdog.daemon = True
    watchdog.start()
    connection = http.client.HTTPConnection(host, port)
    connection.default_port = 443 if parts.scheme == "https" else 80
    try:
        connection.sock = _secured(plain, host) if parts.scheme == "https" else plain
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        target = path + (f"?{quote(parts.query, safe='/?%:@!$&()*+,;=~-._')}" if parts.query else "")
        connection.request("GET", target, headers={"User-Agent": "llava", "Accept": "image/*", "Connection": "close"})
        yield connection.getresponse()
        if time.monotonic() >= deadline:
            raise TimeoutError
    finally:
        watchdog.cancel()
        for opened in (connection, handle, plain):
            opened.close()


def _connect(addresses: list[str], port: int, deadline: float) -> socket.socket:
    failure: OSError = OSError("no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout=max(0.01, deadline - time.monotonic()))
        except OSError as error:
            failure = error
    raise failure


def _secured(plain: socket.socket, host: str) -> socket.socket:
    return ssl.create_default_context().wrap_socket(plain, server_hostname=host)


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # it may be closed already
        connection.shutdown(socket.SHUT_RDWR)


def _read(response: http.client.HTTPResponse, url: str, limits: Limits) -> bytes:
    if response.status != 200:
        raise ValueError(f"{url} answered with status {response.status} {response.reason}")
    data = response.read(limits.bytes + 1)
    if len(data) > limits.bytes:
        raise ValueError(f"{url} is larger than {limits.bytes:,} bytes")
    return data
