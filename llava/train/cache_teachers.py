"""Run the teachers of a training run over its data once, and keep what they say.

    python scripts/cache_teachers.py <flags of the training run> --teacher_cache DIR [--pool 24x24] [--dry_run]

Takes a training command as it is and looks at its model, data and distillation flags. Under torchrun each process
writes shards of its own; without it, `--writer 0 --writers 4` and so on does the same by hand. A run that was stopped
goes on where it was. Training then reads the features with the same `--teacher_cache DIR` (pooled ones with
`DIR,pool=24x24`).
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from llava.errors import readable_errors
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.move_kd.cache import Grid, describe, reduce_features, sample_key
from llava.model.multimodal_encoder.move_kd.cache_lookup import parse_grid, parse_location
from llava.model.multimodal_encoder.move_kd.cache_writer import CacheWriter, estimate
from llava.model.multimodal_encoder.move_kd.teachers import build_teachers
from llava.model.multimodal_encoder.move_kd.teachers.base import FrozenTeacher
from llava.model.multimodal_encoder.move_kd.types import Source, View, stack
from llava.train.arguments import parse_run
from llava.train.build import build_tokenizer, check_data
from llava.train.dataset import SupervisedDataset, make_data_module
from llava.train.prompts import training_template
from llava.train.records import BadSample
from llava.train.run_config import DistillRun, Run
from llava.train.sources import read_record

PROBE = 64  # samples looked at to find how many tiles a picture has


@dataclass(frozen=True)
class CacheOptions:
    """writer, writers: this process and how many share the work. pool: grid onto which features are averaged."""

    writer: int
    writers: int
    batch_size: int
    num_workers: int
    pool: Grid | None
    dry_run: bool
    device: torch.device


@dataclass(frozen=True)
class KeyedSource:
    """A teacher's source that also says which sample a picture is, and leaves out those that are stored."""

    source: Source
    stored: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        return self.source.key

    def prepare(self, view: View) -> tuple[str, Any]:
        key = sample_key(view)
        return key, None if key in self.stored else self.source.prepare(view)

    def blank(self) -> tuple[str, Any]:
        return "", None  # the writer stores what the teacher says about a blank once, by itself


def parse_options(argv: Sequence[str]) -> tuple[CacheOptions, list[str]]:
    """The script's own flags, and the training run's. Raises ValueError."""
    parser = argparse.ArgumentParser(
        prog="cache_teachers.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Every other flag is one of the training run.",
        allow_abbrev=False,
    )
    parser.add_argument("--writer", type=int, default=int(os.environ.get("RANK", 0)))
    parser.add_argument("--writers", type=int, default=int(os.environ.get("WORLD_SIZE", 1)))
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--num_workers", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--pool", type=parse_grid, default=None)
    parser.add_argument("--dry_run", action="store_true")
    parser.add_argument("--device", default=None)
    parser.add_argument("--deepspeed", default=None)  # of the training command; nothing is trained here
    own, rest = parser.parse_known_args(list(argv))
    if not 0 <= own.writer < own.writers or own.batch_size < 1:
        raise ValueError(f"--writer {own.writer} --writers {own.writers} --batch_size {own.batch_size} cannot be")
    local = int(os.environ.get("LOCAL_RANK", 0))
    found = own.device or (f"cuda:{local}" if torch.cuda.is_available() else "cpu")
    options = CacheOptions(
        own.writer, own.writers, own.batch_size, own.num_workers, own.pool, own.dry_run, torch.device(found)
    )
    return options, rest


def live_teachers(distill: DistillRun, tower: torch.nn.Module, device: torch.device) -> dict[str, FrozenTeacher]:
    teachers = build_teachers(
        distill.teachers,
        student_tower=tower,
        dtype=distill.teacher_dtype,
        device=device,
        released=distill.released,
    )
    return {name: teacher for name, teacher in teachers.items() if isinstance(teacher, FrozenTeacher)}


def datasets(run: Run, tower: Any, sources: Mapping[str, KeyedSource]) -> list[SupervisedDataset]:
    """Training and validation data as the run sees them, with these sources in place of the teachers'."""
    tokenizer, template = build_tokenizer(run.model), training_template(run.model.template)
    module = make_data_module(tokenizer, run.data, tower.image_processor, template, sources)
    return [part for part in (module["train_dataset"], module["eval_dataset"]) if part is not None]


