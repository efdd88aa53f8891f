"""The terminal chat, its commands, and what Ctrl-C does."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.inference import Chat, Decoding
from llava.serve.cli import Terminal, main, parse_arguments, pick_template
from tests.serve.running import wait_for

GREEDY = Decoding(temperature=0, max_new_tokens=6)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "a picture.png"
    Image.new("RGB", (40, 30), "red").save(path)
    return str(path)


def talk(chat: Chat, *lines: Any, pictures: tuple[str, ...] = (), decoding: Decoding = GREEDY) -> tuple[str, Terminal]:
    """What is written while `lines` are typed; an exception among them is raised instead."""
    typed = iter(lines)

    def read(prompt: str) -> str:
        line = next(typed, "")
        if isinstance(line, type):
            raise line
        return str(line)

    output = io.StringIO()
    terminal = Terminal(chat, decoding, read, output)
    for location in pictures:
        terminal.add_picture(location)
    terminal.run()
    return output.getvalue(), terminal


def test_the_first_question_takes_the_pictures_and_later_ones_the_history(chat: Chat, picture: str) -> None:
    output, terminal = talk(chat, "What is it?", "And why?", pictures=(picture, picture))
    assert [len(turn.images) for turn in terminal.turns] == [2, 0]
    first, second = terminal.turns
    assert output == f"ASSISTANT: {first.answer}\nASSISTANT: {second.answer}\nexit...\n"
    prompt = chat.prompt([first, second])
    assert prompt.text.count("<image>") == 2
    assert f"{first.answer}</s>" in prompt.text


def test_a_picture_is_added_for_the_next_question(chat: Chat, picture: str) -> None:
    output, terminal = talk(chat, "Hello", f"/image '{picture}'", "What is it?")
    assert "(1 picture(s) for the next question)" in output
    assert [len(turn.images) for turn in terminal.turns] == [0, 1]


def test_a_wrong_picture_is_an_error_and_not_the_end(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("no")
    output, terminal = talk(
        chat, "/image nowhere.png", f"/image {tmp_path / 'no.png'}", "/image http://127.0.0.1/a.png", "Hello"
    )
    assert "error: there is no picture at nowhere.png" in output
    assert "not a readable picture" in output
    assert "not a public address" in output
    assert len(terminal.turns) == 1


def test_a_new_conversation_forgets_turns_and_pictures(chat: Chat, picture: str) -> None:
    _, terminal = talk(chat, "Hello", f"/image {picture}", "/new")
    assert (terminal.turns, terminal.pictures) == ([], [])


def test_an_unknown_command_shows_the_help(chat: Chat) -> None:
    assert "/image PATH" in talk(chat, "/what")[0]


@pytest.mark.parametrize("end", ["", EOFError])
def test_an_empty_line_and_the_end_of_input_end_the_program(chat: Chat, end: Any) -> None:
    assert talk(chat, end, "never read")[0] == "exit...\n"


def test_ctrl_c_at_the_prompt_does_not_end_the_program(chat: Chat) -> None:
    output, terminal = talk(chat, KeyboardInterrupt, "Hello")
    assert "an empty line ends the program" in output
    assert len(terminal.turns) == 1


def test_ctrl_c_ends_the_answer_and_keeps_what_was_said(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Chat.stream

    def interrupted(self: Chat, *arguments: Any) -> Iterator[str]:
        yield next(whole(self, *arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(Chat, "stream", interrupted)
    output, terminal = talk(chat, "Hello")
    assert "(stopped)" in output
    assert len(terminal.turns) == 1


def test_a_question_that_fails_is_not_remembered(chat: Chat, picture: str) -> None:
    output, terminal = talk(chat, "word " * 600, pictures=(picture,))
    assert "error: the conversation has" in output
    assert (len(terminal.turns), len(terminal.pictures)) == (0, 1)


def test_another_template_than_the_checkpoints_is_warned_of(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    assert pick_template(parse_arguments(["--conv-mode", "mpt"]), chat) == "mpt"
    assert capsys.readouterr().out.startswith("[WARNING]")
    assert pick_template(parse_arguments([]), chat) == "vicuna_v1"
    assert capsys.readouterr().out == ""


def test_a_picture_that_is_not_there_is_told_before_the_model_is_loaded() -> None:
    with pytest.raises(FileNotFoundError, match=r"no picture at nowhere\.png"):
        main(["--model-path", "no/such/model", "--image-file", "nowhere.png"])


@pytest.mark.slow
def test_ctrl_c_in_a_real_terminal_program(checkpoint: Path, picture: str, tmp_path: Path) -> None:
    arguments = ["--model-path", str(checkpoint), "--image-file", picture, "--device", "cpu"]
    arguments += ["--temperature", "0", "--max-new-tokens", "480"]
    root = Path(__file__).parents[2]
    output = tmp_path / "output"
    with output.open("wb") as file:
        child = subprocess.Popen(
            [sys.executable, "-u", "-m", "llava.serve.cli", *arguments],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(root)},
            # What runs in the background ignores SIGINT, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        assert child.stdin is not None
        child.stdin.write(b"What is it?\n")
        child.stdin.flush()
        wait_for(lambda: len(output.read_text(errors="ignore").partition("ASSISTANT: ")[2]) > 20, 400, 0.25)
        child.send_signal(signal.SIGINT)
        wait_for(lambda: "(stopped)" in output.read_text(errors="ignore"), 60)
        time.sleep(0.1)
        assert child.poll() is None
        child.stdin.close()
        assert child.wait(60) == 0
    finally:
        child.kill()
        child.wait()
    assert output.read_text(errors="ignore").endswith("exit...\n")
