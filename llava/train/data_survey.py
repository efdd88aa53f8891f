"""Looking through records and pictures for everything that training would stumble over.

The work is cut into spans of records and lists of pictures, so that several processes can share it.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from llava.train.data_config import DataConfig
from llava.train.images import actual_format, decode, read_bytes
from llava.train.labeling import Labeler
from llava.train.record_files import RecordSource
from llava.train.records import CONTENT, BadSample, ImageRef, Record
from llava.train.sources import read_record


@dataclass(frozen=True)
class Finding:
    """kind: short name to count by. message: file, record and what is wrong."""

    kind: str
    message: str


@dataclass(frozen=True)
class Subject:
    """What is looked through. labeler: None leaves the labels unchecked. is_quick: only the first picture of a record
    counts, and none is opened."""

    records: RecordSource
    config: DataConfig
    labeler: Labeler | None = None
    is_quick: bool = False


@dataclass
class Survey:
    """What was found in some of the records. sources: counts by file. folders: pictures by folder.
    uses: picture path -> the first record that needs it, and how many do. ids: how often each occurs, and where first.
    lengths: tokens of each labeled sample."""

    findings: list[Finding] = field(default_factory=list)
    sources: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    folders: Counter[str] = field(default_factory=Counter)
    uses: dict[str, tuple[str, int]] = field(default_factory=dict)
    ids: dict[str, tuple[str, int]] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)
    bad_records: int = 0

    def add(self, other: "Survey") -> None:
        self.findings += other.findings
        self.lengths += other.lengths
        self.bad_records += other.bad_records
        self.folders.update(other.folders)
        for source, counts in other.sources.items():
            self.sources[source].update(counts)
        for mine, theirs in ((self.uses, other.uses), (self.ids, other.ids)):
            for name, (where, count) in theirs.items():
                tally(mine, name, where, count)

    def duplicates(self) -> list[Finding]:
        return [
            Finding("duplicate_id", f"{where}: the id {name!r} occurs {count} times")
            for name, (where, count) in self.ids.items()
            if count > 1
        ]


def tally(table: dict[str, tuple[str, int]], name: str, where: str, count: int = 1) -> None:
    first, before = table.get(name, (where, 0))
    table[name] = (first, before + count)


def survey_records(subject: Subject, indices: Iterable[int]) -> Survey:
    """Everything but the pictures' files; pictures inside records are opened too, unless the check is quick."""
    survey = Survey()
    for index in indices:
        counts = survey.sources[subject.records.origin(index)]
        counts["records"] += 1
        try:
            record = read_record(subject.records, index)
            survey_record(subject, record, survey, counts)
        except BadSample as error:
            survey.bad_records += 1
            survey.findings.append(Finding(error.reason, str(error)))
    return survey


def survey_record(subject: Subject, record: Record, survey: Survey, counts: Counter[str]) -> None:
    """Counts one record. Raises BadSample where it cannot be labeled."""
    counts[modality(record)] += 1
    if record.is_visual and record.num_placeholders == 0:
        counts["not mentioned"] += 1
    if record.id != record.where:
        tally(survey.ids, record.id, record.where)
    if any(turn["from"] == "gpt" and not turn["value"].strip() for turn in record.turns):
        survey.findings.append(Finding("empty_answer", f"{record.where}: an answer is empty"))
    for image in record.images[:1] if subject.is_quick else record.images:
        survey_image(subject, image, record.where, survey)
    if record.video is not None:
        survey_video(subject, record.video, record.where, survey)
    if subject.labeler is not None:
        text = subject.labeler.label(record, record.turns)
        survey.lengths.append(text.num_tokens)
        if text.num_lost:
            survey.findings.append(Finding("truncated_answer", subject.labeler.loss_message(record, text)))


def modality(record: Record) -> str:
    if record.video is not None:
        return "video"
    return ("text only", "one image")[len(record.images)] if len(record.images) < 2 else "several images"


def survey_image(subject: Subject, image: ImageRef, where: str, survey: Survey) -> None:
    if isinstance(image, Mapping) and isinstance(image.get("bytes"), CONTENT):
        survey.folders["(inside the records)"] += 1
        if not subject.is_quick:
            survey.findings += check_picture(image, None, where)
        return
    name = image["path"] if isinstance(image, Mapping) else image
    survey.folders[os.path.dirname(name) or "."] += 1
    folder = subject.config.image_folder
    tally(survey.uses, os.path.join(folder, name) if folder else name, where)


def survey_video(subject: Subject, video: str | tuple[str, ...], where: str, survey: Survey) -> None:
    folder = subject.config.video_folder or subject.config.image_folder
    paths = [os.path.join(folder, name) if folder else name for name in ([video] if isinstance(video, str) else video)]
    if isinstance(video, tuple):
        for path in paths[:1] if subject.is_quick else paths:
            tally(survey.uses, path, where)
    elif os.path.isdir(paths[0]):
        for path in [] if subject.is_quick else sorted(entry.path for entry in os.scandir(paths[0])):
            tally(survey.uses, path, where)
    elif not os.path.isfile(paths[0]):
        raise BadSample(f"{where}: {paths[0]}: no such file", "missing_video")
    elif os.path.getsize(paths[0]) == 0:
        raise BadSample(f"{where}: {paths[0]} is empty (0 bytes)", "empty_video")


def check_picture(image: ImageRef, folder: str | None, where: str) -> list[Finding]:
    """What is wrong with one picture: it cannot be used, or is not of the format its name says."""
    try:
        data, name = read_bytes(image, folder, where)
        decode(data, f"{where}: {name}")
    except BadSample as error:
        return [Finding(error.reason, str(error))]
    if formats := actual_format(data, name):
        message = f"{where}: {name} is named as {formats[0]} but holds {formats[1]}; rename it"
        return [Finding("mislabeled_image", message)]
    return []


def check_pictures(uses: Sequence[tuple[str, tuple[str, int]]]) -> list[Finding]:
    """uses: pairs of path and (first record, number of records)."""
    findings = []
    for path, (where, count) in uses:
        further = f" (and {count - 1} more)" if count > 1 else ""
        findings += check_picture(path, None, where + further)
    return findings


def missing_pictures(uses: Mapping[str, tuple[str, int]]) -> dict[str, Finding]:
    """By path, the pictures that are not there. Folders are listed once instead of asking for every file."""
    folders: dict[str, list[str]] = defaultdict(list)
    for path in uses:
        folders[os.path.dirname(path)].append(path)
    missing = {}
    for folder, paths in folders.items():
        there = list_folder(folder) if len(paths) > 64 else None
        for path in paths:
            exists = os.path.basename(path) in there if there is not None else os.path.exists(path)
            if not exists:
                missing[path] = Finding("missing_image", f"{uses[path][0]}: {path}: no such file")
    return missing


def list_folder(folder: str) -> set[str]:
    try:
        return {entry.name for entry in os.scandir(folder or ".")}
    except OSError:
        return set()
