"""How a worker makes itself known to its controller and stays known. Knows addresses and a status, no model."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import httpx

from llava.constants import WORKER_HEART_BEAT_INTERVAL

CONTROLLER_SECONDS = 5.0  # for the controller to answer

logger = logging.getLogger("model_worker")


class Heartbeat:
    """Registers, beats every `interval` seconds and when `beat` is called, and registers anew when it was forgotten.

    A controller that is not there yet, or no longer, is tried again at the next beat. status: gives the worker's
    {model_names, speed, queue_length}.
    """

    def __init__(
        self,
        controller: str,
        worker: str,
        status: Callable[[], dict[str, Any]],
        interval: float = WORKER_HEART_BEAT_INTERVAL,
    ) -> None:
        self.controller = controller
        self.worker = worker
        self.status = status
        self.interval = interval
        self._wake = threading.Event()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._client = httpx.Client(timeout=CONTROLLER_SECONDS, trust_env=False)

    def start(self) -> None:
        self._thread.start()

    def beat(self) -> None:
        """Tell the controller soon how long the queue is; does not wait for it."""
        self._wake.set()

    def stop(self) -> None:
        self._is_over.set()
        self._wake.set()

    def _run(self) -> None:
        is_known = False
        while not self._is_over.is_set():
            try:
                is_known = is_known and self._send_beat()
                if not is_known:
                    self._register()
                    is_known = True
            except (httpx.HTTPError, ValueError, KeyError) as error:
                is_known = False
                logger.warning("the controller at %s cannot be reached: %s", self.controller, error)
            self._wake.wait(self.interval)
            self._wake.clear()

    def _register(self) -> None:
        message = {"worker_name": self.worker, "check_heart_beat": True, "worker_status": self.status()}
        self._post("register_worker", message)
        logger.info("registered at %s as %s", self.controller, self.worker)

    def _send_beat(self) -> bool:
        message = {"worker_name": self.worker, "queue_length": self.status()["queue_length"]}
        return bool(self._post("receive_heart_beat", message)["exist"])

    def _post(self, endpoint: str, message: dict[str, Any]) -> Any:
        response = self._client.post(f"{self.controller}/{endpoint}", json=message)
        response.raise_for_status()
        return response.json()
