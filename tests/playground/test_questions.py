from collections import Counter

import numpy as np

from playground.questions import ATTRIBUTES, KINDS, NUMBERS, Question, ask_everything, caption, choose, placed_caption
from playground.world import Scene, Thing, WorldConfig, draw_scenes

#  row 0: red circle, blue square | row 1: red cross in the center | row 2: green circle on the right
SCENE = Scene(
    (
        Thing(0, "red", "circle", "solid", "big", "7"),
        Thing(1, "blue", "square", "dotted", "small", None),
        Thing(4, "red", "cross", "striped", "big", None),
        Thing(8, "green", "circle", "checkered", "small", "1"),
    )
)
MANY = draw_scenes(WorldConfig(), "validation", 60)


def chance() -> np.random.Generator:
    return np.random.default_rng(0)


def asked() -> dict[str, str]:
    return {question.text: question.answer for question in ask_everything(SCENE, chance())}


def test_captions_name_things_in_reading_order() -> None:
    assert caption(SCENE) == "red circle , blue square , red cross , green circle"
    assert placed_caption(SCENE).startswith("top left red circle , top center blue square , middle center red cross")


def test_answers_about_single_things_are_those_of_the_scene() -> None:
    answers = asked()
    expected = {
        "color of square": "blue",
        "shape of green": "circle",
        "texture of blue": "dotted",
        "texture of cross": "striped",
        "digit of green": "1",
        "size of square": "small",
        "row of cross": "middle",
        "column of green": "right",
    }
    assert expected.items() <= answers.items()


def test_nothing_is_asked_by_a_name_that_two_things_share_or_about_a_missing_digit() -> None:
    single = [text for text in asked() if " of " in text and text.split()[0] in ATTRIBUTES]
    assert not [text for text in single if text.endswith((" red", " circle"))]
    assert "digit of blue" not in asked()


def test_counts_hold_for_every_scene() -> None:
    for scene in MANY:
        for question in ask_everything(scene, chance()):
            if question.kind == "count":
                word = question.text.split()[-1]
                found = sum(word in (t.color, t.shape, "things") for t in scene.things)
                assert question.answer == NUMBERS[found], (scene, question)


def test_existence_is_asked_as_often_with_yes_as_with_no_and_only_of_words_in_the_scene() -> None:
    for scene in MANY:
        questions = [q for q in ask_everything(scene, chance()) if q.kind == "exist"]
        pairs = {(t.color, t.shape) for t in scene.things}
        for question in questions:
            _, color, shape = question.text.split()
            assert question.answer == ("yes" if (color, shape) in pairs else "no")
            assert color in {t.color for t in scene.things}
            assert shape in {t.shape for t in scene.things}
        answers = Counter(q.answer for q in questions)
        assert answers["yes"] == answers["no"]


def test_relations_name_the_direct_neighbor() -> None:
    relations = {q.text: q.answer for q in ask_everything(SCENE, chance()) if q.kind == "relation"}
    assert relations == {"shape left of blue": "circle", "shape below blue": "cross"}


def test_every_answer_is_one_word_and_every_kind_is_asked() -> None:
    questions = [question for scene in MANY for question in ask_everything(scene, chance())]
    assert all(len(question.answer.split()) == 1 for question in questions)
    assert {question.kind for question in questions} == set(KINDS)


def test_choosing_takes_each_kind_before_any_kind_twice() -> None:
    questions = [Question("color", str(i), "") for i in range(9)] + [
        Question("size", "s", ""),
        Question("row", "r", ""),
    ]
    chosen = choose(questions, 4, chance())
    assert Counter(question.kind for question in chosen) == {"color": 2, "size": 1, "row": 1}
    assert len({question.text for question in choose(questions, 50, chance())}) == len(questions)
