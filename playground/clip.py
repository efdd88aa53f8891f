"""A small CLIP, trained on pictures and their captions: colors and shapes, nothing else, is what it learns to name.

Saved as any published CLIP folder: both halves, tokenizer, image processor.
Run as `python -m playground.clip --help`.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from playground.questions import caption
from playground.training import TrainingLog, cosine_rate, seed_everything
from playground.world import COLORS, SHAPES, Scene, WorldConfig, draw_scenes, render

MEAN, STD = (0.45, 0.45, 0.45), (0.25, 0.25, 0.25)
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


@dataclass(frozen=True)
class ClipTraining:
    """The tower, and how long it is trained. layers: the last one is not used by LLaVA (layer -2)."""

    side: int = 48
    patch: int = 8
    width: int = 96
    layers: int = 4
    heads: int = 4
    text_layers: int = 2
    scenes: int = 6000
    # First scenes of one or two things: what belongs together is found there, and then holds among many.
    easy_scenes: int = 3000
    easy_things: int = 2
    easy_share: float = 0.5
    steps: int = 1000
    batch: int = 64
    rate: float = 1e-3
    # Positions must be told apart from the first step on; the usual 0.02 costs a third of the training.
    position_scale: float = 0.3
    token_scale: float = 0.3
    seed: int = 0


def make_tokenizer(directory: Path) -> CLIPTokenizer:
    """A byte pair tokenizer of the captions' words, each of them one token; equal in every run, ids included."""
    words = [*COLORS, *SHAPES, ","]
    merges = learn_merges(words)
    letters = sorted({letter for word in words for letter in word})
    pieces = [BEGIN, END, *letters, *(letter + WORD_END for letter in letters), *("".join(pair) for pair in merges)]
    vocab = {piece: place for place, piece in enumerate(pieces)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=32)  # type: ignore[arg-type]
    assert len(tokenizer(" ".join(words)).input_ids) == len(words) + 2
    tokenizer.save_pretrained(directory)
    return tokenizer


def learn_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """The most frequent pair first, of equally frequent ones the first in the alphabet, until each word is one piece.

    Not by a library's trainer, whose ids depend on the order of a hash table, another in every process.
    """
    split = [[*word[:-1], word[-1] + WORD_END] for word in words]
    merges = []
    while pairs := Counter(pair for pieces in split for pair in pairwise(pieces)):
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        split = [merge(pieces, merges[-1]) for pieces in split]
    return merges


def merge(pieces: Sequence[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


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


class Pairs:
    """Pictures (S, 3, side, side) uint8 and the ids of their captions (S, L), drawn from in a random order."""

    def __init__(self, scenes: Sequence[Scene], world: WorldConfig, side: int, tokenizer: CLIPTokenizer) -> None:
        self.pictures = load_pictures(scenes, world, side)
        self.ids = tokenize([caption(scene) for scene in scenes], tokenizer)

    def draw(self, count: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randperm(len(self.ids), generator=chance)[:count]
        return self.ids[chosen], normalize(self.pictures[chosen])


def train(config: ClipTraining, world: WorldConfig, directory: Path) -> float:
    """Train, save, and return the recall at 1 among 500 validation pictures with different captions."""
    seed_everything(config.seed)
    tokenizer = make_tokenizer(directory)
    make_processor(directory, config.side)
    easy_world = replace(world, min_things=1, max_things=config.easy_things)
    easy = Pairs(draw_scenes(easy_world, "train", config.easy_scenes), easy_world, config.side, tokenizer)
    full = Pairs(draw_scenes(world, "train", config.scenes), world, config.side, tokenizer)
    model = build_model(config, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.rate, betas=(0.9, 0.98), weight_decay=0.01)
    chance = torch.Generator().manual_seed(config.seed)
    with TrainingLog(directory / "log.jsonl", config.steps, "CLIP") as log:
        for step in range(config.steps):
            for group in optimizer.param_groups:
                group["lr"] = cosine_rate(config.rate, step, config.steps)
            pairs = easy if step < config.easy_share * config.steps else full
            ids, pixels = pairs.draw(config.batch, chance)
            loss = contrastive_loss(model, ids, pixels, alternatives(ids, tokenizer, chance))
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


def alternatives(ids: Tensor, tokenizer: CLIPTokenizer, chance: torch.Generator) -> Tensor:
    """(2B, L): each caption with one color, and with one shape, replaced by another."""
    return torch.cat([swap_one(ids, word_ids(words, tokenizer), chance) for words in (COLORS, SHAPES)])


def word_ids(words: Iterable[str], tokenizer: CLIPTokenizer) -> Tensor:
    return torch.tensor(tokenizer.convert_tokens_to_ids([f"{word}</w>" for word in words]))


def swap_one(ids: Tensor, words: Tensor, chance: torch.Generator) -> Tensor:
    """(B, L) ids in which one occurrence of any of `words` has become another of them."""
    swapped, rows = ids.clone(), torch.arange(len(ids))
    found = (ids[..., None] == words).any(-1)
    place = torch.multinomial(found.float(), 1, generator=chance)[:, 0]
    current = (ids[rows, place][:, None] == words).long().argmax(1)
    step = torch.randint(1, len(words), (len(ids),), generator=chance)
    swapped[rows, place] = words[(current + step) % len(words)]
    return swapped


def contrastive_loss(model: CLIPModel, ids: Tensor, pixels: Tensor, wrong: Tensor) -> Tensor:
    """Symmetric cross-entropy in which equal captions are no negatives of each other. ids (B, L).

    `wrong` (W, L) are more captions that are true of no picture here.
    """
    similarity = model(input_ids=torch.cat([ids, wrong]), pixel_values=pixels).logits_per_image  # (B, B + W)
    equal = (ids[:, None] == ids[None]).all(-1)
    twins = equal & ~torch.eye(len(ids), dtype=torch.bool)
    own = similarity[:, : len(ids)].masked_fill(twins, -1e4)
    target = torch.arange(len(ids))
    entropy = torch.nn.functional.cross_entropy
    return (entropy(torch.cat([own, similarity[:, len(ids) :]], 1), target) + entropy(own.T, target)) / 2


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
