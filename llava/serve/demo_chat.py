"""The demo's first tab: pictures and questions in, streamed answers out.

The page shows what the server remembers of a session, never the other way round, so that nothing a browser sends can
name a file or change a turn.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from llava.conversation import conv_templates
from llava.inference import Chat, Decoding, Turn
from llava.remote import SERVING_LIMITS, decode_images
from llava.serve.demo_examples import Example
from llava.serve.sessions import Sessions, copy_for_page
from llava.serve.upload_boxes import QuestionBox

DRAW_SECONDS = 0.05  # between redrawings of a growing answer
CHAT_ID = "chat"  # of what limits answers at a time
LIMITS = replace(SERVING_LIMITS, total_pixels=100_000_000)  # of a conversation, as all its pictures are open at once

logger = logging.getLogger("demo")

Message = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A question, its answer, and how they are shown. files: its pictures as they were uploaded, which are opened only
    when a model is asked. copies: of them, for the page. error: why there is no answer. is_whole: all its pictures
    could be read, so that it can be asked again."""

    text: str
    files: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    answer: str | None = None
    error: str | None = None
    is_whole: bool = True

    def messages(self) -> list[Message]:
        shown: list[Message] = [{"role": "user", "content": {"path": copy}} for copy in self.copies]
        if self.text:
            shown.append({"role": "user", "content": self.text})
        if self.error is not None:
            shown.append({"role": "assistant", "content": f"**Error.** {self.error}"})
        elif self.answer is not None:
            shown.append({"role": "assistant", "content": self.answer or "*(an empty answer)*"})
        return shown


Entries = tuple[Entry, ...]


def open_pictures(files: Iterable[str]) -> list[Image.Image]:
    """Raises ValueError or OSError."""
    return decode_images((Path(file).read_bytes() for file in files), LIMITS)


def turns_of(entries: Entries) -> list[Turn]:
    """What the model is told: an entry that failed is only shown. Raises ValueError or OSError for pictures."""
    told = [entry for entry in entries if entry.error is None]
    images = iter(open_pictures(file for entry in told for file in entry.files))
    return [Turn(entry.text, tuple(islice(images, len(entry.files))), entry.answer) for entry in told]


