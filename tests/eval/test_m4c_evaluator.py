"""Answer normalization and the scores on top of it, against hand-made values and lmms-eval's table."""

import importlib.util
from importlib.metadata import distribution
from types import ModuleType

import pytest

from llava.eval.m4c_evaluator import (
    EvalAIAnswerProcessor,
    STVQAAccuracyEvaluator,
    STVQAANLSEvaluator,
    TextCapsBleu4Evaluator,
    TextVQAAccuracyEvaluator,
    edit_distance,
)


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """lmms-eval's file alone, without importing lmms-eval."""
    path = distribution("lmms-eval").locate_file("lmms_eval/tasks/_task_utils/vqa_eval_metric.py")
    spec = importlib.util.spec_from_file_location("vqa_eval_metric", str(path))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Two dogs.", "2 dogs"),
        ("The cat", "cat"),
        ("dont know", "don't know"),
        ("Bob's car", "bob 's car"),
        ("1,000", "1000"),
        ("3.5 m", "3.5 m"),
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("well-known", "well known"),
        ("none", "0"),
        ("line\nbreak", "line break"),
        ("", ""),
    ],
)
def test_answers_are_normalized_as_the_challenge_does(answer: str, expected: str) -> None:
    assert EvalAIAnswerProcessor()(answer) == expected


def test_normalization_equals_lmms_evals_on_its_own_table_and_on_odd_answers(reference: ModuleType) -> None:
    theirs, ours = reference.EvalAIAnswerProcessor(), EvalAIAnswerProcessor()
    odd = ["a - b", "1,,2", "x" + "." * 40, "U.S.A.", "it's 5 o'clock", "?!", "the a an", "½ / (c)", "e.g. 2.5 , no"]
    for answer in [*theirs.CONTRACTIONS, *theirs.CONTRACTIONS.values(), "couldntve", "lets", *odd]:
        assert ours(answer) == theirs(answer), answer


def test_soft_accuracy_leaves_each_human_answer_out_in_turn() -> None:
    """1 of 10: (0 + 9 * 1/3) / 10. 3 of 10: (3 * 2/3 + 7 * 1) / 10. 4 of 10 and more: 1."""
    evaluator = TextVQAAccuracyEvaluator()
    for matches, expected in ((0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)):
        entry = {"pred_answer": "Red", "gt_answers": ["red"] * matches + ["blue"] * (10 - matches)}
        assert evaluator.eval_pred_list([entry]) == pytest.approx(expected)
    with pytest.raises(ValueError, match="10 human answers"):
        evaluator.eval_pred_list([{"pred_answer": "a", "gt_answers": ["a"]}])
    with pytest.raises(ValueError, match="no answer to score"):
        evaluator.eval_pred_list([])


def test_st_vqa_takes_any_human_answer() -> None:
    pairs = [{"pred_answer": "The Cat", "gt_answers": ["dog", "cat"]}, {"pred_answer": "cow", "gt_answers": ["dog"]}]
    assert STVQAAccuracyEvaluator().eval_pred_list(pairs) == 0.5


def test_edit_distance_counts_the_fewest_changes() -> None:
    assert [edit_distance(*pair) for pair in (("kitten", "sitting"), ("", "abc"), ("abc", "abc"))] == [3, 3, 0]


def test_similarity_below_one_half_is_none() -> None:
    """kitten and sitting: 1 - 3/7. abcd and xbyz: 1 - 3/4, cut to 0."""
    pairs = [
        {"pred_answer": "Kitten", "gt_answers": ["xyz", "sitting"]},
        {"pred_answer": "abcd", "gt_answers": ["xbyz"]},
    ]
    assert STVQAANLSEvaluator().eval_pred_list(pairs) == pytest.approx((1 - 3 / 7) / 2)


def test_bleu_of_the_same_sentence_is_one() -> None:
    same = {"pred_answer": "a red cat sits on the mat", "gt_answers": ["another one here", "a red cat sits on the mat"]}
    other = {"pred_answer": "completely different words in here", "gt_answers": ["a red cat sits on the mat"]}
    assert TextCapsBleu4Evaluator().eval_pred_list([same]) == pytest.approx(1.0)
    assert TextCapsBleu4Evaluator().eval_pred_list([other]) < 0.1
