"""Topic F of both code bases: conversations as ids and labels.

Ids equal the recorded ones in every row. Labels do, except where the published code counts tokens and miscounts.
There the test computes the learned tokens a second way, by encoding the prompt up to each boundary, and asserts that
ours are exactly these:

* "tokenization mismatch": upstream masks the whole sample (an answer that holds an end token or a role word, an
  empty answer, a question left open, most MPT samples). Ours is labeled, or says why it cannot be.
* MPT, where the count survives: the first round is shifted by one token, so that the newline before the first answer
  is learned and its <|im_end|> is not. Nothing else may differ.
* SINGLE (v0): the length of each turn is counted with BOS and a word boundary that the joined text does not have, so
  labels drift by the number of turns. The test reproduces that count and finds upstream's labels, to show that the
  difference is the drift and nothing else.

Two rows of LLaVA-NeXT have other ids, on purpose: `plain` keeps one placeholder per picture (upstream drops the
second), and `qwen` respects the maximum length (upstream ignores it).
`preprocess_multimodal` follows LLaVA 1.5 for one `<image>` in a turn and LLaVA-NeXT for several.
"""

from itertools import groupby
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX
from llava.conversation import SeparatorStyle, conv_templates
from llava.mm_utils import tokenizer_image_token
from llava.prompt_layout import TRAINING_LAYOUTS
from llava.train.prompts import Labeled, preprocess, preprocess_multimodal, training_pieces
from tests.parity.vectors import Case, cases
from tests.tokenizers import byte_level_tokenizer, sentencepiece_tokenizer

CASES = [
    case for topic in ("F_preprocess_llava", "F_preprocess_next") for case in cases(topic) if "template" in case.meta
]
assert CASES, "topic F holds no conversation"
every_case = pytest.mark.parametrize("case", CASES, ids=[f"{case.topic}-{case}" for case in CASES])


def tokenizer_of(settings: dict[str, Any]) -> PreTrainedTokenizerBase:
    if settings["file"].endswith(".json"):
        return byte_level_tokenizer(*settings["additional_special_tokens"], settings["pad_token"])
    pad = [] if settings["pad_token"] == "<unk>" else [settings["pad_token"]]
    return sentencepiece_tokenizer(legacy=settings["legacy"], added=pad + settings["added_special_tokens"])


def turns_of(row: dict[str, Any]) -> list[dict[str, str]]:
    """The conversation with its texts as upstream's multimodal step left them."""
    return [{**turn, "value": text} for turn, text in zip(row["conversation"], row["after_multimodal"], strict=True)]


def max_length_of(case: Case, row: dict[str, Any]) -> int | None:
    """Upstream cuts a sample with a picture in the collator only."""
    return None if row["has_image"] else case.meta["model_max_length"]


