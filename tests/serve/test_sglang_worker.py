"""The worker in front of an SGLang server, for which a few lines stand in."""

import base64
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from llava.remote import decode_image
from llava.serve.client import ServiceError
from llava.serve.model_worker import ModelWorker, create_app
from llava.serve.sglang_worker import SglangChat, parse_arguments
from tests.serve.running import ask, picture, post, serving

PROMPT = "USER: <image>\nWhat is it? ASSISTANT:"


class Stub:
    """SGLang's native interface. requests: what it was asked."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.app = FastAPI()
        self.app.get("/get_model_info")(lambda: {"model_path": "/models/llava-v1.5-7b/"})
        self.app.post("/generate")(self.generate)

    async def generate(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        if "refuse" in body["text"]:
            return JSONResponse({"error": {"message": "the input is longer than the context"}}, 400)

        async def events() -> AsyncIterator[str]:
            for text in ("a", "a red", "a red</s> and more"):
                yield f"data: {json.dumps({'text': text, 'meta_info': {}})}\n\n"
            if "break" in body["text"]:
                yield f"data: {json.dumps({'error': {'message': 'out of memory'}})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")


@pytest.fixture(scope="module")
def stub() -> Stub:
    return Stub()


@pytest.fixture(scope="module")
def endpoint(stub: Stub) -> Iterator[str]:
    with serving(stub.app) as address:
        yield address


@pytest.fixture(scope="module")
def worker(endpoint: str) -> Iterator[str]:
    with serving(create_app(ModelWorker(SglangChat(endpoint)))) as address:
        yield address


def test_the_worker_takes_the_name_of_the_model_that_sglang_serves(worker: str) -> None:
    assert post(f"{worker}/worker_get_status").json()["model_names"] == ["llava-v1.5-7b"]


def test_the_stream_is_that_of_any_other_worker(worker: str, stub: Stub) -> None:
    messages = ask(worker, PROMPT, images=[picture()], stop="</s>", max_new_tokens=7)
    texts = list(dict.fromkeys(message["text"] for message in messages))
    assert texts == [PROMPT + text for text in ("a", "a red")]
    body = stub.requests[-1]
    assert body["text"] == PROMPT
    assert body["stream"] is True
    assert body["sampling_params"] == {"max_new_tokens": 7, "temperature": 0.0, "top_p": 1.0, "stop": ["</s>"]}
    assert decode_image(base64.b64decode(body["image_data"][0])).size == (40, 30)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("USER: refuse ASSISTANT:", "the input is longer than the context"),
        ("USER: break ASSISTANT:", "out of memory"),
        (PROMPT, "names 1 picture"),
    ],
)
def test_what_sglang_says_of_an_error_reaches_the_user(worker: str, prompt: str, reason: str) -> None:
    last = ask(worker, prompt)[-1]
    assert last["error_code"] == 1
    assert reason in last["text"]


def test_an_endpoint_without_sglang_is_told_at_the_start(worker: str) -> None:
    with pytest.raises(ServiceError, match="no SGLang server answers"):
        SglangChat(worker)


def test_the_flags_are_the_published_ones() -> None:
    arguments = parse_arguments(
        ["--sgl-endpoint", "http://127.0.0.1:30000", "--controller", "http://c", "--worker", "w"]
    )
    assert (arguments.port, arguments.limit_model_concurrency, arguments.stream_interval) == (21002, 5, 1)
    assert (arguments.controller_address, arguments.model_name, arguments.no_register) == ("http://c", None, False)
