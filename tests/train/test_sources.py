"""Records from every kind of file, the mixture's strategies, the split, and what a broken file says."""

import json
import multiprocessing
import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llava.train.record_files import ArrayScanner
from llava.train.records import BadSample, DataError
from llava.train.sources import InMemory, Selection, open_records, read_record, split_records


def record(index: int, text: str = "a cat") -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\nWhat is it? {index}"}, {"from": "gpt", "value": text}]
    return {"id": f"{index:04d}", "image": f"{index}.png", "conversations": turns}


RECORDS = [
    record(index, text) for index, text in enumerate(["a cat", "été ☂ 猫 🙂", 'quote " \\ ] } ,', "line\nbreak"] * 5)
]


def write_json(path: Path, records: list[Any] = RECORDS, **options: Any) -> str:
    path.write_text(json.dumps(records, **options), encoding="utf-8")
    return str(path)


def write_lines(path: Path, records: list[Any] = RECORDS, separator: str = "\n") -> str:
    path.write_text(separator.join(json.dumps(entry, ensure_ascii=False) for entry in records), encoding="utf-8")
    return str(path)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_array_gives_every_record(tmp_path: Path, ascii_only: bool, indent: int | None) -> None:
    records = open_records(write_json(tmp_path / "a.json", ensure_ascii=ascii_only, indent=indent))
    assert [records[index] for index in range(len(records))] == RECORDS
    assert records.where(3).endswith("a.json, record 3")


