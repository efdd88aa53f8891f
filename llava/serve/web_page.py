"""The events of the web page in front of a controller: questions, answers, votes. Knows no layout.

What a browser sends is a question, pictures as uploaded files, and settings; turns are kept on the server.
"""

import logging
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from llava.constants import LOGDIR
from llava.conversation import Conversation, default_conversation
from llava.remote import SERVING_LIMITS, decode_images
from llava.serve.client import ControllerClient, ServiceError, generate
from llava.serve.sessions import Sessions, copy_for_page
from llava.serve.web_log import WebLog
from llava.serve.web_prompt import request_body, template_of, user_message, with_template
from llava.utils import moderation_msg, violates_moderation

FIRST_MODELS = {"vicuna-13b": "aaaaaaa", "koala-13b": "aaaaaab"}  # these lead the list
CURSOR = "▌"

logger = logging.getLogger("gradio_web_server")


@dataclass(frozen=True)
class Session:
    """A conversation, and for each of its questions the pictures' copies for the page. problem: shown in place of
    the last answer. is_pending: the last answer is not complete."""

    conversation: Conversation
    files: tuple[tuple[str, ...], ...] = ()
    problem: str | None = None
    is_pending: bool = False

    @classmethod
    def new(cls) -> "Session":
        return cls(default_conversation.copy())

    def messages(self, is_growing: bool = False) -> list[dict[str, Any]]:
        turns = self.conversation.messages[self.conversation.offset :]
        shown: list[dict[str, Any]] = []
        for index, (_, message) in enumerate(turns):
            if index % 2 == 0:
                shown += [{"role": "user", "content": {"path": file}} for file in self.files[index // 2]]
                text = (message[0] if isinstance(message, tuple) else message).replace("<image>", "").strip()
                shown.append({"role": "user", "content": text})
            else:
                text = self.problem if self.problem and index == len(turns) - 1 else message or ""
                grows = is_growing and index == len(turns) - 1
                shown.append({"role": "assistant", "content": text + CURSOR * grows})
        return shown

    def without_failed(self) -> "Session":
        """As if the last question had not been asked, if it failed."""
        if self.problem is None:
            return self
        conversation = self.conversation.copy()
        del conversation.messages[-2:]
        return Session(conversation, self.files[:-1])

    @property
    def has_images(self) -> bool:
        return any(self.files)


@dataclass(frozen=True)
class Settings:
    """boxes: for pictures; more than one makes it the page for several pictures."""

    controller: str
    boxes: int = 1
    concurrency: int = 16
    reloads_models: bool = False
    is_moderated: bool = False
    is_embedded: bool = False
    log_folder: str = LOGDIR


class WebPage:
    """The page's events."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.controller = ControllerClient(settings.controller)
        self.log = WebLog(settings.log_folder)
        self.sessions = Sessions()
        self.models = self.list_models()

    def list_models(self) -> list[str]:
        """Raises ServiceError without a controller."""
        return sorted(self.controller.models(), key=lambda name: FIRST_MODELS.get(name, name))

    def load(self, request: gr.Request) -> Any:
        """The models to choose from; `?model=` of the page's address chooses one."""
        if self.settings.reloads_models:
            try:
                self.models = self.list_models()
            except ServiceError as error:
                logger.warning("%s", error)
        wanted = dict(request.query_params).get("model")
        chosen = wanted if wanted in self.models else next(iter(self.models), None)
        return gr.Dropdown(choices=self.models, value=chosen)

    def add_text(
        self, request: gr.Request, session: Session | None, text: str, mode: str, *pictures: str | None
    ) -> tuple[Any, ...]:
        """A question joins the conversation, in place of one that failed; a new picture begins another one."""
        session = session or Session.new()
        if session.is_pending:
            raise gr.Error("the answer before is not complete; send the question again when it is")
        paths = [path for path in pictures if path]
        if not text.strip() and not paths:
            return session, session.messages(), text, *pictures
        try:
            if self.settings.is_moderated and violates_moderation(text):
                raise ValueError(moderation_msg)
            images = decode_images((Path(path).read_bytes() for path in paths), SERVING_LIMITS)
        except (ValueError, OSError) as error:
            raise gr.Error(str(error)) from None
        session = session.without_failed()
        if images and session.has_images:
            session = Session.new()
        logger.info("add_text. ip: %s. len: %d", client_ip(request), len(text))
        conversation = session.conversation.copy()
        message = user_message(text, images, mode, self.settings.boxes > 1)
        conversation.append_message(conversation.roles[0], message)
        conversation.append_message(conversation.roles[1], None)
        files = (*session.files, tuple(copy_for_page(image) for image in images))
        session = Session(conversation, files, is_pending=True)
        return session, session.messages(), "", *[None] * len(pictures)

    def regenerate(self, session: Session | None, mode: str) -> tuple[Any, ...]:
        """Forgets the last answer; its question's pictures may now be processed otherwise."""
        if session is None or not session.conversation.messages[session.conversation.offset :]:
            return session, []
        conversation = session.conversation.copy()
        conversation.messages[-1][1] = None
        question = conversation.messages[-2][1]
        if isinstance(question, tuple):
            conversation.messages[-2][1] = (*question[:2], mode)
        session = replace(session, conversation=conversation, problem=None, is_pending=True)
        return session, session.messages()

    def answer(
        self, request: gr.Request, session: Session | None, model: str, temperature: float, top_p: float, length: int
    ) -> Iterator[tuple[Any, ...]]:
        """Asks a worker and shows what it says, or why it does not."""
        if session is None or not session.is_pending:
            yield session, gr.skip(), *[gr.skip()] * 5
            return
        if len(session.files) == 1:
            session = replace(session, conversation=with_template(session.conversation, template_of(model or "")))
        start, cancel = time.time(), self.sessions.begin(request)
        yield session, session.messages(is_growing=True), *buttons(False)
        try:
            with closing(self._ask(session, model, temperature, top_p, length)) as texts:
                for text in texts:
                    session = answered(session, text)
                    yield session, session.messages(is_growing=True), *buttons(False)
                    if cancel.is_set():
                        break
        except (ServiceError, ValueError) as error:
            logger.warning("http_bot. ip: %s. %s", client_ip(request), error)
            session = replace(session, problem=str(error))
        session = replace(session, is_pending=False)
        images: list[Image.Image] = session.conversation.get_images(return_pil=True)
        self.log.write_answer(session.conversation, model, client_ip(request), start, images)
        yield session, session.messages(), *buttons(True)

    def _ask(
        self, session: Session, model: str, temperature: float, top_p: float, length: int
    ) -> Generator[str, None, None]:
        """The answer so far. Raises ServiceError."""
        worker = self.controller.worker_address(model or "")
        if worker is None:
            raise ServiceError(f"**ERROR** no worker serves the model {model!r}; choose another, or try again later")
        body = request_body(session.conversation, model, temperature, top_p, length)
        logger.info("asking %s: %s", worker, {**body, "images": len(body["images"])})
        try:
            for text in generate(worker, body):
                yield text[len(body["prompt"]) :].strip()
        except ServiceError as error:
            if error.code == 0:
                self.controller.refresh()  # so that a dead worker is not asked again
            raise

    def vote(self, request: gr.Request, kind: str, session: Session | None, model: str) -> tuple[Any, ...]:
        """kind: upvote, downvote or flag."""
        logger.info("%s. ip: %s", kind, client_ip(request))
        if session is not None:
            self.log.write_vote(kind, session.conversation, model, client_ip(request))
        return tuple(gr.Button(interactive=False) for _ in range(3))

    def clear(self, request: gr.Request) -> tuple[Any, ...]:
        self.sessions.cancel(request)
        return None, [], "", *[None] * self.settings.boxes, *[gr.Button(interactive=False) for _ in range(5)]


def answered(session: Session, text: str) -> Session:
    conversation = session.conversation.copy()
    conversation.messages[-1][1] = text
    return replace(session, conversation=conversation)


def buttons(are_active: bool) -> tuple[Any, ...]:
    return tuple(gr.Button(interactive=are_active) for _ in range(5))


def client_ip(request: gr.Request) -> str:
    return request.client.host if request.client else ""
