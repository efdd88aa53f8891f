"""Image features put in the place of `<image>` in embedded text. Pure functions of tensors.

Every token of the result is one row of a table: the text's embeddings, then the images' features, then a zero for
padding. So the splice is one gather, and what no sample shows still gets a gradient, of zeros. The result's shape
depends on where the placeholders are: ids, mask and labels are copied to the host once, and nothing else waits.

Letters: B samples, S text tokens, L tokens with images, D width.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX

Side = Literal["left", "right"]


class Spliced(NamedTuple):
    """embeds (B, L, D), labels (B, L), mask (B, L) bool, positions (B, L): what the language model takes.

    Padding has zeros, IGNORE_INDEX, False and 0. first_label: the first position at which a sample has a label, known
    without waiting for the device; L if none has one. lost_labels: how many labels `max_length` cut off.
    """

    embeds: Tensor
    labels: Tensor
    mask: Tensor
    positions: Tensor
    first_label: int
    lost_labels: int


def splice(
    text: Tensor,
    images: Sequence[Tensor],
    input_ids: Tensor,
    labels: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    max_length: int | None = None,
    padding_side: Side = "right",
) -> Spliced:
    """Put each image where its `<image>` is, drop padding, cut to `max_length`, and pad again on `padding_side`.

    text: (B, S, D), the embedded ids; what it holds at placeholders is not used. images: one (n, D) per placeholder
    in reading order over the batch, and one for each sample without a placeholder, of which nothing is shown.
    input_ids, labels, attention_mask: (B, S); without labels the result's are all IGNORE_INDEX.
    Raises ValueError if the number of images is not that number.
    """
    batch, length, width = text.shape
    lengths = [len(image) for image in images]
    mask = None if attention_mask is None else attention_mask.tolist()
    whole = plan(input_ids.tolist(), mask, lengths)
    rows = [row[:max_length] for row in whole]
    # Of the table's rows of text, which come first in it.
    values = [] if labels is None else labels.flatten().tolist()
    labeled = {row for row, label in enumerate(values) if label != IGNORE_INDEX}

    padding = batch * length + sum(lengths)
    longest = max(len(row) for row in rows)
    padded = [_pad(row, longest, padding, padding_side) for row in rows]
    index = torch.tensor(padded, dtype=torch.long, device=text.device).view(batch, longest)

    features = [image.to(text.device, text.dtype) for image in images]
    table = torch.cat([text.flatten(0, 1), *features, text.new_zeros(1, width)])
    label_table = torch.full((padding + 1,), IGNORE_INDEX, dtype=torch.long, device=text.device)
    if labels is not None:
        label_table[: batch * length] = labels.flatten()
    starts = [next((place for place, row in enumerate(sample) if row in labeled), longest) for sample in padded]
    keep = index != padding
    return Spliced(
        embeds=table.index_select(0, index.flatten()).view(batch, longest, width),
        labels=label_table[index],
        mask=keep,
        positions=(keep.cumsum(dim=1) - 1) * keep,
        first_label=min(starts),
        lost_labels=sum(row in labeled for sample in whole for row in sample[longest:]),
    )


def plan(
    ids: Sequence[Sequence[int]],
    mask: Sequence[Sequence[int]] | None,
    image_lengths: Sequence[int],
) -> list[list[int]]:
    """For each sample, the rows of the table that it reads, without padding.

    The table holds B * S rows of text, then the images one after the other. Raises ValueError as `splice` does.
    """
    width = len(ids[0])
    shown = mask if mask is not None else [[1] * width] * len(ids)
    placeholders = [
        sum(token == IMAGE_TOKEN_INDEX and flag != 0 for token, flag in zip(*row, strict=True))
        for row in zip(ids, shown, strict=True)
    ]
    _check_count(placeholders, len(image_lengths))
    starts = [len(ids) * width]
    for image_length in image_lengths:
        starts.append(starts[-1] + image_length)

    rows, image = [], 0
    for sample, tokens in enumerate(ids):
        row: list[int] = []
        for place, token in enumerate(tokens):
            if not shown[sample][place]:
                continue
            if token == IMAGE_TOKEN_INDEX:
                row.extend(range(starts[image], starts[image + 1]))
                image += 1
            else:
                row.append(sample * width + place)
        if placeholders[sample] == 0:
            image += 1
        rows.append(row)
    return rows


def refuse_placeholders(input_ids: Tensor) -> None:
    """Raise ValueError if text that comes without images has placeholders. A single token is not looked at: that is
    a step of decoding, which must not wait for the device."""
    if input_ids.shape[1] > 1 and bool((input_ids == IMAGE_TOKEN_INDEX).any()):
        raise ValueError("the text has <image> in it, but no images were passed")


def _check_count(placeholders: Sequence[int], num_images: int) -> None:
    text_only = sum(count == 0 for count in placeholders)
    needed = sum(placeholders) + text_only
    if num_images != needed:
        raise ValueError(
            f"the batch has {sum(placeholders)} <image> placeholders and {text_only} samples without any, so "
            f"{needed} images are needed (one for each placeholder, and one stand-in for each sample without), "
            f"but {num_images} came"
        )


def _pad(row: list[int], length: int, value: int, side: Side) -> list[int]:
    filler = [value] * (length - len(row))
    return filler + row if side == "left" else row + filler
