"""The worker's endpoints over real sockets: payloads, stream, errors, limits, clients that leave."""

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from llava.inference import Chat, Decoding
from llava.remote import decode_images
from llava.serve import http_service, model_worker
from llava.serve.generation import MAX_UNREAD, TOO_LONG, Outbox
from llava.serve.model_worker import ModelWorker, create_app, parse_arguments
from tests.serve.running import ask, picture, post, serving, wait_for

PROMPT = "USER: <image>\nWhat is it? ASSISTANT:"
TEXT_PROMPT = "USER: Hello ASSISTANT:"


class SlowChat(Chat):
    """Takes its time for every token and counts what runs at once."""

    running = most = 0
    lock = threading.Lock()

    def stream(self, *arguments: Any, **options: Any) -> Iterator[str]:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            for text in super().stream(*arguments, **options):
                time.sleep(0.02)
                yield text
        finally:
            with self.lock:
                self.running -= 1


@pytest.fixture(scope="module")
def slow_chat(chat: Chat) -> SlowChat:
    return SlowChat(chat.tokenizer, chat.model, chat.image_processor, chat.context_length, chat.name)


@pytest.fixture(scope="module")
def worker(chat: Chat) -> Iterator[str]:
    with serving(create_app(ModelWorker(chat))) as address:
        yield address


def test_the_status_names_the_model_its_speed_and_its_queue(worker: str) -> None:
    assert post(f"{worker}/worker_get_status").json() == {"model_names": ["llava-tiny"], "speed": 1, "queue_length": 0}


def test_text_is_cumulative_and_begins_with_the_prompt(worker: str, chat: Chat) -> None:
    messages = ask(worker, PROMPT, images=[picture()])
    texts = [message["text"] for message in messages]
    assert all(set(message) == {"text", "error_code"} and message["error_code"] == 0 for message in messages)
    assert all(text.startswith(PROMPT) for text in texts)
    assert all(later.startswith(earlier.rstrip()) for earlier, later in pairwise(texts))

    image = decode_images([base64.b64decode(picture())])
    expected = chat.answer_all([PROMPT], [image], Decoding(temperature=0, max_new_tokens=8))[0]
    assert texts[-1] == PROMPT + expected


def test_each_message_is_followed_by_a_zero_byte(worker: str) -> None:
    response = post(f"{worker}/worker_generate_stream", {"model": "m", "prompt": TEXT_PROMPT, "max_new_tokens": 3})
    pieces = response.content.split(b"\0")
    assert pieces[-1] == b""
    assert all(json.loads(piece)["error_code"] == 0 for piece in pieces[:-1])


def test_absent_and_null_fields_take_their_defaults(worker: str) -> None:
    message = {"model": "llava-tiny", "prompt": TEXT_PROMPT, "images": None, "stop": None, "max_new_tokens": 4}
    assert post(f"{worker}/worker_generate_stream", message).content
    assert ask(worker, TEXT_PROMPT, stop=None, images=None)[-1]["error_code"] == 0


def test_numbers_may_come_as_strings(worker: str) -> None:
    options = {"temperature": 0, "top_p": 0.9, "max_new_tokens": 4}
    assert ask(worker, TEXT_PROMPT, **{name: str(value) for name, value in options.items()}) == ask(
        worker, TEXT_PROMPT, **options
    )


def test_a_stop_string_ends_the_answer_and_is_removed(worker: str) -> None:
    whole = ask(worker, TEXT_PROMPT, max_new_tokens=20)[-1]["text"]
    answer = whole[len(TEXT_PROMPT) :]
    stop = answer.split()[2]
    assert (
        ask(worker, TEXT_PROMPT, max_new_tokens=20, stop=stop)[-1]["text"]
        == TEXT_PROMPT + answer.split(stop)[0].strip()
    )


def test_new_tokens_are_capped(worker: str, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def generate(**options: Any) -> None:
        seen.append(options["max_new_tokens"])
        options["streamer"].end()

    monkeypatch.setattr(chat.model, "generate", generate)
    monkeypatch.setattr(chat, "context_length", 4000)
    ask(worker, TEXT_PROMPT, max_new_tokens=10**9)
    assert seen == [1024]


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"max_new_tokens": -5}])
def test_no_room_for_an_answer_says_so_in_the_published_words(worker: str, options: dict[str, int]) -> None:
    assert ask(worker, TEXT_PROMPT, **options) == [{"text": TEXT_PROMPT + TOO_LONG, "error_code": 0}]


@pytest.mark.parametrize("count", [600, 10**6])
def test_a_prompt_beyond_the_context_says_so_in_the_published_words(worker: str, count: int) -> None:
    prompt = "word " * count
    assert ask(worker, prompt) == [{"text": prompt + TOO_LONG, "error_code": 0}]


