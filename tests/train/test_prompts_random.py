"""Labels of hundreds of random conversations, against the texts themselves."""

import random

import pytest
import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import tokenizer_image_token
from tests.tokenizers import llama
from tests.train.labeling import BYTES, ENDS, always_learned, label, turns

FRAGMENTS = [
    "a dog", "A", " ", "  ", "\n", "\r\n", "\t", "☂", "😀", "é", "e\u0301", "图片", "\u200b", "\u00a0", "▁", "1.",
    "12345", "-", "'s", "{role}", "{}", "%s", "\\n", "the lamp", "<image", "image>", "<im_start>", "</s>", "<s>",
    "<unk>", "USER:", "ASSISTANT: ", "###", "### Human: ", "[/INST]", "[INST] ", "<<SYS>>", "<|im_end|>",
    "<|im_start|>assistant\n", "<end_of_turn>", "<|eot_id|>",
]  # fmt: skip


def random_text(generator: random.Random, with_image: bool) -> str:
    pieces = generator.choices(FRAGMENTS, k=generator.randint(1, 8))
    if with_image:
        pieces.insert(generator.randint(0, len(pieces)), "<image>")
    return "".join(pieces)


@pytest.mark.parametrize("name", sorted(ENDS))
def test_labels_of_random_conversations_spell_exactly_their_answers(name: str) -> None:
    """With a byte-level tokenizer decoding is exact, so learned tokens must spell the answers and their ends."""
    generator = random.Random(f"answers {name}")
    for _ in range(120):
        rounds = 1 if name == "plain" else generator.randint(1, 4)
        questions = [random_text(generator, with_image=generator.random() < 0.4) for _ in range(rounds)]
        questions[0] += "<image>" if name == "plain" else ""
        answers = [random_text(generator, with_image=False) for _ in range(rounds)]
        conversation = turns(*[text for pair in zip(questions, answers, strict=True) for text in pair])
        labeled = label(name, conversation, BYTES, has_image=True)
        assert labeled.error is None
        assert labeled.input_ids.tolist().count(IMAGE_TOKEN_INDEX) == "".join(questions).count("<image>")
        expected = [expected_answer(name, answer) for answer in answers]
        skip = always_learned(name, BYTES)
        ids = [token for token in labeled.labels.tolist() if token != IGNORE_INDEX and token not in skip]
        text = "".join(expected) + ("### " if name == "v0" else "")
        plain = BYTES.decode([token for token in BYTES(text).input_ids if token not in skip])
        assert BYTES.decode(ids) == plain, conversation


def expected_answer(name: str, answer: str) -> str:
    if name == "v0":  # the mark of the question before, then the whole turn
        return f"###### Assistant: {answer}{ENDS[name]}"
    if name == "qwen_1_5":
        return f"<|im_start|>assistant\n{answer}{ENDS[name]}"
    if name == "llava_llama_3":
        return f"<|start_header_id|>assistant<|end_header_id|>\n\n{answer.strip()}{ENDS[name]}"
    lead = "" if name in ("mpt", "mistral_zephyr", "gemma_instruct", "plain") else " "
    return lead + answer + ENDS[name]


@pytest.mark.parametrize("name", ["v1", "llava_llama_2", "mpt"])
def test_random_conversations_have_the_ids_of_their_prompt(name: str) -> None:
    generator = random.Random(f"ids {name}")
    for tokenizer in (llama(), BYTES):
        for _ in range(60):
            texts = [random_text(generator, with_image=generator.random() < 0.3) for _ in range(4)]
            conversation = conv_templates[name].copy()
            for index, text in enumerate(texts):
                conversation.append_message(conversation.roles[index % 2], text)
            labeled = label(name, turns(*texts), tokenizer, has_image=True)
            assert labeled.input_ids.tolist() == tokenizer_image_token(conversation.get_prompt(), tokenizer)
            learned = labeled.labels != IGNORE_INDEX
            assert torch.equal(labeled.labels[learned], labeled.input_ids[learned])


@pytest.mark.parametrize("name", ["v1", "llava_llama_2", "mistral_instruct"])
def test_labels_of_random_conversations_are_the_ids_of_their_answers(name: str) -> None:
    """Sentencepiece: an answer is tokenized inside a prompt as it is behind a space, by itself."""
    generator, tokenizer = random.Random(f"pieces {name}"), llama()
    for _ in range(100):
        texts = [random_text(generator, with_image=index % 2 == 0) for index in range(4)]
        labeled = label(name, turns(*texts), tokenizer, has_image=True)
        learned = [token for token in labeled.labels.tolist() if token != IGNORE_INDEX]
        expected = [tokenizer(f" {text}{ENDS[name]}", add_special_tokens=False).input_ids for text in texts[1::2]]
        assert learned == [token for ids in expected for token in ids], texts