@pytest.mark.parametrize("block", [1, 2, 7, 64])
def test_json_is_scanned_the_same_in_blocks_of_any_size(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_json(tmp_path / "a.json", ensure_ascii=False)
    whole = list(ArrayScanner(path).offsets())
    monkeypatch.setattr("llava.train.record_files.BLOCK", block)
    assert list(ArrayScanner(path).offsets()) == whole


def test_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    for name, text in (("a.json", json.dumps(RECORDS)), ("a.jsonl", "\n".join(map(json.dumps, RECORDS)))):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert open_records(str(tmp_path / name))[0] == RECORDS[0]


@pytest.mark.parametrize("separator", ["\n", "\n\n", "\r\n"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_lines_give_every_record_whatever_the_suffix(tmp_path: Path, separator: str, name: str) -> None:
    records = open_records(write_lines(tmp_path / name, separator=separator))
    assert [records[index] for index in range(len(records))] == RECORDS
    assert records.where(2).endswith(f"{name}:{5 if separator == chr(10) * 2 else 3}")


def test_parquet_gives_records_with_images_inside(tmp_path: Path) -> None:
    table = {
        "id": ["a", "b", "c"],
        "image": [{"bytes": b"xyz", "path": None}, None, {"bytes": None, "path": "c.png"}],
        "conversations": [RECORDS[0]["conversations"], RECORDS[1]["conversations"], RECORDS[2]["conversations"]],
        "unused": [1, 2, 3],
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    records = open_records(str(tmp_path / "a.parquet"))
    assert len(records) == 3
    assert records[0]["image"]["bytes"] == b"xyz"
    assert records[1]["image"] is None
    assert records[2]["conversations"] == RECORDS[2]["conversations"]
    assert "unused" not in records[0]
    assert len(pickle.dumps(records)) < 1000
    again = pickle.loads(pickle.dumps(records))
    assert again[2] == records[2]


def test_parquet_takes_lists_of_images_and_conversations_as_text(tmp_path: Path) -> None:
    turns = json.dumps(RECORDS[0]["conversations"])
    table = pa.table({"images": [[b"1", b"2"]], "conversations": [turns]})
    pq.write_table(table, tmp_path / "a.parquet")
    row = open_records(str(tmp_path / "a.parquet"))[0]
    assert row == {"image": [b"1", b"2"], "conversations": RECORDS[0]["conversations"]}


def test_parquet_rows_are_read_without_their_pictures(tmp_path: Path) -> None:
    pictures = [{"bytes": bytes([index]) * 50_000, "path": None} for index in range(150)]
    table = {"id": range(150), "image": pictures, "conversations": [RECORDS[0]["conversations"]] * 150}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    records = open_records(str(tmp_path / "a.parquet"))
    assert records[0]["id"] == 0  # opens the file
    tracemalloc.start()
    rows = [records[index] for index in range(150)]
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 1_000_000
    assert [row["id"] for row in rows] == list(range(150))
    assert [row["image"] for row in rows] == pictures


def test_a_changed_parquet_file_is_copied_again(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for text in ("first", "second, longer"):
        pq.write_table(pa.table({"conversations": [record(0, text)["conversations"]]}), path)
        assert open_records(str(path))[0]["conversations"][1]["value"] == text


def test_several_files_and_folders_are_joined_in_order(tmp_path: Path) -> None:
    write_json(tmp_path / "part_b.json", RECORDS[:2])
    write_json(tmp_path / "part_a.json", RECORDS[2:5])
    write_lines(tmp_path / "part_c.jsonl", RECORDS[5:])
    braces = open_records(str(tmp_path / "part_{b,a}.json"))
    assert [braces[index]["id"] for index in range(5)] == ["0000", "0001", "0002", "0003", "0004"]
    assert braces.origin(0).endswith("part_b.json")
    assert braces.where(2).endswith("part_a.json, record 0")
    folder = open_records(str(tmp_path))
    assert len(folder) == len(RECORDS)
    assert folder[0] == RECORDS[2]


def mixture(path: Path, strategies: list[str | None], name: str = "a.json") -> str:
    lines = ["datasets:"]
    for strategy in strategies:
        lines.append(f"  - json_path: {name}")
        lines += [f"    sampling_strategy: {strategy}"] if strategy else []
    path.write_text("\n".join(lines))
    return str(path)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (None, range(20)),
        ("all", range(20)),
        ("first:3", range(3)),
        ("first:11%", range(3)),  # 2.2 rounded up
        ("end:2", range(18, 20)),
        ("end:10%", range(18, 20)),
        ("first:99", range(20)),
        ("first:100%", range(20)),
    ],
)
def test_mixture_takes_the_part_that_its_strategy_names(tmp_path: Path, strategy: str | None, expected: range) -> None:
    write_json(tmp_path / "a.json")
    records = open_records(mixture(tmp_path / "mix.yaml", [strategy]))
    assert [int(records[index]["id"]) for index in range(len(records))] == list(expected)


def test_random_strategy_depends_on_the_seed_alone(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json")
    path = mixture(tmp_path / "mix.yaml", ["random:5", "random:25%"])

    def ids(seed: int) -> list[str]:
        records = open_records(path, seed=seed)
        return [records[index]["id"] for index in range(len(records))]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)
    assert len(ids(1)) == 10
    assert ids(1)[:5] != ids(1)[5:]  # each dataset of the mixture draws for itself


def test_a_dataset_travels_to_workers_without_its_records(tmp_path: Path) -> None:
    many = [record(index, "word " * 200) for index in range(500)]
    path = write_json(tmp_path / "a.json", many)
    pickled = pickle.dumps(open_records(path))
    assert len(pickled) < os.path.getsize(path) / 50
    assert len(pickled) < 8 * 500 + 1000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read_id, (pickled, 321)) == "0321"


def read_id(pickled: bytes, index: int) -> str:
    return pickle.loads(pickled)[index]["id"]


def test_forked_workers_share_an_open_file(tmp_path: Path) -> None:
    records = open_records(write_json(tmp_path / "a.json"))
    assert records[0] == RECORDS[0]  # opens the file
    children = [os.fork() for _ in range(2)]
    if 0 in children:
        os._exit(0 if all(records[index] == RECORDS[index] for index in range(20)) else 1)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)


def test_split_keeps_pictures_on_one_side_and_ignores_the_order() -> None:
    records = [record(index % 50) for index in range(200)]
    training, validation = split_records(InMemory(records), 0.2)
    assert len(training) + len(validation) == 200
    assert 0 < len(validation) < 100
    pictures = [{part[index]["image"] for index in range(len(part))} for part in (training, validation)]
    assert not pictures[0] & pictures[1]
    _, again = split_records(InMemory(records[::-1]), 0.2)
    assert {again[index]["image"] for index in range(len(again))} == pictures[1]


def test_split_by_number_holds_out_at_least_that_many() -> None:
    _, validation = split_records(InMemory([record(index) for index in range(50)]), 7)
    assert len(validation) == 7
    _, validation = split_records(InMemory([record(index % 10) for index in range(50)]), 7)
    assert len(validation) == 10


@pytest.mark.parametrize("share", [0, -1, 1e-9, 50, 0.9999999999])
def test_split_that_leaves_a_side_empty_is_refused(share: float) -> None:
    with pytest.raises(DataError, match="validation"):
        split_records(InMemory([record(index) for index in range(50)]), share)


def test_selection_and_parts_out_of_range_raise_index_error(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json")
    records = open_records(mixture(tmp_path / "mix.yaml", ["first:2", "end:2"]))
    assert isinstance(records.sources[0], Selection)
    with pytest.raises(IndexError):
        records[4]


BROKEN_FILES: dict[str, tuple[str, bytes | None, str]] = {
    "missing": ("a.json", None, "a.json: does not exist"),
    "empty file": ("a.json", b"", "the file is empty"),
    "white space": ("a.json", b"  \n ", "white space"),
    "empty array": ("a.json", b"[ ]", "no records"),
    "object": ("a.json", b'{"data": []}', "expected an array"),
    "a number": ("a.json", b"12", r"expected '\['"),
    "trailing comma": ("a.json", b'[{"a": 1},\n{"a": 2},\n]', r"a.json:3: .*comma before '\]'"),
    "missing comma": ("a.json", b'[{"a": 1}\n{"a": 2}]', "a.json:2: .*expected ','"),
    "comma in a record": ("a.json", b'[{"a": 1,\n\n}]', "a.json:3|a.json:1.*record 0"),
    "cut off": ("a.json", b'[{"a": 1},\n{"a": "x', "a.json:2: broken JSON in record 1"),
    "cut off after a record": ("a.json", b'[{"a": 1}', "but the file ends"),
    "two arrays": ("a.json", b"[{}]\n[{}]", "text after the array"),
    "single quotes": ("a.json", b"[{'a': 1}]", "a.json:1: broken JSON in record 0"),
    "not UTF-8": ("a.json", b'[{"a": "\xff\xfe"}]', "not UTF-8 at byte 8"),
    "UTF-16": ("a.json", '[{"a": 1}]'.encode("utf-16"), "not UTF-8 at byte 0"),
    "nested deeply": ("a.json", b"[" * 200_000, "recursion"),
    "not UTF-8 lines": ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "not UTF-8 at byte 16"),
    "no lines": ("a.jsonl", b"\n\n", "no records"),
    "unknown suffix": ("a.csv", b"a,b", "unknown kind of data file"),
    "not parquet": ("a.parquet", b"PAR0....", "not a readable parquet"),
    "not YAML": ("a.yaml", b"datasets: [", "not readable as YAML"),
    "YAML list": ("a.yaml", b"- a", "expected a key 'datasets'"),
    "YAML no datasets": ("a.yaml", b"datasets: []", "expected a key 'datasets'"),
    "YAML string entry": ("a.yaml", b"datasets: [a.json]", "dataset 0: expected an object with 'json_path'"),
    "YAML number path": ("a.yaml", b"datasets: [{json_path: 3}]", "dataset 0: expected an object with 'json_path'"),
    "YAML unknown key": ("a.yaml", b"datasets: [{json_path: x.json, sampling: all}]", "unknown key 'sampling'"),
    "YAML missing file": ("a.yaml", b"datasets: [{json_path: x.json}]", "x.json: does not exist"),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_broken_file_is_named_with_what_is_wrong(tmp_path: Path, case: str) -> None:
    name, content, message = BROKEN_FILES[case]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_records(str(tmp_path / name))
    assert name in str(caught.value) or "x.json" in str(caught.value)


@pytest.mark.parametrize(
    "strategy",
    ["some", "first", "random", "first:x", "first:%", "first:1.5%", "first:-1", "first:0", "first:101%", "5", "[1]"],
)
def test_unknown_sampling_strategy_is_refused_with_those_there_are(tmp_path: Path, strategy: str) -> None:
    write_json(tmp_path / "a.json")
    with pytest.raises(DataError, match=r"dataset 0: sampling_strategy .*(random:P%|at least 1)"):
        open_records(mixture(tmp_path / "mix.yaml", [strategy]))


@pytest.mark.parametrize("path", [None, "", 3])
def test_no_data_path_says_what_to_give(path: Any) -> None:
    with pytest.raises(DataError, match="--data_path"):
        open_records(path)


def test_brace_list_and_folder_without_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="empty name"):
        open_records(str(tmp_path / "a{1,}.json"))
    write_json(tmp_path / "a1.json")
    with pytest.raises(DataError, match=r"a2\.json: does not exist"):
        open_records(str(tmp_path / "a{1,2}.json"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no"):
        open_records(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"text": ["x"]}, "no column 'conversations'; the columns are text"),
        ({"conversations": [1]}, "must be a list of from/value structs"),
        ({"conversations": [["x"]]}, "must be a list of from/value structs"),
        ({"conversations": pa.array([], pa.string())}, "holds no rows"),
    ],
)
def test_parquet_without_what_is_needed_names_its_columns(tmp_path: Path, table: dict[str, Any], message: str) -> None:
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        open_records(str(tmp_path / "a.parquet"))


def test_parquet_that_cannot_be_copied_says_where_it_tried(tmp_path: Path) -> None:
    pq.write_table(pa.table({"conversations": ["[]"]}), tmp_path / "a.parquet")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"cannot copy it to .*--cache_dir"):
        open_records(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "file"))


def test_broken_line_names_file_and_line_and_spares_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps(RECORDS[0]) + '\n{"id": \n' + json.dumps(RECORDS[1]) + " extra\n" + json.dumps(RECORDS[2])
    )
    records = open_records(str(path))
    assert read_record(records, 0).id == "0000"
    assert read_record(records, 3).id == "0002"
    for index, line in ((1, 2), (2, 3)):
        with pytest.raises(BadSample, match=rf"a\.jsonl:{line}: not a readable JSON record") as caught:
            read_record(records, index)
        assert caught.value.reason == "unreadable_record"
