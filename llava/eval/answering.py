"""Question files in, answer files out: what every generator of `llava.eval` shares.

Answers are appended one line at a time and flushed, and a rerun skips the questions that are answered, so a
killed run loses at most the batch it was working on (one answer at the default batch size of 1).
"""

import argparse
import json
import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from llava.inference import Chat, Decoding, image_prefix, stop_string


@dataclass(frozen=True)
class Question:
    """text: what the answer file records as prompt. message: what the model reads, without the image token.
    open_images: called in a data worker, gives RGB pictures in order. extra: more keys of the answer line."""

    id: Any
    text: str
    message: str
    open_images: Callable[[], list[Image.Image]] = list
    image_count: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


def open_rgb(path: Path) -> Image.Image:
    """Raises FileNotFoundError or ValueError that names the file."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"image {path} does not exist; check --image-folder") from None
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {path} cannot be read: {error}") from error


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """One object per line. Raises ValueError that names file and line."""
    rows = []
    with open(Path(path).expanduser(), encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}:{number} is not JSON: {error}") from None
    return rows


def chunk(items: Sequence[Any], count: int, index: int) -> Sequence[Any]:
    """Contiguous part `index` of `count`, each of ceil(n / count) items; the last may be short or empty."""
    if not 0 <= index < count:
        raise ValueError(f"--chunk-idx must be from 0 to {count - 1} for --num-chunks {count}, got {index}")
    size = math.ceil(len(items) / count)
    return items[index * size : (index + 1) * size]


Key = Callable[[dict[str, Any]], Any]


def question_id(row: dict[str, Any]) -> Any:
    return row["question_id"]


class AnswerLog:
    """An answer file that grows line by line and can be continued.

    A torn last line, left by a killed run, is cut off. `key` reads an answer line's identity.
    """

    def __init__(self, path: str | Path, key: Key = question_id) -> None:
        self.path = Path(path).expanduser()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.done: set[str] = set()
        kept = 0
        if self.path.exists():
            for line in self.path.read_bytes().splitlines(keepends=True):
                try:
                    row = json.loads(line)
                except ValueError:
                    break
                if not line.endswith(b"\n"):
                    break
                self.done.add(json.dumps(key(row)))
                kept += len(line)
        self.file = open(self.path, "ab")
        self.file.truncate(kept)

    def has(self, identity: Any) -> bool:
        return json.dumps(identity) in self.done

    def write(self, row: dict[str, Any]) -> None:
        self.file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class QuestionImages(Dataset[tuple[Question, list[Image.Image]]]):
    """Opens a question's pictures in the data workers."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = questions

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> tuple[Question, list[Image.Image]]:
        question = self.questions[index]
        return question, question.open_images()


def prompt_of(chat: Chat, message: str, image_count: int) -> str:
    conversation = chat.conversation()
    conversation.append_message(conversation.roles[0], image_prefix(chat, image_count) + message)
    conversation.append_message(conversation.roles[1], None)
    return conversation.get_prompt()


def answer_questions(
    chat: Chat, questions: Sequence[Question], log: AnswerLog, decoding: Decoding, batch_size: int = 1, workers: int = 4
) -> None:
    """Answers what `log` lacks, in order, and writes one line per question."""
    open_questions = [question for question in questions if not log.has(question.id)]
    loader = DataLoader(
        QuestionImages(open_questions),
        batch_size=batch_size,
        num_workers=workers if open_questions else 0,
        collate_fn=list,
    )
    stop = stop_string(chat.conversation())
    progress = tqdm(total=len(questions), initial=len(questions) - len(open_questions), desc="answers")
    for batch in loader:
        prompts = [prompt_of(chat, question.message, len(images)) for question, images in batch]
        texts = chat.answer_all(prompts, [images for _, images in batch], decoding, stop)
        for (question, _), text in zip(batch, texts, strict=True):
            log.write(answer_line(question, text, chat.name))
        progress.update(len(batch))
    progress.close()


def answer_line(question: Question, text: str, model_id: str) -> dict[str, Any]:
    return {
        "question_id": question.id,
        "prompt": question.text,
        "text": text,
        "answer_id": uuid.uuid4().hex[:22],
        "model_id": model_id,
        "metadata": {},
        **question.extra,
    }


def add_common_arguments(parser: argparse.ArgumentParser, max_new_tokens: int, conv_mode: str = "llava_v1") -> None:
    parser.add_argument("--model-path", default="facebook/opt-350m")
    parser.add_argument("--model-base", default=None)
    parser.add_argument("--image-folder", default="")
    parser.add_argument("--question-file", default="tables/question.jsonl")
    parser.add_argument("--answers-file", default="answer.jsonl")
    parser.add_argument("--conv-mode", default=conv_mode)
    parser.add_argument("--num-chunks", type=int, default=1)
    parser.add_argument("--chunk-idx", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--top_p", "--top-p", type=float, default=None)
    parser.add_argument("--num_beams", "--num-beams", type=int, default=1)
    parser.add_argument("--max_new_tokens", "--max-new-tokens", type=int, default=max_new_tokens)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--device", default="auto", help="auto takes a GPU when there is one")


def decoding_of(args: argparse.Namespace) -> Decoding:
    return Decoding(args.temperature, args.top_p, args.num_beams, args.max_new_tokens)


def load_chat(args: argparse.Namespace) -> Chat:
    import torch

    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    dtype = "float32" if device == "cpu" else "float16"
    return Chat.load(args.model_path, args.model_base, args.conv_mode, device=device, torch_dtype=dtype)


def run_generator(args: argparse.Namespace, questions: Sequence[Question], key: Key = question_id) -> None:
    """The body of every generator: this chunk's questions, answered into `--answers-file`."""
    log = AnswerLog(args.answers_file, key)
    try:
        part = chunk(questions, args.num_chunks, args.chunk_idx)
        if any(not log.has(question.id) for question in part):
            answer_questions(load_chat(args), part, log, decoding_of(args), args.batch_size, args.workers)
    finally:
        log.close()


def images_in(folder: str, names: str | Sequence[str] | None) -> tuple[Callable[[], list[Image.Image]], int]:
    """An opener for the named files below `folder`, and how many there are."""
    listed = [names] if isinstance(names, str) else list(names or [])
    paths = [Path(folder).expanduser() / name for name in listed]
    return _Opener(paths), len(paths)


@dataclass(frozen=True)
class _Opener:
    """Picklable, so that data workers may be spawned."""

    paths: list[Path]

    def __call__(self) -> list[Image.Image]:
        return [open_rgb(path) for path in self.paths]


def questions_by_id(rows: Sequence[dict[str, Any]], path: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Rows with their `question_id`; a row without one, or with one seen before, is refused."""
    seen = set()
    for number, row in enumerate(rows, 1):
        if "question_id" not in row:
            raise ValueError(f"{path}: question {number} has no question_id; it has {sorted(row)}")
        identity = json.dumps(row["question_id"])
        if identity in seen:
            raise ValueError(f"{path}: question_id {identity} occurs twice")
        seen.add(identity)
        yield row["question_id"], row
