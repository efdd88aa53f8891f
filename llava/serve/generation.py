"""One request to a worker: checked, answered in a thread, its messages handed to whoever waits for them.

A request holds its place among the concurrent ones as long as the model works on it, not as long as its client reads.
"""

import asyncio
import base64
import binascii
import logging
import math
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image

from llava.inference import ContextExceeded, Decoding
from llava.remote import decode_images
from llava.serve.http_service import BadRequest, field
from llava.serve.stream import FAILED, describe, encode

MAX_NEW_TOKENS = 1024
MAX_WAITING = 1000  # requests beyond this are refused at once
MAX_UNREAD = 64  # messages that a slow client has not taken; as each holds all text, those between are left out
TOO_LONG = "Exceeds max token length. Please start a new conversation, thanks."

logger = logging.getLogger("model_worker")


class Answerer(Protocol):
    """What a worker serves: `llava.inference.Chat`, or something that answers like one."""

    name: str

    def stream(
        self,
        prompt: str,
        images: Sequence[Image.Image],
        decoding: Decoding,
        stop: Sequence[str] | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[str]:
        """The answer so far, growing; ends early when `cancel` is set."""


def number(message: dict[str, Any], name: str, default: float) -> float:
    """An entry that may also be written as a string, "0.2". Raises BadRequest for what is no finite number."""
    value = field(message, name, (int, float, str), default)
    with suppress(ValueError, OverflowError):
        if math.isfinite(found := float(value)):
            return found
    raise BadRequest(f"{name!r} must be a finite number, not {str(value)[:40]!r}")


@dataclass(frozen=True)
class GenerationRequest:
    """images: base64. max_new_tokens: below 1 asks for no answer. stops: each ends the answer."""

    prompt: str
    images: tuple[str, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    stops: tuple[str, ...] = ()

    @classmethod
    def of(cls, message: dict[str, Any]) -> "GenerationRequest":
        """From JSON. Raises BadRequest that says what is wrong; entries that are not known are left alone."""
        images = field(message, "images", list, None) or []
        stop = field(message, "stop", (str, list), None) or []
        stops = [stop] if isinstance(stop, str) else stop
        for name, entries in (("images", images), ("stop", stops)):
            if not all(isinstance(entry, str) for entry in entries):
                raise BadRequest(f"{name!r} must hold strings only")
        return cls(
            prompt=field(message, "prompt", str),
            images=tuple(images),
            temperature=number(message, "temperature", 1.0),
            top_p=number(message, "top_p", 1.0),
            max_new_tokens=int(min(number(message, "max_new_tokens", 256), MAX_NEW_TOKENS)),
            stops=tuple(text for text in stops if text),
        )

    def decoding(self) -> Decoding:
        """Raises ValueError for values without a meaning. A page's slider gives 0 for the smallest top_p."""
        return Decoding(self.temperature, self.top_p if self.top_p != 0 else 1e-6, max_new_tokens=self.max_new_tokens)

    def files(self) -> Iterator[bytes]:
        """The pictures' bytes. Raises ValueError for what is no base64: an address or a path is not looked up."""
        for number, text in enumerate(self.images, 1):
            encoded = text.partition(",")[2] if text[:40].startswith("data:image/") else text
            try:
                yield base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError):
                raise ValueError(
                    f"picture {number} is not base64; send pictures as base64 of a file, not as a path or an address"
                ) from None


def answer(
    chat: Answerer, request: GenerationRequest, request_id: str, interval: int, cancel: threading.Event
) -> Iterator[bytes]:
    """The messages of a request's stream; every error becomes a message.

    interval: tokens between messages. They begin with the request's own prompt, as clients expect.
    """
    try:
        if request.max_new_tokens < 1:
            raise ContextExceeded(TOO_LONG)
        images = decode_images(request.files())
        stream = chat.stream(request.prompt, images, request.decoding(), request.stops, cancel)
        text = last = None
        for index, text in enumerate(stream):
            if index % interval == 0:
                last = text
                yield encode(request.prompt + text)
        if text is not None and text != last:
            yield encode(request.prompt + text)
    except ContextExceeded as error:
        logger.info("request %s: %s", request_id, error)
        yield encode(request.prompt + TOO_LONG)
    except ValueError as error:
        logger.info("request %s refused: %s", request_id, error)
        yield encode(describe(error, request_id), FAILED)
    except Exception as error:  # whatever it is, the user and the log are told
        logger.exception("request %s failed", request_id)
        yield encode(describe(error, request_id), FAILED)
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()


class Outbox:
    """Messages from a thread to the event loop. Among those not taken in time only the newest are kept."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.messages: deque[bytes] = deque()
        self.has_news = asyncio.Event()
        self.is_complete = False

    def put(self, message: bytes | None) -> None:
        """From any thread; None ends the stream."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._put, message)

    def _put(self, message: bytes | None) -> None:
        if message is None:
            self.is_complete = True
        else:
            if len(self.messages) >= MAX_UNREAD:
                self.messages.pop()
            self.messages.append(message)
        self.has_news.set()

    async def take(self) -> AsyncGenerator[bytes]:
        while self.messages or not self.is_complete:
            if not self.messages:
                self.has_news.clear()
                await self.has_news.wait()
            while self.messages:
                yield self.messages.popleft()


class Places:
    """At most `limit` requests at a time work, the others wait in order."""

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"at least one request at a time must be allowed, not {limit}")
        self.limit = limit
        self.in_use = 0
        self.waiting = 0
        self._free = asyncio.Semaphore(limit)

    @property
    def queue_length(self) -> int:
        return self.in_use + self.waiting

    async def take(self) -> None:
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.in_use += 1

    def give_back(self) -> None:
        self.in_use -= 1
        self._free.release()


