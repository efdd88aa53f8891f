"""Reading runs, and the tables and figure made of them, against values counted by hand."""

import math
import re
from pathlib import Path

import pytest
from PIL import Image

from llava.eval.compare import build_columns, cell, difference, main, report
from llava.eval.runs import Reading, read_labels, read_run
from tests.eval.conftest import Row, read_rows, write_jsonl


def scores(path: Path, values: str, clusters: str = "") -> Path:
    """values: one digit a question, 1 right and 0 wrong. clusters: one letter a question."""
    rows = [{"question_id": index, "score": float(value)} for index, value in enumerate(values)]
    for row, cluster in zip(rows, clusters, strict=False):
        row["cluster"] = cluster  # type: ignore[assignment]
    return write_jsonl(path, rows)


def test_names_and_seeds_come_from_paths_or_arguments(tmp_path: Path) -> None:
    path = scores(tmp_path / "move-kd-seed3.jsonl", "10")
    assert [(run.name, run.seed) for run in (read_run(str(path)), read_run(f"ours={path}"))] == [
        ("move-kd", 3),
        ("ours", 3),
    ]
    plain = scores(tmp_path / "llava-v1.5-7b.jsonl", "10")
    assert (read_run(str(plain)).name, read_run(str(plain)).seed) == ("llava-v1.5-7b", 0)
    assert list(read_run(str(plain)).benchmarks) == ["accuracy"]
    assert read_run(str(scores(tmp_path / "claves2.jsonl", "10"))).name == "claves2"
    assert read_run(str(scores(tmp_path / "run_s2.jsonl", "10"))).seed == 2
    swept = scores(tmp_path / "lr=1e-4" / "a.jsonl", "10")
    assert [(run.name, run.path) for run in (read_run(str(swept)), read_run(f"x={swept}"))] == [
        ("a", swept),
        ("x", swept),
    ]


def test_a_folder_holds_one_file_for_each_benchmark(tmp_path: Path) -> None:
    scores(tmp_path / "run_s1" / "gqa.jsonl", "10")
    scores(tmp_path / "run_s1" / "sub" / "2026_samples_pope.jsonl", "10")
    run = read_run(str(tmp_path / "run_s1"))
    assert (run.name, run.seed, sorted(run.benchmarks)) == ("run", 1, ["gqa", "pope"])
    scores(tmp_path / "run_s1" / "sub" / "2027_samples_pope.jsonl", "10")
    with pytest.raises(ValueError, match=r"holds pope twice, the second in .*2027_samples_pope\.jsonl"):
        read_run(str(tmp_path / "run_s1"))


def test_lmms_evals_logs_are_read_by_their_metric(tmp_path: Path) -> None:
    rows = [{"doc_id": 0, "doc": {"imageId": "n1"}, "exact_match": 1.0, "target": "a", "resps": [["a"]]}]
    path = write_jsonl(tmp_path / "x_samples_gqa.jsonl", rows)
    assert read_run(str(path)).benchmarks["gqa"]["0"] == ("0", 1.0, "n1")
    write_jsonl(path, [{**rows[0], "f1": 0.5}])
    with pytest.raises(ValueError, match="has the metrics exact_match, f1; name one of them with --metric"):
        read_run(str(path))
    assert read_run(str(path), Reading(metrics=["f1"])).benchmarks["gqa"]["0"].value == 0.5


def logged(path: Path, *metrics: Row) -> Path:
    """A sample log as lmms-eval 0.7.3 writes it."""
    common = {"target": "yes", "filtered_resps": "Yes", "token_counts": [None], "doc_hash": "74", "input": "Is it?"}
    return write_jsonl(path, [{"doc_id": index, **common, **row} for index, row in enumerate(metrics)])


def test_metrics_that_are_dicts_are_read_by_their_score(tmp_path: Path) -> None:
    judged = {"question_id": "7", "score": 1.0, "prediction": "yes", "ground_truth": "yes"}
    logged(tmp_path / "x_samples_pope_adv.jsonl", {"pope_accuracy": judged, "pope_f1_score": judged})
    halves = [{"mme_cognition_score": {**judged, "score": 0.0}}, {"mme_perception_score": judged}]
    logged(tmp_path / "x_samples_mme.jsonl", *halves)
    with pytest.raises(ValueError, match="has the metrics mme_cognition_score, mme_perception_score; name one"):
        read_run(str(tmp_path))
    run = read_run(str(tmp_path), Reading(metrics=["mme_perception_score", "pope_accuracy"]))
    assert run.benchmarks == {"pope_adv": {"0": ("0", 1.0, None)}, "mme": {"1": ("1", 1.0, None)}}


def test_logs_that_only_a_server_or_a_judge_scores_are_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {"submission": {"question_id": 1, "answer": "cat"}}
    alone = logged(tmp_path / "x_samples_vqav2_test.jsonl", answer)
    logged(tmp_path / "x_samples_vizwiz_vqa_test.jsonl", {"exact_match": 0, **answer})
    logged(tmp_path / "x_samples_mmbench_en_dev.jsonl", {"gpt_eval_score": {"index": 1, "answer": "A"}})
    logged(tmp_path / "x_samples_textvqa_val.jsonl", {"exact_match": 0.6, **answer})
    run = read_run(str(tmp_path))
    assert {name: scores["0"].value for name, scores in run.benchmarks.items()} == {"textvqa_val": 0.6}
    said = capsys.readouterr().err
    assert [line.split("_samples_")[1].split(".jsonl")[0] for line in said.splitlines()] == [
        "mmbench_en_dev", "vizwiz_vqa_test", "vqav2_test",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="its answers are for a server or a judge"):
        read_run(str(alone))


