"""The demo without a browser: examples, views of the encoder, and what its endpoints must not give away."""

import json
import pickle
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
import torch
from gradio.utils import get_upload_folder
from PIL import Image

from llava.inference import Chat
from llava.remote import SERVING_LIMITS
from llava.serve import demo_chat, sessions
from llava.serve.demo import build, launch, parse_arguments
from llava.serve.demo_chat import ChatTab, Entries, turns_of
from llava.serve.demo_encoder import load_table
from llava.serve.demo_examples import find_examples
from llava.serve.encoder_view import look
from tests.serve.running import free_port
from tests.tiny import PINPOINTS, save_tiny_llava, tiny_lm_folder, tiny_siglip_folder

PICTURE = Image.effect_noise((60, 40), 90).convert("RGB")


@pytest.fixture(scope="module")
def page(chat: Chat) -> Iterator[str]:
    port, blocks = free_port(), build(chat)
    launch(blocks, "127.0.0.1", port, prevent_thread_lock=True, quiet=True)
    yield f"http://127.0.0.1:{port}"
    blocks.close()


def test_a_student_with_experts_shows_all_there_is(chat: Chat) -> None:
    view = look(chat, PICTURE)
    assert (len(view.tiles), view.grid, view.experts, view.layers) == (1, (4, 4), 3, 3)
    assert view.tiles[0].attention is not None
    assert all(abs(sum(shares) - 1) < 1e-6 for shares in view.loads(0))
    assert view.expert_map(0, 1).size == view.tiles[0].image.size
    assert [sentence.split(":")[0] for sentence in view.missing] == ["No teachers"]


def test_every_tile_of_a_tiled_picture_is_shown(tmp_path: Path) -> None:
    layout = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": PINPOINTS, "mm_patch_merge_type": "spatial_unpad"}
    chat = Chat.load(str(save_tiny_llava(tmp_path, **layout)), device="cpu", torch_dtype="float32")
    from llava.serve.demo import load_teachers

    view = look(chat, PICTURE, load_teachers([f"clip:path={tmp_path / 'clip-tiny'}"], chat))
    assert len(view.tiles) == 5
    assert all(tile.teachers["clip"].shape == (4, 4, 3) for tile in view.tiles)
    assert "no experts" in view.missing[0]


def test_a_teacher_of_the_same_weights_sees_the_same_as_a_plain_student(tmp_path: Path) -> None:
    """So the view that the teacher is shown is the student's own input."""
    from llava.serve.demo import load_teachers

    chat = Chat.load(str(save_tiny_llava(tmp_path)), device="cpu", torch_dtype="float32")
    square = PICTURE.resize((28, 28))
    tile = look(chat, square, load_teachers([f"clip:path={tmp_path / 'clip-tiny'}"], chat)).tiles[0]
    torch.testing.assert_close(
        torch.from_numpy(tile.features), torch.from_numpy(tile.teachers["clip"]), atol=1e-3, rtol=1e-3
    )


def test_an_encoder_without_a_class_token_says_so(tmp_path: Path) -> None:
    chat = Chat.load(
        str(save_tiny_llava(tmp_path, tower=tiny_siglip_folder(tmp_path))), device="cpu", torch_dtype="float32"
    )
    view = look(chat, PICTURE)
    assert view.tiles[0].attention is None
    assert "SigLIP has no class token" in view.missing[0]


def test_a_model_without_an_encoder_says_so(tmp_path: Path) -> None:
    chat = Chat.load(str(tiny_lm_folder(tmp_path)), device="cpu", torch_dtype="float32")
    with pytest.raises(ValueError, match="nothing to look at"):
        look(chat, PICTURE)
    build(chat)


def test_the_table_of_loads_marks_the_chosen_layer() -> None:
    table = load_table([[0.5, 0.5], [1.0, 0.0]], 2)
    assert table.count("<li") == 2
    assert '<li class="chosen"><em>2</em>' in table
    assert "expert 1: 100%" in table


def test_examples_are_pictures_with_their_questions(tmp_path: Path) -> None:
    assert find_examples(str(tmp_path)) == []
    folder = tmp_path / "demo_examples"
    folder.mkdir()
    PICTURE.save(folder / "b.png")
    PICTURE.save(folder / "a.jpg")
    (folder / "b.txt").write_text("What is b?\n")
    (folder / "c.png").write_text("broken")
    found = [(example.text, [path.name for path in example.files]) for example in find_examples(str(tmp_path))]
    assert found == [("", ["a.jpg"]), ("What is b?", ["b.png"])]


def test_a_list_of_examples_names_files_of_its_folder_only(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "secret.png")
    folder = tmp_path / "demo_examples"
    folder.mkdir()
    PICTURE.save(folder / "a.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    entries = [
        {"text": "One?", "image": "a.png"},
        {"text": "Two?", "image": ["a.png", "a.png"]},
        {"text": "None?"},
        {"text": "Out", "image": "../secret.png"},
        {"text": "Out", "image": "link.png"},
        {"text": "Out", "image": "/etc/passwd"},
    ]
    (folder / "examples.json").write_text(json.dumps(entries))
    assert [(example.text, len(example.files)) for example in find_examples(str(tmp_path))] == [
        ("One?", 1),
        ("Two?", 2),
        ("None?", 0),
    ]


def test_a_folder_that_was_asked_for_must_hold_examples(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a folder"):
        find_examples("x", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="holds neither"):
        find_examples("x", str(tmp_path))


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "/proc/self/environ", "C:\\boot.ini"])
@pytest.mark.parametrize("route", ["/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/"])
def test_no_local_file_is_given_away(page: str, route: str, path: str) -> None:
    response = httpx.get(page + route + path)
    assert response.status_code in (403, 404)
    assert "root:" not in response.text