def label(case: Case, row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Labeled:
    (labeled,) = preprocess(
        [turns_of(row)],
        tokenizer,
        conv_templates[case.meta["template"]],
        has_image=row["has_image"],
        max_length=max_length_of(case, row),
    )
    return labeled


def is_deliberate(case: Case, row: dict[str, Any]) -> bool:
    """Rows of LLaVA-NeXT whose ids we do not want."""
    if case.topic != "F_preprocess_next":
        return False
    template, pictures = conv_templates[case.meta["template"]], row["after_multimodal"][0].count(DEFAULT_IMAGE_TOKEN)
    drops_picture = template.sep_style is SeparatorStyle.PLAIN and pictures > 1
    is_too_long = not row["has_image"] and len(row["input_ids"]) > case.meta["model_max_length"]
    return drops_picture or is_too_long


def encode(text: str, tokenizer: PreTrainedTokenizerBase, has_image: bool) -> list[int]:
    return tokenizer_image_token(text, tokenizer) if has_image else tokenizer(text).input_ids


def labels_by_prefix(case: Case, row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Labels from the ids that the prompt up to each end of a stretch begins with; no character offset is used.

    Where a token reaches over the end of a learned stretch, it is learned.
    """
    template = conv_templates[case.meta["template"]]
    layout = TRAINING_LAYOUTS[template.sep_style]
    pieces = training_pieces(turns_of(row), template, layout, row["has_image"])
    ids = encode("".join(piece.text for piece in pieces), tokenizer, row["has_image"])
    always = {tokenizer(text, add_special_tokens=False).input_ids[-1] for text in layout.always_learned}
    labels = [token if token in always else IGNORE_INDEX for token in ids]
    prefix, end = "", 0
    for is_learned, stretch in groupby(pieces, key=lambda piece: piece.is_learned):
        start = end
        prefix += "".join(piece.text for piece in stretch)
        reached = encode(prefix, tokenizer, row["has_image"])
        end = next((index for index, token in enumerate(reached) if token != ids[index]), len(reached))
        if is_learned:
            until = end + (end < len(reached))
            labels[start:until] = ids[start:until]
    return labels[: max_length_of(case, row)]


def labels_by_counting(case: Case, row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Upstream's rule for SINGLE: turns are encoded one by one, and their lengths are taken for distances."""
    template = conv_templates[case.meta["template"]]
    roles = dict(zip(("human", "gpt"), template.roles, strict=True))
    turns = [(turn["from"], f"### {roles[turn['from']]}: {turn['value']}\n") for turn in turns_of(row)]
    labels = list(row["input_ids"])
    position = len(encode(f"{template.system}\n\n", tokenizer, row["has_image"]))
    labels[:position] = [IGNORE_INDEX] * position
    for speaker, text in turns:
        length = len(encode(text, tokenizer, row["has_image"]))
        for index in range(position + 2, min(position + length, len(labels))):
            labels[index] = IGNORE_INDEX if speaker == "human" else labels[index]
        position += length
    return labels


def differences(ours: list[int], recorded: list[int]) -> list[int]:
    return [index for index, (left, right) in enumerate(zip(ours, recorded, strict=True)) if left != right]


@every_case
def test_picture_tokens_stand_where_upstream_puts_them(case: Case) -> None:
    template = conv_templates[case.meta["template"]]
    wrapped = case.meta["mm_use_im_start_end"]
    for row in case.meta["rows"]:
        if not row["has_image"]:
            continue
        (turns,) = preprocess_multimodal([row["conversation"]], template, mm_use_im_start_end=wrapped)
        for turn, given, expected in zip(turns, row["conversation"], row["after_multimodal"], strict=True):
            if given["value"].count(DEFAULT_IMAGE_TOKEN) > 1:  # LLaVA 1.5 loses all but one picture
                assert turn["value"].count(DEFAULT_IMAGE_TOKEN) == given["value"].count(DEFAULT_IMAGE_TOKEN)
            elif case.topic == "F_preprocess_next":  # leaves the whitespace of a turn that begins with the picture
                assert turn["value"] == (expected.strip() if DEFAULT_IMAGE_TOKEN in expected else expected)
            else:
                assert turn["value"] == expected


@every_case
def test_ids_equal_the_recorded_ones(case: Case) -> None:
    tokenizer = tokenizer_of(case.meta["tokenizer"])
    for row in case.meta["rows"]:
        ids = label(case, row, tokenizer).input_ids.tolist()
        if not is_deliberate(case, row):
            assert ids == row["input_ids"], row["case"]
        elif row["has_image"]:
            assert ids.count(-200) == row["after_multimodal"][0].count(DEFAULT_IMAGE_TOKEN)
        else:
            assert ids == row["input_ids"][: case.meta["model_max_length"]]


@every_case
def test_labels_equal_an_independent_computation(case: Case) -> None:
    tokenizer = tokenizer_of(case.meta["tokenizer"])
    for row in case.meta["rows"]:
        labeled, expected = label(case, row, tokenizer), labels_by_prefix(case, row, tokenizer)
        learned = any(label != IGNORE_INDEX for label in expected)
        assert (labeled.error is None) == learned, row["case"]
        assert labeled.labels.tolist() == expected, row["case"]


@every_case
def test_labels_equal_the_recorded_ones_wherever_upstream_counts_right(case: Case) -> None:
    tokenizer, style = tokenizer_of(case.meta["tokenizer"]), conv_templates[case.meta["template"]].sep_style
    for row in case.meta["rows"]:
        ours, recorded = label(case, row, tokenizer), row["labels"]
        if "printed" in row:
            assert set(recorded) == {IGNORE_INDEX}, row["case"]
            assert "tokenization mismatch" in row["printed"][0]
            assert (ours.error is not None) == (not any(turn["value"] for turn in answers(row))), row["case"]
        elif is_deliberate(case, row):
            continue
        elif style is SeparatorStyle.SINGLE:
            assert recorded == labels_by_counting(case, row, tokenizer), row["case"]
        elif style is SeparatorStyle.MPT:
            learned = [index for index, token in enumerate(labels_by_prefix(case, row, tokenizer)) if token >= 0]
            header_end, stop = first_answer_bounds(learned, row, tokenizer)
            assert set(differences(ours.labels.tolist(), recorded)) <= {header_end, stop}, row["case"]
        else:
            assert ours.labels.tolist() == recorded, row["case"]


def answers(row: dict[str, Any]) -> list[dict[str, str]]:
    return [turn for turn in row["conversation"] if turn["from"] == "gpt"]


def first_answer_bounds(learned: list[int], row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Where the header before the first answer ends, and where this answer's <|im_end|> is."""
    if not learned:  # an open slot: the prompt ends with the header
        return len(row["input_ids"]) - 1, len(row["input_ids"])
    run = next((index for index in range(1, len(learned)) if learned[index] != learned[index - 1] + 1), len(learned))
    return learned[0] - 1, learned[run - 1]
