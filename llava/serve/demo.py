"""A page to chat with one checkpoint and to see what its encoder sees; one process, nothing else to start.

python -m llava.serve.demo --model-path DIR
"""

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

# Before gradio is imported: the page reports nothing to anyone.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from llava.conversation import conv_templates
from llava.errors import readable_errors
from llava.inference import Chat, place
from llava.serve.demo_chat import ChatTab
from llava.serve.demo_encoder import EncoderTab
from llava.serve.demo_examples import Example, find_examples
from llava.serve.sessions import serve

CACHE_SECONDS = (3600, 24 * 3600)  # how often uploads are looked through, and how old they may become

CSS = """
.gradio-container { width: 100% !important; max-width: 1000px !important; margin: 0 auto !important; }
#title h1 { margin: 0.2em 0; font-size: 1.35em; overflow-wrap: anywhere; }
.actions { gap: 8px; }
.maps { display: grid !important; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); }
.maps > * { min-width: 0 !important; }
.load p { margin: 0 0 8px; }
.load .key { display: inline-flex; align-items: center; margin-right: 14px; white-space: nowrap; }
.load .key i { width: 14px; height: 14px; border-radius: 3px; margin-right: 6px; }
.load ol { list-style: none; margin: 0; padding: 0; }
.load li { display: flex; align-items: center; height: 14px; margin: 0 0 2px; opacity: 0.55; }
.load li.chosen { opacity: 1; }
.load li em { width: 2.2em; font-size: 11px; font-style: normal; }
.load li div { display: flex; flex: 1; height: 100%; border-radius: 3px; overflow: hidden; }
.load li b { display: block; height: 100%; }
@media (max-width: 640px) {
  #chatbot { height: 50vh !important; }
}
"""


def build(chat: Chat, teachers: Mapping[str, Any] | None = None, examples: Sequence[Example] = ()) -> gr.Blocks:
    """The page, ready to launch."""
    with gr.Blocks(title=f"{chat.name} - LLaVA", delete_cache=CACHE_SECONDS, analytics_enabled=False) as page:
        gr.Markdown(f"# {chat.name}", elem_id="title")
        with gr.Tabs():
            with gr.Tab("Chat", id="chat"):
                chat_tab = ChatTab(chat, list(examples))
            with gr.Tab("What the encoder sees", id="encoder") as tab:
                encoder_tab = EncoderTab(chat, teachers or {})
        encoder_tab.connect(tab, chat_tab)
        page.unload(chat_tab.sessions.leave)
    return page.queue(default_concurrency_limit=4)


def launch(page: gr.Blocks, host: str, port: int, share: bool = False, **options: Any) -> Any:
    """Serves the page; `options` are gradio's."""
    return serve(page, host, port, share, css=CSS, theme=gr.themes.Default(), **options)


def load_teachers(specs: Sequence[str], chat: Chat) -> Mapping[str, Any]:
    """Live teachers beside the student. Raises ValueError for specs that name none, or weights that are missing."""
    if not specs:
        return {}
    from llava.model.multimodal_encoder.move_kd.teachers import build_teachers

    return build_teachers(specs, dtype=chat.model.dtype, device=chat.model.device)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True, help="a checkpoint: folder or hub id")
    parser.add_argument("--model-base", default=None, help="the language model of a LoRA or projector-only checkpoint")
    parser.add_argument("--load-4bit", action="store_true")
    parser.add_argument("--load-8bit", action="store_true")
    parser.add_argument("--device", default="auto", help="auto takes a GPU where there is one")
    templates: dict[str, Any] = {"choices": sorted(conv_templates), "metavar": "TEMPLATE"}
    parser.add_argument("--conv-mode", default=None, help="prompt template, if not the checkpoint's own", **templates)
    shown = "teachers to show beside the student: clip sam:path=DIR ..."
    parser.add_argument("--teachers", nargs="+", default=[], metavar="SPEC", help=shown)
    parser.add_argument("--examples", metavar="DIR", help="examples, if not those in the checkpoint's demo_examples")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--share", action="store_true", help="also through a public gradio.live address")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s | %(levelname)s | %(name)s | %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    examples = find_examples(arguments.model_path, arguments.examples)
    chat = Chat.load(
        arguments.model_path,
        arguments.model_base,
        arguments.conv_mode,
        load_4bit=arguments.load_4bit,
        load_8bit=arguments.load_8bit,
        **place(arguments.device),
    )
    teachers = load_teachers(arguments.teachers, chat)
    launch(build(chat, teachers, examples), arguments.host, arguments.port, arguments.share)


if __name__ == "__main__":
    with readable_errors():
        main()
