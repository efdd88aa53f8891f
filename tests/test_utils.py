import logging
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import llava
from llava import utils


@pytest.fixture
def clean_logging(monkeypatch, tmp_path):
    """LOGDIR in a fresh folder; streams and root handlers are put back afterwards."""
    root = logging.getLogger()
    before, streams = list(root.handlers), (sys.stdout, sys.stderr)
    monkeypatch.setattr(utils, "LOGDIR", str(tmp_path / "logs"))
    yield tmp_path / "logs"
    for handler in [handler for handler in root.handlers if handler not in before]:
        handler.close()
        root.removeHandler(handler)
    sys.stdout, sys.stderr = streams


def test_log_file_holds_messages_and_printed_lines(clean_logging: Path) -> None:
    logger = utils.build_logger("worker", "worker.log")
    assert utils.build_logger("worker", "worker.log") is logger
    logger.info("ready")
    print("one\ntwo")
    print("no end", end="")
    sys.stdout.flush()
    text = (clean_logging / "worker.log").read_text()
    for line in (
        "| INFO | worker | ready",
        "| INFO | stdout | one",
        "| INFO | stdout | two",
        "| INFO | stdout | no end",
    ):
        assert text.count(line) == 1


def test_streams_stay_as_they_are_without_redirect(clean_logging: Path) -> None:
    stream = sys.stdout
    utils.build_logger("plain", "plain.log", redirect=False).warning("careful")
    assert sys.stdout is stream
    assert "careful" in (clean_logging / "plain.log").read_text()


def test_stream_answers_like_the_terminal() -> None:
    stream = utils.StreamToLogger(logging.getLogger("x"))
    assert stream.isatty() == sys.stdout.isatty()
    assert stream.write("abc") == 3


def test_semaphore_is_described() -> None:
    semaphore = threading.Semaphore(2)
    assert utils.pretty_print_semaphore(semaphore) == "Semaphore(value=2, locked=False)"
    assert utils.pretty_print_semaphore(None) == "None"


def test_moderation_needs_a_key_and_survives_an_unreachable_service(monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        utils.violates_moderation("text")

    def unreachable(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setattr(utils.urllib.request, "urlopen", unreachable)
    assert utils.violates_moderation("text") is False


def test_printing_by_rank_prints_outside_of_a_distributed_run(capsys) -> None:
    utils.rank0_print("a", 1)
    utils.rank_print("b")
    assert capsys.readouterr().out == "a 1\nb\n"


@pytest.mark.parametrize(
    ("bound", "force", "expected"),
    [
        (0, False, [0, 10, 20, 30]),
        (4, False, [0, 10, 20, 30]),
        (3, False, [0, 19, 39]),
        (2, True, [0, 39]),
        (50, True, np.linspace(0, 39, 50, dtype=int).tolist()),
    ],
)
def test_frames_are_sampled_by_rate_or_spread_evenly(bound: int, force: bool, expected: list[int]) -> None:
    assert utils.sample_frames(40, 10.0, video_fps=1, frames_upbound=bound, force_sample=force) == expected


def test_video_slower_than_the_asked_rate_gives_every_frame_and_an_empty_one_is_refused() -> None:
    assert utils.sample_frames(3, 0.5, video_fps=2, frames_upbound=0, force_sample=False) == [0, 1, 2]
    with pytest.raises(ValueError, match="no frames"):
        utils.sample_frames(0, 10.0, video_fps=1, frames_upbound=0, force_sample=False)


def test_package_names_its_classes_and_refuses_others() -> None:
    assert "LlavaLlamaForCausalLM" in dir(llava)
    with pytest.raises(AttributeError, match="no attribute 'Llava'"):
        _ = llava.Llava


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import llava, sys; sys.exit(bool({'torch', 'transformers', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("folder", ["eval", "serve", "train"])
def test_programs_that_run_as_files_shadow_no_standard_module(folder: str) -> None:
    names = {path.stem for path in (Path(llava.__file__).parent / folder).iterdir()}
    assert not names & sys.stdlib_module_names
