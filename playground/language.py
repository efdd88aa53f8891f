"""A small Llama that can read scenes: trained on text alone, before it ever meets a picture.

In place of a picture it sees one vector a patch, the sum of the embeddings of the words that are true of its cell.
A question whose answer follows at once is learned in minutes; one with words in between is hardly learned at all.
So training begins with bare questions and answers, and then moves to LLaVA's own template.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.train.prompts import preprocess
from playground.llava_data import conversation
from playground.questions import ask_everything, cell_words, choose, placed_caption
from playground.tokenizer import MAX_LENGTH, make_tokenizer
from playground.training import TrainingLog, cosine_rate, seed_everything
from playground.world import COLUMNS, GRID, ROWS, Scene, WorldConfig, draw_scenes

MOST_WORDS = 7


@dataclass(frozen=True)
class LanguageTraining:
    """The model, and how it is trained. bare_share: of the steps, on questions without a template."""

    width: int = 96
    layers: int = 3
    heads: int = 4
    inner: int = 256
    scenes: int = 5000
    steps: int = 2400
    bare_share: float = 0.5
    batch: int = 16
    captions: int = 8
    turns: int = 10
    rate: float = 3e-3
    # Small models break through several times sooner from these than from the usual 0.02, with slow rotations.
    weight_scale: float = 0.06
    embedding_scale: float = 0.3
    rope_theta: float = 1e6
    # Four patches a cell, as the vision tower has; a thing may be missing from some of them, and all are noisy.
    patches: int = 6
    hidden_share: float = 0.4
    noise: float = 0.5
    seed: int = 0


class Rows(NamedTuple):
    """ids, labels: (B, L) int64, with -200 in one column where the patches go.
    patches: (B, P, W) int64, the words of each patch, 0 for none."""

    ids: Tensor
    labels: Tensor
    patches: Tensor


class SymbolicText:
    """Scenes as text for the language model; the tokenizer has one token a word."""

    def __init__(self, scenes: Sequence[Scene], tokenizer: LlamaTokenizer, config: LanguageTraining) -> None:
        self.scenes, self.tokenizer, self.config = scenes, tokenizer, config
        self.chance = np.random.default_rng((config.seed, 2))
        self.known: dict[str, list[int]] = {}
        side = np.arange(config.patches) * GRID // config.patches
        self.cell_of_patch = torch.from_numpy((side[:, None] * GRID + side[None]).reshape(-1))

    def draw(self, count: int) -> list[int]:
        """Numbers of scenes."""
        return self.chance.integers(len(self.scenes), size=count).tolist()

    def questions(self, step: int) -> Rows:
        """The curriculum: bare questions, then conversations."""
        config = self.config
        if step < config.bare_share * config.steps:
            return self.bare(self.draw(config.batch), 2 * config.turns)
        return self.dialogs(self.draw(config.batch), config.turns)

    def bare(self, chosen: Sequence[int], turns: int) -> Rows:
        """Questions and answers in a row, nothing between them; the answers are learned."""
        rows = []
        for scene in (self.scenes[number] for number in chosen):
            ids, labels = [self.tokenizer.bos_token_id, IMAGE_TOKEN_INDEX], [IGNORE_INDEX, IGNORE_INDEX]
            for question in choose(ask_everything(scene, self.chance), turns, self.chance):
                asked, answer = self._words(question.text), self._words(question.answer)
                ids += asked + answer
                labels += [IGNORE_INDEX] * len(asked) + answer
            rows.append((torch.tensor(ids), torch.tensor(labels)))
        return self._stack(rows, chosen)

    def dialogs(self, chosen: Sequence[int], turns: int) -> Rows:
        """The same in the template of stage 2."""
        scenes = [self.scenes[number] for number in chosen]
        turned = [conversation(choose(ask_everything(scene, self.chance), turns, self.chance)) for scene in scenes]
        return self._labeled(turned, "v1", chosen)

    def captions(self, chosen: Sequence[int]) -> Rows:
        """Captions in the template of stage 1."""
        texts = [placed_caption(self.scenes[number]) for number in chosen]
        turned = [[{"from": "human", "value": "<image>"}, {"from": "gpt", "value": text}] for text in texts]
        return self._labeled(turned, "plain", chosen)

    def _labeled(self, turned: list[list[dict[str, str]]], template: str, chosen: Sequence[int]) -> Rows:
        labeled = preprocess(turned, self.tokenizer, conv_templates[template], has_image=True)
        return self._stack([(row.input_ids, row.labels) for row in labeled], chosen)

    def _words(self, text: str) -> list[int]:
        if text not in self.known:
            self.known[text] = self.tokenizer(text, add_special_tokens=False).input_ids
        return self.known[text]

    def _stack(self, rows: Sequence[tuple[Tensor, Tensor]], chosen: Sequence[int]) -> Rows:
        pad = nn.utils.rnn.pad_sequence
        ids = pad([row[0] for row in rows], batch_first=True, padding_value=0)
        labels = pad([row[1] for row in rows], batch_first=True, padding_value=IGNORE_INDEX)
        return Rows(ids, labels, torch.stack([self._patches(self.scenes[number]) for number in chosen]))

    def _patches(self, scene: Scene) -> Tensor:
        """(P, W): the words of each patch; at random some patches of a thing show only their place."""
        by_cell = {thing.cell: thing for thing in scene.things}
        full = torch.zeros(2, GRID * GRID, MOST_WORDS, dtype=torch.long)
        for cell in range(GRID * GRID):
            for kind, thing in enumerate((by_cell.get(cell), None)):
                ids = self._words(" ".join(cell_words(thing, ROWS[cell // GRID], COLUMNS[cell % GRID])))
                full[kind, cell, : len(ids)] = torch.tensor(ids)
        is_hidden = torch.from_numpy(self.chance.random(len(self.cell_of_patch)) < self.config.hidden_share)
        return full[is_hidden.long(), self.cell_of_patch]


def build_model(config: LanguageTraining, vocabulary: int) -> LlamaForCausalLM:
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=config.width,
            intermediate_size=config.inner,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=MAX_LENGTH,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            initializer_range=config.weight_scale,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    nn.init.normal_(model.model.embed_tokens.weight, std=config.embedding_scale)
    return model


def answer_logits(model: LlamaForCausalLM, rows: Rows, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """Logits (A, V) and targets (A,) of the learned tokens of all rows. noise: relative to the patches' own scale."""
    embed = model.get_input_embeddings()
    place = int((rows.ids[0] == IMAGE_TOKEN_INDEX).nonzero()[0])
    assert bool((rows.ids[:, place] == IMAGE_TOKEN_INDEX).all()), "the picture stands at one place in all rows"
    words = embed(rows.ids.clamp_min(0))
    patches = (embed(rows.patches) * (rows.patches != 0).unsqueeze(-1)).sum(2)  # (B, P, D)
    patches = patches + noise * patches.detach().std() * torch.randn_like(patches)
    inputs = torch.cat([words[:, :place], patches, words[:, place + 1 :]], dim=1)
    hidden = model.model(inputs_embeds=inputs, use_cache=False).last_hidden_state
    # Once P patches replace one placeholder, the position before text token p is p + P - 2.
    targets = rows.labels[:, place + 1 :]
    hidden = hidden[:, place + rows.patches.shape[1] - 1 : -1]
    learned = targets != IGNORE_INDEX
    return model.lm_head(hidden[learned]), targets[learned]


