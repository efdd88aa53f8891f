"""Keeps the list of model workers and says which one answers next.

python -m llava.serve.controller --port 10000
"""

import argparse
import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx
from fastapi import FastAPI, Request

from llava.constants import CONTROLLER_HEART_BEAT_EXPIRATION
from llava.errors import readable_errors
from llava.serve.http_service import (
    BadRequest,
    StreamUntilGone,
    check_service,
    field,
    listen,
    new_app,
    read_json,
    run_app,
)
from llava.serve.stream import NO_WORKER, UNREACHABLE, describe, encode, new_request_id
from llava.serve.worker_registry import DISPATCH_METHODS, Registry, WorkerStatus
from llava.utils import build_logger

STATUS_SECONDS = 5.0  # for a worker to say how it is
SWEEP_SECONDS = CONTROLLER_HEART_BEAT_EXPIRATION / 6

logger = logging.getLogger("controller")


class Controller:
    """The registry, and the conversations with workers that keep it right."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        # No time limit for reading: a worker may be busy with others before it begins.
        timeout = httpx.Timeout(STATUS_SECONDS, read=None)
        self.client = httpx.AsyncClient(timeout=timeout, trust_env=False, limits=httpx.Limits(max_connections=None))

    async def register(self, address: str, has_heart_beat: bool, status: WorkerStatus | None) -> None:
        """Raises BadRequest if the worker did not give its status and cannot be asked for it."""
        try:
            status = status or await self.ask_status(address)
        except (httpx.HTTPError, ValueError) as error:
            raise BadRequest(f"the worker at {address} does not tell its status: {describe_error(error)}") from None
        if self.registry.register(address, status, has_heart_beat):
            logger.info("registered %s: %s", address, status)

    async def ask_status(self, address: str) -> WorkerStatus:
        """Raises httpx.HTTPError or ValueError if the worker does not answer as one."""
        response = await self.client.post(f"{address}/worker_get_status", timeout=STATUS_SECONDS)
        response.raise_for_status()
        return WorkerStatus.of(response.json())

    async def refresh(self) -> None:
        """Asks every worker, all at once, and drops those that do not answer."""
        known = self.registry.workers()
        await asyncio.gather(*(self._refresh(name, worker.has_heart_beat) for name, worker in known.items()))

    async def _refresh(self, address: str, has_heart_beat: bool) -> None:
        try:
            self.registry.register(address, await self.ask_status(address), has_heart_beat)
        except (httpx.HTTPError, ValueError) as error:
            logger.info("dropped %s, which does not answer: %s", address, describe_error(error))
            self.registry.drop(address)

    async def forward(self, message: dict[str, Any]) -> AsyncGenerator[bytes]:
        """A worker's stream. A worker that cannot be reached is dropped, and the next one asked."""
        model, request_id = message.get("model"), new_request_id()
        tried: list[str] = []
        failure: Exception | None = None
        while (address := self.registry.choose(str(model), without=tried)) is not None:
            tried.append(address)
            is_begun = False
            try:
                async with self.client.stream("POST", f"{address}/worker_generate_stream", json=message) as response:
                    async for chunk in response.aiter_raw():
                        is_begun = True
                        yield chunk
                    return
            except httpx.HTTPError as error:
                logger.warning("request %s: worker %s failed: %s", request_id, address, describe_error(error))
                failure = error
                self.registry.drop(address)
                if is_begun:
                    break
        if failure is None:
            known = ", ".join(self.registry.models()) or "none"
            text = f"**ERROR** no worker serves the model {model!r}; there are: {known} (request {request_id})"
            yield encode(text, NO_WORKER)
        else:
            reason = ConnectionError(f"the worker at {tried[-1]} failed: {describe_error(failure)}")
            yield encode(describe(reason, request_id), UNREACHABLE)

    async def sweep(self) -> None:
        """Drops silent workers, for ever."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            for name in self.registry.expire():
                logger.info("dropped %s, which was not heard of for %s s", name, self.registry.expiration)


def describe_error(error: Exception) -> str:
    return str(error) or type(error).__name__


def create_app(registry: Registry) -> FastAPI:
    controller = Controller(registry)
    app = new_app("LLaVA controller")

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        sweeper = asyncio.create_task(controller.sweep())
        yield
        sweeper.cancel()
        await controller.client.aclose()

    app.router.lifespan_context = lifespan
    app.state.controller = controller
    _add_bookkeeping(app, controller)

    @app.post("/worker_generate_stream")
    async def worker_generate_stream(request: Request) -> StreamUntilGone:
        return StreamUntilGone(controller.forward(await read_json(request)))

    return app


def _add_bookkeeping(app: FastAPI, controller: Controller) -> None:
    registry = controller.registry

    @app.post("/register_worker")
    async def register_worker(request: Request) -> None:
        message = await read_json(request)
        given = message.get("worker_status")
        try:
            address = check_service(field(message, "worker_name", str))
            status = None if given is None else WorkerStatus.of(given)
        except ValueError as error:
            raise BadRequest(str(error)) from None
        await controller.register(address, field(message, "check_heart_beat", bool, True), status)

    @app.post("/refresh_all_workers")
    async def refresh_all_workers() -> None:
        await controller.refresh()

    @app.post("/list_models")
    async def list_models() -> dict[str, list[str]]:
        registry.expire()
        return {"models": registry.models()}

    @app.post("/get_worker_address")
    async def get_worker_address(request: Request) -> dict[str, str]:
        return {"address": registry.choose(field(await read_json(request), "model", str)) or ""}

    @app.post("/receive_heart_beat")
    async def receive_heart_beat(request: Request) -> dict[str, bool]:
        message = await read_json(request)
        name = field(message, "worker_name", str).rstrip("/")
        return {"exist": registry.hear(name, field(message, "queue_length", int))}

    @app.post("/worker_get_status")
    async def worker_get_status() -> dict[str, Any]:
        registry.expire()
        return registry.aggregate().as_dict()


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=21001)
    parser.add_argument("--dispatch-method", choices=DISPATCH_METHODS, default="shortest_queue")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    build_logger("controller", "controller.log", redirect=False)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logger.info("args: %s", arguments)
    run_app(create_app(Registry(arguments.dispatch_method)), listen(arguments.host, arguments.port))


if __name__ == "__main__":
    with readable_errors():
        main()
