"""Question files in, answer files out: what every generator of `llava.eval` shares.

Answers are appended one line at a time and flushed, and a rerun skips the questions that are answered, so a
killed run loses at most the batch it was working on (one answer at the default batch size of 1).
"""

import argparse
import hashlib
import math
import os
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import readable_errors
from llava.eval.answer_log import VQA, AnswerFormat, AnswerLog
from llava.eval.questions import Question
from llava.inference import Chat, Decoding, image_prefix, place, stop_string

# What decides an answer. Everything else is free to change between two runs of one file.
SETTINGS = (
    "model_path",
    "model_base",
    "conv_mode",
    "num_chunks",
    "chunk_idx",
    "temperature",
    "top_p",
    "num_beams",
    "max_new_tokens",
    "seed",
    "dtype",
    "single_pred_prompt",
    "answer_prompter",
    "lang",
)

# The files of a checkpoint folder that decide an answer.
DECISIVE = ("*.safetensors", "*.bin", "*config.json", "tokenizer*", "*token*.json", "vocab.*", "merges.txt")
MIB = 2**20


def chunk(items: Sequence[Any], count: int, index: int) -> Sequence[Any]:
    """Contiguous part `index` of `count`, each of ceil(n / count) items; the last may be short or empty."""
    if not 0 <= index < count:
        raise ValueError(f"--chunk-idx must be from 0 to {count - 1} for --num-chunks {count}, got {index}")
    size = math.ceil(len(items) / count)
    return items[index * size : (index + 1) * size]


def with_images(
    questions: Iterable[Question], workers: int, ahead: int
) -> Iterator[tuple[Question, list[Image.Image]]]:
    """Questions with their pictures, of which `workers` threads open `ahead` in advance; with 0 they open in turn.

    Threads and not processes: a run that is stopped leaves nothing behind, and pictures need no shared memory.
    Raises ValueError that names a question.
    """
    rest = iter(questions)
    opened: deque[tuple[Question, Future[list[Image.Image]]]] = deque()
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        while True:
            wanted = ahead - len(opened) if workers else 1
            opened.extend((question, pool.submit(question.open_images)) for question in islice(rest, wanted))
            if not opened:
                return
            question, images = opened.popleft()
            if error := images.exception():
                raise ValueError(f"question {question.id!r}: {error}") from error
            yield question, images.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def prompt_of(chat: Chat, message: str, image_count: int) -> str:
    """The whole prompt; pictures go where `<image>` stands in the message, or before it."""
    if DEFAULT_IMAGE_TOKEN in message:
        message = message.replace(DEFAULT_IMAGE_TOKEN, image_prefix(chat, 1).rstrip("\n"))
    else:
        message = image_prefix(chat, image_count) + message
    conversation = chat.conversation()
    conversation.append_message(conversation.roles[0], message)
    conversation.append_message(conversation.roles[1], None)
    return conversation.get_prompt()


def answer_questions(
    chat: Chat,
    questions: Sequence[Question],
    log: AnswerLog,
    decoding: Decoding,
    batch_size: int = 1,
    workers: int = 4,
    seed: int = 0,
) -> Iterator[int]:
    """Answers `questions` in order, writes one line for each, and yields how many after every batch.

    Raises ValueError that names a question.

    Sampling is seeded by the question, so that a resumed or sharded run gives the answers of an uninterrupted one
    (at batch size 1).
    """
    loaded = with_images(questions, workers, 2 * max(workers, batch_size))
    stop = stop_string(chat.conversation())
    while batch := list(islice(loaded, batch_size)):
        torch.manual_seed(zlib.crc32(log.format.asks(batch[0][0]).encode(), seed))
        try:
            prompts = [prompt_of(chat, question.message, len(images)) for question, images in batch]
            texts = chat.answer_all(prompts, [images for _, images in batch], decoding, stop)
        except ValueError as error:
            asked = ", ".join(repr(question.id) for question, _ in batch)
            raise ValueError(f"question {asked}: {error}") from error
        for (question, _), text in zip(batch, texts, strict=True):
            log.write(question, text, chat.name)
        yield len(batch)


def tell_overlong(chat: Chat) -> None:
    """Prints how many of the prompts that were answered were too long, if any were."""
    if chat.overlong:
        print(
            f"prompts longer with their pictures than the {chat.prompt_limit:,} tokens that {chat.name} reads: "
            f"{chat.overlong}; as in LLaVA their end was cut off, or read all the same"
        )


