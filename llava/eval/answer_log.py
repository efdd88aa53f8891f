"""Answer files that grow line by line, survive a kill, and refuse to mix the answers of two runs."""

import json
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.eval.questions import Question

Row = dict[str, Any]


@dataclass(frozen=True)
class AnswerFormat:
    """line: (question, answer, model id) to an answer line. keys: of the line, that tell which question it answers."""

    line: Callable[[Question, str, str], Row]
    keys: tuple[str, ...]

    def identity(self, row: Row) -> str:
        return json.dumps([row[key] for key in self.keys])

    def asks(self, question: Question) -> str:
        """The identity that an answer to `question` will have."""
        return self.identity(self.line(question, "", ""))


def short_uuid() -> str:
    return uuid.uuid4().hex[:22]


def vqa_line(question: Question, text: str, model_id: str) -> Row:
    return {
        "question_id": question.id,
        "prompt": question.text,
        "text": text,
        "answer_id": short_uuid(),
        "model_id": model_id,
        "metadata": {},
        **question.extra,
    }


VQA = AnswerFormat(vqa_line, ("question_id", "prompt"))


class AnswerLog:
    """An answer file that can be continued; the file `<path>.run.json` beside it holds the settings of its run.

    Reads and checks what is there; nothing is written before `with log:`, which opens it for answers.
    settings: what decides an answer. surroundings: what is only noted. A last line that a kill has torn is cut off.
    Raises ValueError for a file that holds anything but answers in `answer_format`, or answers of other or unknown
    `settings`.
    """

    def __init__(
        self, path: str | Path, answer_format: AnswerFormat, settings: Row, surroundings: Row | None = None
    ) -> None:
        self.path = Path(path).expanduser()
        self.format = answer_format
        self.note = {"settings": settings, **(surroundings or {})}
        self.done: Counter[str] = Counter()
        self.content = self.path.read_bytes() if self.path.exists() else b""
        self.kept = self._read(self.content)
        self._check_settings(settings)

    def __enter__(self) -> "AnswerLog":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.note_path.write_text(json.dumps(self.note, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        self.file = open(self.path, "ab")
        if self.kept < len(self.content):
            self.file.truncate(self.kept)
        if self.kept and self.content[self.kept - 1 : self.kept] != b"\n":
            self.file.write(b"\n")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def _read(self, content: bytes) -> int:
        """Counts the answers and returns how many bytes are sound."""
        kept = 0
        lines = content.splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            try:
                self.done[self.format.identity(json.loads(line))] += 1
            except (ValueError, KeyError, TypeError):
                if number == len(lines) and not line.endswith(b"\n") and line.startswith(b'{"'):
                    break
                raise ValueError(
                    f"{self.path}:{number} is no answer with {', '.join(self.format.keys)}; "
                    "name another --answers-file, or remove this one"
                ) from None
            kept += len(line)
        return kept

    @property
    def note_path(self) -> Path:
        return self.path.with_name(self.path.name + ".run.json")

    def _check_settings(self, settings: Row) -> None:
        if not self.done:
            return
        if not self.note_path.exists():
            raise ValueError(
                f"{self.path} holds {sum(self.done.values())} answers, but there is no {self.note_path.name} that "
                "tells whose they are; name another --answers-file, or remove this one"
            )
        earlier = json.loads(self.note_path.read_text(encoding="utf-8"))["settings"]
        changed = [key for key in settings if settings[key] != earlier.get(key)]
        if changed:
            details = "; ".join(f"{key} was {earlier.get(key)!r} and is {settings[key]!r}" for key in changed)
            raise ValueError(
                f"{self.path} holds {sum(self.done.values())} answers of another run ({details}); "
                "name another --answers-file, or remove this one"
            )

    def take(self, question: Question) -> bool:
        """Whether an answer to `question` was there; each answer is taken once, so a question asked twice needs two."""
        identity = self.format.asks(question)
        self.done[identity] -= 1
        return self.done[identity] >= 0

    def write(self, question: Question, text: str, model_id: str) -> None:
        self.file.write(json.dumps(self.format.line(question, text, model_id), ensure_ascii=False).encode() + b"\n")
        self.file.flush()
