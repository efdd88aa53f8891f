from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from playground import clip
from playground.clip import ClipTraining
from playground.world import COLORS, SHAPES, WorldConfig, draw_scenes, render

TINY = ClipTraining(width=16, layers=2, heads=2, text_layers=1, scenes=12, easy_scenes=8, steps=2, batch=4)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return clip.make_tokenizer(tmp_path_factory.mktemp("clip"))


def test_the_tokenizer_is_equal_in_every_process(tokenizer: CLIPTokenizer) -> None:
    by_id = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    letters = sorted({letter for word in (*COLORS, *SHAPES, ",") for letter in word})
    ends = [f"{letter}</w>" for letter in letters]
    assert by_id[2 : 2 + 2 * len(letters)] == [*letters, *ends]
    assert ["".join(pair) for pair in clip.learn_merges(["aab", "ab", "b"])] == ["ab</w>", "aab</w>"]


def test_pictures_are_those_that_the_saved_image_processor_makes(tmp_path: Path) -> None:
    clip.make_processor(tmp_path, 48)
    scenes = draw_scenes(WorldConfig(), "train", 3)
    ours = clip.normalize(clip.load_pictures(scenes, WorldConfig(), 48))
    pixels = list(render(scenes, WorldConfig()).pixels)
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(pixels, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_near_miss_differs_in_one_word_of_the_same_kind(tokenizer: CLIPTokenizer) -> None:
    texts = ["red circle , blue square", "red cross"]
    ids = clip.tokenize(texts * 20, tokenizer)
    wrong = clip.alternatives(ids, tokenizer, torch.Generator().manual_seed(0))
    for words, changed in zip((COLORS, SHAPES), wrong.chunk(2), strict=True):
        allowed = set(clip.word_ids(words, tokenizer).tolist())
        assert ((changed != ids).sum(1) == 1).all()
        assert set(ids[changed != ids].tolist()) <= allowed
        assert set(changed[changed != ids].tolist()) <= allowed


def test_equal_captions_are_no_negatives_of_each_other(tokenizer: CLIPTokenizer) -> None:
    model = clip.build_model(TINY, tokenizer)
    pixels = torch.randn(1, 3, 48, 48).expand(2, -1, -1, -1)
    ids = clip.tokenize(["red circle", "red circle"], tokenizer)
    wrong = clip.tokenize(["blue circle"] * 2, tokenizer)
    loss = clip.contrastive_loss(model, ids, pixels, wrong)
    alone = clip.contrastive_loss(model, ids[:1], pixels[:1], wrong)
    torch.testing.assert_close(loss, alone)


def test_the_saved_folder_loads_as_any_clip(tmp_path: Path) -> None:
    recall = clip.train(TINY, WorldConfig(), tmp_path)
    assert 0 <= recall <= 1
    model, processor = CLIPModel.from_pretrained(tmp_path), CLIPProcessor.from_pretrained(tmp_path)
    picture = render(draw_scenes(WorldConfig(), "train", 1), WorldConfig()).pixels[0]
    inputs = processor(text=["red circle", "blue square"], images=[picture], return_tensors="pt", padding=True)
    assert model(**inputs).logits_per_image.shape == (1, 2)
