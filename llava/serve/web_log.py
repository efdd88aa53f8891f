"""The web page's records: one JSON object a line for each answer and vote, and the pictures that were asked about."""

import datetime
import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

from PIL import Image

from llava.conversation import Conversation

_WRITING = threading.Lock()


class WebLog:
    """`YYYY-MM-DD-conv.json` and `serve_images/YYYY-MM-DD/<md5>.jpg` in `folder`."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @staticmethod
    def today() -> str:
        return datetime.date.today().isoformat()

    def write_answer(
        self, conversation: Conversation, model: str, ip: str, start: float, images: list[Image.Image]
    ) -> None:
        """After an answer that began at `start`, in seconds since the epoch."""
        extra = {"start": round(start, 4), "finish": round(time.time(), 4), "images": self._keep(images)}
        self._write("chat", conversation, model, ip, extra)

    def write_vote(self, kind: str, conversation: Conversation, model: str, ip: str) -> None:
        """kind: upvote, downvote or flag."""
        self._write(kind, conversation, model, ip, {})

    def _write(self, kind: str, conversation: Conversation, model: str, ip: str, extra: dict[str, Any]) -> None:
        entry = {"tstamp": round(time.time(), 4), "type": kind, "model": model, **extra}
        line = json.dumps({**entry, "state": conversation.dict(), "ip": ip}) + "\n"
        self.folder.mkdir(parents=True, exist_ok=True)
        with _WRITING, open(self.folder / f"{self.today()}-conv.json", "a", encoding="utf-8") as file:
            file.write(line)

    def _keep(self, images: list[Image.Image]) -> list[str]:
        """The pictures' md5, after writing those that were not there yet."""
        folder = self.folder / "serve_images" / self.today()
        names = [hashlib.md5(image.tobytes(), usedforsecurity=False).hexdigest() for image in images]
        for name, image in zip(names, images, strict=True):
            path = folder / f"{name}.jpg"
            if not path.exists():
                folder.mkdir(parents=True, exist_ok=True)
                image.convert("RGB").save(path)
        return names