def language_loss(model: LlamaForCausalLM, rows: Rows, noise: float) -> Tensor:
    return nn.functional.cross_entropy(*answer_logits(model, rows, noise))


def train(config: LanguageTraining, world: WorldConfig, directory: Path) -> dict[str, float]:
    """Train, save, and return the accuracy by kind of question on validation scenes."""
    seed_everything(config.seed)
    make_tokenizer(directory)
    tokenizer = LlamaTokenizer.from_pretrained(directory)
    text = SymbolicText(draw_scenes(world, "train", config.scenes), tokenizer, config)
    model = build_model(config, len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.rate, betas=(0.9, 0.99), weight_decay=0.0)
    with TrainingLog(directory / "log.jsonl", config.steps, "Language model") as log:
        for step in range(config.steps):
            for group in optimizer.param_groups:
                group["lr"] = cosine_rate(config.rate, step, config.steps)
            loss = language_loss(model, text.questions(step), config.noise)
            described = language_loss(model, text.captions(text.draw(config.captions)), config.noise)
            optimizer.zero_grad()
            (loss + described).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            log.add(step, loss)
    model.save_pretrained(directory)
    accuracy = accuracy_by_kind(model, SymbolicText(draw_scenes(world, "validation", 300), tokenizer, config))
    (directory / "quality.json").write_text(json.dumps(accuracy))
    return accuracy


@torch.no_grad()
def accuracy_by_kind(model: LlamaForCausalLM, text: SymbolicText) -> dict[str, float]:
    """The share of right answers to single questions in the template, each kind once a scene."""
    model.eval()
    right, asked = Counter[str](), Counter[str]()
    for start in range(0, len(text.scenes), 100):
        kinds, turned, chosen = [], [], []
        for number in range(start, min(start + 100, len(text.scenes))):
            questions = {q.kind: q for q in ask_everything(text.scenes[number], text.chance)}
            kinds += list(questions)
            turned += [conversation([question]) for question in questions.values()]
            chosen += [number] * len(questions)
        logits, targets = answer_logits(model, text._labeled(turned, "v1", chosen))
        correct = (logits.argmax(-1) == targets).view(-1, 2).all(1).tolist()  # the word, and the end after it
        asked.update(kinds)
        right.update(kind for kind, good in zip(kinds, correct, strict=True) if good)
    return {kind: right[kind] / asked[kind] for kind in asked}
