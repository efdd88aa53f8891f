"""The stream that workers speak: JSON objects, each followed by a zero byte. Knows nothing of HTTP or models.

`{"text": prompt and answer so far, "error_code": 0}`; on failure what went wrong and a code other than 0.
"""

import json
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

SEPARATOR = b"\0"
FAILED = 1  # the worker could not answer
NO_WORKER = 2  # the controller knows no worker for the model
UNREACHABLE = 3  # the controller could not talk to the worker


def encode(text: str, error_code: int = 0) -> bytes:
    return json.dumps({"text": text, "error_code": error_code}).encode() + SEPARATOR


def decode(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The objects of a stream, however it was cut into chunks; the last one may lack its zero byte.

    Raises ValueError for what is no such stream, or breaks off.
    """
    waiting = b""
    for chunk in chunks:
        *whole, waiting = (waiting + chunk).split(SEPARATOR)
        yield from (_parse(piece) for piece in whole if piece)
    if waiting.strip():
        yield _parse(waiting)


def _parse(piece: bytes) -> dict[str, Any]:
    try:
        message = json.loads(piece)
    except ValueError:
        message = None
    if not isinstance(message, dict) or "text" not in message:
        raise ValueError(f"the stream holds {piece[:80]!r}, which is no whole message of a worker")
    return message


def new_request_id() -> str:
    """Short enough to be read out; it stands in the worker's log beside what happened."""
    return uuid.uuid4().hex[:8]


def describe(error: BaseException, request_id: str) -> str:
    """What the user is told about an error."""
    reason = str(error) or type(error).__name__
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return f"**ERROR** {kind}{reason} (request {request_id})"
