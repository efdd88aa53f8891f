"""The web page's events without a browser: templates, limits, records, and what a user is told when something fails."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from llava.conversation import conv_templates
from llava.inference import Chat
from llava.serve import gradio_web_server
from llava.serve.client import ServiceError
from llava.serve.controller import create_app
from llava.serve.gradio_web_server import build_demo, parse_arguments
from llava.serve.model_worker import ModelWorker
from llava.serve.model_worker import create_app as create_worker_app
from llava.serve.web_page import Session, Settings, WebPage
from llava.serve.web_prompt import cut_text, request_body, template_of, user_message
from llava.serve.worker_registry import Registry, WorkerStatus
from tests.serve.running import free_port, serving

REQUEST: Any = SimpleNamespace(session_hash="s", client=SimpleNamespace(host="10.1.2.3"), query_params={})


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    Image.new("RGB", (40, 30), "red").save(path)
    return str(path)


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def controller(registry: Registry) -> Iterator[str]:
    with serving(create_app(registry)) as address:
        yield address


@pytest.fixture
def worker(chat: Chat, registry: Registry) -> Iterator[str]:
    with serving(create_worker_app(ModelWorker(chat))) as address:
        registry.register(address, WorkerStatus(("llava-tiny",), 1, 0), False)
        yield address


@pytest.fixture
def page(controller: str, worker: str, tmp_path: Path) -> WebPage:
    return WebPage(Settings(controller, log_folder=str(tmp_path / "logs")))


def converse(page: WebPage, text: str, *pictures: str | None, model: str = "llava-tiny") -> Session:
    """The session after one question and its answer."""
    session = page.add_text(REQUEST, None, text, "Default", *pictures or [None])[0]
    return list(page.answer(REQUEST, session, model, 0, 1, 8))[-1][0]


def log_of(page: WebPage) -> list[dict[str, Any]]:
    (path,) = page.log.folder.glob("????-??-??-conv.json")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("model", "template"),
    [
        ("llava-v1.5-7b", "llava_v1"),
        ("llava-v1.6-34b", "chatml_direct"),
        ("llava-v1.6-mistral-7b", "mistral_instruct"),
        ("llava-llama-2-13b-chat", "llava_llama_2"),
        ("llava-mistral-7b-orca", "mistral_orca"),
        ("llava-nous-hermes-2", "chatml_direct"),
        ("LLaVA-v1-plain", "v1_mmtag"),
        ("llava-v1-mmtag", "v1_mmtag"),
        ("llava-v1-plain-finetune", "llava_v1"),
        ("llava-mpt-7b", "mpt"),
        ("llava-7b", "llava_v0"),
        ("llava-7b-mmtag", "v0_mmtag"),
        ("move-kd-7b-v1.0", "vicuna_v1"),
        ("llava-next-qwen-7b", "qwen_1_5"),
        ("llava-gemma-2b", "gemma_instruct"),
        ("mpt-7b", "mpt_text"),
        ("llama-2-7b", "llama_2"),
        ("vicuna-13b", "vicuna_v1"),
    ],
)
def test_the_models_name_chooses_the_template(model: str, template: str) -> None:
    assert template_of(model) == template


def test_texts_are_cut_at_the_published_lengths() -> None:
    long = "x" * 9000
    lengths = [
        len(cut_text(long, images, is_multi)) for images, is_multi in ((0, False), (1, False), (0, True), (2, True))
    ]
    assert lengths == [1536, 1200, 3072, 2048]


def test_a_picture_is_announced_once() -> None:
    image = Image.new("RGB", (4, 4))
    assert user_message("What?", [image], "Pad", False) == ("What?\n<image>", image, "Pad")
    assert user_message("<image> What?", [image], "Pad", False) == ("<image> What?", image, "Pad")
    assert user_message("What?", [image, image], "Pad", True)[0] == "<image>\n<image>\nWhat?"
    assert user_message("What?", [], "Pad", False) == "What?"


@pytest.mark.parametrize(
    ("template", "stop"), [("vicuna_v1", "</s>"), ("v0", "###"), ("mpt", "<|im_end|>"), ("qwen_1_5", "<|im_end|>")]
)
def test_a_request_has_the_templates_stop_and_capped_length(template: str, stop: str) -> None:
    conversation = conv_templates[template].copy()
    conversation.append_message(conversation.roles[0], ("What?\n<image>", Image.new("RGB", (4, 4)), "Default"))
    conversation.append_message(conversation.roles[1], None)
    body = request_body(conversation, "m", 0.2, 0.7, 9999)
    assert (body["stop"], body["max_new_tokens"], len(body["images"])) == (stop, 1536, 1)
    assert body["prompt"].count("<image>") == 1


def test_an_answer_is_shown_and_recorded_with_its_picture(page: WebPage, picture: str) -> None:
    session = converse(page, "What is it?", picture)
    assert session.problem is None
    roles = [message["role"] for message in session.messages()]
    assert roles == ["user", "user", "assistant"]
    (entry,) = log_of(page)
    assert set(entry) == {"tstamp", "type", "model", "start", "finish", "images", "state", "ip"}
    assert (entry["type"], entry["model"], entry["ip"]) == ("chat", "llava-tiny", "10.1.2.3")
    assert entry["start"] <= entry["finish"]
    assert entry["state"]["messages"][1][1] == session.conversation.messages[1][1] != ""
    (stored,) = page.log.folder.glob("serve_images/????-??-??/*.jpg")
    assert entry["images"] == [stored.stem]


@pytest.mark.parametrize("kind", ["upvote", "downvote", "flag"])
def test_votes_are_recorded(page: WebPage, kind: str) -> None:
    session = converse(page, "Hello")
    page.vote(REQUEST, kind, session, "llava-tiny")
    entry = log_of(page)[-1]
    assert set(entry) == {"tstamp", "type", "model", "state", "ip"}
    assert entry["type"] == kind


def test_a_new_picture_begins_another_conversation(page: WebPage, picture: str) -> None:
    session = converse(page, "What is it?", picture)
    more = page.add_text(REQUEST, session, "And why?", "Default", None)[0]
    assert len(more.conversation.messages) == 4
    fresh = page.add_text(REQUEST, session, "And this?", "Default", picture)[0]
    assert len(fresh.conversation.messages) == 2


def test_regenerating_asks_the_same_again(page: WebPage, picture: str) -> None:
    session = converse(page, "What is it?", picture)
    again = page.regenerate(session, "Pad")[0]
    assert again.conversation.messages[-1][1] is None
    assert again.conversation.messages[0][1][2] == "Pad"
    assert list(page.answer(REQUEST, again, "llava-tiny", 0, 1, 8))[-1][0].conversation.messages[-1][1]


def test_a_wrong_file_is_told(page: WebPage, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no")
    with pytest.raises(gr.Error, match="not a readable picture"):
        page.add_text(REQUEST, None, "What?", "Default", str(tmp_path / "x.png"))


def test_nothing_typed_changes_nothing(page: WebPage) -> None:
    assert page.add_text(REQUEST, None, "  ", "Default", None)[1] == []
    assert next(page.answer(REQUEST, None, "llava-tiny", 0, 1, 8))[0] is None


def test_moderation_refuses(page: WebPage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "settings", Settings("http://c:1", is_moderated=True))
    monkeypatch.setattr("llava.serve.web_page.violates_moderation", lambda text: "bad" in text)
    with pytest.raises(gr.Error, match="MODERATION"):
        page.add_text(REQUEST, None, "bad words", "Default", None)
    assert page.add_text(REQUEST, None, "good words", "Default", None)[1]


def test_a_model_without_a_worker_is_told(page: WebPage) -> None:
    session = converse(page, "Hello", model="llava-other")
    assert "no worker serves the model 'llava-other'" in session.messages()[-1]["content"]


def test_the_workers_real_error_is_shown(page: WebPage, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: Any) -> None:
        raise RuntimeError("the GPU fell off the bus")

    monkeypatch.setattr(chat.model, "generate", fail)
    shown = converse(page, "Hello").messages()[-1]["content"]
    assert "RuntimeError: the GPU fell off the bus (request " in shown


def test_a_dead_worker_is_told_and_forgotten(page: WebPage, registry: Registry, worker: str) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    registry.drop(worker)
    registry.register(dead, WorkerStatus(("llava-tiny",), 1, 0), False)
    assert f"the worker at {dead} broke off" in converse(page, "Hello").messages()[-1]["content"]
    assert registry.models() == []


def test_a_question_that_failed_is_not_sent_with_the_next_nor_chooses_its_template(page: WebPage, picture: str) -> None:
    def ask(session: Session | None, text: str, model: str, picture: str | None = None) -> Session:
        asked = page.add_text(REQUEST, session, text, "Default", picture)[0]
        return list(page.answer(REQUEST, asked, model, 0, 1, 8))[-1][0]

    failed = ask(None, "One?", "llava-v1.6-34b", picture)
    first = ask(failed, "Two?", "llava-tiny")
    roles = conv_templates[template_of("llava-tiny")].roles
    assert [role for role, _ in first.conversation.messages] == list(roles)
    third = ask(ask(first, "Three?", "llava-other", picture), "Four?", "llava-tiny")
    assert [text for _, text in third.conversation.messages[::2]] == ["Two?", "Four?"]
    assert third.files == ((), ())


def test_a_question_is_refused_until_the_answer_before_it_is_complete(page: WebPage) -> None:
    asked = page.add_text(REQUEST, None, "Hello", "Default", None)[0]
    *growing, (complete, *_) = page.answer(REQUEST, asked, "llava-tiny", 0, 1, 8)
    for session in (asked, growing[0][0], growing[-1][0], page.regenerate(complete, "Default")[0]):
        with pytest.raises(gr.Error, match="not complete"):
            page.add_text(REQUEST, session, "And?", "Default", None)
    assert page.add_text(REQUEST, complete, "And?", "Default", None)[0].is_pending


def test_leaving_ends_the_answer(page: WebPage, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def endless(self: Chat, *arguments: Any) -> Iterator[str]:
        cancel = arguments[-1]
        for index in range(10**6):
            yield "word " * index
            if cancel.wait(0.01):
                break
        ended.set()

    monkeypatch.setattr(Chat, "stream", endless)
    session = page.add_text(REQUEST, None, "Hello", "Default", None)[0]
    stream = page.answer(REQUEST, session, "llava-tiny", 0, 1, 8)
    for _ in range(3):
        next(stream)
    page.sessions.leave(REQUEST)
    assert list(stream)
    assert ended.wait(5)


def test_models_are_listed_once_or_at_each_visit(controller: str, registry: Registry, chat: Chat) -> None:
    pages = [WebPage(Settings(controller, reloads_models=flag)) for flag in (False, True)]
    with serving(create_worker_app(ModelWorker(chat))) as worker:
        registry.register(worker, WorkerStatus(("llava-tiny",), 1, 0), False)
        for page in pages:
            page.load(REQUEST)
        chosen = pages[1].load(SimpleNamespace(query_params={"model": "llava-tiny"}))
    assert [page.models for page in pages] == [[], ["llava-tiny"]]
    assert chosen.value == "llava-tiny"


def test_two_boxes_make_the_page_for_several_pictures(
    controller: str, worker: str, picture: str, tmp_path: Path
) -> None:
    page = WebPage(Settings(controller, boxes=2, log_folder=str(tmp_path)))
    build_demo(page)
    session = converse(page, "Compare.", picture, picture)
    assert session.problem is None
    assert session.conversation.messages[0][1][0].startswith("<image>\n<image>\n")
    assert len(log_of(page)[0]["images"]) == 2


def test_the_flags_are_the_published_ones() -> None:
    found = parse_arguments(["--controller", "http://c:1", "--model-list-mode", "reload"], None, 16)
    assert (found.controller_url, found.host, found.port, found.concurrency_count) == (
        "http://c:1",
        "0.0.0.0",
        None,
        16,
    )
    assert (found.share, found.moderate, found.embed) == (False, False, False)


def test_a_controller_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ServiceError, match=r"the controller at .* does not answer"):
        gradio_web_server.main(["--controller", f"http://127.0.0.1:{free_port()}"])
