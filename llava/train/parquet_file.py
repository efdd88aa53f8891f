"""Random access to parquet records through a memory-mapped Arrow copy.

Parquet can only be read in row groups, often hundreds of pictures for the sake of one. The columns that training needs
are therefore copied once, uncompressed, into a cache folder; all workers of all ranks then share the mapped file.
A picture inside a row is a view of that file: it is read by whoever decodes it, not by who reads the row.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from llava.model.checkpoint_io import atomic
from llava.train.record_files import require_file
from llava.train.records import BadSample, DataError

if TYPE_CHECKING:
    import pyarrow

COLUMNS = ("id", "image", "images", "video", "conversations")
PICTURES = ("image", "images")
ROWS = 64  # rows per chunk of the copy


class ParquetFile:
    """The rows of one parquet file as records. Pickles to two paths."""

    def __init__(self, path: str, arrow_path: str, rows: int) -> None:
        self.path = path
        self.arrow_path = arrow_path
        self.rows = rows
        self._batches: list[pyarrow.RecordBatch] = []
        self._ends: list[int] = []  # of the batches, by row

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_batches": [], "_ends": []}

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Any:
        if not self._batches:
            arrow = import_pyarrow()
            self._batches = arrow.ipc.open_file(arrow.memory_map(self.arrow_path)).read_all().to_batches()
            self._ends = list(accumulate(batch.num_rows for batch in self._batches))
        part = bisect_right(self._ends, index)
        batch, position = self._batches[part], index - self._ends[part]  # from the end
        values = {name: batch[name][position] for name in batch.schema.names}
        row = {name: without_copy(value) if name in PICTURES else value.as_py() for name, value in values.items()}
        if "images" in row:
            row["image"] = row.pop("images") if row.get("image") is None else row["image"]
        if not isinstance(row["conversations"], str):
            return row
        try:
            return row | {"conversations": json.loads(row["conversations"])}
        except ValueError as error:
            where = self.where(index)
            raise BadSample(f"{where}: 'conversations' is not JSON: {error}", "unreadable_record") from None

    def where(self, index: int) -> str:
        return f"{self.path}, row {index}"

    def origin(self, index: int) -> str:
        return self.path


def without_copy(scalar: Any) -> Any:
    """What `as_py` of an Arrow scalar gives, but with views of the file in place of bytes."""
    arrow = import_pyarrow()
    if not scalar.is_valid:
        return None
    if isinstance(scalar, arrow.StructScalar):
        return {name: without_copy(value) for name, value in scalar.items()}
    if isinstance(scalar, arrow.ListScalar):
        return [without_copy(value) for value in scalar]
    is_bytes = isinstance(scalar, arrow.BinaryScalar) and not isinstance(scalar, arrow.StringScalar)
    return memoryview(scalar.as_buffer()).cast("B") if is_bytes else scalar.as_py()


def import_pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise DataError("reading parquet needs pyarrow; install it with: pip install pyarrow") from None
    return pyarrow


def cache_folder(cache_dir: str | None = None) -> Path:
    """Where Arrow copies are kept: `cache_dir`, else $XDG_CACHE_HOME/llava, else ~/.cache/llava."""
    base = Path(cache_dir) if cache_dir else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llava"
    return base / "arrow"


def open_parquet(path: str, cache_dir: str | None = None) -> ParquetFile:
    """Opens a parquet file, copying it first if no copy of this version is there. Raises DataError."""
    arrow = import_pyarrow()
    require_file(path)
    try:
        source = arrow.parquet.ParquetFile(path)
    except arrow.ArrowException as error:
        raise DataError(f"{path}: not a readable parquet file: {error}") from None
    with source:
        columns = check_columns(path, source.schema_arrow, arrow)
        rows = source.metadata.num_rows
        if rows == 0:
            raise DataError(f"{path}: the file holds no rows")
        copy = cache_folder(cache_dir) / f"{fingerprint(path, columns)}.arrow"
        try:
            with locked(copy):
                if not copy.exists():
                    write_copy(source, columns, copy, arrow)
        except (OSError, arrow.ArrowException) as error:
            raise DataError(
                f"{path}: cannot copy it to {copy.parent}: {error}. Free some space there, or choose another folder "
                "with --cache_dir or XDG_CACHE_HOME"
            ) from None
    return ParquetFile(path, str(copy), rows)


def check_columns(path: str, schema: Any, arrow: Any) -> list[str]:
    """The columns to copy. `conversations` must be there, as a list of turns or as JSON text."""
    if "conversations" not in schema.names:
        raise DataError(f"{path}: no column 'conversations'; the columns are {', '.join(schema.names)}")
    types = arrow.types
    column = schema.field("conversations").type
    is_text = types.is_string(column) or types.is_large_string(column)
    is_turns = (types.is_list(column) or types.is_large_list(column)) and types.is_struct(column.value_type)
    if not is_text and not is_turns:
        wanted = "a list of from/value structs or JSON text"
        raise DataError(f"{path}: column 'conversations' must be {wanted}, it is {column}")
    return [name for name in COLUMNS if name in schema.names]


def fingerprint(path: str, columns: list[str]) -> str:
    """Changes when the file does."""
    status = os.stat(path)
    identity = f"{os.path.realpath(path)}\n{status.st_size}\n{status.st_mtime_ns}\n{columns}"
    return hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()


@contextlib.contextmanager
def locked(copy: Path) -> Iterator[None]:
    """One process at a time; the others wait and then find the copy."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    with open(copy.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_copy(source: Any, columns: list[str], copy: Path, arrow: Any) -> None:
    """Raises OSError where there is no room for it."""
    metadata = source.metadata
    size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    free = shutil.disk_usage(copy.parent).free
    if size > free:
        raise OSError(f"it needs about {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free")
    schema = arrow.schema([source.schema_arrow.field(name) for name in columns])
    bar = tqdm(total=metadata.num_rows, unit="row", desc=f"copy {copy.name}", delay=2, leave=False)
    with bar, atomic(copy) as temporary, arrow.ipc.new_file(str(temporary), schema) as writer:
        for batch in source.iter_batches(batch_size=ROWS, columns=columns):
            writer.write_batch(batch.cast(schema) if batch.schema != schema else batch)
            bar.update(batch.num_rows)
