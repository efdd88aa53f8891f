import pytest

from playground.evaluate import gains, mean_gain


def answer(number: int, kind: str, prediction: str) -> dict[str, str]:
    return {"question_id": f"{number}-{kind}", "category": kind, "answer": "red", "prediction": prediction}


def test_a_gain_is_paired_by_question() -> None:
    better = [answer(i, "color", "red") for i in range(4)] + [answer(0, "shape", "red")]
    worse = [answer(i, "color", "red" if i else "blue") for i in range(4)] + [answer(0, "shape", "Red ")]
    found = gains(better, worse)
    assert found["color"].value == pytest.approx(0.25)
    assert found["color"].error == pytest.approx((0.25 * 0.75 / 4) ** 0.5)
    assert (found["shape"].value, found["shape"].error) == (0, 0)
    assert mean_gain(found, ("color", "shape")).value == pytest.approx(0.125)


def test_answers_to_other_questions_are_not_compared() -> None:
    with pytest.raises(AssertionError):
        gains([answer(0, "color", "red")], [answer(1, "color", "red")])
