"""The text side of a record: token ids and labels, with what was cut off counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation
from llava.train.prompts import preprocess, preprocess_multimodal
from llava.train.records import BadSample, Record


class LabeledText(NamedTuple):
    """input_ids, labels: (L,). num_tokens: before cutting. num_lost: answer tokens that were cut off."""

    input_ids: Tensor
    labels: Tensor
    num_tokens: int
    num_lost: int


@dataclass(frozen=True)
class Labeler:
    """max_length: tokens that are kept, one for each picture; None keeps all."""

    tokenizer: PreTrainedTokenizerBase
    template: Conversation
    max_length: int | None = None
    mm_use_im_start_end: bool = False

    def label(self, record: Record, turns: Sequence[dict[str, str]]) -> LabeledText:
        """Ids and labels of `turns`, which are the record's or were made from them.

        Raises BadSample where nothing would be learned, or where the ids do not show all pictures.
        """
        conversations: list[list[dict[str, Any]]] = [[dict(turn) for turn in turns]]
        if record.is_visual:
            conversations = preprocess_multimodal(
                conversations, self.template, mm_use_im_start_end=self.mm_use_im_start_end
            )
        limit = self.max_length
        [kept] = preprocess(conversations, self.tokenizer, self.template, has_image=record.is_visual, max_length=limit)
        if kept.error is not None:
            raise BadSample(f"{record.where}: cannot be labeled: {kept.error}", "not_labeled")
        found, pictures = int((kept.input_ids == IMAGE_TOKEN_INDEX).sum()), record.num_pictures
        if found != pictures and not (found == 0 and pictures == 1):
            message = f"{record.where}: the prompt shows {found} of {pictures} pictures"
            raise BadSample(message, "image_token_mismatch")
        if limit is None or len(kept.input_ids) < limit:
            return LabeledText(kept.input_ids, kept.labels, len(kept.input_ids), 0)
        [whole] = preprocess(conversations, self.tokenizer, self.template, has_image=record.is_visual)
        lost = int((whole.labels[limit:] != IGNORE_INDEX).sum())
        return LabeledText(kept.input_ids, kept.labels, len(whole.input_ids), lost)

    def loss_message(self, record: Record, text: LabeledText) -> str:
        return (
            f"{record.where}: {text.num_lost} answer tokens lie beyond model_max_length {self.max_length} and are cut"
        )
