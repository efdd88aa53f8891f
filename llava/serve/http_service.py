"""What the HTTP services share: bodies under a limit, answers that end when the client leaves, checks of addresses."""

import json
import socket
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any
from urllib.parse import urlsplit

import anyio
import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from llava.serve.stream import FAILED

BODY_LIMIT = 32 * 2**20  # bytes of a request; a picture of 1344 pixels takes about 4 MiB as base64 PNG
BODY_SECONDS = 60.0  # for a request to arrive
SEND_SECONDS = 60.0  # for a client to take one message


class BadRequest(Exception):
    """A request that cannot be answered, and why. status: of the HTTP response."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


def new_app(title: str) -> FastAPI:
    """An app without documentation pages, which would load scripts from elsewhere, that answers BadRequest as JSON."""
    app = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(BadRequest)
    async def refuse(request: Request, error: BadRequest) -> JSONResponse:
        return JSONResponse({"text": str(error), "error_code": FAILED}, error.status)

    return app


async def read_json(request: Request, limit: int = BODY_LIMIT) -> dict[str, Any]:
    """The JSON object in a request's body. Raises BadRequest for anything else, or one that is too large or slow."""
    try:
        with anyio.fail_after(BODY_SECONDS):
            body = await _read(request, limit)
    except TimeoutError:
        raise BadRequest(f"the request did not arrive within {BODY_SECONDS:.0f} s", 408) from None
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the request's body is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise BadRequest(f"the request's body must be a JSON object, not {type(message).__name__}")
    return message


async def _read(request: Request, limit: int) -> bytes:
    announced = request.headers.get("content-length", "0")
    too_large = BadRequest(f"the request has more than {limit:,} bytes", 413)
    if announced.isdigit() and int(announced) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


def field(message: dict[str, Any], name: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
    """A checked entry of a JSON object. Raises BadRequest if it is missing without a default, or of another kind."""
    value = message.get(name, default)
    if value is ...:
        raise BadRequest(f"the request lacks {name!r}; it has {sorted(message)}")
    if value is default:
        return value
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(known.__name__ for known in kinds)
        raise BadRequest(f"{name!r} must be {names}, not {type(value).__name__}")
    return value


def check_service(address: str) -> str:
    """The address of a worker or controller, without a slash at its end. Raises ValueError for what is none."""
    try:
        parts = urlsplit(address)
        is_service = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_service = False
    if not is_service:
        raise ValueError(f"{address!r} is no address of a service; write it as http://host:port")
    return address.rstrip("/")


def listen(host: str, port: int) -> socket.socket:
    """A socket for `run_app`, so that a taken port is known before anything else is done. Raises ValueError for one."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ValueError(f"cannot listen at {host}, port {port} ({error}); try another --port") from None


def run_app(app: FastAPI, listener: socket.socket) -> None:
    """Serves until the process is told to end."""
    host, port = listener.getsockname()[:2]  # for the log
    config = uvicorn.Config(app, host=host, port=port, log_level="info", timeout_graceful_shutdown=5)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


class StreamUntilGone(Response):
    """Messages as they come, in pieces of their own. When the client leaves, or no longer takes what it is sent, the
    generator is closed at once: in its `finally` it ends what it is doing, without waiting for anything."""

    media_type = "application/octet-stream"

    def __init__(self, messages: AsyncGenerator[bytes], status_code: int = 200) -> None:
        self.messages = messages
        self.status_code = status_code
        self.background = None
        self.body = b""
        self.init_headers(None)
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            async with aclosing(self.messages) as messages:
                group.start_soon(watch)
                await self._send_all(messages, send)
            group.cancel_scope.cancel()

    async def _send_all(self, messages: AsyncGenerator[bytes], send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for message in messages:
            with anyio.move_on_after(SEND_SECONDS) as patience:
                await send({"type": "http.response.body", "body": message, "more_body": True})
            if patience.cancelled_caught:
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})
