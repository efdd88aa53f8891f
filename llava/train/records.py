"""What one training record may be, and the errors that name what it is instead.

A record is the JSON object of LLaVA's data format. Nothing here opens an image or knows a tokenizer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN

ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
# Other speakers, kept for the chat templates that can write them.
EXTRA_ROLES = ("system", "tool", "function", "observation")
# A text beyond this many characters is not tokenized: it would be cut to a thousandth of itself anyway.
MAX_CHARACTERS = 2_000_000

ImageRef = str | Mapping[str, Any]  # a path, or {"bytes": ..., "path": ...} as in parquet
CONTENT = (bytes, memoryview)  # what the bytes are: read, or still in a mapped file


class DataError(ValueError):
    """Data that cannot be used. The message names the file and, where there is one, the record."""


class BadSample(DataError):
    """One record that cannot be used; `reason` is a short name to count by."""

    def __init__(self, message: str, reason: str = "bad_record") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Record:
    """One checked record. turns: {"from": "human" | "gpt" | an extra role, "value": text}, in order.

    video: a file, a folder of frames, or the frames' files. where: file and position, for messages.
    """

    id: str
    turns: tuple[dict[str, str], ...]
    images: tuple[ImageRef, ...]
    video: str | tuple[str, ...] | None
    where: str

    @property
    def is_visual(self) -> bool:
        return bool(self.images) or self.video is not None

    @property
    def num_pictures(self) -> int:
        """How many `<image>` the text should have: one per picture, one for a video."""
        return 1 if self.video is not None else len(self.images)

    @property
    def num_placeholders(self) -> int:
        """`<image>` in the turns that are used, that is from the first human turn on."""
        return sum(turn["value"].count(DEFAULT_IMAGE_TOKEN) for turn in used_turns(self.turns))


def used_turns(turns: tuple[dict[str, str], ...]) -> tuple[dict[str, str], ...]:
    """The turns without what precedes the first human turn."""
    start = next((position for position, turn in enumerate(turns) if turn["from"] == "human"), len(turns))
    return turns[start:]


def kind(value: Any) -> str:
    """The JSON name of a value's type, for messages."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)


def parse_record(raw: Any, where: str) -> Record:
    """A checked record from what a file holds. Raises BadSample naming `where`, what is wrong and what is right."""
    if not isinstance(raw, Mapping):
        raise BadSample(f"{where}: a record must be an object with 'conversations', this is {kind(raw)}")
    identifier = raw.get("id")
    if isinstance(identifier, (Mapping, list)):
        raise BadSample(f"{where}: 'id' must be a string or a number, this is {kind(identifier)}")
    if identifier is not None:
        where = f"{where} (id {str(identifier)[:80]!r})"
    images, video = parse_images(raw, where), parse_video(raw, where)
    if images and video is not None:
        raise BadSample(f"{where}: has both 'image' and 'video'; keep one of them")
    record = Record(
        id=where if identifier is None else str(identifier),
        turns=parse_turns(raw, where),
        images=images,
        video=video,
        where=where,
    )
    if record.is_visual:  # elsewhere it is text like any other
        check_placeholders(record)
    return record


def parse_images(raw: Mapping[str, Any], where: str) -> tuple[ImageRef, ...]:
    value = raw.get("image")
    if value is None:
        return ()
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        if isinstance(entry, Mapping):
            if not isinstance(entry.get("bytes"), CONTENT) and not isinstance(entry.get("path"), str):
                raise BadSample(f"{where}: an image object needs 'bytes' or a 'path', it has {sorted(map(str, entry))}")
        elif not isinstance(entry, (str, *CONTENT)):
            raise BadSample(f"{where}: 'image' must be a path or a list of paths, but holds {kind(entry)}")
        elif not entry:
            raise BadSample(f"{where}: 'image' is an empty string; leave the key out for a sample without image")
    return tuple({"bytes": entry} if isinstance(entry, CONTENT) else entry for entry in entries)


def parse_video(raw: Mapping[str, Any], where: str) -> str | tuple[str, ...] | None:
    value = raw.get("video")
    if value is None:
        return None
    if isinstance(value, list) and value and all(isinstance(entry, str) and entry for entry in value):
        return tuple(value)
    if isinstance(value, str) and value:
        return value
    raise BadSample(f"{where}: 'video' must be a path or a non-empty list of frame files, this is {kind(value)}")


def parse_turns(raw: Mapping[str, Any], where: str) -> tuple[dict[str, str], ...]:
    if "conversations" not in raw:
        raise BadSample(f"{where}: no 'conversations'; the keys are {sorted(map(str, raw))}", "bad_conversation")
    turns = raw["conversations"]
    if not isinstance(turns, list) or not turns:
        found = "an empty list" if turns == [] else kind(turns)
        raise BadSample(f"{where}: 'conversations' must be a list of turns, this is {found}", "bad_conversation")
    parsed = tuple(parse_turn(turn, f"{where}, turn {position}") for position, turn in enumerate(turns))
    if sum(len(turn["value"]) for turn in parsed) > MAX_CHARACTERS:
        raise BadSample(f"{where}: the conversation is longer than {MAX_CHARACTERS:,} characters", "huge_text")
    used = used_turns(parsed)
    if not any(turn["from"] == "gpt" for turn in used):
        raise BadSample(f"{where}: no turn of 'gpt' follows one of 'human', so there is no answer", "bad_conversation")
    check_alternation(parsed, where)
    return parsed


def check_alternation(turns: tuple[dict[str, str], ...], where: str) -> None:
    """From the first human turn on, human and gpt take turns; extra roles may stand anywhere between."""
    expected = "human"
    first = len(turns) - len(used_turns(turns))
    for position, turn in enumerate(turns[first:], start=first):
        if turn["from"] in EXTRA_ROLES:
            continue
        if turn["from"] != expected:
            raise BadSample(
                f"{where}: turns must alternate between human and gpt, but turn {position} is from {turn['from']!r} "
                f"where {expected!r} is due",
                "bad_conversation",
            )
        expected = "gpt" if expected == "human" else "human"


def parse_turn(turn: Any, where: str) -> dict[str, str]:
    """{"from", "value"} of a turn in either spelling: from/value or role/content."""
    if not isinstance(turn, Mapping):
        raise BadSample(
            f"{where}: a turn must be an object with 'from' and 'value', this is {kind(turn)}", "bad_conversation"
        )
    role = turn.get("from", turn.get("role"))
    value = turn.get("value", turn.get("content"))
    known = [*ROLES, *EXTRA_ROLES]
    if not isinstance(role, str) or role not in known:
        raise BadSample(f"{where}: role {role!r} is unknown; there are {', '.join(known)}", "bad_conversation")
    if not isinstance(value, str):
        raise BadSample(f"{where}: the text ('value') must be a string, this is {kind(value)}", "bad_conversation")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadSample(
            f"{where}: the text holds a lone surrogate at character {error.start}", "bad_conversation"
        ) from None
    return {"from": ROLES.get(role, role), "value": value}


def check_placeholders(record: Record) -> None:
    """One `<image>` per picture. A single picture that the text never mentions is allowed, and not shown."""
    pictures, placeholders = record.num_pictures, record.num_placeholders
    if placeholders == pictures or (placeholders == 0 and pictures == 1):
        return
    what = "video" if record.video is not None else "image"
    raise BadSample(
        f"{record.where}: the text has {placeholders} {DEFAULT_IMAGE_TOKEN} but the record has {pictures} {what}(s)",
        "image_token_mismatch",
    )
