"""Answers: options that clients pass, and what comes back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TextStreamer

from llava.constants import IMAGE_TOKEN_INDEX as IMAGE
from tests.tiny import GREEDY, HIDDEN_SIZE, LANGUAGE_SETTINGS, right_padded, tiny_images, tiny_llava, tiny_tokenizer


@pytest.fixture
def llama(tmp_path: Path) -> Any:
    return tiny_llava(tmp_path)


def test_generate_refuses_placeholders_without_images(llama: Any) -> None:
    with pytest.raises(ValueError, match="no images were passed"):
        llama.generate(torch.tensor([[1, IMAGE, 7]]), **GREEDY)


def test_generate_refuses_embeddings(llama: Any) -> None:
    with pytest.raises(NotImplementedError):
        llama.generate(torch.tensor([[1, 7]]), inputs_embeds=torch.zeros(1, 2, HIDDEN_SIZE))


def test_generate_returns_new_tokens_with_images_and_without(llama: Any) -> None:
    seen = llama.generate(torch.tensor([[1, IMAGE, 7]]), images=tiny_images(1), **GREEDY)
    blind = llama.generate(input_ids=torch.tensor([[1, 7, 8]]), images=None, **GREEDY)
    assert seen.shape == blind.shape == (1, 5)


def test_generate_without_images_equals_the_language_model_alone(llama: Any) -> None:
    language = LlamaForCausalLM(LlamaConfig(**LANGUAGE_SETTINGS)).eval()
    language.load_state_dict({name: llama.state_dict()[name] for name in language.state_dict()})
    ids = torch.tensor([[1, 7, 8, 9]])
    expected = language.generate(ids, **GREEDY)[0, 4:]
    assert llama.generate(ids, **GREEDY)[0].tolist() == expected.tolist()


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"use_cache": False}, {"do_sample": True, "temperature": 0.7}])
def test_generate_takes_the_usual_options(llama: Any, options: dict[str, Any]) -> None:
    ids, mask = right_padded([1, 5, IMAGE, 7], [1, IMAGE, 8])
    answer = llama.generate(ids, attention_mask=mask, images=tiny_images(2), **(GREEDY | options))
    assert answer.shape == (2, 5)


def test_generate_with_beams_equals_single_rows(llama: Any) -> None:
    ids, mask = right_padded([1, 5, IMAGE, 7], [1, IMAGE, 8])
    images = tiny_images(2)
    together = llama.generate(ids, attention_mask=mask, images=images, num_beams=3, **GREEDY)
    alone = llama.generate(ids[1:, :3], images=images[1:], num_beams=3, **GREEDY)
    assert together[1].tolist() == alone[0].tolist()


def test_a_streamer_that_skips_the_prompt_gets_every_new_token(llama: Any, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    parts: list[str] = []

    class Collect(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            parts.append(text)

    prompt, images = torch.tensor([[1, IMAGE, 7]]), tiny_images(1)
    answer = llama.generate(prompt, images=images, streamer=Collect(tokenizer, skip_prompt=True), **GREEDY)
    assert "".join(parts) == tokenizer.decode(answer[0])