def add_common_arguments(
    parser: argparse.ArgumentParser,
    max_new_tokens: int,
    conv_mode: str = "llava_v1",
    model_flags: Sequence[str] = ("--model-path",),
) -> None:
    parser.add_argument(
        *model_flags, dest="model_path", required=True, help="a checkpoint folder, or a model's name on the hub"
    )
    parser.add_argument("--model-base", default=None, help="what an adapter or a projector alone is loaded onto")
    parser.add_argument("--image-folder", default="")
    parser.add_argument("--question-file", default="tables/question.jsonl")
    parser.add_argument("--answers-file", default="answer.jsonl", help="is continued if it exists")
    parser.add_argument("--conv-mode", default=conv_mode)
    parser.add_argument("--num-chunks", type=int, default=1)
    parser.add_argument("--chunk-idx", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--top_p", "--top-p", type=float, default=None)
    parser.add_argument("--num_beams", "--num-beams", type=int, default=1)
    parser.add_argument("--max_new_tokens", "--max-new-tokens", type=int, default=max_new_tokens)
    parser.add_argument("--seed", type=int, default=0, help="of sampling, when the temperature is above 0")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--workers", type=int, default=4, help="threads that open pictures; 0: none")
    parser.add_argument("--device", default="auto", help="auto takes a GPU when there is one")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float16", "bfloat16", "float32"),
        default="auto",
        help="auto: float16 on a GPU, float32 on a CPU",
    )


def checkpoint_fingerprint(model_path: str) -> str | None:
    """Changes with the config, the tokenizer or the weights of a checkpoint folder; None for a name on the hub.

    Of files above 64 MiB only a part is read: the last MiB, and one in every 32.
    """
    folder = Path(model_path).expanduser()
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted({path for pattern in DECISIVE for path in folder.glob(pattern) if path.is_file()}):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with open(path, "rb") as file:
            for start in (*range(0, size, MIB if size <= 64 * MIB else 32 * MIB), max(0, size - MIB)):
                file.seek(start)
                digest.update(file.read(MIB))
    return digest.hexdigest()[:16]


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    values = {name: value for name, value in vars(args).items() if name in SETTINGS}
    paths = {name: os.path.normpath(path) for name in ("model_path", "model_base") if (path := values.get(name))}
    return {**values, **paths, "checkpoint": checkpoint_fingerprint(args.model_path)}


def surroundings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What is worth knowing beside a score, though answers may be continued under another."""
    values = {name: str(value) for name, value in vars(args).items() if name not in SETTINGS}
    return {**values, "versions": {name: version(name) for name in ("torch", "transformers", "pillow")}}


def load_chat(args: argparse.Namespace, chat_class: type[Chat] = Chat) -> Chat:
    options = place(args.device)
    if args.dtype != "auto":
        options["torch_dtype"] = args.dtype
    return chat_class.load(args.model_path, args.model_base, args.conv_mode, **options)


def run_generator(
    args: argparse.Namespace,
    questions: Sequence[Question],
    answer_format: AnswerFormat = VQA,
    chat_class: type[Chat] = Chat,
) -> None:
    """The body of every generator: this chunk's questions, answered into `--answers-file`.

    The model is loaded only if something is left to answer.
    """
    decoding = Decoding(args.temperature, args.top_p, args.num_beams, args.max_new_tokens)
    if args.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    part = chunk(questions, args.num_chunks, args.chunk_idx)
    log = AnswerLog(args.answers_file, answer_format, settings_of(args), surroundings_of(args))
    left = [question for question in part if not log.take(question)]
    chat = load_chat(args, chat_class) if left else None
    with log:
        if chat is not None:
            with tqdm(total=len(part), initial=len(part) - len(left), desc=f"chunk {args.chunk_idx}") as progress:
                for count in answer_questions(chat, left, log, decoding, args.batch_size, args.workers, args.seed):
                    progress.update(count)
            tell_overlong(chat)
        elif part:
            print(f"nothing is left to answer: {args.answers_file} holds the answers to all {len(part)} questions")


def run_program(main: Callable[[], None]) -> None:
    """A generator as a program: mistakes end it with one line and status 1, Ctrl-C with one line and status 130."""
    with readable_errors():
        try:
            main()
        except KeyboardInterrupt:
            print("\ninterrupted; the same command goes on after the answers that are written", file=sys.stderr)
            sys.exit(130)
