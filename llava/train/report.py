"""What a training run learned, from whom, and where: a Markdown page with figures, written beside the run.

Training writes it at its end (`--report`); by hand, for any run and any picture:

    python -m llava.train.report OUTPUT_DIR
    python -m llava.train.report OUTPUT_DIR --image a.jpg b.jpg --teachers eva:path=... dinov2:path=...

The first form draws the curves, from trainer_state.json; with pictures it draws what the trained encoder makes of them,
and beside it the features of the teachers that are named.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import logging

from llava.errors import readable_errors
from llava.mm_utils import process_images
from llava.model.checkpoint import read_state_dict, upgrade_state_dict
from llava.model.checkpoint_config import read_config
from llava.model.checkpoint_gather import copy_into
from llava.model.checkpoint_io import CheckpointError, has_weights
from llava.model.checkpoint_lora import is_lora_folder, read_lora
from llava.model.checkpoint_names import VISION_MODEL
from llava.model.checkpoint_parts import MOLE_FILE, read_part
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.move_kd.types import StudentFeatures, stack
from llava.model.multimodal_encoder.vision_tower import TOWER_PREFIX, VisionTower
from llava.model.vision_inputs import tiles_of
from llava.train import report_figures as figures
from llava.train.data_config import DataConfig
from llava.train.report_pictures import Look, draw_encoder, draw_teachers
from llava.train.views import check_views, read_geometry, student_views
from llava.visualize import pixels_to_image

logger = logging.get_logger(__name__)

FOLDER = "report"
NUM_PICTURES = 4
LAYOUT = ("image_aspect_ratio", "image_grid_pinpoints", "image_crop_resolution", "image_split_resolution")
COLLAPSED = 0.9  # share of the tokens that makes one expert the only one
LEGEND = (
    "Means over the first and the last tenth of the log. The loss is the sum of `lm` and of every other term as it "
    "is weighed (`kd/TEACHER`, `balance`). `residual/TEACHER` is a teacher's error before any weight, `cosine` that of "
    "the student's prediction and the teacher's features, `cka` how alike the features themselves are (0 to 1), "
    "`weight` a teacher's share."
)


def write_report(history: Sequence[Mapping[str, Any]], looks: Sequence[Look], directory: Path) -> Path:
    """The page and its figures in `directory`/report; returns the page. What there is no data for is left out, but
    pictures that an earlier report drew stay."""
    folder = directory / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    sections = [f"# Report of {directory.resolve().name}\n", summary(history)]
    if history:
        figures.draw_curves(history, folder / "curves.png")
        sections.append("## Curves\n\n![every term of the loss, and the metrics](curves.png)\n")
    if figures.draw_experts(history, folder / "experts.png"):
        sections.append(f"## Experts\n\n{expert_findings(history)}\n\n![load and entropy by layer](experts.png)\n")
    if looks:
        draw_encoder(looks, folder / "encoder.png")
    if any(look.teachers for look in looks):
        draw_teachers(looks, folder / "teachers.png")
    if (folder / "encoder.png").exists():
        sections.append(
            "## What the encoder sees\n\nBright patches are those the class token looks at, on a scale of each "
            "picture's own; below it stands the largest share that one patch gets. A patch has the color of its expert "
            "in that layer. Features are colored by their first three principal components in that picture.\n\n"
            "![attention, experts and features over pictures](encoder.png)\n"
        )
    if (folder / "teachers.png").exists():
        sections.append(
            "## Student and teachers\n\nEach teacher is beside the student's prediction of it. Both share one set of "
            "colors, and the mean cosine of the two stands below: where they are alike, the student has learned what "
            "the teacher knows. Colors of different pairs, or pictures, mean nothing together.\n\n"
            "![features of student and teachers](teachers.png)\n"
        )
    page = folder / "report.md"
    page.write_text("\n".join(sections))
    return page


def summary(history: Sequence[Mapping[str, Any]]) -> str:
    """A table of every curve but those of single layers: its first and last tenth."""
    names = dict.fromkeys(name for row in history for name in row)
    lines = ["| | first | last |", "|---|---|---|"]
    skipped = (*figures.PER_LAYER, "step", "epoch", "learning_rate")
    timings = ("train_", "eval_runtime", "eval_samples", "eval_steps")
    for name in names:
        _, values = figures.curve(history, name)
        if name.partition("/")[0] in skipped or name.startswith(timings) or len(values) < 2:
            continue
        tenth = max(1, len(values) // 10)
        first, last = statistics.fmean(values[:tenth]), statistics.fmean(values[-tenth:])
        lines.append(f"| {name} | {first:.4g} | {last:.4g} |")
    if not history:
        return "There is no log of this run.\n"
    steps = max(row["step"] for row in history)
    return f"{steps} steps. {LEGEND}\n\n" + "\n".join(lines) + "\n"


def expert_findings(history: Sequence[Mapping[str, Any]]) -> str:
    """In words, which layers have collapsed onto one expert at the end of the log."""
    _, loads = figures.layer_table(history, "expert_load")
    largest = loads[-1].max(axis=-1)
    collapsed = [str(layer) for layer, share in enumerate(largest) if share > COLLAPSED]
    if not collapsed:
        return f"No layer has collapsed: the most that one expert gets is {largest.max():.0%} of a layer's tokens."
    return f"One expert gets more than {COLLAPSED:.0%} of the tokens in layers {', '.join(collapsed)}."


# -- from a trainer, at the end of a run


def report_run(trainer: Any) -> None:
    """Called by every process, once the run is saved. A report that cannot be made is no reason to fail the run, and
    pictures that cannot be made are none to lose the curves."""
    directory = Path(trainer.output_dir)
    again = f"python -m llava.train.report {directory}"
    looks: list[Look] = []
    try:
        distill = trainer.run.distill
        shards = trainer.writer.engine.name == "zero3" or (distill is not None and distill.shard_teachers)
        # No process can run alone what is sharded: the others would wait for it elsewhere.
        looks = look_at_data(trainer) if shards or trainer.is_world_process_zero() else []
    except Exception as error:
        logger.warning(f"the report has no pictures: {error!r}. Draw them with `{again} --image FILE ...`")
    if not trainer.is_world_process_zero():
        return
    try:
        page = write_report(trainer.state.log_history, looks, directory)
        logger.warning(f"report: {page}")
    except Exception as error:
        logger.warning(f"the run is saved, its report failed: {error!r}. Try again with `{again}`")


@torch.no_grad()
def look_at_data(trainer: Any) -> list[Look]:
    """What the student makes of a few pictures, of the validation split if there is one."""
    tower = trainer.distiller.student.get_vision_tower()
    if tower is None:
        return []
    was_training = trainer.distiller.training
    trainer.distiller.eval()
    dataset = trainer.train_dataset if trainer.eval_dataset is None else trainer.eval_dataset
    with trainer.accelerator.autocast():  # the Trainer has it around the distiller's forward pass alone
        looks = [look_at_item(trainer, tower, item) for item in pick_items(dataset)]
    trainer.distiller.train(was_training)
    return looks


def pick_items(dataset: Any) -> list[Mapping[str, Any]]:
    """Items with a picture, evenly spread; the same on every process."""
    order = torch.linspace(0, len(dataset) - 1, min(len(dataset), 8 * NUM_PICTURES)).long().unique().tolist()
    spread = [index for start in range(8) for index in order[start::8]]
    items: list[Mapping[str, Any]] = []
    for index in spread:
        item = dataset[index]
        if not item.get("blank", True):
            items.append(item)
        if len(items) == NUM_PICTURES:
            break
    return items


def look_at_item(trainer: Any, tower: VisionTower, item: Mapping[str, Any]) -> Look:
    tile = item["tile_of_view"][0] if item["tile_of_view"] else 0
    views = {key: stack(values[:1]) for key, values in item["views"].items()}
    inputs = trainer._prepare_inputs({"tile": tiles_of(item["image"])[0][tile : tile + 1], "views": views})
    vision = encode(tower, inputs["tile"])
    pairs: dict[str, tuple[Tensor, Tensor | None, tuple[int, int]]] = {}
    for name in trainer.distiller.targets:
        teacher = trainer.teachers[name]
        features = teacher(inputs["views"][teacher.source.key])
        pair = trainer.distiller.alignment(name)(vision.patches, features)
        pairs[name] = (pair.target[0].float().cpu(), pair.prediction[0].float().cpu(), trainer.distiller.grid)
    return look_at(tower, inputs["tile"], vision, pairs)


def encode(tower: VisionTower, tile: Tensor) -> StudentFeatures:
    try:
        return tower.encode(tile, with_cls_attention=True)
    except ValueError:  # an encoder without a class token says so
        return tower.encode(tile)


def look_at(tower: VisionTower, tile: Tensor, vision: StudentFeatures, teachers: Mapping[str, Any]) -> Look:
    processor = tower.image_processor
    side = tower.num_patches_per_side
    return Look(
        picture=pixels_to_image(tile[0], processor.image_mean, processor.image_std),
        grid=(side, side),
        patches=vision.patches[0].float().cpu(),
        attention=None if vision.cls_attention is None else vision.cls_attention[0].float().cpu(),
        choices=tuple(layer.choice[0, -side * side :].cpu() for layer in vision.routing),
        experts=vision.routing[0].probs.shape[-1] if vision.routing else 0,
        teachers=teachers,
    )


# -- by hand, from a run's directory


def read_history(directory: Path) -> list[dict[str, Any]]:
    """Raises FileNotFoundError for a directory that holds no run."""
    states = [directory / "trainer_state.json", *sorted(directory.glob("checkpoint-*/trainer_state.json"))]
    found = [state for state in states if state.exists()]
    if not found:
        raise FileNotFoundError(f"{directory} holds no trainer_state.json; pass the --output_dir of a training run")
    return max((json.loads(state.read_text())["log_history"] for state in found), key=len)


def load_tower(directory: Path) -> VisionTower:
    """The vision tower alone, with the experts, as the run in `directory` left it. Raises CheckpointError."""
    tower = build_vision_tower(SimpleNamespace(**read_config(directory)))
    targets = {TOWER_PREFIX + name: parameter for name, parameter in tower.named_parameters()}
    state = {name: tensor for name, tensor in trained_tensors(directory).items() if name.startswith(VISION_MODEL)}
    experts = {TOWER_PREFIX + name for name in tower.expert_parameters()}
    if wrong := sorted((experts - state.keys()) | (state.keys() - targets.keys())):
        raise CheckpointError(f"the vision tower in {directory} does not fit its config.json: {wrong[:4]}")
    copy_into({name: targets[name] for name in state}, state)
    return tower.eval()


def trained_tensors(directory: Path) -> dict[str, Tensor]:
    """Of whatever the run wrote: light parts, a LoRA folder or a whole student; empty where the tower never changed."""
    if (directory / MOLE_FILE).exists():
        return read_part("mole", directory / MOLE_FILE)
    if is_lora_folder(directory):
        return upgrade_state_dict(read_lora(directory).non_lora)
    return upgrade_state_dict(read_state_dict(directory)) if has_weights(directory) else {}


@torch.no_grad()
def look_at_files(tower: VisionTower, config: DataConfig, images: Sequence[Path], specs: Sequence[str]) -> list[Look]:
    """What the tower makes of pictures in files, laid out as `config` says, with the features of the teachers that are
    named. Raises ValueError for a layout that cannot be shown to teachers."""
    from llava.model.multimodal_encoder.move_kd.teachers import build_teachers

    if specs:
        check_views(config)
    teachers: Mapping[str, Any] = build_teachers(specs, student_tower=tower)
    geometry = read_geometry(tower.image_processor)
    looks = []
    for path in images:
        with Image.open(path) as file:
            picture = file.convert("RGB")
        tile = tiles_of(process_images([picture], tower.image_processor, config))[0][:1]
        view = student_views(picture, config, geometry)[0].view
        said: dict[str, Any] = {}
        for name, teacher in teachers.items():
            features = teacher(teacher.source.prepare(view)[None])
            said[name] = (features.patches[0].float(), None, features.grid)
        looks.append(look_at(tower, tile, encode(tower, tile), said))
    return looks


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--image", nargs="+", type=Path, default=[], help="pictures to show to the trained encoder")
    parser.add_argument("--teachers", nargs="+", default=[], help="teachers to show too, as in --encoder_teachers")
    args = parser.parse_args(arguments)
    with readable_errors():
        history, looks = read_history(args.output_dir), []
        if args.image:
            raw = read_config(args.output_dir)
            layout: dict[str, Any] = {name: raw.get(name) for name in LAYOUT}
            looks = look_at_files(load_tower(args.output_dir), DataConfig(**layout), args.image, args.teachers)
        print(write_report(history, looks, args.output_dir))


if __name__ == "__main__":
    main()
