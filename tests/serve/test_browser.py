"""The pages in a real browser: what a user does and sees, on a desktop and on a phone.

Screenshots go to the folder that `SCREENSHOTS` names, if it is set.
"""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from llava.inference import Chat
from llava.serve.controller import create_app
from llava.serve.demo import build, launch, load_teachers
from llava.serve.demo_examples import find_examples
from llava.serve.gradio_web_server import build_demo
from llava.serve.model_worker import ModelWorker
from llava.serve.model_worker import create_app as create_worker_app
from llava.serve.sessions import serve
from llava.serve.web_page import Settings, WebPage
from llava.serve.worker_registry import Registry, WorkerStatus
from tests.serve.browser import PHONE, opened
from tests.serve.conftest import MOE
from tests.serve.running import free_port, serving, wait_for
from tests.tiny import save_tiny_llava

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ANSWER = "#chatbot .bot .prose"


class PacedChat(Chat):
    """Slow enough that a growing answer can be seen, and stopped."""

    running = 0

    def stream(self, *arguments: Any, **options: Any) -> Iterator[str]:
        self.running += 1
        try:
            for text in super().stream(*arguments, **options):
                time.sleep(0.03)
                yield text
        finally:
            self.running -= 1


def draw(path: Path, color: str) -> str:
    image = Image.new("RGB", (160, 120), "#eeeeee")
    canvas = ImageDraw.Draw(image)
    canvas.ellipse((20, 20, 80, 80), fill=color)
    canvas.rectangle((90, 60, 140, 110), fill="green")
    image.save(path)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, a file that is none, and a checkpoint with examples."""
    root = tmp_path_factory.mktemp("browser")
    draw(root / "red.png", "red")
    draw(root / "blue.png", "blue")
    (root / "broken.png").write_bytes(b"this is no picture")
    (root / "notes.txt").write_text("nor is this")
    checkpoint = save_tiny_llava(root, moe=MOE)
    (checkpoint / "demo_examples").mkdir()
    draw(checkpoint / "demo_examples" / "circle.png", "orange")
    (checkpoint / "demo_examples" / "circle.txt").write_text("What color is the circle?")
    return root


@pytest.fixture(scope="module")
def paced(folder: Path) -> PacedChat:
    loaded = PacedChat.load(str(folder / "llava-tiny"), device="cpu", torch_dtype="float32")
    assert isinstance(loaded, PacedChat)
    return loaded


@pytest.fixture(scope="module")
def demo(paced: PacedChat, folder: Path) -> Iterator[str]:
    port = free_port()
    teachers = load_teachers([f"clip:path={folder / 'clip-tiny'}"], paced)
    page = build(paced, teachers, find_examples(str(folder / "llava-tiny")))
    launch(page, "127.0.0.1", port, prevent_thread_lock=True, quiet=True)
    yield f"http://127.0.0.1:{port}"
    page.close()


def shoot(page: Any, name: str) -> None:
    if target := os.environ.get("SCREENSHOTS"):
        page.wait_for_timeout(400)
        page.screenshot(path=str(Path(target) / f"{name}.png"), full_page=True)


def ask(page: Any, question: str, *pictures: Path) -> None:
    if pictures:
        page.set_input_files("#question input[type=file]", [str(path) for path in pictures])
        page.wait_for_function(
            "count => document.querySelectorAll('#question .thumbnail-item').length == count", arg=len(pictures)
        )
    page.fill("#question textarea", question)
    page.press("#question textarea", "Enter")


def wait_idle(page: Any) -> None:
    page.wait_for_selector("#regenerate:enabled")


def answers(page: Any) -> list[str]:
    return [element.inner_text() for element in page.query_selector_all(ANSWER)]


def test_an_answer_to_a_picture_is_seen_to_grow(demo: str, folder: Path) -> None:
    with opened(demo) as page:
        ask(page, "What is it?", folder / "red.png")
        page.wait_for_selector(ANSWER)
        early = answers(page)[-1]
        page.wait_for_function(
            "([query, text]) => document.querySelector(query).innerText.length > text.length + 20", arg=[ANSWER, early]
        )
        page.click("#stop")
        wait_idle(page)
        assert page.query_selector("#chatbot .user img")
        shoot(page, "desktop-chat")
        assert page.strangers == []


def test_several_turns_and_pictures_regenerate_and_clear(demo: str, folder: Path) -> None:
    with opened(demo) as page:
        page.click("text=Settings")
        page.fill("#settings input[aria-label*='Longest']", "12")
        page.keyboard.press("Tab")
        ask(page, "Compare.", folder / "red.png", folder / "blue.png")
        wait_idle(page)
        ask(page, "And now?")
        page.wait_for_function("document.querySelectorAll('#chatbot .bot .prose').length == 2")
        wait_idle(page)
        assert len(page.query_selector_all("#chatbot .user img")) == 2
        shoot(page, "desktop-two-turns")
        page.click("#regenerate")
        page.wait_for_selector("#stop:enabled")
        wait_idle(page)
        assert len(answers(page)) == 2
        page.click("#clear")
        page.wait_for_selector("#chatbot .user", state="detached")
        assert page.query_selector("#regenerate:disabled")


def test_stop_ends_the_answer_on_the_server_too(demo: str, paced: PacedChat) -> None:
    with opened(demo) as page:
        ask(page, "Tell me a story.")
        page.wait_for_selector(ANSWER)
        assert paced.running == 1
        page.click("#stop")
        wait_for(lambda: paced.running == 0, 30)
        wait_idle(page)
        assert answers(page)[-1]


def test_a_user_who_leaves_is_not_answered_any_longer(demo: str, paced: PacedChat) -> None:
    with opened(demo) as page:
        ask(page, "Tell me a story.")
        page.wait_for_selector(ANSWER)
        assert paced.running == 1
    wait_for(lambda: paced.running == 0, 30)


def test_a_file_that_is_no_picture_is_told_and_the_question_kept(demo: str, folder: Path) -> None:
    with opened(demo) as page:
        ask(page, "What is it?", folder / "broken.png")
        page.wait_for_selector(f"{ANSWER} >> text=not a readable picture")
        assert page.input_value("#question textarea") == "What is it?"
        assert page.query_selector("#regenerate:disabled")  # it would ask without the picture
        shoot(page, "desktop-wrong-file")
        page.set_input_files("#question input[type=file]", str(folder / "notes.txt"))
        page.wait_for_selector("text=/invalid file type|only image/i")


def test_an_error_of_the_model_is_shown_as_it_is(demo: str, paced: PacedChat, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: Any) -> None:
        raise RuntimeError("the GPU fell off the bus")

    with opened(demo) as page:
        monkeypatch.setattr(paced.model, "generate", fail)
        ask(page, "Hello")
        page.wait_for_selector(f"{ANSWER} >> text=RuntimeError: the GPU fell off the bus")
        monkeypatch.undo()
        page.click("#regenerate")
        page.wait_for_selector("#stop:enabled")
        page.click("#stop")
        wait_idle(page)
        assert "fell off" not in answers(page)[-1]


def test_an_example_fills_the_question(demo: str) -> None:
    with opened(demo) as page:
        page.click("text=What color is the circle?")
        page.wait_for_selector("#question .thumbnail-item")
        assert page.input_value("#question textarea") == "What color is the circle?"


def test_the_encoder_tab_takes_the_chats_picture_and_draws_every_map(demo: str, folder: Path) -> None:
    with opened(demo) as page:
        ask(page, "What is it?", folder / "red.png")
        page.wait_for_selector("#stop:enabled")
        page.click("#stop")
        wait_idle(page)
        page.get_by_role("tab", name="What the encoder sees").click()
        for name in ("given", "attention", "features", "teacher-clip", "experts"):
            page.wait_for_selector(f"#map-{name} img")
        before = page.get_attribute("#map-experts img", "src")
        page.fill("#layer input[type=number]", "1")
        page.keyboard.press("Tab")
        page.wait_for_function("src => document.querySelector('#map-experts img').src != src", arg=before)
        page.wait_for_selector("#loads >> text=legend for layer 1")
        assert len(page.query_selector_all("#loads li")) == 3
        shoot(page, "desktop-encoder")
        page.set_viewport_size({"width": 560, "height": 900})  # one map too many for a row
        maps = [page.locator(f"#map-{name}").bounding_box() for name in ("given", "teacher-clip")]
        assert maps[0]["y"] < maps[1]["y"]
        assert maps[0]["width"] == pytest.approx(maps[1]["width"], abs=2)


def test_the_encoder_tab_takes_an_upload_and_tells_of_a_wrong_one(demo: str, folder: Path) -> None:
    with opened(demo) as page:
        page.get_by_role("tab", name="What the encoder sees").click()
        page.wait_for_selector("#encoder-picture input[type=file]", state="attached")
        page.set_input_files("#encoder-picture input[type=file]", str(folder / "blue.png"))
        page.wait_for_selector("#map-features img")
        page.click("#encoder-picture button[aria-label*='lear'], #encoder-picture button[aria-label*='emove']")
        page.wait_for_selector("#map-features img", state="hidden")
        page.set_input_files("#encoder-picture input[type=file]", str(folder / "broken.png"))
        page.wait_for_selector("#encoder-note >> text=not a readable picture")


def test_the_page_fits_a_phone(demo: str, folder: Path) -> None:
    with opened(demo, PHONE, is_phone=True) as page:
        page.wait_for_selector("#question textarea")
        ask(page, "What is it?", folder / "red.png")
        page.wait_for_selector(ANSWER)
        page.tap("#stop")
        wait_idle(page)
        shoot(page, "phone-chat")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        for selector in ("#question", "#stop", "#regenerate", "#clear"):
            box = page.locator(selector).bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= PHONE["width"]
        page.get_by_role("tab", name="What the encoder sees").tap()
        page.wait_for_selector("#map-experts img")
        shoot(page, "phone-encoder")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_a_plain_checkpoint_shows_what_it_can_and_says_what_is_missing(tmp_path: Path, folder: Path) -> None:
    chat = Chat.load(str(save_tiny_llava(tmp_path)), device="cpu", torch_dtype="float32")
    port, page_of = free_port(), build(chat)
    launch(page_of, "127.0.0.1", port, prevent_thread_lock=True, quiet=True)
    try:
        with opened(f"http://127.0.0.1:{port}") as page:
            assert page.query_selector("text=Examples") is None
            page.get_by_role("tab", name="What the encoder sees").click()
            page.wait_for_selector("#encoder-picture input[type=file]", state="attached")
            page.set_input_files("#encoder-picture input[type=file]", str(folder / "blue.png"))
            page.wait_for_selector("#map-attention img")
            page.wait_for_selector("#encoder-note >> text=has no experts")
            page.wait_for_selector("#encoder-note >> text=--teachers")
            assert not page.is_visible("#map-experts")
            shoot(page, "desktop-plain-encoder")
    finally:
        page_of.close()


def test_the_web_server_asks_a_worker_and_records_answer_and_vote(
    paced: PacedChat, folder: Path, tmp_path: Path
) -> None:
    registry = Registry()
    chat = Chat(paced.tokenizer, paced.model, paced.image_processor, 200, paced.name)
    with serving(create_app(registry)) as controller, serving(create_worker_app(ModelWorker(chat))) as worker:
        registry.register(worker, WorkerStatus(("llava-tiny",), 1, 0), False)
        port = free_port()
        page_of = build_demo(WebPage(Settings(controller, log_folder=str(tmp_path))))
        serve(page_of.queue(), "127.0.0.1", port, prevent_thread_lock=True, quiet=True)
        try:
            with opened(f"http://127.0.0.1:{port}/?model=llava-tiny") as page:
                page.wait_for_selector("#picture-0 input[type=file]", state="attached")
                page.set_input_files("#picture-0 input[type=file]", str(folder / "red.png"))
                page.wait_for_selector("#picture-0 img")
                page.fill("#text textarea", "What is it?")
                page.press("#text textarea", "Enter")
                page.wait_for_selector("button:has-text('Upvote'):enabled", timeout=60_000)
                assert len(answers(page)[-1]) > 20
                shoot(page, "desktop-web-server")
                page.click("button:has-text('Upvote')")
                page.wait_for_selector("button:has-text('Upvote'):disabled")
        finally:
            page_of.close()
    (log,) = tmp_path.glob("*-conv.json")
    assert log.read_text().count("\n") == 2
    assert len(list(tmp_path.glob("serve_images/*/*.jpg"))) == 1
    assert threading.active_count() < 200
