"""How each separator style writes a conversation down, as data, and which parts of the text a model learns to write.

One renderer serves the prompt at inference and the labels in training, so the two cannot drift apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple


class SeparatorStyle(Enum):
    """How turns are separated; refer to members by name."""

    SINGLE = auto()
    TWO = auto()
    MPT = auto()
    PLAIN = auto()
    CHATML = auto()
    LLAMA_2 = auto()
    LLAMA_3 = auto()
    QWEN = auto()
    GEMMA = auto()


class Turn(NamedTuple):
    """text: None is an open slot: the model writes from here. is_answer: whether the model writes this turn."""

    role: str
    text: str | None
    is_answer: bool


class Piece(NamedTuple):
    """A stretch of the prompt. is_learned: training supervises its tokens."""

    text: str
    is_learned: bool


@dataclass(frozen=True)
class TurnLayout:
    """header: written for every turn. lead and end: around the text of a turn that has one."""

    header: str
    lead: str
    end: str


@dataclass(frozen=True)
class Layout:
    """Format strings over {system}, {role}, {sep}, {sep2}.

    head: in front of the turns; left out without a system prompt if `head_needs_system`.
    system_in_question: in front of the first question's text. between: in front of every later question.
    mark: in front of every turn and after the last, always learned. learns_header: an answer's header is learned too.
    always_learned: tokens that are supervised wherever they stand.
    is_trimmed: texts lose surrounding whitespace. closes_empty: in training an empty answer is an answer, not a slot.
    """

    question: TurnLayout
    answer: TurnLayout
    head: str = ""
    head_needs_system: bool = False
    system_in_question: str = ""
    between: str = ""
    mark: str = ""
    learns_header: bool = False
    always_learned: tuple[str, ...] = ()
    is_trimmed: bool = False
    closes_empty: bool = False


_COLON = TurnLayout("{role}:", " ", "{sep}")
_BARE = TurnLayout("{role}", "", "{sep}")
_LLAMA_3_HEADER = "<|start_header_id|>{role}<|end_header_id|>\n\n"
_CHATML = Layout(
    question=TurnLayout("{role}\n", "", "{sep}\n"),
    answer=TurnLayout("{role}\n", "", "{sep}\n"),
    head="{system}{sep}\n",
    head_needs_system=True,
    learns_header=True,
    always_learned=("<|im_start|>", "<|im_end|>", "\n"),
    closes_empty=True,
)

LAYOUTS = {
    SeparatorStyle.SINGLE: Layout(_COLON, _COLON, head="{system}{sep}"),
    SeparatorStyle.TWO: Layout(_COLON, TurnLayout("{role}:", " ", "{sep2}"), head="{system}{sep}"),
    SeparatorStyle.MPT: Layout(_BARE, _BARE, head="{system}{sep}"),
    SeparatorStyle.PLAIN: Layout(TurnLayout("", "", "{sep}"), TurnLayout("", "", "{sep2}"), head="{system}"),
    SeparatorStyle.CHATML: _CHATML,
    SeparatorStyle.QWEN: _CHATML,
    SeparatorStyle.GEMMA: Layout(_BARE, _BARE),
    SeparatorStyle.LLAMA_2: Layout(
        question=TurnLayout("", "[INST] ", " [/INST]"),
        answer=TurnLayout("", " ", " {sep2}"),
        system_in_question="<<SYS>>\n{system}\n<</SYS>>\n\n",
        between="{sep}",
    ),
    SeparatorStyle.LLAMA_3: Layout(
        question=TurnLayout(_LLAMA_3_HEADER, "", "{sep}"),
        answer=TurnLayout(_LLAMA_3_HEADER, "", "{sep}"),
        head=_LLAMA_3_HEADER.format(role="system") + "{system}{sep}",
        head_needs_system=True,
        learns_header=True,
        always_learned=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "\n\n"),
        is_trimmed=True,
        closes_empty=True,
    ),
}

# Two styles are trained on another text than they are prompted with.
TRAINING_LAYOUTS = LAYOUTS | {
    SeparatorStyle.SINGLE: Layout(
        question=TurnLayout(" {role}:", " ", "\n"),
        answer=TurnLayout(" {role}:", " ", "\n"),
        head="{system}\n\n",
        mark="###",
        learns_header=True,
        closes_empty=True,
    ),
    SeparatorStyle.PLAIN: Layout(TurnLayout("", "", ""), TurnLayout("", "", "{sep}"), closes_empty=True),
}


def render(layout: Layout, turns: Sequence[Turn], *, system: str, sep: str, sep2: str | None) -> list[Piece]:
    """The conversation as pieces; their texts in a row are the prompt. A missing `sep2` is `sep`."""
    words = {"system": system, "sep": sep, "sep2": sep if sep2 is None else sep2}
    pieces = []
    if system or not layout.head_needs_system:
        pieces.append(Piece(layout.head.format(**words), False))
    for index, turn in enumerate(turns):
        pieces += _render_turn(layout, turn, words, is_first=index == 0)
    if layout.mark:
        pieces.append(Piece(layout.mark + " ", True))
    return [piece for piece in pieces if piece.text]


def _render_turn(layout: Layout, turn: Turn, words: dict[str, str], is_first: bool) -> list[Piece]:
    written = layout.answer if turn.is_answer else layout.question
    header = Piece(written.header.format(**words, role=turn.role), turn.is_answer and layout.learns_header)
    pieces = [Piece(layout.mark, True), header]
    if turn.text is None:
        return pieces
    text = turn.text.strip() if layout.is_trimmed else turn.text
    if is_first and words["system"]:
        text = layout.system_in_question.format(**words) + text
    lead = written.lead if is_first or turn.is_answer else layout.between + written.lead
    return [*pieces, Piece(lead.format(**words) + text + written.end.format(**words), turn.is_answer)]
