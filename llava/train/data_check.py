"""Find what is wrong with training data before it costs a run.

    python -m llava.train.data_check --data_path mix.json --image_folder images --workers 8

reads every record, opens every picture and, given a tokenizer, makes every label. Status 0: nothing found, 1: findings.
Training makes a quick version of this (`check_before_training`) before its first step.
"""

import argparse
import json
import math
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers.utils import logging

from llava.model.tokenizer import load_tokenizer
from llava.train.bad_samples import too_many
from llava.train.data_config import DataConfig
from llava.train.data_survey import Finding, Subject, Survey, check_pictures, missing_pictures, survey_records
from llava.train.dataset import SupervisedDataset
from llava.train.environment import gather_objects, rank
from llava.train.labeling import Labeler
from llava.train.prompts import training_template
from llava.train.records import BadSample, DataError
from llava.train.sources import open_records

logger = logging.get_logger(__name__)

QUICK = 100_000  # records that the check before training reads at most
SPAN = 500  # records per piece of work
PIECE = 50  # pictures per piece of work
SHOWN = 5  # messages per kind of finding
Task = tuple[str, Sequence[Any]]  # ("records", indices) or ("pictures", uses)
COLUMNS = ("records", "one image", "several images", "video", "text only", "not mentioned")


def check_before_training(dataset: SupervisedDataset) -> None:
    """`quick_check` by the first process. Every process must call it: what is raised there is raised by all."""
    problem = None
    if rank() == 0:
        try:
            quick_check(dataset)
        except DataError as error:
            problem = str(error)
    if problem := gather_objects(problem)[0]:
        raise DataError(problem)


def quick_check(dataset: SupervisedDataset, num_read: int = QUICK, num_loaded: int = 16) -> list[Finding]:
    """Records are read and the first picture of each looked for, `num_read` of them evenly spread if there are more;
    `num_loaded` samples are made.

    Raises DataError if on_bad_sample is "stop" and anything was found, or if more is bad than bad_sample_limit allows;
    otherwise warns.
    """
    total = len(dataset)
    read = range(0, total, math.ceil(total / num_read))
    begin(Subject(dataset.records, dataset.config, is_quick=True))
    survey = gather(record_tasks(read), map, delay=2)
    missing = missing_pictures(survey.uses)
    findings = [finding for finding in survey.findings if finding.kind != "empty_answer"] + list(missing.values())
    bad = survey.bad_records + sum(survey.uses[path][1] for path in missing)
    for index in read[:: math.ceil(len(read) / num_loaded)]:
        try:
            dataset.load(index)
        except BadSample as error:
            if is_new(error, findings):
                findings.append(Finding(error.reason, str(error)))
                bad += 1
    judge(findings, bad, len(read), dataset.config)
    return findings


def is_new(error: BadSample, findings: Sequence[Finding]) -> bool:
    """Missing files and bad records have all been found; what a load adds is about contents and labels."""
    return not error.reason.startswith("missing_") and all(finding.message != str(error) for finding in findings)


def judge(findings: Sequence[Finding], bad: int, total: int, config: DataConfig) -> None:
    if not findings:
        return
    kinds = Counter(finding.kind for finding in findings)
    summary = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    first = "; ".join(finding.message for finding in findings[:SHOWN]) + " ..." * (len(findings) > SHOWN)
    text = f"{bad} of {total} samples looked at cannot be used ({summary}): {first}"
    if config.on_bad_sample == "stop" or too_many(bad, total, total, config.bad_sample_limit):
        raise DataError(
            f"{text}. Repair or remove them (python -m llava.train.data_check lists all), or skip them with "
            "--on_bad_sample skip and a higher --bad_sample_limit"
        )
    logger.warning(f"{text}. They are skipped")


def record_tasks(indices: range) -> list[Task]:
    return [("records", indices[start : start + SPAN]) for start in range(0, len(indices), SPAN)]


_subject: list[Subject] = []  # in a worker: what it looks through, sent once and not with every task


def begin(subject: Subject) -> None:
    _subject[:] = [subject]


def work(task: Task) -> Survey:
    kind, piece = task
    if kind == "records":
        return survey_records(_subject[0], piece)
    return Survey(findings=check_pictures(piece))


def gather(tasks: Sequence[Task], run: Callable[..., Iterable[Survey]], delay: float = 0) -> Survey:
    """The joined surveys of all tasks, in order, with a progress bar. run: `map`, or that of a pool."""
    survey = Survey()
    if not tasks:
        return survey
    with tqdm(total=sum(len(piece) for _, piece in tasks), desc=tasks[0][0], delay=delay) as bar:
        for (_, piece), found in zip(tasks, run(work, tasks), strict=True):
            survey.add(found)
            bar.update(len(piece))
    return survey


