"""What can be said and asked about a scene: captions, and questions with one-word answers.

The word that a question is about comes last, straight before the answer's turn: a small language model finds
such an answer in minutes, and hardly ever when other words follow. Knows nothing of pictures or files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from playground.world import COLORS, COLUMNS, GLYPHS, GRID, ROWS, SHAPES, SIZES, TEXTURES, Scene, Thing

NUMBERS = ("zero", "one", "two", "three", "four", "five")  # MOST_THINGS and below
KINDS = ("color", "shape", "texture", "digit", "size", "count", "row", "column", "exist", "relation")
VISUAL_KINDS = KINDS[:6]
EMPTY = "empty"
WORDS = (*COLORS, *SHAPES, *TEXTURES, *SIZES, *GLYPHS, *ROWS, *COLUMNS, *NUMBERS, "yes", "no", EMPTY, ",")
QUESTION_WORDS = (
    "color",
    "shape",
    "texture",
    "digit",
    "size",
    "row",
    "column",
    "count",
    "any",
    "of",
    "things",
    "above",
    "below",
)
SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
ATTRIBUTES: dict[str, Callable[[Thing], str]] = {
    "color": lambda thing: thing.color,
    "shape": lambda thing: thing.shape,
    "texture": lambda thing: thing.texture,
    "digit": lambda thing: thing.digit or "",
    "size": lambda thing: thing.size,
    "row": lambda thing: thing.row,
    "column": lambda thing: thing.column,
}


@dataclass(frozen=True)
class Question:
    kind: str
    text: str
    answer: str


def caption(scene: Scene) -> str:
    """What a passer-by would say, in reading order: `red circle , blue square`."""
    return " , ".join(f"{thing.color} {thing.shape}" for thing in scene.things)


def placed_caption(scene: Scene) -> str:
    """The caption with places: `top left red circle , middle center blue square`."""
    return " , ".join(f"{thing.row} {thing.column} {thing.color} {thing.shape}" for thing in scene.things)


def cell_words(thing: Thing | None, row: str, column: str) -> tuple[str, ...]:
    """Every word that is true of one cell; for text-only training a cell is the sum of their embeddings."""
    if thing is None:
        return (EMPTY, row, column)
    words = (thing.color, thing.shape, thing.texture, thing.size, row, column)
    return words if thing.digit is None else (*words, thing.digit)


def ask_everything(scene: Scene, chance: np.random.Generator) -> list[Question]:
    """All questions about a scene that have one answer, in the order of KINDS. `chance` picks absent things."""
    by_color = {t.color: t for t in scene.things if sum(o.color == t.color for o in scene.things) == 1}
    by_shape = {t.shape: t for t in scene.things if sum(o.shape == t.shape for o in scene.things) == 1}
    by_name = by_color | by_shape
    asked = {"color": by_shape, "shape": by_color, "texture": by_name, "size": by_name, "row": by_name}
    asked |= {"column": by_name, "digit": {name: thing for name, thing in by_name.items() if thing.digit}}
    questions = [
        Question(kind, f"{kind} of {name}", attribute(thing))
        for kind, attribute in ATTRIBUTES.items()
        for name, thing in asked[kind].items()
    ]
    questions += _counts(scene, chance) + _existence(scene, chance) + _relations(scene, by_color)
    return sorted(questions, key=lambda question: KINDS.index(question.kind))


def _counts(scene: Scene, chance: np.random.Generator) -> list[Question]:
    """How many things there are, and one color or shape for every number that some color or shape has."""
    numbers = {word: sum(word in (t.color, t.shape) for t in scene.things) for word in (*COLORS, *SHAPES)}
    words = list(numbers)
    by_number = {numbers[words[place]]: words[place] for place in chance.permutation(len(words)).tolist()}
    total = Question("count", "count of things", NUMBERS[len(scene.things)])
    return [total] + [Question("count", f"count of {word}", NUMBERS[number]) for number, word in by_number.items()]


def _existence(scene: Scene, chance: np.random.Generator) -> list[Question]:
    """Pairs of a color and a shape that are both in the scene: on one thing (yes), or never together (no)."""
    pairs = {(t.color, t.shape) for t in scene.things}
    apart = sorted({(a.color, b.shape) for a in scene.things for b in scene.things} - pairs)
    count = min(len(pairs), len(apart))
    present = [sorted(pairs)[i] for i in chance.permutation(len(pairs))[:count]]
    absent = [apart[i] for i in chance.permutation(len(apart))[:count]]
    return [Question("exist", f"any {c} {s}", "yes") for c, s in present] + [
        Question("exist", f"any {c} {s}", "no") for c, s in absent
    ]


def _relations(scene: Scene, by_color: dict[str, Thing]) -> list[Question]:
    """The shape of the direct neighbor of a thing."""
    by_cell = {thing.cell: thing for thing in scene.things}
    questions = []
    for color, thing in by_color.items():
        row, column = divmod(thing.cell, GRID)
        for side, (down, right) in SIDES.items():
            if not (0 <= row + down < GRID and 0 <= column + right < GRID):
                continue
            neighbor = by_cell.get((row + down) * GRID + column + right)
            if neighbor is not None:
                questions.append(Question("relation", f"shape {side} {color}", neighbor.shape))
    return questions


def choose(questions: Sequence[Question], count: int, chance: np.random.Generator) -> list[Question]:
    """At most `count` questions in random order, every kind as often as it allows."""
    order = chance.permutation(len(questions)).tolist()
    rank: dict[str, int] = {}
    keyed: list[tuple[int, int, int]] = []
    for place in order:
        kind = questions[place].kind
        rank[kind] = rank.get(kind, 0) + 1
        keyed.append((rank[kind], len(keyed), place))
    chosen = [place for _, _, place in sorted(keyed)[:count]]
    return [questions[place] for place in (chosen[i] for i in chance.permutation(len(chosen)))]
