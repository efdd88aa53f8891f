"""How pages and command lines talk to a controller and its workers; what the other side says of an error is raised."""

from collections.abc import Iterator
from typing import Any

import httpx

from llava.serve.http_service import check_service
from llava.serve.stream import decode

HEADERS = {"User-Agent": "LLaVA Client"}
ASK_SECONDS = 10.0
STREAM_SECONDS = 100.0  # without a word from the worker


class ServiceError(ConnectionError):
    """What a controller or worker reported, or that it could not be reached. code: 0 for the latter."""

    def __init__(self, reason: str, code: int = 0) -> None:
        super().__init__(reason)
        self.code = code


class ControllerClient:
    """Raises ServiceError for a controller that does not answer as one."""

    def __init__(self, address: str) -> None:
        self.address = check_service(address)

    def models(self) -> list[str]:
        """After asking every worker whether it is still there."""
        self._ask("refresh_all_workers")
        return list(self._ask("list_models")["models"])

    def worker_address(self, model: str) -> str | None:
        return self._ask("get_worker_address", {"model": model})["address"] or None

    def refresh(self) -> None:
        self._ask("refresh_all_workers")

    def _ask(self, endpoint: str, message: dict[str, Any] | None = None) -> Any:
        try:
            url = f"{self.address}/{endpoint}"
            response = httpx.post(url, json=message, timeout=ASK_SECONDS, trust_env=False)
            response.raise_for_status()
            return response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise ServiceError(f"the controller at {self.address} does not answer: {error}") from None


def generate(worker: str, message: dict[str, Any]) -> Iterator[str]:
    """The text so far, which begins with the prompt. Raises ServiceError with the worker's own words."""
    url = f"{worker.rstrip('/')}/worker_generate_stream"
    try:
        options: dict[str, Any] = {"headers": HEADERS, "timeout": STREAM_SECONDS, "trust_env": False}
        with httpx.stream("POST", url, json=message, **options) as response:
            for answer in decode(response.iter_bytes()):
                if answer.get("error_code", 0):
                    raise ServiceError(str(answer["text"]), int(answer["error_code"]))
                yield str(answer["text"])
    except (httpx.HTTPError, ValueError) as error:
        raise ServiceError(f"the worker at {worker} broke off: {error}") from None
