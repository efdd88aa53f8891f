"""Mistakes end a program with one line."""

import runpy
from pathlib import Path

import pytest

from llava.errors import readable_errors

SERVE = Path(__file__).parents[1] / "llava" / "serve"
NOT_AN_ADDRESS = "error: 'localhost:10000' is no address of a service"


def test_a_folder_in_place_of_a_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LLAVA_DEBUG", raising=False)
    with pytest.raises(SystemExit), readable_errors():
        tmp_path.read_text()
    assert capsys.readouterr().err.startswith("error: [Errno 21] Is a directory")


@pytest.mark.parametrize(
    ("program", "arguments", "reason"),
    [
        ("cli", "--image-file nowhere.png", "error: there is no picture at nowhere.png"),
        ("demo", "--model-path nothing --examples nowhere", "error: --examples nowhere is not a folder"),
        ("controller", "--host 192.0.2.1", "error: cannot listen at 192.0.2.1"),
        ("controller", "--port 80000", "error: cannot listen at localhost, port 80000"),
        ("model_worker", "--controller localhost:10000", NOT_AN_ADDRESS),
        ("sglang_worker", "--controller localhost:10000 --sgl-endpoint http://localhost:1", NOT_AN_ADDRESS),
        ("register_worker", "--controller localhost:10000 --worker http://localhost:1", NOT_AN_ADDRESS),
        ("test_message", "--controller localhost:10000", NOT_AN_ADDRESS),
        ("gradio_web_server", "--controller localhost:10000", NOT_AN_ADDRESS),
        ("gradio_multi_image", "--controller localhost:10000", NOT_AN_ADDRESS),
    ],
)
def test_a_mistake_ends_every_program_of_serving_with_one_line(
    program: str,
    arguments: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("LLAVA_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [program, *arguments.split()])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SERVE / f"{program}.py"), run_name="__main__")
    assert stopped.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(reason)