def check(subject: Subject, workers: int) -> Survey:
    """Everything there is to find: records, labels, all pictures, duplicate ids."""
    if workers == 1:
        begin(subject)
        return check_with(subject, map)
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with context.Pool(workers, initializer=begin, initargs=(subject,)) as pool:
        return check_with(subject, pool.imap)


def check_with(subject: Subject, run: Callable[..., Iterable[Survey]]) -> Survey:
    survey = gather(record_tasks(range(len(subject.records))), run)
    uses = sorted(survey.uses.items())
    survey.add(gather([("pictures", uses[start : start + PIECE]) for start in range(0, len(uses), PIECE)], run))
    survey.findings += survey.duplicates()
    return survey


def print_report(survey: Survey, findings: Sequence[Finding]) -> None:
    print("records by file")
    width = max([len(name) for name in survey.sources] + [4])
    print("  " + "file".ljust(width) + "".join(f"{column:>16}" for column in COLUMNS))
    for name, counts in survey.sources.items():
        print("  " + name.ljust(width) + "".join(f"{counts[column]:>16,}" for column in COLUMNS))
    if survey.folders:
        print("pictures by folder")
        for folder, count in survey.folders.most_common(20):
            print(f"  {count:>10,}  {folder}")
    if survey.lengths:
        ordered = sorted(survey.lengths)
        middle, high = ordered[len(ordered) // 2], ordered[int(0.99 * (len(ordered) - 1))]
        print(f"tokens per sample, one for each picture: median {middle}, 99% up to {high}, longest {ordered[-1]}")
    kinds = Counter(finding.kind for finding in findings)
    for kind, count in kinds.most_common():
        print(f"{kind}: {count:,}")
        shown = [finding for finding in findings if finding.kind == kind][:SHOWN]
        print("\n".join(f"  {finding.message}" for finding in shown))
        if count > SHOWN:
            print(f"  ... and {count - SHOWN:,} more (--json FILE lists all)")
    print(f"{sum(kinds.values()):,} findings" if kinds else "nothing found: the data can be trained on")


def write_report(path: str, survey: Survey, findings: Sequence[Finding]) -> None:
    report = {
        "records": sum(counts["records"] for counts in survey.sources.values()),
        "sources": {name: dict(counts) for name, counts in survey.sources.items()},
        "pictures": dict(survey.folders),
        "counts": dict(Counter(finding.kind for finding in findings)),
        "findings": [asdict(finding) for finding in findings],
    }
    Path(path).write_text(json.dumps(report, indent=1))


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Find what is wrong with training data before it costs a run.")
    parser.add_argument(
        "--data_path", required=True, help="JSON, JSONL, parquet, a{b,c}.json, a folder or a YAML mixture"
    )
    parser.add_argument("--image_folder", help="joined with the image of every record")
    parser.add_argument("--video_folder", help="joined with the video of every record")
    parser.add_argument("--model_name_or_path", help="also make the labels, with the tokenizer that is there")
    parser.add_argument("--version", default="v1", help="conversation template of the labels")
    parser.add_argument("--model_max_length", type=int, help="where samples are cut")
    parser.add_argument("--cache_dir", help="where parquet files are copied to")
    parser.add_argument("--seed", type=int, default=42, help="of a mixture's random samples, as in training")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 8), help="processes")
    parser.add_argument("--json", metavar="FILE", help="write counts and all findings there")
    parser.add_argument("--allow", nargs="+", default=[], metavar="KIND", help="kinds of findings that are no findings")
    arguments = parser.parse_args(argv)
    if arguments.workers < 1:
        parser.error(f"--workers {arguments.workers}: at least 1")
    if arguments.json:
        try:
            open(arguments.json, "a").close()  # rather than after hours
        except OSError as error:
            parser.error(f"--json {arguments.json}: cannot be written: {error.strerror}")
    return arguments


def read_subject(arguments: argparse.Namespace) -> Subject:
    config = DataConfig(
        data_path=arguments.data_path,
        image_folder=arguments.image_folder,
        video_folder=arguments.video_folder,
        model_max_length=arguments.model_max_length,
        cache_dir=arguments.cache_dir,
        seed=arguments.seed,
    )
    records = open_records(config.data_path, config.seed, config.cache_dir)
    if arguments.model_name_or_path is None:
        return Subject(records, config)
    tokenizer, template = load_tokenizer(arguments.model_name_or_path), training_template(arguments.version)
    return Subject(records, config, Labeler(tokenizer, template, config.model_max_length))


def main(argv: Sequence[str] | None = None) -> int:
    arguments = read_arguments(argv)
    try:
        survey = check(read_subject(arguments), arguments.workers)
    except DataError as error:
        survey = Survey(findings=[Finding("unreadable_file", str(error))])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    findings = [finding for finding in survey.findings if finding.kind not in arguments.allow]
    print_report(survey, findings)
    if arguments.json:
        write_report(arguments.json, survey, findings)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
