"""Small pictures, records and data sets that the data tests share."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import CLIPImageProcessorPil

from llava.model.multimodal_encoder.move_kd.types import Source
from llava.train.data_config import DataConfig
from llava.train.dataset import SupervisedDataset
from llava.train.prompts import training_template
from llava.train.sources import InMemory, open_records
from tests.tokenizers import llama

SIDE = 28
PINPOINTS = "[[28, 56], [56, 28], [56, 56]]"


def processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def draw(path: Path, width: int = 40, height: int = 30, seed: int = 0) -> str:
    """Writes a noisy picture; returns its name within its folder."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path.name


def turns(question: str = "<image>\nWhat is it?", answer: str = "A cat.") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def picture_record(name: str, **extra: Any) -> dict[str, Any]:
    return {"id": name, "image": name, "conversations": turns(), **extra}


def text_record(name: str = "text") -> dict[str, Any]:
    return {"id": name, "conversations": turns("How are you?", "Fine.")}


def make_dataset(
    records: list[Any] | str, folder: Path | None = None, sources: dict[str, Source] | None = None, **settings: Any
) -> SupervisedDataset:
    """records: objects, or a data path."""
    config = DataConfig(image_folder=None if folder is None else str(folder), **settings)
    source = open_records(records, config.seed) if isinstance(records, str) else InMemory(records)
    image_processor = processor() if config.is_multimodal else None
    return SupervisedDataset(source, llama(), config, image_processor, training_template("v1"), sources)


def write_json(path: Path, records: Any) -> str:
    path.write_text(json.dumps(records))
    return str(path)
