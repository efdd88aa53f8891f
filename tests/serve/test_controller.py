"""The registry by itself, the controller's endpoints, and workers that die and come back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from llava.inference import Chat
from llava.serve import controller as controller_module
from llava.serve import register_worker, test_message
from llava.serve.client import ServiceError
from llava.serve.controller import create_app, parse_arguments
from llava.serve.model_worker import ModelWorker
from llava.serve.model_worker import create_app as create_worker_app
from llava.serve.stream import SEPARATOR, decode, encode
from llava.serve.worker_registry import Registry, WorkerStatus
from tests.serve.running import answers, ask, free_port, post, process, serving, wait_for

STATUS = {"model_names": ["a"], "speed": 1, "queue_length": 0}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def status(*names: str, speed: float = 1, queue: int = 0) -> WorkerStatus:
    return WorkerStatus(names, speed, queue)


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def address(registry: Registry) -> Iterator[str]:
    with serving(create_app(registry)) as url:
        yield url


def test_the_shortest_queue_for_its_speed_is_chosen_and_grows() -> None:
    registry = Registry("shortest_queue")
    registry.register("slow", status("m", speed=1), False)
    registry.register("fast", status("m", speed=2, queue=1), False)
    assert [registry.choose("m") for _ in range(4)] == ["slow", "fast", "slow", "fast"]


def test_the_lottery_draws_by_speed() -> None:
    registry = Registry("lottery")
    registry.register("slow", status("m", speed=1), False)
    registry.register("fast", status("m", speed=9), False)
    drawn = [registry.choose("m") for _ in range(500)]
    assert 380 < drawn.count("fast") < 500


def test_a_worker_that_is_silent_is_dropped_and_comes_back() -> None:
    clock = Clock()
    registry = Registry(clock=clock)
    registry.register("beating", status("m"), True)
    registry.register("by hand", status("n"), False)
    clock.now = 31
    assert registry.choose("m") is None
    assert registry.models() == ["n"]
    assert not registry.hear("beating", 0)
    registry.register("beating", status("m"), True)
    clock.now = 60
    assert registry.hear("beating", 3)
    clock.now = 89
    assert registry.choose("m") == "beating"


def test_a_heartbeat_tells_the_length_of_the_queue() -> None:
    registry = Registry()
    registry.register("one", status("m"), True)
    registry.register("two", status("m", queue=1), True)
    registry.hear("one", 5)
    assert registry.choose("m") == "two"


def test_an_unknown_dispatch_method_is_refused() -> None:
    with pytest.raises(ValueError, match="lottery or shortest_queue"):
        Registry("random")  # type: ignore[arg-type]


def test_the_published_endpoints_answer_in_the_published_form(address: str) -> None:
    message = {"worker_name": "http://w:1", "check_heart_beat": True, "worker_status": STATUS}
    registered = post(f"{address}/register_worker", message)
    assert (registered.status_code, registered.json()) == (200, None)
    assert post(f"{address}/list_models").json() == {"models": ["a"]}
    assert post(f"{address}/get_worker_address", {"model": "a"}).json() == {"address": "http://w:1"}
    assert post(f"{address}/get_worker_address", {"model": "b"}).json() == {"address": ""}
    beat = {"worker_name": "http://w:1", "queue_length": 4}
    assert post(f"{address}/receive_heart_beat", beat).json() == {"exist": True}
    assert post(f"{address}/receive_heart_beat", beat | {"worker_name": "http://x:1"}).json() == {"exist": False}
    assert post(f"{address}/worker_get_status").json() == {"model_names": ["a"], "speed": 1, "queue_length": 4}
    assert (post(f"{address}/refresh_all_workers").json(), post(f"{address}/list_models").json()) == (
        None,
        {"models": []},
    )


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({}, "lacks 'worker_name'"),
        ({"worker_name": "file:///etc/passwd"}, "no address of a service"),
        ({"worker_name": "w"}, "no address of a service"),
        ({"worker_name": "http://w:1", "worker_status": {"model_names": "a"}}, "no worker's status"),
        ({"worker_name": "http://w:1", "worker_status": STATUS | {"speed": 0}}, "no worker's status"),
        ({"worker_name": "http://127.0.0.1:9", "worker_status": None}, "does not tell its status"),
    ],
)
def test_a_worker_that_is_none_is_not_registered(address: str, message: dict[str, Any], reason: str) -> None:
    response = post(f"{address}/register_worker", message)
    assert response.status_code == 400
    assert reason in response.json()["text"]
    assert post(f"{address}/list_models").json() == {"models": []}


def test_malformed_json_is_refused(address: str) -> None:
    for endpoint in ("register_worker", "get_worker_address", "receive_heart_beat", "worker_generate_stream"):
        response = httpx.post(f"{address}/{endpoint}", content=b"{")
        assert (response.status_code, response.json()["error_code"]) == (400, 1)


def test_a_model_that_nobody_serves_is_code_2(address: str) -> None:
    (message,) = ask(address, "Hello")
    assert message["error_code"] == 2
    assert "no worker serves the model 'llava-tiny'" in message["text"]


def test_a_worker_that_cannot_be_reached_is_code_3_and_dropped(address: str, registry: Registry) -> None:
    registry.register(f"http://127.0.0.1:{free_port()}", status("llava-tiny"), True)
    (message,) = ask(address, "Hello")
    assert message["error_code"] == 3
    assert registry.models() == []


def test_another_worker_answers_for_one_that_is_dead(address: str, registry: Registry, chat: Chat) -> None:
    registry.register(f"http://127.0.0.1:{free_port()}", status("llava-tiny"), True)
    with serving(create_worker_app(ModelWorker(chat))) as worker:
        registry.register(worker, status("llava-tiny", queue=5), True)
        assert ask(address, "Hello") == ask(worker, "Hello")
    assert list(registry.workers()) == [worker]


def test_a_worker_that_breaks_off_is_reported_after_what_it_said(address: str, registry: Registry) -> None:
    broken = FastAPI()

    @broken.post("/worker_generate_stream")
    async def generate(request: Request) -> StreamingResponse:
        async def pieces() -> Any:
            yield encode("Hello, I")
            raise OSError("gone")

        return StreamingResponse(pieces())

    with serving(broken) as worker:
        registry.register(worker, status("llava-tiny"), True)
        messages = ask(address, "Hello")
    assert [message["error_code"] for message in messages] == [0, 3]
    assert "failed" in messages[1]["text"]


def test_a_client_of_the_controller_that_leaves_frees_the_worker(address: str, registry: Registry, chat: Chat) -> None:
    from tests.serve.test_model_worker import SlowChat, half_a_request

    slow = SlowChat(chat.tokenizer, chat.model, chat.image_processor, chat.context_length, chat.name)
    with serving(create_worker_app(ModelWorker(slow))) as worker:
        registry.register(worker, status("llava-tiny"), True)
        client = half_a_request(address, model="llava-tiny")
        wait_for(lambda: slow.running == 1)
        client.close()
        wait_for(lambda: slow.running == 0, 5)


def test_a_worker_registers_beats_and_registers_again_when_forgotten(
    address: str, registry: Registry, chat: Chat
) -> None:
    worker = ModelWorker(chat, controller=address, address="http://127.0.0.1:9", beat_seconds=0.05)
    with serving(create_worker_app(worker)):
        wait_for(lambda: registry.models() == ["llava-tiny"])
        registry.drop("http://127.0.0.1:9")
        wait_for(lambda: registry.models() == ["llava-tiny"], 5)


def test_a_worker_waits_for_a_controller_that_starts_later(chat: Chat) -> None:
    port, registry = free_port(), Registry()
    controller = f"http://127.0.0.1:{port}"
    worker = ModelWorker(chat, controller=controller, address="http://127.0.0.1:9", beat_seconds=0.05)
    with serving(create_worker_app(worker)), serving(create_app(registry), port):
        wait_for(lambda: registry.models() == ["llava-tiny"], 5)


def test_silent_workers_are_swept_without_being_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller_module, "SWEEP_SECONDS", 0.02)
    registry = Registry(expiration=0.1)
    registry.register("http://127.0.0.1:9", status("m"), True)
    with serving(create_app(registry)):
        wait_for(lambda: not registry.workers(), 5)


def test_register_worker_registers_by_hand(address: str, chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(create_worker_app(ModelWorker(chat))) as worker:
        register_worker.main(["--controller", address, "--worker", worker])
        assert post(f"{address}/list_models").json() == {"models": ["llava-tiny"]}
    with pytest.raises(ServiceError, match="refused"):
        register_worker.main(["--controller", address, "--worker", worker])
    with pytest.raises(ServiceError, match="cannot be reached"):
        register_worker.main(["--controller", f"http://127.0.0.1:{free_port()}", "--worker", worker])


def test_test_message_prints_the_answer(address: str, chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(create_worker_app(ModelWorker(chat))) as worker:
        register_worker.main(["--controller", address, "--worker", worker])
        capsys.readouterr()
        arguments = ["--controller", address, "--model-name", "llava-tiny", "--message", "Hi", "--max-new-tokens", "4"]
        test_message.main(arguments)
    assert capsys.readouterr().out.startswith("Hi\n")
    with pytest.raises(ServiceError, match="no worker serves 'other'"):
        test_message.main(["--controller", address, "--model-name", "other"])


def test_a_stream_is_read_however_it_is_cut() -> None:
    whole = encode("a") + encode("a\nü") + encode("oh", 1)
    expected = [{"text": "a", "error_code": 0}, {"text": "a\nü", "error_code": 0}, {"text": "oh", "error_code": 1}]
    assert list(decode(bytes([byte]) for byte in whole)) == expected
    assert list(decode([whole.rstrip(SEPARATOR)])) == expected
    with pytest.raises(ValueError, match="no whole message"):
        list(decode([whole[:-5]]))


def test_the_flags_are_the_published_ones() -> None:
    found = parse_arguments([])
    assert (found.host, found.port, found.dispatch_method) == ("localhost", 21001, "shortest_queue")
    assert parse_arguments(["--dispatch", "lottery"]).dispatch_method == "lottery"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_processes_start_answer_die_and_come_back(checkpoint: Path, tmp_path: Path) -> None:
    """Controller and worker as a user starts them; the worker is killed in the middle of it."""
    ports = free_port(), free_port()
    controller, worker = (f"http://127.0.0.1:{port}" for port in ports)
    start = ["--host", "127.0.0.1", "--port", str(ports[1]), "--controller", controller, "--worker", worker]
    start += ["--model-path", str(checkpoint), "--device", "cpu"]
    with process(
        "llava.serve.controller", "--host", "127.0.0.1", "--port", str(ports[0]), folder=tmp_path, LLAVA_LOGDIR="logs"
    ):
        wait_for(lambda: answers(controller), 200, 0.25)
        with process("llava.serve.model_worker", *start, folder=tmp_path, LLAVA_LOGDIR="logs") as child:
            wait_for(lambda: post(f"{controller}/list_models").json()["models"] == ["llava-tiny"], 400, 0.25)
            wait_for(lambda: answers(worker), 120, 0.25)
            first = ask(controller, "Hello")
            assert first[-1]["error_code"] == 0
            child.kill()
            child.wait()
        assert [message["error_code"] for message in ask(controller, "Hello")] == [3]
        assert post(f"{controller}/list_models").json() == {"models": []}
        assert [message["error_code"] for message in ask(controller, "Hello")] == [2]
        with process("llava.serve.model_worker", *start, folder=tmp_path, LLAVA_LOGDIR="logs"):
            wait_for(lambda: post(f"{controller}/list_models").json()["models"] == ["llava-tiny"], 400, 0.25)
            wait_for(lambda: answers(worker), 120, 0.25)
            assert ask(controller, "Hello") == first
    names = {path.name.split("_")[0] for path in (tmp_path / "logs").iterdir()}
    assert names == {"controller.log", "model"}
