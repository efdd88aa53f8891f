"""Pictures from elsewhere: http(s) addresses under limits of size, time and address, and untrusted bytes.

Private, loopback, link-local and reserved addresses are refused, also after a redirect, and the connection
is made to the very address that was checked.
"""

import io
import ipaddress
import socket
import time
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import urllib3
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO")


@dataclass(frozen=True)
class Limits:
    """bytes of the download, pixels after decoding, seconds in all, redirects followed."""

    bytes: int = 20 * 2**20
    pixels: int = 50_000_000
    seconds: float = 10.0
    redirects: int = 3


def decode_image(data: bytes, limits: Limits = Limits()) -> Image.Image:  # noqa: B008 - frozen
    """RGB picture from untrusted bytes. Raises ValueError for anything but a picture within the limits."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > limits.pixels:
            raise ValueError(f"the picture has {width} x {height} pixels; at most {limits.pixels:,} are accepted")
        return image.convert("RGB")
    except Image.DecompressionBombError:
        raise ValueError(f"the picture has too many pixels; at most {limits.pixels:,} are accepted") from None
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"this is not a readable picture ({', '.join(FORMATS)}): {error}") from None


def public_address(host: str, port: int) -> str:
    """The first address of `host`. Raises ValueError if any of its addresses is not public."""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise ValueError(f"the host {host!r} cannot be found: {error}") from None
    addresses = [ipaddress.ip_address(str(address).split("%")[0]) for address in found]
    for address in addresses:
        mapped = getattr(address, "ipv4_mapped", None) or address
        if not mapped.is_global or mapped.is_multicast:
            raise ValueError(f"{host!r} is at {address}, which is not a public address; it is not fetched")
    return str(addresses[0])


def fetch_image(url: str, limits: Limits = Limits()) -> Image.Image:  # noqa: B008 - frozen
    """RGB picture at an http(s) address. Raises ValueError that says which limit or rule was broken."""
    deadline = time.monotonic() + limits.seconds
    for _ in range(limits.redirects + 1):
        response = _open(url, deadline)
        try:
            if response.status in (301, 302, 303, 307, 308) and response.headers.get("Location"):
                url = urljoin(url, response.headers["Location"])
                continue
            if response.status != 200:
                raise ValueError(f"{url} answered with status {response.status}")
            return decode_image(_read(response, url, limits, deadline), limits)
        finally:
            response.release_conn()
            response.close()
    raise ValueError(f"{url} redirects more than {limits.redirects} times")


def _open(url: str, deadline: float) -> urllib3.BaseHTTPResponse:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"only http and https addresses are fetched, not {url!r}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    address = public_address(parts.hostname, port)
    timeout = urllib3.Timeout(total=max(0.1, deadline - time.monotonic()))
    if parts.scheme == "https":
        pool: urllib3.HTTPConnectionPool = urllib3.HTTPSConnectionPool(
            address, port, timeout=timeout, retries=False, server_hostname=parts.hostname, assert_hostname=parts.hostname
        )
    else:
        pool = urllib3.HTTPConnectionPool(address, port, timeout=timeout, retries=False)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        headers = {"Host": parts.netloc.rpartition("@")[2], "User-Agent": "llava"}
        return pool.urlopen("GET", target, headers=headers, redirect=False, preload_content=False)
    except urllib3.exceptions.HTTPError as error:
        raise ValueError(f"{url} cannot be fetched: {error}") from None


def _read(response: urllib3.BaseHTTPResponse, url: str, limits: Limits, deadline: float) -> bytes:
    data = bytearray()
    try:
        for piece in response.stream(2**16, decode_content=True):
            data += piece
            if len(data) > limits.bytes:
                raise ValueError(f"{url} is larger than {limits.bytes:,} bytes")
            if time.monotonic() > deadline:
                raise ValueError(f"{url} took longer than {limits.seconds:g} s")
    except urllib3.exceptions.HTTPError as error:
        raise ValueError(f"{url} broke off: {error}") from None
    return bytes(data)
