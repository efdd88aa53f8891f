"""Serves a model that runs in an SGLang server to a controller's clients, like `llava.serve.model_worker`.

    python -m sglang.launch_server --model-path DIR --tokenizer-path llava-hf/llava-1.5-7b-hf --port 30000
    python -m llava.serve.sglang_worker --controller http://localhost:21001 --sgl-endpoint http://localhost:30000

Speaks SGLang's own HTTP interface, so SGLang need not be installed here. SGLang knows plain LLaVA models only:
a MoVE-KD student is served by `llava.serve.model_worker`.
"""

import argparse
import base64
import io
import json
import logging
import threading
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import readable_errors
from llava.inference import Decoding
from llava.mm_utils import get_model_name_from_path
from llava.serve.client import ASK_SECONDS, STREAM_SECONDS, ServiceError
from llava.serve.http_service import check_service, listen, run_app
from llava.serve.model_worker import ModelWorker, create_app, logger
from llava.template_choice import until_stop
from llava.utils import build_logger

EVENT = "data: "
DONE = "[DONE]"


class SglangChat:
    """Answers as `llava.inference.Chat` does, from an SGLang server. name: None takes the name of the server's model.

    Raises ServiceError if the server does not say what it serves.
    """

    def __init__(self, endpoint: str, name: str | None = None) -> None:
        self.endpoint = check_service(endpoint)
        self._client = httpx.Client(timeout=httpx.Timeout(STREAM_SECONDS, connect=ASK_SECONDS), trust_env=False)
        self.name = name or get_model_name_from_path(self._served())

    def _served(self) -> str:
        try:
            response = self._client.get(f"{self.endpoint}/get_model_info")
            response.raise_for_status()
            return str(response.json()["model_path"])
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise ServiceError(f"no SGLang server answers at {self.endpoint}: {error}") from None

    def stream(
        self,
        prompt: str,
        images: Sequence[Image.Image],
        decoding: Decoding,
        stop: Sequence[str] | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[str]:
        """The answer so far, growing; ends early when `cancel` is set or the iterator is closed.

        Raises ValueError if the prompt names another number of pictures than there are, ServiceError with the
        server's words if it refuses or breaks off.
        """
        asked, stops = prompt.count(DEFAULT_IMAGE_TOKEN), list(stop or [])
        if asked != len(images):
            raise ValueError(f"the prompt names {asked} picture(s) ({DEFAULT_IMAGE_TOKEN}), {len(images)} were given")
        text = ""
        for text in self._texts(request_body(prompt, images, decoding, stops)):
            if cancel is not None and cancel.is_set():
                break
            yield until_stop(text, stops, is_final=False)
        yield until_stop(text, stops)

    def _texts(self, body: dict[str, Any]) -> Iterator[str]:
        try:
            with self._client.stream("POST", f"{self.endpoint}/generate", json=body) as response:
                if response.is_error:
                    reason = response.read().decode(errors="replace")[:500]
                    raise ServiceError(f"SGLang refused (status {response.status_code}): {reason}")
                yield from parse_events(response.iter_lines())
        except httpx.HTTPError as error:
            raise ServiceError(f"SGLang at {self.endpoint} broke off: {error}") from None


def request_body(prompt: str, images: Sequence[Image.Image], decoding: Decoding, stops: list[str]) -> dict[str, Any]:
    """What SGLang's `/generate` takes."""
    sampling = {
        "max_new_tokens": decoding.max_new_tokens,
        "temperature": decoding.temperature if decoding.temperature > 0.001 else 0.0,
        "top_p": decoding.top_p if decoding.top_p is not None else 1.0,
        "stop": stops,
    }
    pictures = {"image_data": [base64_png(image) for image in images]} if images else {}
    return {"text": prompt, "sampling_params": sampling, "stream": True, **pictures}


def base64_png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def parse_events(lines: Iterator[str]) -> Iterator[str]:
    """The cumulative text of each server-sent event. Raises ServiceError for an event that reports an error."""
    for line in lines:
        if not line.startswith(EVENT) or line == EVENT + DONE:
            continue
        try:
            event = json.loads(line.removeprefix(EVENT))
            text = event.get("text")
        except (ValueError, AttributeError):
            raise ServiceError(f"SGLang sent {line[:80]!r}, which is no event of an answer") from None
        if not isinstance(text, str):
            raise ServiceError(f"SGLang: {event.get('error', event)}")
        yield text


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=21002)
    parser.add_argument("--worker-address", default="http://localhost:21002", help="where others reach this worker")
    parser.add_argument("--controller-address", default="http://localhost:21001")
    parser.add_argument("--model-name", default=None, help="what clients call it; the path's last part if not given")
    parser.add_argument("--sgl-endpoint", required=True, help="the SGLang server's address")
    parser.add_argument("--limit-model-concurrency", type=int, default=5, help="requests answered at a time")
    parser.add_argument("--stream-interval", type=int, default=1, help="tokens between messages")
    parser.add_argument("--no-register", action="store_true", help="do without a controller")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    build_logger("model_worker", f"model_worker_{uuid.uuid4().hex[:6]}.log", redirect=False)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would write a line for every heartbeat
    logger.info("args: %s", arguments)
    controller = None if arguments.no_register else check_service(arguments.controller_address)
    address = check_service(arguments.worker_address)
    listener = listen(arguments.host, arguments.port)
    chat = SglangChat(arguments.sgl_endpoint, arguments.model_name)
    worker = ModelWorker(chat, arguments.limit_model_concurrency, arguments.stream_interval, controller, address)
    run_app(create_app(worker), listener)


if __name__ == "__main__":
    with readable_errors():
        main()
