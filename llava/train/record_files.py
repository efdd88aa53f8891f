"""Random access to the records of one file without holding the file in memory.

A file is read through once to find where each record starts; a record is then read from disk when asked for.
What travels to a data worker is a path and eight bytes per record (JSON) or a path alone (parquet).
"""

import codecs
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
from tqdm import tqdm

from llava.train.records import BadSample, DataError

BLOCK = 1 << 20
# An error this far (characters) before the end of what has been read is not caused by reading in blocks.
SAFE_DISTANCE = 1 << 16
SPACE = re.compile(r"[ \t\n\r]*")
DECODER = json.JSONDecoder()


def skip_space(text: str, position: int = 0) -> int:
    match = SPACE.match(text, position)
    assert match is not None  # white space may be empty
    return match.end()


class RecordSource(Protocol):
    """Records by position, as the file holds them; BadSample when one cannot be read."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def where(self, index: int) -> str:
        """File and position of a record, for messages."""

    def origin(self, index: int) -> str:
        """The file that a record comes from."""


class OffsetFile:
    """Records of a JSON or JSONL file by byte offset.

    offsets: (N + 1,) int64, the last one the end of the records. lines: for JSONL, (N,) the line of each record,
    or () where record N is on line N + 1; None for an array.
    """

    def __init__(self, path: str, offsets: np.ndarray, lines: np.ndarray | None = None) -> None:
        self.path = path
        self.offsets = offsets
        self.lines = lines
        self._descriptor: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_descriptor": None}

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Any:
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY)
            # pread has no shared position, so that forked workers may share the descriptor.
            text = os.pread(self._descriptor, end - start, start).decode()
            value, stop = DECODER.raw_decode(text, skip_space(text))
            if self.lines is not None and text[stop:].strip():
                raise ValueError(f"text after the record: {text[stop:].strip()[:40]!r}")
        except (OSError, ValueError, RecursionError) as error:
            raise BadSample(f"{self.where(index)}: not a readable JSON record: {error}", "unreadable_record") from None
        return value

    def where(self, index: int) -> str:
        if self.lines is None:
            return f"{self.path}, record {index}"
        line = self.lines[index] if len(self.lines) else index + 1
        return f"{self.path}:{line}"

    def origin(self, index: int) -> str:
        return self.path


def require_file(path: str) -> None:
    """Raises DataError when `path` is not a file with something in it."""
    if not os.path.isfile(path):
        found = "is a folder" if os.path.isdir(path) else "does not exist"
        raise DataError(f"{path}: {found}; expected a data file (working directory {os.getcwd()})")
    if os.path.getsize(path) == 0:
        raise DataError(f"{path}: the file is empty")


def open_json(path: str) -> OffsetFile:
    """A JSON array of records, or JSON lines under the name .json. Raises DataError naming line and record."""
    require_file(path)
    with open(path, "rb") as file:
        head = file.read(BLOCK).removeprefix(codecs.BOM_UTF8).lstrip()
    if head.startswith(b"{"):
        first_line = head.split(b"\n", 1)[0]
        try:
            is_record = "conversations" in json.loads(first_line)
        except ValueError:
            is_record = False
        if is_record:
            return open_json_lines(path)
        raise DataError(f"{path}: expected an array of records, found a single object; put the records into [...]")
    offsets = np.fromiter(ArrayScanner(path).offsets(), dtype=np.int64)
    if len(offsets) < 2:
        raise DataError(f"{path}: the array holds no records")
    return OffsetFile(path, offsets)


def open_json_lines(path: str) -> OffsetFile:
    """One record per line; blank lines are skipped. A broken line is found when it is read."""
    require_file(path)
    offsets: list[int] = []
    lines: list[int] = []
    position = 0
    decode = codecs.getincrementaldecoder("utf-8")()
    with open(path, "rb") as file, progress(path) as bar:
        for number, line in enumerate(file, start=1):
            try:
                decode.decode(line)
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: not UTF-8 at byte {position + error.start}; re-encode the file") from None
            start = position + (len(codecs.BOM_UTF8) if position == 0 and line.startswith(codecs.BOM_UTF8) else 0)
            if line.strip():
                offsets.append(start)
                lines.append(number)
            position += len(line)
            bar.update(len(line))
    if not offsets:
        raise DataError(f"{path}: the file holds no records")
    is_dense = lines[-1] == len(lines)
    numbers = np.array([] if is_dense else lines, dtype=np.int64)
    return OffsetFile(path, np.array([*offsets, position], dtype=np.int64), numbers)


def progress(path: str) -> tqdm:
    """A bar over the bytes of a file, shown only when reading takes longer than two seconds."""
    size = os.path.getsize(path)
    return tqdm(total=size, unit="B", unit_scale=True, desc=f"index {Path(path).name}", delay=2, leave=False)


class ArrayScanner:
    """Walks a JSON array block by block and yields the byte offset of each element, then that of the end."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.text = ""  # what is in memory
        self.cursor = 0  # the next character of it
        self.bytes = 0  # offset of that character in the file
        self.lines = 0  # newlines before `text`
        self.records = 0
        self.is_complete = False  # nothing is left to read

    def offsets(self) -> Iterator[int]:
        self.decode = codecs.getincrementaldecoder("utf-8")()
        with open(self.path, "rb") as self.file, progress(self.path) as self.bar:
            if self.file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
                self.bytes = len(codecs.BOM_UTF8)
            else:
                self.file.seek(0)
            yield from self._elements()

    def _elements(self) -> Iterator[int]:
        if (first := self._next_character()) != "[":
            self._fail(f"expected '[' and records, found {first!r}" if first else "the file holds only white space")
        self._advance(self.cursor + 1)
        if self._next_character() == "]":
            return
        while True:
            if self._next_character() == "]":
                self._fail("the comma before ']' is one too many; remove it")
            yield self.bytes
            self._advance(self._element_end())
            self.records += 1
            if (separator := self._next_character()) == "]":
                break
            if separator != ",":
                found = f"found {separator!r}" if separator else "but the file ends"
                self._fail(f"expected ',' or ']' after a record, {found}")
            self._advance(self.cursor + 1)
        yield self.bytes
        self._advance(self.cursor + 1)
        if extra := self._next_character():
            self._fail(f"text after the array: {extra!r}")

    def _advance(self, cursor: int) -> None:
        passed = cursor - self.cursor
        self.bytes += passed if self.is_ascii else len(self.text[self.cursor : cursor].encode())
        self.cursor = cursor

    def _read(self, size: int) -> None:
        """Forget the text before the cursor and append what comes next in the file."""
        block = self.file.read(size)
        self.is_complete = not block
        self.bar.update(len(block))
        self.lines += self.text.count("\n", 0, self.cursor)
        try:
            self.text = self.text[self.cursor :] + self.decode.decode(block, final=not block)
        except UnicodeDecodeError as error:
            position = self.file.tell() - len(error.object) + error.start
            raise DataError(f"{self.path}: not UTF-8 at byte {position}; re-encode the file") from None
        self.cursor = 0
        self.is_ascii = self.text.isascii()

    def _next_character(self) -> str:
        """Passes white space; the character then in front, "" at the end of the file."""
        while True:
            if self.text:
                self._advance(skip_space(self.text, self.cursor))
            if self.cursor < len(self.text) or self.is_complete:
                return self.text[self.cursor : self.cursor + 1]
            self._read(BLOCK)

    def _element_end(self) -> int:
        """Where the element in front ends in `text`, reading on as long as it may only be cut off."""
        size = BLOCK
        while True:
            try:
                end = DECODER.raw_decode(self.text, self.cursor)[1]
                if end < len(self.text) or self.is_complete:
                    return end
            except json.JSONDecodeError as error:
                is_inside = len(self.text) - error.pos > SAFE_DISTANCE and not error.msg.startswith("Unterminated")
                if self.is_complete or is_inside:
                    self._fail(error.msg, error.pos)
            except (ValueError, RecursionError) as error:
                self._fail(str(error))
            self._read(size)
            size *= 2

    def _fail(self, message: str, position: int | None = None) -> NoReturn:
        line = 1 + self.lines + self.text.count("\n", 0, self.cursor if position is None else position)
        raise DataError(f"{self.path}:{line}: broken JSON in record {self.records}: {message}")
