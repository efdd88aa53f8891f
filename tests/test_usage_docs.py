"""README and the pages on talking, measuring and exporting: what they print names files and flags that exist."""

import itertools
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/serving.md", "docs/evaluation.md", "docs/export.md")
FOREIGN = ("lmms_eval", "pip", "deepspeed", "accelerate")  # programs whose flags are not ours


def printed_commands() -> list[tuple[str, str]]:
    """(page, command) of every line in a block of bash that runs something."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(page, line) for line in lines if line and not line.startswith("...")]
    return found


def flags_of(file: Path) -> set[str]:
    """The flags that are written out in a program's folder, or, for a script, in the modules that it may only start."""
    folders = [file.parent, *([ROOT / "llava" / "eval"] if "scripts" in file.parts else [])]
    sources = [source for folder in folders for source in folder.iterdir() if source.suffix in (".py", ".sh")]
    return set(re.findall(r"--[a-z_0-9][\w-]*", "\n".join(source.read_text() for source in sources)))


@pytest.mark.parametrize(("page", "command"), printed_commands())
def test_a_printed_command_exists(page: str, command: str) -> None:
    subprocess.run(["bash", "-n", "-c", command], check=True)
    words = shlex.split(command, comments=True)
    files = [ROOT / word for word in words if word.startswith("scripts/") and word.endswith((".py", ".sh"))]
    modules = [module for flag, module in itertools.pairwise(words) if flag == "-m" and module not in FOREIGN]
    for module in modules:
        path = ROOT / module.replace(".", "/")
        files.append(path / "__main__.py" if path.is_dir() else path.with_suffix(".py"))
    assert all(file.is_file() for file in files), files
    if any(word in FOREIGN for word in words) or not files or "lmms.sh" in command:
        return
    known = set().union(*(flags_of(file) for file in files))
    flags = [word for word in words if word.startswith("--")]
    # A flag may be cut short, as LLaVA's README does it.
    assert all(any(name.startswith(flag) for name in known) for flag in flags), flags


def test_every_page_that_the_readme_links_exists() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert {"docs/serving.md", "docs/evaluation.md", "docs/export.md"} <= set(links)
    assert all((ROOT / link).exists() for link in links)
