"""What the web pages share: who is being answered, so that it can end; copies of pictures; serving under limits."""

import threading
from typing import Any

import gradio as gr
from gradio.processing_utils import save_pil_to_cache
from gradio.route_utils import API_PREFIX
from gradio.utils import get_upload_folder
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava.remote import SERVING_LIMITS

SHOWN_SIDE = 768  # pixels of a picture's longer side on a page
UPLOAD_PATH = f"{API_PREFIX}/upload"
UPLOAD_BYTES = 5 * SERVING_LIMITS.bytes  # of all files of a request; gradio itself limits only each of them
REQUEST_BYTES = 2**20  # of any other request
# Each page has its own button to clear, and shares nothing with other sites. In `head`, since gradio would confine
# what is given as css to the inside of the page's margins.
HEAD = """<style>
#chatbot .icon-button-wrapper:has([aria-label="Share"], [aria-label="Download"], [aria-label="Clear"]) {
  display: none !important;
}
@media (max-width: 640px) { .gradio-container .app { padding: 8px !important; } }
</style>"""


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


class LimitBodies:
    """ASGI middleware for pages: requests are small, but for uploads."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_upload = scope["path"] == UPLOAD_PATH
        limit = UPLOAD_BYTES if is_upload else REQUEST_BYTES
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                reason = f"the request exceeds the maximum allowed size of {limit:,} bytes"
                # Gradio removes what it has written of an upload for its parser's own exception only.
                raise MultiPartException(reason) if is_upload else HTTPException(413, reason)
            return message

        await self.app(scope, counted, send)


def serve(page: gr.Blocks, host: str, port: int | None, share: bool = False, **options: Any) -> Any:
    """Serves a page under limits; `options` are gradio's. Raises ValueError for a port that cannot be had."""
    try:
        return page.launch(
            server_name=host,
            server_port=port,
            share=share,
            show_error=True,
            max_file_size=SERVING_LIMITS.bytes,
            footer_links=[],
            ssr_mode=False,
            app_kwargs={"middleware": [Middleware(LimitBodies)]},
            head=HEAD,
            **options,
        )
    except (OSError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the page cannot be served at {host} ({reason}); try another --port") from None
