"""The web page in front of a controller: several models, votes, records. For one model `llava.serve.demo` is less work.

python -m llava.serve.gradio_web_server --controller http://localhost:21001 --model-list-mode reload
"""

import argparse
import logging
import os
from typing import Any

# Before gradio is imported: the page reports nothing to anyone.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from llava.errors import readable_errors
from llava.serve.sessions import serve
from llava.serve.upload_boxes import PictureBox
from llava.serve.web_page import Settings, WebPage
from llava.utils import build_logger

TITLE = "# LLaVA: Large Language and Vision Assistant"
TERMS = """### Terms of use
This is a research preview with few safety measures: it can say things that are wrong or offensive. Do not use it for
anything illegal, harmful, violent, racist or sexual. What you send may be recorded and used for research. Flag answers
that should not have been given.
"""
LICENSE = """### License
The weights keep the licenses of the language model, the vision encoders and the data that they were made from.
"""
VOTES = ("Upvote", "Downvote", "Flag")
HIDDEN: dict[str, Any] = {"api_visibility": "private"}

logger = logging.getLogger("gradio_web_server")


class Layout:
    """The page's components, wired to its events."""

    def __init__(self, page: WebPage) -> None:
        self.page = page
        self.session = gr.State(None)
        if not page.settings.is_embedded:
            gr.Markdown(TITLE)
        with gr.Row():
            with gr.Column(scale=3, min_width=280):
                self._add_choices()
            with gr.Column(scale=8, min_width=320):
                self._add_chat()
        if not page.settings.is_embedded:
            gr.Markdown(TERMS)
            gr.Markdown(LICENSE)
        self._connect_questions()
        self._connect_buttons()

    def _add_choices(self) -> None:
        models = self.page.models
        self.model = gr.Dropdown(models, value=next(iter(models), None), show_label=False, elem_id="model")
        self.boxes = [
            PictureBox(show_label=False, type="filepath", sources=["upload"], height=260, elem_id=f"picture-{number}")
            for number in range(self.page.settings.boxes)
        ]
        modes = ["Crop", "Resize", "Pad", "Default"]
        self.mode = gr.Radio(modes, value="Default", label="Preprocess for non-square image", visible=False)
        with gr.Accordion("Parameters", open=False):
            self.temperature = gr.Slider(0, 1, 0.2, step=0.1, label="Temperature")
            self.top_p = gr.Slider(0, 1, 0.7, step=0.1, label="Top P")
            self.length = gr.Slider(0, 1024, 512, step=64, label="Max output tokens")

    def _add_chat(self) -> None:
        self.chatbot = gr.Chatbot(
            label="LLaVA Chatbot",
            height=550,
            elem_id="chatbot",
            feedback_options=None,
            allow_tags=False,
            buttons=["copy"],
        )
        with gr.Row():
            hint = "Enter text and press ENTER"
            self.text = gr.Textbox(show_label=False, placeholder=hint, container=False, scale=8, elem_id="text")
            self.send = gr.Button("Send", variant="primary", min_width=60, scale=1)
        with gr.Row():
            self.votes = [gr.Button(name, interactive=False, min_width=60, size="sm") for name in VOTES]
            self.again = gr.Button("Regenerate", interactive=False, min_width=60, size="sm")
            self.clear = gr.Button("Clear", interactive=False, min_width=60, size="sm")

    @property
    def actions(self) -> list[gr.Button]:
        return [*self.votes, self.again, self.clear]

    def _connect_questions(self) -> None:
        page, session, chatbot = self.page, self.session, self.chatbot
        limit: dict[str, Any] = {"concurrency_limit": page.settings.concurrency, "concurrency_id": "answer"}
        asked = [session, self.model, self.temperature, self.top_p, self.length]
        answer: dict[str, Any] = {"fn": page.answer, "inputs": asked, "outputs": [session, chatbot, *self.actions]}
        question = [session, self.text, self.mode, *self.boxes]
        added = gr.on(
            [self.text.submit, self.send.click],
            page.add_text,
            question,
            [session, chatbot, self.text, *self.boxes],
            show_progress="hidden",  # a refusal would cover the question
            **HIDDEN,
        )
        added.success(**answer, **HIDDEN, **limit)
        again = self.again.click(page.regenerate, [session, self.mode], [session, chatbot], **HIDDEN)
        again.success(**answer, **HIDDEN, **limit)

    def _connect_buttons(self) -> None:
        page = self.page
        for name, button in zip(VOTES, self.votes, strict=True):
            button.click(page.vote, [gr.State(name.lower()), self.session, self.model], self.votes, **HIDDEN)
        cleared = [self.session, self.chatbot, self.text, *self.boxes, *self.actions]
        gr.on([self.clear.click, self.chatbot.clear], page.clear, None, cleared, queue=False, **HIDDEN)


def build_demo(page: WebPage) -> gr.Blocks:
    with gr.Blocks(title="LLaVA", analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as demo:
        layout = Layout(page)
        demo.load(page.load, None, layout.model, queue=False, **HIDDEN)
        demo.unload(page.sessions.leave)
    return demo


def parse_arguments(argv: list[str] | None, description: str | None, concurrency: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=None)
    parser.add_argument("--controller-url", default="http://localhost:21001")
    parser.add_argument("--concurrency-count", type=int, default=concurrency, help="answers at a time")
    parser.add_argument("--model-list-mode", choices=["once", "reload"], default="once")
    parser.add_argument("--share", action="store_true")
    parser.add_argument("--moderate", action="store_true", help="ask OpenAI about every question (OPENAI_API_KEY)")
    parser.add_argument("--embed", action="store_true", help="without title, terms and license")
    return parser.parse_args(argv)


def run(argv: list[str] | None, description: str | None, boxes: int, concurrency: int) -> None:
    arguments = parse_arguments(argv, description, concurrency)
    build_logger("gradio_web_server", "gradio_web_server.log", redirect=False)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logger.info("args: %s", arguments)
    if arguments.moderate and not os.environ.get("OPENAI_API_KEY"):
        raise ValueError("--moderate asks OpenAI and needs OPENAI_API_KEY in the environment")
    settings = Settings(
        controller=arguments.controller_url,
        boxes=boxes,
        concurrency=arguments.concurrency_count,
        reloads_models=arguments.model_list_mode == "reload",
        is_moderated=arguments.moderate,
        is_embedded=arguments.embed,
    )
    serve(build_demo(WebPage(settings)).queue(), arguments.host, arguments.port, arguments.share)


def main(argv: list[str] | None = None) -> None:
    run(argv, __doc__, boxes=1, concurrency=16)


if __name__ == "__main__":
    with readable_errors():
        main()