def test_plain_answers_are_scored_by_labels(tmp_path: Path) -> None:
    given = [("1", "The Cat."), ("2", "dog"), ("3", "2")]
    path = write_jsonl(tmp_path / "a.jsonl", [{"question_id": key, "text": text} for key, text in given])
    with pytest.raises(ValueError, match="holds answers without scores; give --labels"):
        read_run(str(path))
    truths = [("1", "cat"), ("2", ["cow", "dog"]), ("3", ["two"] * 2 + ["3"] * 8)]
    labels = [{"question_id": key, "answer": answer, "image": "i"} for key, answer in truths]
    reading = Reading(labels=read_labels(write_jsonl(tmp_path / "l.jsonl", labels)))
    found = read_run(str(path), reading).benchmarks["accuracy"]
    assert [score.value for score in found.values()] == pytest.approx([1.0, 1.0, 0.6])
    assert found["1"].cluster == "i"


def test_cells_and_differences_are_those_counted_by_hand(tmp_path: Path) -> None:
    """12 questions: the baseline has 4 right, the other 9; it alone 6, the baseline alone 1. McNemar 2 * 8 / 128."""
    first = scores(tmp_path / "base.jsonl", "111100000000")
    second = scores(tmp_path / "new.jsonl", "011111111100")
    (column,) = build_columns([read_run(str(first)), read_run(str(second))])
    assert cell(column, "base").mean == pytest.approx(4 / 12)
    found = difference(column, "new", "base")
    assert found.mean == pytest.approx(5 / 12)
    assert found.discordant == (6, 1, pytest.approx(2 * 8 / 128))
    assert found.p_questions == pytest.approx(2 * 8 / 128), "flipping signs of discordant questions is the same test"


def test_seeds_are_averaged_for_questions_and_tested_in_pairs(tmp_path: Path) -> None:
    """Accuracies 50, 50 and 75, 100: differences 25 and 50, t = 37.5 / 12.5 = 3 at 1 degree of freedom."""
    files = {"base-seed0": "1100", "base-seed1": "0011", "new-seed0": "1101", "new-seed1": "1111"}
    runs = [read_run(str(scores(tmp_path / f"{name}.jsonl", values))) for name, values in files.items()]
    (column,) = build_columns(runs)
    found = difference(column, "new", "base")
    assert found.mean == pytest.approx(0.375)
    assert found.discordant is None
    assert found.p_seeds == pytest.approx(0.2048, abs=1e-4)
    low, high = cell(column, "new").over_seeds
    assert (low, high) == pytest.approx((0.875 - 12.7062 * 0.125, 0.875 + 12.7062 * 0.125), abs=1e-3)
    (column,) = build_columns(runs[:3])
    assert math.isnan(difference(column, "new", "base").p_seeds), "one seed cannot be tested"


def test_pictures_widen_the_interval_of_questions_that_hang_together(tmp_path: Path) -> None:
    apart = scores(tmp_path / "a.jsonl", "1" * 20 + "0" * 20)
    together = scores(tmp_path / "b.jsonl", "1" * 20 + "0" * 20, "".join(c * 10 for c in "abcd"))
    widths = []
    for path in (apart, together):
        (column,) = build_columns([read_run(str(path))])
        low, high = cell(column, next(iter(column.values))).over_questions
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]


def test_runs_that_cannot_be_compared_say_why(tmp_path: Path) -> None:
    first, second = scores(tmp_path / "a.jsonl", "101"), scores(tmp_path / "b.jsonl", "10")
    runs = [read_run(str(path)) for path in (first, second)]
    with pytest.raises(ValueError, match="differ in 1 questions, the first is 2; --common compares"):
        build_columns(runs)
    (column,) = build_columns(runs, common=True)
    assert column.questions == 2
    with pytest.raises(ValueError, match="has a seed twice"):
        build_columns([read_run(f"x={first}"), read_run(f"x={second}")])
    scores(tmp_path / "run" / "gqa.jsonl", "10")
    with pytest.raises(ValueError, match="no benchmark is in every run"):
        build_columns([runs[0], read_run(str(tmp_path / "run"))])
    write_jsonl(first, read_rows(first) * 2)
    with pytest.raises(ValueError, match="question 0 occurs twice"):
        read_run(str(first))
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        read_run(str(tmp_path / "nowhere"))


def test_the_report_names_every_checkpoint_and_how_sure_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, gqa, pope in (("base-seed0", "1100", "1000"), ("base-seed1", "1110", "1100"), ("new", "1111", "1110")):
        scores(tmp_path / name / "gqa.jsonl", gqa, "aabb")
        scores(tmp_path / name / "pope.jsonl", pope)
    paths = [str(tmp_path / name) for name in ("base-seed0", "base-seed1", "new")]
    targets = ["--markdown", str(tmp_path / "t.md"), "--figure", str(tmp_path / "new" / "t.png")]
    main([*paths, *targets])
    printed = capsys.readouterr().out
    assert (tmp_path / "t.md").read_text() == printed
    assert "| checkpoint | seeds | gqa | pope | mean |" in printed
    assert re.search(r"\| base \| 2 \| 62\.5 \[.*\]; seeds \[.*\] \| 37\.5 .* \| 50\.0 \|", printed)
    assert re.search(r"\| gqa \| new \| \+37\.5 \[", printed)
    assert "gqa: 4 questions about 2 pictures; pope: 4 questions." in printed
    with Image.open(tmp_path / "new" / "t.png") as figure:
        assert figure.width > figure.height > 100
        assert len(figure.convert("RGB").getcolors(2**20) or []) > 20


def test_one_checkpoint_alone_has_scores_and_no_differences(tmp_path: Path) -> None:
    text = report(build_columns([read_run(str(scores(tmp_path / "a.jsonl", "10")))]))
    assert "| a | 1 | 50.0 [" in text
    assert "minus" not in text