class Generator:
    """Answers requests of one model, so many at a time. on_change: called when the queue grows or shrinks."""

    def __init__(
        self, chat: Answerer, limit: int, interval: int = 1, on_change: Callable[[], None] = lambda: None
    ) -> None:
        if interval < 1:
            raise ValueError(f"the stream's interval is a number of tokens from 1 on, not {interval}")
        self.chat = chat
        self.interval = interval
        self.places = Places(limit)
        self.on_change = on_change
        self._pool = ThreadPoolExecutor(limit, thread_name_prefix="generate")
        self._running: set[threading.Event] = set()

    async def stream(self, request: GenerationRequest, request_id: str) -> AsyncGenerator[bytes]:
        """The messages of a request; closing the generator ends its work."""
        if self.places.waiting >= MAX_WAITING:
            reason = ConnectionRefusedError(f"{self.places.waiting} requests are waiting already; try again later")
            yield encode(describe(reason, request_id), FAILED)
            return
        async with self._work(request, request_id) as outbox:
            async for message in outbox.take():
                yield message

    @asynccontextmanager
    async def _work(self, request: GenerationRequest, request_id: str) -> AsyncGenerator[Outbox]:
        """Waits for a place and works in a thread; on leaving, the thread is told to end and gives the place back."""
        loop = asyncio.get_running_loop()
        outbox, cancel = Outbox(loop), threading.Event()

        def work() -> None:
            try:
                for message in answer(self.chat, request, request_id, self.interval, cancel):
                    outbox.put(message)
            finally:
                outbox.put(None)
                if not loop.is_closed():
                    loop.call_soon_threadsafe(self._finish, cancel)

        self.on_change()
        await self.places.take()
        self._running.add(cancel)
        self._pool.submit(work)
        try:
            yield outbox
        finally:
            cancel.set()

    def _finish(self, cancel: threading.Event) -> None:
        self._running.discard(cancel)
        self.places.give_back()
        self.on_change()

    def close(self) -> None:
        """Ends all work."""
        for cancel in self._running:
            cancel.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
