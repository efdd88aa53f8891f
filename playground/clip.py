"""A small CLIP, trained on pictures and their captions: colors and shapes, nothing else, is what it learns to name.

Saved as any published CLIP folder: both halves, tokenizer, image processor.
Run as `python -m playground.clip --help`.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from playground.questions import caption
from playground.training import TrainingLog, cosine_rate, seed_everything
from playground.world import COLORS, SHAPES, Scene, WorldConfig, draw_scenes, render

MEAN, STD = (0.45, 0.45, 0.45), (0.25, 0.25, 0.25)
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class ClipTraining:
    """The tower, and how long it is trained. layers: the last one is not used by LLaVA (layer -2)."""

    side: int = 48
    patch: int = 8
    width: int = 96
    layers: int = 4
    heads: int = 4
    text_layers: int = 2
    scenes: int = 8000
    steps: int = 500
    batch: int = 64
    rate: float = 1e-3
    # Positions must be told apart from the first step on; the usual 0.02 costs a third of the training.
    position_scale: float = 0.3
    token_scale: float = 0.3
    seed: int = 0


def make_tokenizer(directory: Path) -> CLIPTokenizer:
    """A byte pair tokenizer of the captions' words, each of them one token."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(special_tokens=[BEGIN, END], end_of_word_suffix="</w>", show_progress=False)
    words = [*COLORS, *SHAPES, ","]
    bpe.train_from_iterator([" ".join(words)] * 5, trainer)
    learned = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = CLIPTokenizer(vocab=learned["vocab"], merges=merges, model_max_length=32)
    assert len(tokenizer(" ".join(words)).input_ids) == len(words) + 2
    tokenizer.save_pretrained(directory)
    return tokenizer


def make_processor(directory: Path, side: int) -> CLIPImageProcessorPil:
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=list(MEAN),
        image_std=list(STD),
        do_convert_rgb=True,
    )
    processor.save_pretrained(directory)
    return processor


def shrink(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Pictures (S, H, H, 3) at the tower's size, as the image processor resizes them."""
    size = (side, side)
    return np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC)) for p in pixels])


def load_pictures(scenes: Sequence[Scene], world: WorldConfig, side: int) -> Tensor:
    """(S, 3, side, side) uint8."""
    parts = [shrink(render(chunk, world).pixels, side) for chunk in _chunks(scenes, 250)]
    return torch.from_numpy(np.concatenate(parts)).permute(0, 3, 1, 2).contiguous()


def _chunks(scenes: Sequence[Scene], size: int) -> Iterator[Sequence[Scene]]:
    for start in range(0, len(scenes), size):
        yield scenes[start : start + size]


def normalize(pixels: Tensor) -> Tensor:
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def build_model(config: ClipTraining, tokenizer: CLIPTokenizer) -> CLIPModel:
    shared = {"num_attention_heads": config.heads, "hidden_size": config.width, "intermediate_size": 4 * config.width}
    vision = {"image_size": config.side, "patch_size": config.patch, "num_hidden_layers": config.layers, **shared}
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "num_hidden_layers": config.text_layers,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **shared,
    }
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=config.width))
    initialize(model, config)
    return model


def initialize(model: CLIPModel, config: ClipTraining) -> None:
    """Outputs of unit scale from every matrix, and embeddings that are seen beside the patches."""
    for name, parameter in model.named_parameters():
        if "position_embedding" in name:
            torch.nn.init.normal_(parameter, std=config.position_scale)
        elif "token_embedding" in name:
            torch.nn.init.normal_(parameter, std=config.token_scale)
        elif parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)


def train(config: ClipTraining, world: WorldConfig, directory: Path) -> float:
    """Train, save, and return the recall at 1 among 500 validation pictures with different captions."""
    seed_everything(config.seed)
    tokenizer = make_tokenizer(directory)
    make_processor(directory, config.side)
    scenes = draw_scenes(world, "train", config.scenes)
    pictures = load_pictures(scenes, world, config.side)
    ids = tokenize([caption(scene) for scene in scenes], tokenizer)
    model = build_model(config, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.rate, betas=(0.9, 0.98), weight_decay=0.01)
    order = torch.Generator().manual_seed(config.seed)
    with TrainingLog(directory / "log.jsonl", config.steps, "CLIP") as log:
        for step in range(config.steps):
            for group in optimizer.param_groups:
                group["lr"] = cosine_rate(config.rate, step, config.steps)
            chosen = torch.randperm(config.scenes, generator=order)[: config.batch]
            loss = contrastive_loss(model, ids[chosen], normalize(pictures[chosen]))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            log.add(step, loss)
    model.save_pretrained(directory)
    recall = recall_at_one(model, tokenizer, world, config.side)
    (directory / "quality.json").write_text(json.dumps({"recall_at_1_of_500": recall}))
    return recall


def tokenize(texts: Sequence[str], tokenizer: CLIPTokenizer) -> Tensor:
    """(S, L) ids, padded with the end token; the causal text half never looks past the first one."""
    return tokenizer(list(texts), padding=True, return_tensors="pt").input_ids


def contrastive_loss(model: CLIPModel, ids: Tensor, pixels: Tensor) -> Tensor:
    """Symmetric cross-entropy in which equal captions are no negatives of each other. ids (B, L)."""
    similarity = model(input_ids=ids, pixel_values=pixels).logits_per_text
    equal = (ids[:, None] == ids[None]).all(-1)
    twins = equal & ~torch.eye(len(ids), dtype=torch.bool)
    similarity = similarity.masked_fill(twins, -1e4)
    target = torch.arange(len(ids))
    entropy = torch.nn.functional.cross_entropy
    return (entropy(similarity, target) + entropy(similarity.T, target)) / 2


@torch.no_grad()
def recall_at_one(model: CLIPModel, tokenizer: CLIPTokenizer, world: WorldConfig, side: int, count: int = 500) -> float:
    """The share of pictures whose own caption is the nearest of `count` different ones."""
    by_caption = {caption(scene): scene for scene in draw_scenes(world, "validation", 2 * count)}
    texts = list(by_caption)[:count]
    pictures = load_pictures([by_caption[text] for text in texts], world, side)
    model.eval()
    similarity = model(input_ids=tokenize(texts, tokenizer), pixel_values=normalize(pictures)).logits_per_image
    return (similarity.argmax(1) == torch.arange(len(texts))).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the playground's CLIP.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=ClipTraining.steps)
    parser.add_argument("--scenes", type=int, default=ClipTraining.scenes)
    parser.add_argument("--rate", type=float, default=ClipTraining.rate)
    parser.add_argument("--batch", type=int, default=ClipTraining.batch)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    config = ClipTraining(
        steps=options.steps, scenes=options.scenes, rate=options.rate, batch=options.batch, seed=options.seed
    )
    print(f"CLIP finds the right one of 500 captions for {train(config, WorldConfig(), options.out):.1%}")


if __name__ == "__main__":
    main()
