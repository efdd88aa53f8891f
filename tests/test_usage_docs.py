"""README and the pages beside it: what they print names programs that exist, with arguments that those take.

docs/training.md has tests of its own, beside the trainer's.
"""

import argparse
import re
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", *(f"docs/{name}.md" for name in ("serving", "evaluation", "export", "data", "evidence")))
FOREIGN = ("-m lmms_eval", "lmms.sh")  # they take the flags of another project


def printed_commands() -> list[tuple[str, str]]:
    """(page, command) of every Python program and script that is started in a block of bash or within a sentence."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        commands = (" ".join(command.split()) for command in (*lines, *spans))
        found += [(page, command) for command in commands if re.match(r"([A-Z_]+=\S+ )*(python|bash) ", command)]
    return found


def program_of(words: list[str]) -> tuple[Path, list[str]]:
    """The file that a command starts, and the arguments it is given."""
    start = next(index for index, word in enumerate(words) if word in ("python", "bash")) + 1
    if words[start] != "-m":
        return ROOT / words[start], words[start + 1 :]
    return path_of(words[start + 1]), words[start + 2 :]


def path_of(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def started_by(script: Path) -> Path:
    """The program that takes what a script is given beyond its own arguments."""
    match = re.search(r"^(?:exec python -m ([\w.]+)|generate (\w+))", script.read_text(), re.MULTILINE)
    assert match is not None, f"{script} hands no flags on"
    return path_of(match[1] or f"llava.eval.{match[2]}")


class Found(BaseException):
    """Carries a program's parser out of it."""


def parser_of(program: Path) -> argparse.ArgumentParser:
    def stop(parser: argparse.ArgumentParser, *arguments: object) -> None:
        raise Found(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Found) as found:
            runpy.run_path(str(program), run_name="__main__")
    return found.value.args[0]


@pytest.mark.parametrize(("page", "command"), printed_commands())
def test_a_printed_command_starts_a_program_that_takes_its_arguments(page: str, command: str) -> None:
    subprocess.run(["bash", "-n", "-c", command], check=True)
    if any(name in command for name in FOREIGN):
        return
    program, arguments = program_of([word.strip("[]") for word in shlex.split(command, comments=True)])
    if program.suffix == ".py":
        parser_of(program).parse_args(arguments)
    elif flags := {word for word in arguments if word.startswith("--")}:
        assert flags <= set(parser_of(started_by(program))._option_string_actions)
    assert program.is_file()


def test_every_page_that_the_readme_links_exists() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert {"docs/serving.md", "docs/evaluation.md", "docs/export.md"} <= set(links)
    assert all((ROOT / link).exists() for link in links)
