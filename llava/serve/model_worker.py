"""Serves one model to a controller's clients.

    python -m llava.serve.model_worker --controller http://localhost:10000 --port 40000 \
        --worker http://localhost:40000 --model-path DIR
"""

import argparse
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request

from llava.errors import readable_errors
from llava.inference import Chat, place
from llava.serve.generation import Answerer, GenerationRequest, Generator
from llava.serve.heartbeat import Heartbeat
from llava.serve.http_service import StreamUntilGone, check_service, listen, new_app, read_json, run_app
from llava.serve.stream import new_request_id
from llava.utils import build_logger

SPEED = 1

logger = logging.getLogger("model_worker")


class ModelWorker:
    """A model, its queue, and, where there is a controller, the heartbeat that reports it."""

    def __init__(
        self,
        chat: Answerer,
        limit: int = 5,
        interval: int = 1,
        controller: str | None = None,
        address: str = "",
        beat_seconds: float | None = None,
    ) -> None:
        self.chat = chat
        self.heartbeat: Heartbeat | None = None
        if controller is not None:
            options = {} if beat_seconds is None else {"interval": beat_seconds}
            self.heartbeat = Heartbeat(controller, address, self.status, **options)
        on_change = self.heartbeat.beat if self.heartbeat else lambda: None
        self.generator = Generator(chat, limit, interval, on_change)

    def status(self) -> dict[str, Any]:
        queue_length = self.generator.places.queue_length
        return {"model_names": [self.chat.name], "speed": SPEED, "queue_length": queue_length}

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        if self.heartbeat:
            self.heartbeat.start()
        yield
        if self.heartbeat:
            self.heartbeat.stop()
        self.generator.close()


def create_app(worker: ModelWorker) -> FastAPI:
    app = new_app("LLaVA model worker")
    app.router.lifespan_context = worker.lifespan
    app.state.worker = worker

    @app.post("/worker_get_status")
    async def worker_get_status() -> dict[str, Any]:
        return worker.status()

    @app.post("/worker_generate_stream")
    async def worker_generate_stream(request: Request) -> StreamUntilGone:
        generation, request_id = GenerationRequest.of(await read_json(request)), new_request_id()
        logger.info("request %s: %s", request_id, summary(generation))
        return StreamUntilGone(worker.generator.stream(generation, request_id))

    return app


def summary(request: GenerationRequest) -> dict[str, Any]:
    """For the log; pictures are counted, not written."""
    return {
        "prompt": request.prompt[:4000],
        "images": len(request.images),
        "temperature": request.temperature,
        "top_p": request.top_p,
        "max_new_tokens": request.max_new_tokens,
        "stop": list(request.stops),
    }


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=21002)
    parser.add_argument("--worker-address", default="http://localhost:21002", help="where others reach this worker")
    parser.add_argument("--controller-address", default="http://localhost:21001")
    parser.add_argument("--model-path", default="facebook/opt-350m")
    parser.add_argument("--model-base", default=None)
    parser.add_argument("--model-name", default=None, help="what clients call it; the path's last part if not given")
    parser.add_argument("--device", default="cuda", help="cuda takes the CPU where there is no GPU")
    parser.add_argument("--multi-modal", action="store_true", help="deprecated: the checkpoint's config decides")
    parser.add_argument("--limit-model-concurrency", type=int, default=5, help="requests answered at a time")
    parser.add_argument("--stream-interval", type=int, default=1, help="tokens between messages")
    parser.add_argument("--no-register", action="store_true", help="do without a controller")
    parser.add_argument("--load-8bit", action="store_true")
    parser.add_argument("--load-4bit", action="store_true")
    parser.add_argument("--use-flash-attn", action="store_true")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    build_logger("model_worker", f"model_worker_{uuid.uuid4().hex[:6]}.log", redirect=False)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would write a line for every heartbeat
    logger.info("args: %s", arguments)
    if arguments.multi_modal:
        logger.warning("--multi-modal is deprecated and not needed: the checkpoint's config decides")
    controller = None if arguments.no_register else check_service(arguments.controller_address)
    address = check_service(arguments.worker_address)
    listener = listen(arguments.host, arguments.port)
    chat = Chat.load(
        arguments.model_path,
        arguments.model_base,
        name=arguments.model_name,
        load_8bit=arguments.load_8bit,
        load_4bit=arguments.load_4bit,
        use_flash_attn=arguments.use_flash_attn,
        **place(arguments.device),
    )
    worker = ModelWorker(chat, arguments.limit_model_concurrency, arguments.stream_interval, controller, address)
    run_app(create_app(worker), listener)


if __name__ == "__main__":
    with readable_errors():
        main()
