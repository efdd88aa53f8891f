"""Services on loopback ports for the tests: in a thread of this process, or as processes of their own."""

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from PIL import Image

from llava.serve.stream import decode


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], Any], seconds: float = 20.0, pause: float = 0.01) -> Any:
    """The first true value of `condition`, which is asked for every `pause` seconds. Fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(pause)
    return value


@contextmanager
def serving(app: Any, port: int | None = None) -> Iterator[str]:
    """The address of an app that runs in a thread."""
    port = port or free_port()
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


@contextmanager
def process(module: str, *arguments: str, folder: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m module ...` in `folder`; its output goes to a file there."""
    root = Path(__file__).parents[2]
    settings = {**os.environ, "PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1", **environment}
    with open(folder / f"{module}-{time.monotonic_ns()}.out", "wb") as output:
        command = [sys.executable, "-m", module, *arguments]
        child = subprocess.Popen(command, cwd=folder, env=settings, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def answers(url: str) -> bool:
    """Whether something serves HTTP there."""
    try:
        httpx.post(url, timeout=2)
    except httpx.TransportError:
        return False
    return True


def post(url: str, message: Any = None) -> httpx.Response:
    return httpx.post(url, json=message, timeout=60)


def ask(address: str, prompt: str, **options: Any) -> list[dict[str, Any]]:
    """All messages of a stream."""
    message = {"model": "llava-tiny", "prompt": prompt, "temperature": 0, "max_new_tokens": 8, **options}
    with httpx.stream("POST", f"{address}/worker_generate_stream", json=message, timeout=60) as response:
        return list(decode(response.iter_bytes()))


def picture(size: tuple[int, int] = (40, 30), color: str = "red") -> str:
    """base64 of a PNG, as clients send it."""
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
