"""The command line: one line for every mistake, and the limits where the user meets them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava.export.__main__ import main
from tests.export.conftest import Exported
from tests.tiny import save_tiny_llava, tiny_clip_folder, tiny_lm_folder


def failure(*arguments: Any) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    message = str(stop.value.code)
    assert "\n" not in message
    assert "Traceback" not in message
    return message


def test_a_student_is_exported_and_its_limits_are_said(
    exported: Callable[[str], Exported], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = exported("experts").source
    main(["hf", "--model-path", str(source), "--output", str(tmp_path), "--device", "cpu", "--dtype", "float16"])
    shown = capsys.readouterr().out
    assert "a ClipMoleLlavaForConditionalGeneration" in shown
    assert "logits, as a share of the largest: " in shown
    assert "cannot serve this model" in shown
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"


def test_help_names_the_engines(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["-h"], ["hf", "-h"], ["encoder", "-h"]):
        with pytest.raises(SystemExit):
            main(arguments)
        shown = capsys.readouterr().out
        assert "vLLM, SGLang, llama.cpp and Ollama" in shown


def test_mistakes_are_one_line_each(tmp_path: Path) -> None:
    out = tmp_path / "out"
    model = save_tiny_llava(tmp_path)
    to = ("--output", out, "--device", "cpu")
    assert "does not exist" in failure("hf", "--model-path", tmp_path / "nowhere", *to)
    assert "without a vision tower" in failure("hf", "--model-path", tiny_lm_folder(tmp_path), *to)
    assert "clip_vision_model" in failure("encoder", "--model-path", tiny_clip_folder(tmp_path / "x"), *to)
    assert "no conversation template 'v9'" in failure("hf", "--model-path", model, *to, "--conv-mode", "v9")
    assert "no floating dtype" in failure("hf", "--model-path", model, *to, "--dtype", "int8")
    assert "name another directory" in failure("hf", "--model-path", model, "--output", f"{model}/../{model.name}")
    merge = ("merge", "--model-path", model, "--model-base", model, "--output", out)
    assert "holds no LoRA adapter" in failure(*merge)
    (tmp_path / "file").write_text("")
    assert failure("hf", "--model-path", model, "--output", tmp_path / "file", "--device", "cpu")
    assert not out.exists()


def test_a_broken_config_is_one_line(tmp_path: Path) -> None:
    model = save_tiny_llava(tmp_path)
    (model / "config.json").write_text("{")
    assert "not valid JSON" in failure("hf", "--model-path", model, "--output", tmp_path / "out")
