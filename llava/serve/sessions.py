"""What the web pages share: who is being answered, so that it can end; boxes and copies for pictures."""

import threading
from typing import Any

import gradio as gr
from gradio.processing_utils import save_pil_to_cache
from gradio.utils import get_upload_folder
from PIL import Image

SHOWN_SIDE = 768  # pixels of a picture's longer side on a page


class Sessions:
    """The running answer of each browser session, as an event that ends it."""

    def __init__(self) -> None:
        self._running: dict[str, threading.Event] = {}

    def begin(self, request: gr.Request) -> threading.Event:
        event = self._running[str(request.session_hash)] = threading.Event()
        return event

    def cancel(self, request: gr.Request) -> None:
        """Ends the session's answer where it is."""
        if event := self._running.get(str(request.session_hash)):
            event.set()

    def leave(self, request: gr.Request) -> None:
        """The user has closed the page."""
        self.cancel(request)
        self._running.pop(str(request.session_hash), None)


def copy_for_page(image: Image.Image) -> str:
    """The file of a smaller copy that a page may show, whatever was uploaded."""
    shown = image.copy()
    shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return save_pil_to_cache(shown, get_upload_folder(), name="picture", format="png")


class PictureBox(gr.Image):
    """An image box that gives the file as it was uploaded; it is decoded under our own limits."""

    is_template = True

    def preprocess(self, payload: Any) -> str | None:
        return None if payload is None else str(payload.path)
