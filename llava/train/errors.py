"""What a user sees when a run cannot start or is interrupted: one line, and how to go on."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from llava.train.environment import rank
from llava.train.meter import NonFiniteLoss
from llava.train.resume import last_checkpoint

USER_ERRORS = (ValueError, FileNotFoundError, NotADirectoryError, PermissionError, ImportError, NonFiniteLoss)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Mistakes end the program with one line and status 1; LLAVA_DEBUG=1 shows where they were found."""
    try:
        yield
    except USER_ERRORS as error:
        if os.environ.get("LLAVA_DEBUG") == "1":
            raise
        where = f"[process {rank()}] " if rank() else ""
        print(f"{where}error: {message_of(error)} (LLAVA_DEBUG=1 shows the traceback)", file=sys.stderr, flush=True)
        sys.exit(1)


def message_of(error: Exception) -> str:
    """On one line. What a data worker raised arrives with the worker's traceback in its message, which is left out."""
    message = str(error)
    if re.match(r"Caught \w+ in DataLoader worker process", message):
        message = re.split(rf"^(?:[\w.]+\.)?{type(error).__name__}: ", message, flags=re.MULTILINE)[-1]
    return " ".join(message.split())


@contextmanager
def resumable(output_dir: str) -> Iterator[None]:
    """Ctrl-C ends training with status 130 and says where the same command would go on."""
    try:
        yield
    except KeyboardInterrupt:
        if rank() == 0:
            found = last_checkpoint(output_dir)
            place = f"goes on from {found}" if found else "begins again: there is no complete checkpoint yet"
            print(f"\ninterrupted; the same command {place}", file=sys.stderr, flush=True)
        sys.exit(130)
