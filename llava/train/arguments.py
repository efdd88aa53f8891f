"""From the command line (and `--config run.yaml`) to one frozen `Run`. After this nobody sees an argument object."""

import difflib
import json
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from llava.train.distill_arguments import DistillArguments
from llava.train.legacy_flags import NO_EFFECT, flag_name, modern_names, setting_name, warnings_for
from llava.train.model_arguments import DataArguments, ModelArguments
from llava.train.run_config import Run
from llava.train.training_arguments import TrainingArguments
from llava.train.translate import build_run


class FlagParser(HfArgumentParser):
    """The four groups of flags, and those that have no effect. Mistakes are ValueErrors of one line."""

    def __init__(self) -> None:
        groups: list[Any] = [ModelArguments, DataArguments, TrainingArguments, DistillArguments]
        super().__init__(groups, allow_abbrev=False)
        ignored = self.add_argument_group("accepted without effect")
        for name, reason in NO_EFFECT.items():
            ignored.add_argument(f"--{name}", nargs="?", const="True", default=None, help=reason)

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)

    def known_flags(self) -> list[str]:
        return [flag for flag in self._option_string_actions if flag.startswith("--")]


def parse_run(argv: Sequence[str], attn_implementation: str | None = None) -> Run:
    """One run from flags. attn_implementation: the entry point's choice; the flag of that name wins.

    Raises ValueError or FileNotFoundError, with a message of one line, for anything a user got wrong.
    """
    parser = FlagParser()
    tokens = with_config_file(modern_names(argv))
    *groups, rest = parser.parse_args_into_dataclasses(tokens, return_remaining_strings=True, look_for_args_file=False)
    if rest:
        raise ValueError(_unknown_flag(rest, parser.known_flags()))
    model, data, training, distill, ignored = groups
    given = [name for name, value in vars(ignored).items() if value is not None]
    training.notes.extend(warnings_for(given))
    return build_run(model, data, training, distill, attn_implementation)


def _unknown_flag(rest: Sequence[str], known: Sequence[str]) -> str:
    flag = next((token for token in rest if token.startswith("--")), rest[0])
    near = difflib.get_close_matches(flag.split("=")[0], known, n=1)
    return f"unknown argument {flag!r}" + (f"; did you mean {near[0]}?" if near else "")


def with_config_file(argv: Sequence[str]) -> list[str]:
    """`argv` with `--config FILE` replaced by the flags of that YAML file, less those that `argv` gives itself."""
    reader = ArgumentParser(add_help=False, allow_abbrev=False)
    reader.add_argument("--config", action="append", default=[])
    found, rest = reader.parse_known_args(list(argv))
    given = {setting_name(name) for token in rest if (name := flag_name(token))}
    tokens: list[str] = []
    for path in found.config:
        for name, value in _read_yaml(path).items():
            if setting_name(name) not in given and value is not None:
                tokens += modern_names([f"--{name}", *_words(value)])
    return tokens + rest


def _read_yaml(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"--config {path}: no such file")
    try:
        content = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"--config {path} must be a mapping from flag names to values")
    return content


def _words(value: Any) -> list[str]:
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return [str(item) for item in value]
    return [json.dumps(value) if isinstance(value, dict | list) else str(value)]
