"""The data check finds everything once, counts by source, and ends with a status; the quick one before training too."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from llava.train.data_check import check_before_training, main, quick_check
from llava.train.data_survey import missing_pictures
from llava.train.records import DataError
from tests.tiny import tiny_tokenizer_folder
from tests.train.data import draw, make_dataset, picture_record, text_record, turns, write_json
from tests.train.runs import STAGE_ONE, World, train_tiny


def pictures(folder: Path) -> Path:
    folder.mkdir()
    for index in range(4):
        draw(folder / f"{index}.png", seed=index)
    return folder


def faulty(folder: Path) -> list[Any]:
    """Records with one fault of each kind, beside four good ones."""
    Image.new("P", (5, 5)).save(folder / "gif.jpg", "GIF")
    Image.new("RGB", (300, 1)).save(folder / "strip.png")
    (folder / "zero.png").write_bytes(b"")
    (folder / "html.png").write_bytes(b"<html>")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:500])
    return [
        *[picture_record(f"{index}.png") for index in range(4)],
        *map(picture_record, ["gif.jpg", "strip.png", "zero.png", "html.png", "cut.png", "gone.png"]),
        picture_record("0.png"),
        {"id": "roles", "conversations": [{"from": "bot", "value": "x"}]},
        {"id": "tokens", "image": "1.png", "conversations": turns("<image><image>")},
        {"id": "empty answer", "conversations": turns("Hi.", " ")},
        text_record(),
    ]


EXPECTED = {
    "mislabeled_image": 1, "huge_image": 1, "empty_image": 1, "corrupt_image": 1, "truncated_image": 1,
    "missing_image": 1, "duplicate_id": 1, "bad_conversation": 1, "image_token_mismatch": 1, "empty_answer": 1,
}  # fmt: skip


def test_every_fault_is_found_once_with_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pictures(tmp_path / "images")
    path, report = write_json(tmp_path / "a.json", faulty(folder)), tmp_path / "report.json"
    arguments = ["--data_path", path, "--image_folder", str(folder), "--workers", "1", "--json", str(report)]
    assert main(arguments) == 1
    written = json.loads(report.read_text())
    assert written["counts"] == EXPECTED
    assert written["records"] == 15
    assert written["sources"][path] == {"records": 15, "one image": 11, "text only": 2}
    for finding in written["findings"]:
        assert path in finding["message"]
    assert "duplicate_id: 1" in capsys.readouterr().out
    assert main([*arguments, "--allow", *EXPECTED]) == 0


def test_good_data_is_status_0_and_counted_by_file_and_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(tmp_path / "images")
    records = [picture_record(f"{index}.png") for index in range(3)]
    write_json(tmp_path / "a.json", records)
    write_json(
        tmp_path / "b.json",
        [text_record(), picture_record("3.png", image=["3.png", "0.png"], conversations=turns("<image><image>"))],
    )
    path = str(tmp_path / "{a,b}.json")
    assert main(["--data_path", path, "--image_folder", str(folder), "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "nothing found" in out
    assert out.count(str(tmp_path)) == 2


def test_labels_are_checked_with_a_tokenizer(tmp_path: Path) -> None:
    records = [text_record("0"), {"id": "1", "conversations": turns("Hi.", "word " * 100)}]
    records.append({"id": "2", "conversations": turns("word " * 300, "Yes.")})
    path, report = write_json(tmp_path / "a.json", records), tmp_path / "report.json"
    tokenizer = str(tiny_tokenizer_folder(tmp_path / "tokenizer"))
    arguments = ["--data_path", path, "--model_name_or_path", tokenizer, "--model_max_length", "100", "--workers", "1"]
    assert main([*arguments, "--json", str(report)]) == 1
    assert json.loads(report.read_text())["counts"] == {"truncated_answer": 1, "not_labeled": 1}


def test_pictures_inside_parquet_and_frames_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, report = pictures(tmp_path / "clip"), tmp_path / "report.json"
    (folder / "4.png").write_bytes(b"")
    good, bad = (folder / "0.png").read_bytes(), (folder / "1.png").read_bytes()[:300]
    table = {
        "image": [{"bytes": good, "path": "a.png"}, {"bytes": bad, "path": "b.png"}],
        "conversations": [turns(), turns()],
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    assert main(["--data_path", str(tmp_path / "a.parquet"), "--workers", "1", "--json", str(report)]) == 1
    assert json.loads(report.read_text())["counts"] == {"truncated_image": 1}
    videos = [{"video": "clip", "conversations": turns()}, {"video": "gone", "conversations": turns()}]
    path = write_json(tmp_path / "v.json", videos)
    assert main(["--data_path", path, "--video_folder", str(tmp_path), "--workers", "1", "--json", str(report)]) == 1
    assert json.loads(report.read_text())["counts"] == {"missing_video": 1, "empty_image": 1}


def test_unreadable_file_is_a_finding_and_a_wrong_folder_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.json").write_text('[{"id": 1},]')
    assert main(["--data_path", str(tmp_path / "a.json")]) == 1
    assert "a.json:1: broken JSON" in capsys.readouterr().out
    path = write_json(tmp_path / "b.json", [text_record()])
    assert main(["--data_path", path, "--image_folder", str(tmp_path / "nowhere")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_report_that_cannot_be_written_is_refused_before_the_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_json(tmp_path / "a.json", [text_record()])
    with pytest.raises(SystemExit, match="2"):
        main(["--data_path", path, "--json", str(tmp_path / "no folder" / "report.json")])
    assert "report.json: cannot be written: No such file or directory" in capsys.readouterr().err


def test_command_with_several_workers_finds_the_same(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images")
    path, report = write_json(tmp_path / "a.json", faulty(folder)), tmp_path / "report.json"
    command = [sys.executable, "-m", "llava.train.data_check", "--data_path", path, "--image_folder", str(folder)]
    run = subprocess.run(
        [*command, "--workers", "2", "--json", str(report)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1, run.stderr
    assert json.loads(report.read_text())["counts"] == EXPECTED
    assert "pictures: 100%" in run.stderr  # progress


# -- before training


def test_quick_check_finds_what_is_missing_or_wrong_and_warns(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:500])
    records = [picture_record("cut.png"), *map(picture_record, ["0.png", "1.png", "gone.png"]), {"id": "x"}]
    records += [text_record(str(index)) for index in range(10)]
    findings = quick_check(make_dataset(records, folder), num_loaded=4)
    assert sorted(finding.kind for finding in findings) == ["bad_conversation", "missing_image", "truncated_image"]
    with pytest.raises(DataError, match=r"3 of 15 samples looked at .*gone\.png: no such file.*--on_bad_sample skip"):
        quick_check(make_dataset(records, folder, on_bad_sample="stop"), num_loaded=4)
    assert quick_check(make_dataset(records[5:], folder, on_bad_sample="stop")) == []


def test_quick_check_stops_when_too_much_is_missing(tmp_path: Path) -> None:
    records = [picture_record(f"{index}.png") for index in range(200)] + [text_record()] * 300
    with pytest.raises(DataError, match=r"200 of 500 samples looked at cannot be used \(200 missing_image\)"):
        quick_check(make_dataset(records, tmp_path))
    assert len(quick_check(make_dataset(records, tmp_path, bad_sample_limit=0.5))) == 200


def test_quick_check_reads_no_more_records_than_it_is_told(tmp_path: Path) -> None:
    records = [picture_record(f"{index}.png") for index in range(200)]
    with pytest.raises(DataError, match=r"40 of 40 samples looked at .*record 0 .*record 5 "):
        quick_check(make_dataset(records, tmp_path), num_read=40)


def test_quick_check_opens_no_picture_inside_and_counts_a_record_once(tmp_path: Path) -> None:
    inside = {"id": "inside", "image": {"bytes": b"broken"}, "conversations": turns()}
    several = picture_record("0.png", image=["0.png"] * 9, conversations=turns("<image>" * 9))
    findings = quick_check(make_dataset([text_record(), inside, several, several], tmp_path), num_loaded=1)
    assert [finding.kind for finding in findings] == ["missing_image"]


def test_a_run_whose_pictures_are_missing_stops_before_its_first_step(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="16 of 16 samples looked at"):
        train_tiny(world, tmp_path, monkeypatch, STAGE_ONE, {"image_folder": tmp_path})


def test_every_process_stops_at_what_the_first_one_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("llava.train.data_check.gather_objects", lambda mine: ["half is missing", mine])
    with pytest.raises(DataError, match="half is missing"):
        check_before_training(make_dataset([text_record()]))


def test_missing_pictures_are_told_alike_by_listing_and_by_asking(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    uses = {}
    for index in range(100):
        if index % 3:
            (tmp_path / f"{index}.png").touch()
        uses[str(tmp_path / f"{index}.png")] = ("here", 1)
    uses[str(tmp_path / "deep" / "gone.png")] = ("here", 1)
    uses |= {str(tmp_path / "no folder" / f"{index}.png"): ("here", 1) for index in range(70)}
    missing = missing_pictures(uses)
    assert len(missing) == 34 + 1 + 70