def explain(error: Exception) -> str:
    """An error as it is; its kind as well where it is not written for users."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


class ChatTab:
    """Components and events of the tab. `entries` is the session's state, of which the other tab takes pictures."""

    def __init__(self, chat: Chat, examples: list[Example]) -> None:
        self.chat = chat
        self.sessions = Sessions()
        self.entries = gr.State(())
        self.chatbot = gr.Chatbot(
            show_label=False,
            height="54vh",
            elem_id="chatbot",
            layout="bubble",
            buttons=["copy"],
            feedback_options=None,
            allow_tags=False,
            placeholder=self._greeting(bool(examples)),
        )
        self._add_input()
        if examples:
            rows = [{"text": example.text, "files": [str(path) for path in example.files]} for example in examples]
            gr.Examples([[row] for row in rows], self.box, label="Examples", examples_per_page=6)
        self._add_settings()
        self._connect()

    def _greeting(self, has_examples: bool) -> str:
        if not self.chat.sees:
            return "This model takes no pictures."
        start = "Add a picture with the clip, then ask about it"
        return f"{start}, or pick an example below." if has_examples else f"{start}."

    def _add_input(self) -> None:
        self.box = QuestionBox(
            show_label=False,
            placeholder="Ask about a picture" if self.chat.sees else "Ask something",
            sources=["upload"] if self.chat.sees else [],
            file_types=["image"],
            file_count="multiple",
            elem_id="question",
            max_plain_text_length=20_000,
        )
        with gr.Row(elem_classes="actions"):
            self.stop = gr.Button("Stop", variant="stop", interactive=False, min_width=80, size="sm", elem_id="stop")
            self.again = gr.Button("Regenerate", interactive=False, min_width=80, size="sm", elem_id="regenerate")
            self.clear = gr.Button("Clear", interactive=False, min_width=80, size="sm", elem_id="clear")

    def _add_settings(self) -> None:
        longest = max(2, min(4096, self.chat.context_length))
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            with gr.Row():
                self.temperature = gr.Slider(
                    0, 1.5, 0.2, step=0.05, label="Temperature", info="0 is greedy", min_width=200
                )
                self.top_p = gr.Slider(0.05, 1, 0.7, step=0.05, label="Top-p", min_width=200)
                self.length = gr.Slider(
                    1, longest, min(512, longest), step=1, label="Longest answer", info="tokens", min_width=200
                )
            self.template = gr.Dropdown(
                sorted(conv_templates),
                value=self.chat.template,
                label="Prompt template",
                info=f"{self.chat.template} is this checkpoint's own",
            )

    def _connect(self) -> None:
        settings = [self.template, self.temperature, self.top_p, self.length]
        outputs = [self.chatbot, self.entries, self.box, self.stop, self.again, self.clear]
        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        limit: dict[str, Any] = {"concurrency_id": CHAT_ID, "concurrency_limit": 2}
        self.box.submit(self.send, [self.box, self.entries, *settings], outputs, **hidden, **limit)
        self.again.click(self.regenerate, [self.entries, *settings], outputs, **hidden, **limit)
        # Not queued: it must work while everything else waits.
        self.stop.click(self.cancel, None, None, queue=False, **hidden)
        gr.on([self.clear.click, self.chatbot.clear], self.forget, None, outputs, queue=False, **hidden)

    def send(
        self, request: gr.Request, value: dict[str, Any], entries: Entries, *settings: Any
    ) -> Iterator[tuple[Any, ...]]:
        text, paths = (value["text"] or "").strip(), value["files"] or []
        if not text and not paths:
            yield self._idle(entries)
            return
        try:
            entry = Entry(text, tuple(paths), tuple(copy_for_page(image) for image in open_pictures(paths)))
        except (ValueError, OSError) as error:
            failed = (*entries, Entry(text, error=explain(error), is_whole=False))
            yield self._show(failed, gr.skip(), is_busy=False)  # the question stays in its box
            return
        yield from self._answer((*entries, entry), settings, request, clears_box=True)

    def regenerate(self, request: gr.Request, entries: Entries, *settings: Any) -> Iterator[tuple[Any, ...]]:
        if not entries or not entries[-1].is_whole:
            yield self._idle(entries)
            return
        fresh = replace(entries[-1], answer=None, error=None)
        yield from self._answer((*entries[:-1], fresh), settings, request, clears_box=False)

    def _answer(
        self, entries: Entries, settings: tuple[Any, ...], request: gr.Request, clears_box: bool
    ) -> Iterator[tuple[Any, ...]]:
        template, temperature, top_p, length = settings
        cancel = self.sessions.begin(request)
        box = {"text": "", "files": []} if clears_box else gr.skip()
        yield self._busy(entries, box)
        answered, failure = entries, None
        try:
            prompt = self.chat.prompt(turns_of(entries), template)
            decoding = Decoding(temperature, top_p, max_new_tokens=int(length))
            drawn = 0.0
            for text in self.chat.stream(prompt.text, prompt.images, decoding, prompt.stop, cancel):
                answered = (*entries[:-1], replace(entries[-1], answer=text))
                if text and time.monotonic() - drawn > DRAW_SECONDS:
                    drawn = time.monotonic()
                    yield self._busy(answered, gr.skip())
        except Exception as error:  # whatever it is, the user is told
            failure = explain(error)
            logger.warning("an answer failed: %s", failure, exc_info=not isinstance(error, ValueError))
        finally:
            cancel.set()
        if failure is not None:
            answered = (*entries[:-1], replace(entries[-1], error=failure))
        yield self._idle(answered)

    def cancel(self, request: gr.Request) -> None:
        """Ends this session's answer where it is."""
        self.sessions.cancel(request)

    def forget(self, request: gr.Request) -> tuple[Any, ...]:
        self.cancel(request)
        return self._idle(())

    def _busy(self, entries: Entries, box: Any) -> tuple[Any, ...]:
        return self._show(entries, box, is_busy=True)

    def _idle(self, entries: Entries) -> tuple[Any, ...]:
        return self._show(entries, gr.skip(), is_busy=False)

    def _show(self, entries: Entries, box: Any, is_busy: bool) -> tuple[Any, ...]:
        messages = [message for entry in entries for message in entry.messages()]
        can_clear = bool(entries) and not is_busy
        can_repeat = can_clear and entries[-1].is_whole
        buttons = (gr.Button(interactive=flag) for flag in (is_busy, can_repeat, can_clear))
        return messages, entries, box, *buttons