@pytest.mark.parametrize(
    ("prompt", "images", "reason"),
    [
        (TEXT_PROMPT, [picture()], "names 0 picture"),
        (PROMPT, [], "names 1 picture"),
        (PROMPT, [picture()] * 2, "2 were given"),
        (PROMPT, ["/etc/passwd"], "not base64"),
        (PROMPT, ["file:///etc/passwd"], "not base64"),
        (PROMPT, ["http://127.0.0.1/a.png"], "not base64"),
        (PROMPT, ["aGVsbG8="], "not a readable picture"),
        (PROMPT, [""], "not a readable picture"),
    ],
)
def test_pictures_that_cannot_be_used_are_refused_with_the_reason_and_a_request_id(
    worker: str, prompt: str, images: list[str], reason: str
) -> None:
    (message,) = ask(worker, prompt, images=images)
    assert message["error_code"] == 1
    assert reason in message["text"]
    assert "(request " in message["text"]


def test_a_data_address_is_taken_as_the_base64_that_it_holds(worker: str) -> None:
    data = "data:image/png;base64," + picture()
    assert ask(worker, PROMPT, images=[data]) == ask(worker, PROMPT, images=[picture()])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"{}", "lacks 'prompt'"),
        (b'{"prompt": 3}', "'prompt' must be str, not int"),
        (b'{"prompt": "a", "images": "x"}', "'images' must be list, not str"),
        (b'{"prompt": "a", "images": [1]}', "'images' must hold strings"),
        (b'{"prompt": "a", "stop": {}}', "'stop' must be str or list"),
        (b'{"prompt": "a", "temperature": "hot"}', "'temperature' must be a finite number, not 'hot'"),
        (b'{"prompt": "a", "max_new_tokens": NaN}', "'max_new_tokens' must be a finite number"),
        (b'{"prompt": "a", "max_new_tokens": true}', "'max_new_tokens' must be int or float or str, not bool"),
        (b"\xff\xfe{}", "not JSON"),
    ],
)
def test_a_malformed_payload_is_refused_with_the_reason(worker: str, body: bytes, reason: str) -> None:
    response = httpx.post(f"{worker}/worker_generate_stream", content=body, timeout=10)
    assert response.status_code == 400
    assert response.json()["error_code"] == 1
    assert reason in response.json()["text"]


@pytest.mark.parametrize("options", [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 7}, {"top_p": -0.1}])
def test_decoding_without_a_meaning_is_refused(worker: str, options: dict[str, float]) -> None:
    body = json.dumps({"prompt": TEXT_PROMPT, "max_new_tokens": 2, **options})
    response = httpx.post(f"{worker}/worker_generate_stream", content=body, timeout=10)
    assert json.loads(response.content.rstrip(b"\0"))["error_code"] == 1


def test_sampling_at_the_smallest_top_p_works(worker: str) -> None:
    assert ask(worker, TEXT_PROMPT, temperature=0.7, top_p=0)[-1]["error_code"] == 0


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_payload_beyond_the_limit_is_refused(
    worker: str, is_announced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(34):
            yield b" " * 2**20

    data = b" " * (http_service.BODY_LIMIT + 1) if is_announced else pieces()
    try:
        response = httpx.post(f"{worker}/worker_generate_stream", content=data, timeout=10)
    except httpx.TransportError:
        return  # hung up on in the middle of sending
    assert response.status_code == 413
    assert "bytes" in response.json()["text"]


def test_the_real_error_reaches_the_user(worker: str, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: Any) -> None:
        raise RuntimeError("CUDA error: the GPU fell off the bus")

    monkeypatch.setattr(chat.model, "generate", fail)
    message = ask(worker, TEXT_PROMPT)[-1]
    assert message["error_code"] == 1
    assert "RuntimeError: CUDA error: the GPU fell off the bus (request " in message["text"]


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/file=/etc/passwd", "/../../etc/passwd", "/static/x"])
def test_there_is_no_other_endpoint(worker: str, path: str) -> None:
    assert httpx.get(worker + path, timeout=10).status_code == 404


def test_a_hundred_requests_at_once_are_answered_and_the_limit_holds(slow_chat: SlowChat) -> None:
    slow_chat.most = 0
    worker = ModelWorker(slow_chat, limit=5)
    with serving(create_app(worker)) as address, ThreadPoolExecutor(100) as pool:
        jobs = [pool.submit(ask, address, PROMPT, images=[picture()], max_new_tokens=2) for _ in range(100)]
        wait_for(lambda: worker.status()["queue_length"] > 50)
        assert post(f"{address}/worker_get_status").elapsed.total_seconds() < 2
        found = [job.result() for job in jobs]
        wait_for(lambda: worker.status()["queue_length"] == 0)
    assert {messages[-1]["text"] for messages in found} == {found[0][-1]["text"]}
    assert all(message["error_code"] == 0 for messages in found for message in messages)
    assert slow_chat.most == 5


def half_a_request(address: str, **options: Any) -> socket.socket:
    """A client that has asked and not yet read the answer."""
    body = json.dumps({"prompt": TEXT_PROMPT, "temperature": 0, "max_new_tokens": 400, **options}).encode()
    host, port = address.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)))
    head = f"POST /worker_generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body)
    return client