def count_pictures(dataset: SupervisedDataset) -> int:
    """Distilled views of a data set: exact for one view a picture, else judged by some samples spread over it."""
    pictures = 0
    for index in range(len(dataset)):
        try:
            record = read_record(dataset.records, index)
        except BadSample:
            continue
        pictures += 1 if record.video is not None else len(record.images)
    if dataset.config.distill_views == "base":
        return pictures
    probed = sorted({position * len(dataset) // PROBE for position in range(PROBE)})
    items = [dataset[index] for index in probed]
    return round(len(dataset) * sum(0 if item["blank"] else len(item["tile_of_view"]) for item in items) / len(items))


def keep_wanted(items: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By source: what is not stored yet, each picture once."""
    wanted: dict[str, dict[str, Any]] = {}
    for item in items:
        for source, prepared in item["views"].items():
            wanted.setdefault(source, {}).update({key: value for key, value in prepared if value is not None})
    return wanted


def batches(parts: Sequence[SupervisedDataset], options: CacheOptions) -> Iterator[dict[str, dict[str, Any]]]:
    """This writer's share of the data, prepared in worker processes."""
    for part in parts:
        own = range(options.writer, len(part), options.writers)
        loader = DataLoader(
            Subset(part, own),
            batch_size=options.batch_size,
            num_workers=options.num_workers,
            collate_fn=keep_wanted,
        )
        yield from tqdm(loader, desc=f"writer {options.writer}", mininterval=5)


def store(teacher: FrozenTeacher, writer: CacheWriter, wanted: Mapping[str, Any], options: CacheOptions) -> None:
    """Run one teacher over the pictures that its cache does not hold."""
    new = {key: value for key, value in wanted.items() if key not in writer.known}
    for start in range(0, len(new), options.batch_size):
        keys = list(new)[start : start + options.batch_size]
        features = teacher(send_to_device(stack([new[key] for key in keys]), options.device))
        for key, sample in zip(keys, reduce_features(features, options.pool), strict=True):
            writer.add(key, sample)


def cache_teachers(argv: Sequence[str]) -> None:
    """The whole script: estimate, then write. Raises ValueError or FileNotFoundError for what a user got wrong."""
    options, rest = parse_options(argv)
    run = parse_run(rest)
    if run.model.vision is None:
        raise ValueError("the run has no --vision_tower, so there are no pictures to show to teachers")
    if run.distill is None or not run.distill.teachers:
        raise ValueError("the run has no teachers to cache; add --encoder_teachers")
    if run.distill.teacher_cache is None:
        raise ValueError("--teacher_cache is missing: the directory that the features go to")
    check_data(run.data)
    root, pooled = parse_location(run.distill.teacher_cache)
    options = replace(options, pool=options.pool or pooled)
    tower = build_vision_tower(run.model.vision, delay_load=True)
    teachers = live_teachers(run.distill, tower, options.device)
    described = {name: describe(teacher, options.pool) for name, teacher in teachers.items()}
    probe = datasets(run, tower, {name: KeyedSource(teacher.source) for name, teacher in teachers.items()})
    manifests = {name: manifest for name, (manifest, _) in described.items()}
    found = estimate(manifests, sum(count_pictures(part) for part in probe), root)
    if options.writer == 0:
        print(found.table, flush=True)
    found.check()
    if options.dry_run:
        return
    with ExitStack() as opened:
        writers = {
            name: opened.enter_context(
                CacheWriter(root, *described[name], writer=options.writer, writers=options.writers)
            )
            for name in teachers
        }
        parts = datasets(run, tower, keyed_sources(teachers, writers))
        for batch in batches(parts, options):
            for name, teacher in teachers.items():
                store(teacher, writers[name], batch.get(teacher.source.key, {}), options)


def keyed_sources(teachers: Mapping[str, FrozenTeacher], writers: Mapping[str, CacheWriter]) -> dict[str, KeyedSource]:
    """Sources that skip what every teacher behind them has stored."""
    stored: dict[str, frozenset[str]] = {}
    for name, teacher in teachers.items():
        known = frozenset(writers[name].known)
        key = teacher.source.key
        stored[key] = stored[key] & known if key in stored else known
    return {name: KeyedSource(teacher.source, stored[teacher.source.key]) for name, teacher in teachers.items()}


def main() -> None:
    with readable_errors():
        cache_teachers(sys.argv[1:])
