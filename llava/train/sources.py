"""From `--data_path` to records: single files, several of them, folders, and mixtures with sampling.

Everything that is drawn at random is drawn from the given seed, so that every rank and every resumed run sees the same
records in the same order.
"""

import hashlib
import json
import math
import os
import random
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import yaml
from tqdm import tqdm

from llava.train.parquet_file import open_parquet
from llava.train.record_files import RecordSource, open_json, open_json_lines, require_file
from llava.train.records import CONTENT, BadSample, DataError, Record, kind, parse_record

SUFFIXES = (".json", ".jsonl", ".parquet")
STRATEGIES = "all, first:N, first:P%, end:N, end:P%, random:N or random:P%"
BRACES = re.compile(r"^(?P<head>.*)\{(?P<names>[^{}]*)\}(?P<tail>[^{}]*)$")


class Selection:
    """Some records of a source, by position. indices: int64."""

    def __init__(self, source: RecordSource, indices: np.ndarray) -> None:
        self.source = source
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.source[int(self.indices[index])]

    def where(self, index: int) -> str:
        return self.source.where(int(self.indices[index]))

    def origin(self, index: int) -> str:
        return self.source.origin(int(self.indices[index]))


class Concatenation:
    """The records of several sources, one source after the other."""

    def __init__(self, sources: Sequence[RecordSource]) -> None:
        self.sources = list(sources)
        self.ends = list(accumulate(len(source) for source in sources))

    def __len__(self) -> int:
        return self.ends[-1]

    def _locate(self, index: int) -> tuple[RecordSource, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        part = bisect_right(self.ends, index)
        return self.sources[part], index - (self.ends[part - 1] if part else 0)

    def __getitem__(self, index: int) -> Any:
        source, position = self._locate(index)
        return source[position]

    def where(self, index: int) -> str:
        source, position = self._locate(index)
        return source.where(position)

    def origin(self, index: int) -> str:
        source, position = self._locate(index)
        return source.origin(position)


class InMemory:
    """Records that are already objects, for tests and small programs."""

    def __init__(self, records: Sequence[Any], name: str = "records") -> None:
        self.records = list(records)
        self.name = name

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        return self.records[index]

    def where(self, index: int) -> str:
        return f"{self.name}, record {index}"

    def origin(self, index: int) -> str:
        return self.name


def open_records(data_path: str | None, seed: int = 0, cache_dir: str | None = None) -> RecordSource:
    """The records of a JSON, JSONL or parquet file, of `prefix{a,b}.json`, of a folder, or of a YAML mixture.

    Raises DataError naming file, line and record of what cannot be used.
    """
    if not data_path or not isinstance(data_path, str):
        raise DataError(f"--data_path is {data_path!r}; give a .json, .jsonl, .parquet or .yaml file")
    if data_path.endswith((".yaml", ".yml")):
        return open_mixture(data_path, seed, cache_dir)
    return join([open_file(path, cache_dir) for path in expand(data_path)])


def join(sources: Sequence[RecordSource]) -> RecordSource:
    return sources[0] if len(sources) == 1 else Concatenation(sources)


def open_file(path: str, cache_dir: str | None = None) -> RecordSource:
    if path.endswith(".jsonl"):
        return open_json_lines(path)
    if path.endswith(".parquet"):
        return open_parquet(path, cache_dir)
    if path.endswith(".json"):
        return open_json(path)
    require_file(path)
    raise DataError(f"{path}: unknown kind of data file; there are {', '.join(SUFFIXES)}, .yaml and folders of them")


def expand(path: str) -> list[str]:
    """The files that a path stands for: itself, each name of a brace list, or all data files of a folder, sorted."""
    if os.path.isdir(path):
        files = sorted(os.path.join(path, name) for name in os.listdir(path) if name.endswith(SUFFIXES))
        if not files:
            raise DataError(f"{path}: the folder holds no {', '.join(SUFFIXES)} file")
        return files
    match = BRACES.match(path)
    if match is None or os.path.exists(path):
        return [path]
    names = [name.strip() for name in match["names"].split(",")]
    if "" in names:
        raise DataError(f"{path}: the brace list has an empty name")
    return [match["head"] + name + match["tail"] for name in names]


def open_mixture(path: str, seed: int, cache_dir: str | None) -> RecordSource:
    """The sources of a YAML file `datasets: [{json_path, sampling_strategy}, ...]`, in its order."""
    require_file(path)
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as YAML: {error}") from None
    entries = content.get("datasets") if isinstance(content, Mapping) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: expected a key 'datasets' with a list of {{json_path, sampling_strategy}}")
    sources = []
    for position, entry in enumerate(entries):
        where = f"{path}, dataset {position}"
        if not isinstance(entry, Mapping) or not isinstance(entry.get("json_path"), str):
            raise DataError(f"{where}: expected an object with 'json_path', this is {kind(entry)}")
        if unknown := set(map(str, entry)) - {"json_path", "sampling_strategy"}:
            raise DataError(f"{where}: unknown key {sorted(unknown)[0]!r}; there are json_path and sampling_strategy")
        files = expand(beside(path, entry["json_path"]))
        source = join([open_file(name, cache_dir) for name in files])
        strategy = entry.get("sampling_strategy", "all")
        sources.append(sample(source, strategy, random.Random(f"{seed}-{position}"), where))
    return join(sources)


def beside(mixture: str, path: str) -> str:
    """A path of a mixture as it stands, or else from the mixture's own folder."""
    if os.path.isabs(path) or any(os.path.exists(name) for name in expand(path)):
        return path
    from_mixture = os.path.join(os.path.dirname(mixture), path)
    return from_mixture if any(os.path.exists(name) for name in expand(from_mixture)) else path


def sample(source: RecordSource, strategy: Any, generator: random.Random, where: str) -> RecordSource:
    """The part of a source that `strategy` names. A percentage is rounded up to whole records."""
    if strategy is None or strategy == "all":
        return source
    match = re.fullmatch(r"(first|end|random):(\d+)(%?)", strategy) if isinstance(strategy, str) else None
    if match is None:
        raise DataError(f"{where}: sampling_strategy {strategy!r} is unknown; use {STRATEGIES} (N and P whole numbers)")
    total, number = len(source), int(match[2])
    if number == 0 or (match[3] and number > 100):
        raise DataError(f"{where}: sampling_strategy {strategy!r} must take at least 1 and at most 100%")
    count = min(math.ceil(number * total / 100) if match[3] else number, total)
    indices = list(range(total))
    if match[1] == "random":
        generator.shuffle(indices)
    chosen = indices[total - count :] if match[1] == "end" else indices[:count]
    return Selection(source, np.array(chosen, dtype=np.int64))


def sample_key(raw: Any) -> str:
    """What decides on which side of the split a record falls: its picture, so that no picture is on both sides."""
    if not isinstance(raw, Mapping):
        return repr(raw)
    pictures = raw.get("image") or raw.get("video")
    if pictures is not None and pictures != "":
        first = pictures[0] if isinstance(pictures, list) else pictures
        if isinstance(first, Mapping):
            first = first.get("bytes") or first.get("path")
        return hashlib.blake2b(first).hexdigest() if isinstance(first, CONTENT) else str(first)
    if raw.get("id") is not None:
        return str(raw["id"])
    return json.dumps(raw, sort_keys=True, default=str)


def split_records(records: RecordSource, share: float) -> tuple[RecordSource, RecordSource]:
    """(training, validation) records. share: below 1 a share of the records, otherwise their number.

    Membership depends on a record's picture or id alone: not on its position, the seed or the other records
    (as a number, at least that many: on which records there are). Raises DataError if a side would be empty.
    """
    if share <= 0:
        raise DataError(f"the validation split must be positive, not {share}; leave it out for none")
    marks = np.empty(len(records), dtype=np.float64)
    for index in tqdm(range(len(records)), desc="split", delay=2, leave=False):
        try:
            key = sample_key(records[index])
        except BadSample:
            key = records.where(index)
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        marks[index] = int.from_bytes(digest, "big") / 2**64
    # As a number: up to the mark of the last one, so that records of one picture stay together.
    limit = share if share < 1 else np.nextafter(np.sort(marks)[min(int(share), len(marks)) - 1], 2)
    is_held_out = marks < limit
    training, validation = np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
    if len(training) == 0 or len(validation) == 0:
        raise DataError(
            f"a validation split of {share:g} leaves {len(training)} records for training and {len(validation)} for "
            "validation; choose another share, or give --eval_data_path"
        )
    return Selection(records, training), Selection(records, validation)


def read_record(records: RecordSource, index: int) -> Record:
    """The checked record at a position. Raises BadSample."""
    return parse_record(records[index], records.where(index))
