"""Conversations as token ids and labels: what the model reads, and which tokens of it the model learns to write.

The template's layout says which stretches of text are learned; character offsets of the tokenizer say which tokens
cover them. No token is counted and no text is searched, so role words or end tokens inside an answer, empty answers
and any vocabulary are labeled exactly. Nothing here knows pictures, files or batches.
"""

from collections.abc import Mapping, Sequence
from itertools import dropwhile
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import Conversation, SeparatorStyle, conv_templates
from llava.prompt_layout import TRAINING_LAYOUTS, Layout, Piece, Turn, render
from llava.train.environment import say
from llava.train.records import ROLES

CHAT_STYLES = (SeparatorStyle.CHATML, SeparatorStyle.QWEN, SeparatorStyle.LLAMA_3)


class Labeled(NamedTuple):
    """input_ids, labels: (L,) int64; labels are -100 where nothing is learned. error: why nothing is, else None.

    With an error all labels are -100; where the turns themselves are at fault, L is 0.
    """

    input_ids: Tensor
    labels: Tensor
    error: str | None


class UnusableSample(ValueError):
    """The turns of a sample do not make a prompt."""


def training_template(version: str) -> Conversation:
    """A copy of the template that `--version` names; a name that is none means vicuna_v1, as it always did."""
    if version not in conv_templates:
        say(f"--version {version!r} is no template; vicuna_v1 is used. There are {', '.join(sorted(conv_templates))}")
        version = "vicuna_v1"
    return conv_templates[version].copy()


def preprocess_multimodal(
    conversations: Sequence[Sequence[Mapping[str, Any]]], template: Conversation, *, mm_use_im_start_end: bool = False
) -> list[list[dict[str, Any]]]:
    """Copies of conversations whose picture tokens stand where the template wants them.

    A turn with one `<image>` begins with it, on a line of its own; several stay where they are. Templates tagged
    "mmtag" put each into <Image></Image>, `mm_use_im_start_end` into <im_start><im_end>.
    """
    shown = DEFAULT_IMAGE_TOKEN
    if mm_use_im_start_end:
        shown = DEFAULT_IM_START_TOKEN + shown + DEFAULT_IM_END_TOKEN
    if "mmtag" in template.version:
        shown = f"<Image>{shown}</Image>"
    return [[_place_images(turn, shown) for turn in conversation] for conversation in conversations]


def _place_images(turn: Mapping[str, Any], shown: str) -> dict[str, Any]:
    key = "value" if "value" in turn else "content"
    text = turn.get(key)
    if not isinstance(text, str) or DEFAULT_IMAGE_TOKEN not in text:
        return dict(turn)
    if text.count(DEFAULT_IMAGE_TOKEN) == 1:
        text = f"{DEFAULT_IMAGE_TOKEN}\n{text.replace(DEFAULT_IMAGE_TOKEN, '').strip()}".strip()
    return {**turn, key: text.replace(DEFAULT_IMAGE_TOKEN, shown)}