def test_a_client_that_leaves_frees_its_place_at_once(slow_chat: SlowChat) -> None:
    worker = ModelWorker(slow_chat, limit=1)
    with serving(create_app(worker)) as address:
        client = half_a_request(address)
        wait_for(lambda: slow_chat.running == 1)
        client.recv(100)
        client.close()
        start = time.monotonic()
        wait_for(lambda: slow_chat.running == 0 and worker.status()["queue_length"] == 0)
        assert time.monotonic() - start < 2
        assert ask(address, TEXT_PROMPT, max_new_tokens=2)[-1]["error_code"] == 0


def test_a_client_that_leaves_the_queue_is_not_answered(slow_chat: SlowChat) -> None:
    worker = ModelWorker(slow_chat, limit=1)
    with serving(create_app(worker)) as address:
        first = half_a_request(address)
        wait_for(lambda: slow_chat.running == 1)
        second = half_a_request(address)
        wait_for(lambda: worker.status()["queue_length"] == 2)
        second.close()
        wait_for(lambda: worker.status()["queue_length"] == 1)
        first.close()
        wait_for(lambda: worker.status()["queue_length"] == 0)


class LongChat:
    """Answers with more than a connection holds on its way."""

    name = "long"
    is_done = False

    def stream(self, *arguments: Any) -> Iterator[str]:
        yield from ["x" * 2**20] * 40
        self.is_done = True


def test_a_client_that_does_not_read_does_not_keep_its_place() -> None:
    chat = LongChat()
    worker = ModelWorker(chat, limit=1)
    with serving(create_app(worker)) as address:
        client = half_a_request(address)
        wait_for(lambda: chat.is_done and worker.status()["queue_length"] == 0)
        client.close()


def test_unread_messages_do_not_pile_up() -> None:
    import asyncio

    async def run() -> list[bytes]:
        outbox = Outbox(asyncio.get_running_loop())
        for index in range(1000):
            outbox.put(b"%d" % index)
        outbox.put(None)
        await asyncio.sleep(0)
        return [message async for message in outbox.take()]

    messages = asyncio.run(run())
    assert len(messages) == MAX_UNREAD
    assert messages[-1] == b"999"


def test_the_stream_interval_thins_the_messages_and_keeps_the_last(chat: Chat) -> None:
    with serving(create_app(ModelWorker(chat, interval=4))) as address:
        thinned = ask(address, TEXT_PROMPT, max_new_tokens=20)
    with serving(create_app(ModelWorker(chat))) as address:
        whole = ask(address, TEXT_PROMPT, max_new_tokens=20)
    assert len(thinned) < len(whole)
    assert thinned[-1] == whole[-1]


def test_flags_can_be_abbreviated_as_the_readme_does() -> None:
    found = parse_arguments(["--controller", "http://c:1", "--worker", "http://w:2", "--model-path", "p"])
    assert (found.controller_address, found.worker_address) == ("http://c:1", "http://w:2")
    assert (found.limit_model_concurrency, found.stream_interval, found.device) == (5, 1, "cuda")


def test_a_taken_port_is_told_before_the_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = ["--model-path", "nothing", "--host", "127.0.0.1", "--port", str(taken.getsockname()[1])]
        with pytest.raises(ValueError, match=r"cannot listen at .* already in use"):
            model_worker.main(arguments)


def test_nothing_of_the_process_output_is_redirected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_worker, "run_app", lambda *arguments: None)
    monkeypatch.setattr(model_worker.Chat, "load", lambda *arguments, **options: None)
    monkeypatch.setattr(model_worker, "ModelWorker", lambda *arguments: None)
    monkeypatch.setattr(model_worker, "create_app", lambda worker: None)
    before = (sys.stdout, sys.stderr)
    model_worker.main(["--model-path", "x", "--no-register", "--port", "0"])
    assert (sys.stdout, sys.stderr) == before
    assert list(tmp_path.glob("model_worker_*.log"))
