"""The simple interface: a task gives text and pictures apart. It also ranks given answers (loglikelihood)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lmms_eval.api.instance import GenerationResult, Instance
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from llava.constants import IGNORE_INDEX
from llava.eval.lmms_eval_plugin.base import MoveKD, Request, batches, pictures_only
from llava.mm_utils import tokenizer_image_token


class Candidate(NamedTuple):
    """An answer to be ranked. text: prompt and answer. context: how many tokens of it are the prompt."""

    text: str
    context: int
    images: list[Image.Image]


class SimpleMoveKD(MoveKD):
    is_simple = True

    def generate_until(self, requests: list[Instance]) -> list[str]:
        asked = []
        for context, settings, doc_to_visual, doc_id, task, split in (request.args for request in requests):
            images = pictures_only(doc_to_visual(self.task_dict[task][split][doc_id]))
            text = self.prompt([(self.visible(context, len(images), " "), None)])
            asked.append(Request(text, images, settings))
        return self.answer(asked)

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:  # type: ignore[override]
        """(mean loss of the answer's tokens with what ends it, whether greedy decoding would give them).

        A loss and not a likelihood, because lmms-eval takes the lowest value to be the choice. Wrapped, because
        version 0.7.3 turns a bare pair into a string and then cannot score it.
        """
        return [GenerationResult(text=pair) for pair in self.rank_answers(requests)]

    def rank_answers(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        candidates = [self._candidate(*request.args) for request in requests]
        results: list[tuple[float, bool]] = [(0.0, False)] * len(candidates)
        with tqdm(total=len(candidates), disable=self.rank != 0, desc="Model Responding") as progress:
            for batch in batches(candidates, self.batch_size, lambda _: None, lambda item: len(item.text)):
                for index, result in zip(batch, self._rank_batch([candidates[i] for i in batch]), strict=True):
                    results[index] = result
                progress.update(len(batch))
        return results

    def _candidate(
        self, context: str, target: Any, doc_to_visual: Any, doc_id: int, task: str, split: str
    ) -> Candidate:
        document = self.task_dict[task][split][doc_id]
        images = pictures_only(doc_to_visual(document))
        question = self.visible(context, len(images), " ")
        prompt = self.prompt([(question, None)])
        answer = target if isinstance(target, str) else target(document)
        length = len(tokenizer_image_token(prompt, self.chat.tokenizer))
        return Candidate(self.prompt([(question, answer)]), length, images)

    @torch.inference_mode()
    def _rank_batch(self, candidates: Sequence[Candidate]) -> list[tuple[float, bool]]:
        inputs = self.chat.inputs([item.text for item in candidates], [item.images for item in candidates])
        ids, mask = inputs.pop("inputs"), inputs["attention_mask"]
        inputs.pop("pad_token_id")
        labels = torch.where(mask, ids, IGNORE_INDEX)
        for row, item in enumerate(candidates):
            start = ids.shape[1] - int(mask[row].sum())
            labels[row, : start + item.context] = IGNORE_INDEX
        logits, spliced = self.chat.model(input_ids=ids, labels=labels, dpo_forward=True, **inputs)
        return [_rank(row, label) for row, label in zip(logits, spliced, strict=True)]


def _rank(logits: Tensor, labels: Tensor) -> tuple[float, bool]:
    """logits: (L, V). labels: (L,), IGNORE_INDEX for all that is not the answer."""
    kept = labels[1:] != IGNORE_INDEX
    predicted, wanted = logits[:-1][kept].float(), labels[1:][kept]
    loss = torch.nn.functional.cross_entropy(predicted, wanted)
    return float(loss), bool((predicted.argmax(dim=-1) == wanted).all())