def preprocess(
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    tokenizer: PreTrainedTokenizerBase,
    template: Conversation,
    *,
    has_image: bool,
    max_length: int | None = None,
) -> list[Labeled]:
    """One `Labeled` per conversation, a list of {"from": "human"|"gpt", "value": text} or {"role", "content"}.

    has_image: `<image>` is a picture (one -200 each, never learned); else it is text like any other.
    max_length: keeps the first ids. Ids equal `tokenizer_image_token` of the same prompt.
    Raises ValueError for a tokenizer that cannot tell character offsets.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} gives no character offsets, which labels are made from; "
            f"load the fast version of this tokenizer"
        )
    layout = TRAINING_LAYOUTS[template.sep_style]
    always = _single_ids(tokenizer, layout.always_learned)
    labeled = []
    for conversation in conversations:
        try:
            pieces = training_pieces(conversation, template, layout, has_image)
        except UnusableSample as error:
            empty = torch.empty(0, dtype=torch.long)
            labeled.append(Labeled(empty, empty, str(error)))
            continue
        labeled.append(_label(pieces, tokenizer, always, has_image, max_length))
    return labeled


def training_pieces(
    conversation: Sequence[Mapping[str, Any]], template: Conversation, layout: Layout, has_image: bool
) -> list[Piece]:
    """The prompt of one conversation, stretch by stretch. Raises UnusableSample where the turns make none."""
    spoken = [_read_turn(turn) for turn in conversation]
    if template.sep_style is not SeparatorStyle.SINGLE:
        spoken = list(dropwhile(lambda turn: turn[0] != "human", spoken))
    speakers = [speaker for speaker, _ in spoken]
    if "human" not in speakers:
        raise UnusableSample("no turn of a human")
    if template.sep_style is SeparatorStyle.PLAIN:
        spoken = _caption(spoken, has_image)
    alternating = [("human", "gpt")[index % 2] for index in range(len(speakers))]
    if template.sep_style is SeparatorStyle.GEMMA and speakers != alternating:
        raise UnusableSample(f"the turns of a Gemma prompt alternate between human and gpt, got {speakers}")
    turns = [_as_turn(speaker, text, template, layout) for speaker, text in spoken]
    return render(layout, turns, system=template.system, sep=template.sep, sep2=template.sep2)


def _read_turn(turn: Mapping[str, Any]) -> tuple[str, str]:
    speaker = turn.get("from", turn.get("role"))
    text = turn.get("value", turn.get("content"))
    if not isinstance(speaker, str) or not isinstance(text, str):
        raise UnusableSample(f'a turn is {{"from": "human" or "gpt", "value": text}}, got {dict(turn)!r:.200}')
    return ROLES.get(speaker, speaker), text


def _as_turn(speaker: str, text: str, template: Conversation, layout: Layout) -> Turn:
    if speaker in ("human", "gpt"):
        role = template.roles[speaker == "gpt"]
    elif template.sep_style in CHAT_STYLES:
        role = template.roles[0].removesuffix("user") + speaker
    else:
        raise UnusableSample(f"template {template.version!r} has no role for {speaker!r}, only for human and gpt")
    slot = None if not text and not layout.closes_empty else text
    return Turn(role, slot, is_answer=speaker == "gpt")


def _caption(spoken: Sequence[tuple[str, str]], has_image: bool) -> list[tuple[str, str]]:
    """The turns without the words of the question: pictures, then caption."""
    if [speaker for speaker, _ in spoken] != ["human", "gpt"]:
        raise UnusableSample(f"the plain template takes one human and one gpt turn, got {len(spoken)} turns")
    (_, question), caption = spoken
    pictures = question.count(DEFAULT_IMAGE_TOKEN) if has_image else 0
    if not pictures:
        raise UnusableSample(f"the plain template captions pictures, but the question names none: {question!r:.100}")
    return [("human", DEFAULT_IMAGE_TOKEN * pictures), caption]


def _single_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> frozenset[int]:
    """Ids of those texts that are one token of the tokenizer."""
    encoded = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    return frozenset(ids[0] for ids in encoded if len(ids) == 1)


def _label(
    pieces: Sequence[Piece],
    tokenizer: PreTrainedTokenizerBase,
    always: frozenset[int],
    has_image: bool,
    max_length: int | None,
) -> Labeled:
    ids, learned = _tokenize(pieces, tokenizer, has_image)
    num_images, has_answer = ids.count(IMAGE_TOKEN_INDEX), any(learned)
    ids, learned = ids[:max_length], learned[:max_length]
    error = None
    if not has_answer:
        error = "no answer to learn from"
    elif ids.count(IMAGE_TOKEN_INDEX) < num_images:
        error = f"some of {num_images} pictures lie beyond {max_length} tokens; raise --model_max_length"
    elif not any(learned):
        error = f"the answer lies beyond {max_length} tokens; raise --model_max_length"
    input_ids = torch.tensor(ids, dtype=torch.long)
    if error is not None:
        return Labeled(input_ids, torch.full_like(input_ids, IGNORE_INDEX), error)
    labels = [
        token if is_learned or token in always else IGNORE_INDEX for token, is_learned in zip(ids, learned, strict=True)
    ]
    return Labeled(input_ids, torch.tensor(labels, dtype=torch.long), None)


def _tokenize(
    pieces: Sequence[Piece], tokenizer: PreTrainedTokenizerBase, has_image: bool
) -> tuple[list[int], list[bool]]:
    """Ids of the prompt, and for each whether its characters reach into a learned stretch.

    A BOS or any other token that stands for no character is not learned.
    """
    prompt = "".join(piece.text for piece in pieces)
    mask = b"".join(bytes([piece.is_learned]) * len(piece.text) for piece in pieces)
    texts = prompt.split(DEFAULT_IMAGE_TOKEN) if has_image else [prompt]
    ids: list[int] = []
    learned: list[bool] = []
    position = skip = 0
    for index, text in enumerate(texts):
        encoded = tokenizer(text, return_offsets_mapping=True)
        if index == 0:
            starts_with_bos = encoded.input_ids[:1] == [tokenizer.bos_token_id]
        else:
            skip = int(starts_with_bos)
            ids.append(IMAGE_TOKEN_INDEX)
            learned.append(False)
        ids += encoded.input_ids[skip:]
        spans = encoded.offset_mapping[skip:]
        learned += [mask.find(1, position + start, position + end) >= 0 for start, end in spans]
        position += len(text) + len(DEFAULT_IMAGE_TOKEN)
    return ids, learned
