from pathlib import Path

import pytest
import torch
from transformers import LlamaTokenizer

from llava.constants import IMAGE_TOKEN_INDEX
from playground.language import LanguageTraining, SymbolicText, answer_logits, build_model
from playground.tokenizer import load_tokenizer, make_tokenizer
from playground.world import Scene, Thing, WorldConfig, draw_scenes

CONFIG = LanguageTraining(width=16, layers=1, heads=2, inner=32, hidden_share=0.0)
SCENES = draw_scenes(WorldConfig(), "train", 4)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> LlamaTokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return load_tokenizer(folder)


def test_patches_hold_the_words_of_their_cell(tokenizer: LlamaTokenizer) -> None:
    scene = Scene((Thing(5, "red", "circle", "dotted", "big", "7"),), (0, 0, 0))
    patches = SymbolicText([scene], tokenizer, CONFIG).bare([0], 2).patches[0].view(6, 6, -1)
    words = [tokenizer.decode([i for i in row if i]).split() for row in patches.view(36, -1).tolist()]
    assert set(words[2 * 6 + 4]) == {"red", "circle", "dotted", "big", "7", "middle", "right"}
    assert words[2 * 6 + 4] == words[3 * 6 + 5]
    assert words[0] == ["empty", "top", "left"]


@pytest.mark.parametrize("form", ["bare", "dialogs"])
def test_the_logits_are_those_at_the_token_before_each_answer(tokenizer: LlamaTokenizer, form: str) -> None:
    """Against a plain forward of the same embeddings with the labels laid out at full length."""
    text, model = SymbolicText(SCENES, tokenizer, CONFIG), build_model(CONFIG, len(tokenizer))
    rows = getattr(text, form)([0, 1], 3)
    logits, targets = answer_logits(model, rows)
    expected_logits, expected_targets = [], []
    for ids, labels, patches in zip(*rows, strict=True):
        place = ids.tolist().index(IMAGE_TOKEN_INDEX)
        embed = model.get_input_embeddings()
        seen = (embed(patches) * (patches != 0)[..., None]).sum(1)
        inputs = torch.cat([embed(ids[:place]), seen, embed(ids[place + 1 :])])
        out = model(inputs_embeds=inputs[None]).logits[0]
        full = torch.cat([labels[:place], torch.full((36,), -100), labels[place + 1 :]])
        expected_logits.append(out[:-1][full[1:] != -100])
        expected_targets.append(full[1:][full[1:] != -100])
    assert torch.equal(targets, torch.cat(expected_targets))
    torch.testing.assert_close(logits, torch.cat(expected_logits), atol=1e-4, rtol=1e-4)


def test_noise_changes_what_is_seen_and_nothing_else(tokenizer: LlamaTokenizer) -> None:
    text, model = SymbolicText(SCENES, tokenizer, CONFIG), build_model(CONFIG, len(tokenizer))
    rows = text.captions([0, 1])
    clean, targets = answer_logits(model, rows)
    noisy, same_targets = answer_logits(model, rows, noise=1.0)
    assert torch.equal(targets, same_targets)
    assert not torch.allclose(clean, noisy)
