"""What a user sees of a mistake, in every program: one line."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class NonFiniteLoss(RuntimeError):
    """A loss term became NaN or infinite; the message names the term and the samples."""


USER_ERRORS = (ValueError, OSError, ImportError, NonFiniteLoss)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Mistakes end the program with one line and status 1; LLAVA_DEBUG=1 shows where they were found."""
    try:
        yield
    except USER_ERRORS as error:
        if os.environ.get("LLAVA_DEBUG") == "1":
            raise
        rank = os.environ.get("RANK", "0")
        where = "" if rank == "0" else f"[process {rank}] "
        print(f"{where}error: {message_of(error)} (LLAVA_DEBUG=1 shows the traceback)", file=sys.stderr, flush=True)
        sys.exit(1)


def message_of(error: Exception) -> str:
    """On one line. What a data worker raised arrives with the worker's traceback in its message, which is left out."""
    message = str(error)
    if re.match(r"Caught \w+ in DataLoader worker process", message):
        message = re.split(rf"^(?:[\w.]+\.)?{type(error).__name__}: ", message, flags=re.MULTILINE)[-1]
    return " ".join(message.split())