def fire(page: str, trigger: str, data: list[object]) -> str:
    """What the server answers when the page's own event is sent by hand with `data`."""
    config = httpx.get(f"{page}/config").json()
    index = next(
        dependency["id"]
        for dependency in config["dependencies"]
        if dependency["targets"] and dependency["targets"][0][1] == trigger
    )
    message = {"fn_index": index, "data": data, "session_hash": f"hand-{trigger}"}
    joined = httpx.post(f"{page}/gradio_api/queue/join", json=message, timeout=20)
    if joined.status_code != 200:
        return joined.text
    lines = []
    with httpx.stream("GET", f"{page}/gradio_api/queue/data?session_hash=hand-{trigger}", timeout=30) as events:
        for line in events.iter_lines():
            lines.append(line)
            if "process_completed" in line or "close_stream" in line:
                break
    return "\n".join(lines)


def ask_and_look(page: str, path: str) -> list[str]:
    """What the server answers when a question and the encoder's box name a file by hand."""
    file = {"path": path, "meta": {"_type": "gradio.FileData"}, "mime_type": "image/png"}
    question = [{"text": "What?", "files": [file]}, None, "vicuna_v1", 0.2, 0.7, 5]
    return [fire(page, "submit", question), fire(page, "upload", [file])]


def test_no_event_can_name_a_picture_of_the_server_that_was_not_uploaded(page: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    PICTURE.save(path)
    for answer in ask_and_look(page, str(path)):
        assert '"success":false' in answer
        assert "was not uploaded by a user" in answer
    (uploaded,) = httpx.post(f"{page}/gradio_api/upload", files={"files": ("a.png", path.read_bytes())}).json()
    for answer in ask_and_look(page, uploaded):
        assert '"success":true' in answer


def test_a_picture_cannot_be_named_by_an_address(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradio would fetch it, without a limit of size, from any public host."""
    asked: list[str] = []
    for name in ("ssrf_protected_download", "async_ssrf_protected_download"):
        monkeypatch.setattr(f"gradio.processing_utils.{name}", lambda url, folder: asked.append(url))
    for answer in ask_and_look(page, "http://pictures.example/a.png"):
        assert "pictures are uploaded here, not named by an address" in answer
    assert asked == []


def converse(chat: Chat, *questions: tuple[str, list[Path]]) -> Entries:
    """What the demo remembers of a session with these questions."""
    with gr.Blocks():
        tab = ChatTab(chat, [])
    request = gr.Request(session_hash="s")
    entries: Entries = ()
    for text, paths in questions:
        value = {"text": text, "files": [str(path) for path in paths]}
        entries = list(tab.send(request, value, entries, "vicuna_v1", 0, 1, 4))[-1][1]
    return entries


def test_a_session_holds_no_open_pictures_whether_or_not_a_question_is_answered(chat: Chat, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    PICTURE.save(path)
    entries = converse(chat, ("What?", [path]), ("word " * 600, [path]), ("And?", []))
    assert [entry.error is None for entry in entries] == [True, False, True]
    assert len(pickle.dumps(entries)) < len(PICTURE.tobytes())
    assert [len(turn.images) for turn in turns_of(entries)] == [1, 0]


def test_the_pictures_of_a_conversation_are_limited_together(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_chat, "LIMITS", replace(SERVING_LIMITS, total_pixels=5000))
    path = tmp_path / "picture.png"
    PICTURE.save(path)
    entries = converse(chat, ("One?", [path]), ("Two?", [path]), ("Three?", []))
    assert "picture 2 is one too many" in str(entries[1].error)
    assert [turn.text for turn in turns_of(entries)] == ["One?", "Three?"]


@pytest.mark.parametrize("path", ["queue/join", "run/upload"])
def test_a_page_refuses_large_requests_that_are_no_uploads(page: str, path: str) -> None:
    message = {"fn_index": 0, "data": ["x" * 2**21], "session_hash": "large"}
    assert httpx.post(f"{page}/gradio_api/{path}", json=message).status_code == 413


def test_an_upload_beyond_the_limit_is_refused(page: str) -> None:
    files = {"files": ("a.png", b"x" * (21 * 2**20), "image/png")}
    response = httpx.post(f"{page}/gradio_api/upload", files=files, timeout=60)
    assert response.status_code == 413


@pytest.mark.parametrize("parts", [{"data": {"text": "x" * 2**17}}, {"files": [("files", b"x" * 2**15)] * 4}])
def test_an_upload_is_limited_in_total_and_leaves_nothing_when_it_is_refused(
    page: str, parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "UPLOAD_BYTES", 2**17)
    before = set(Path(get_upload_folder()).iterdir())
    response = httpx.post(f"{page}/gradio_api/upload", **{"files": {"files": b"x"}, **parts})
    assert response.status_code == 413
    assert set(Path(get_upload_folder()).iterdir()) == before


def test_a_port_that_cannot_be_had_is_told(chat: Chat) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for port in (taken.getsockname()[1], 80_000):
            with pytest.raises(ValueError, match="try another --port"):
                launch(build(chat), "127.0.0.1", port)


def test_the_flags_have_the_documented_defaults() -> None:
    found = parse_arguments(["--model-path", "x", "--teachers", "clip", "sam:path=y"])
    assert (found.host, found.port, found.share, found.device) == ("127.0.0.1", 7860, False, "auto")
    assert found.teachers == ["clip", "sam:path=y"]
