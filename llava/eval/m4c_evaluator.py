"""The VQA challenge's answer normalization, and the scores of TextVQA, ST-VQA and TextCaps built on it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

NUMBER_WORDS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
CONTRACTIONS_PROPER = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905


def _contractions() -> dict[str, str]:
    """Every spelling of a contraction that lacks one of its apostrophes, and the challenge's one slip."""
    table = {"somebody'd": "somebodyd"}
    for word in CONTRACTIONS_PROPER:
        for place, mark in enumerate(word):
            if mark == "'":
                table[word[:place] + word[place + 1 :]] = word
    return table


class EvalAIAnswerProcessor:
    """Callable: an answer as written to an answer as compared."""

    CONTRACTIONS = _contractions()
    # Two slips are kept, because published numbers contain them: the look-behind never fails, and at most 32 periods
    # of an answer are taken out.
    PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
    COMMA_IN_NUMBER = re.compile(r"(\d)(,)(\d)")

    def word_tokenize(self, word: str) -> str:
        return word.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()

    def process_punctuation(self, text: str) -> str:
        """Marks next to a space, or in a text with a comma inside a number, vanish; others become a space."""
        result = text
        for mark in PUNCTUATION:
            touching_space = f"{mark} " in text or f" {mark}" in text
            if touching_space or self.COMMA_IN_NUMBER.search(text):
                result = result.replace(mark, "")
            else:
                result = result.replace(mark, " ")
        return self.PERIOD.sub("", result, count=32)

    def process_digit_article(self, text: str) -> str:
        words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
        return " ".join(self.CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)

    def __call__(self, answer: str) -> str:
        plain = self.word_tokenize(answer).replace("\n", " ").replace("\t", " ").strip()
        return self.process_digit_article(self.process_punctuation(plain))


class TextVQAAccuracyEvaluator:
    """Soft accuracy against ten human answers: each left out in turn, min(1, matches among the others / 3)."""

    def __init__(self) -> None:
        self.answer_processor = EvalAIAnswerProcessor()

    def scores(self, human_answers: Sequence[str]) -> dict[str, float]:
        answers = [self.answer_processor(answer) for answer in human_answers]
        if len(answers) != 10:
            raise ValueError(f"TextVQA has 10 human answers a question, got {len(answers)}")
        result = {}
        for candidate in set(answers):
            matches = answers.count(candidate)
            # leaving one of the matching answers out lowers the count by one, leaving another one out does not
            left_out = min(1.0, (matches - 1) / 3)
            kept = min(1.0, matches / 3)
            result[candidate] = (matches * left_out + (10 - matches) * kept) / 10
        return result

    def eval_pred_list(self, pred_list: Sequence[Mapping[str, Any]]) -> float:
        """pred_list: {pred_answer, gt_answers}. Returns the mean, 0 to 1."""
        if not pred_list:
            raise ValueError("there is no answer to score")
        total = 0.0
        for entry in pred_list:
            total += self.scores(entry["gt_answers"]).get(self.answer_processor(entry["pred_answer"]), 0.0)
        return total / len(pred_list)


class STVQAAccuracyEvaluator:
    """1 where any human answer is met exactly after normalization."""

    def __init__(self) -> None:
        self.answer_processor = EvalAIAnswerProcessor()

    def eval_pred_list(self, pred_list: Sequence[Mapping[str, Any]]) -> float:
        hits = 0
        for entry in pred_list:
            prediction = self.answer_processor(entry["pred_answer"])
            hits += prediction in {self.answer_processor(answer) for answer in entry["gt_answers"]}
        return hits / len(pred_list)


def edit_distance(first: str, second: str) -> int:
    row = list(range(len(second) + 1))
    for index, left in enumerate(first, 1):
        diagonal, row[0] = row[0], index
        for position, right in enumerate(second, 1):
            diagonal, row[position] = (
                row[position],
                min(row[position] + 1, row[position - 1] + 1, diagonal + (left != right)),
            )
    return row[-1]


class STVQAANLSEvaluator:
    """Average normalized Levenshtein similarity: the best over human answers, 0 below one half."""

    def similarity(self, first: str, second: str) -> float:
        left, right = first.lower().strip(), second.lower().strip()
        longest = max(len(left), len(right))
        similarity = 1 - edit_distance(left, right) / longest if longest else 1.0
        return similarity if similarity >= 0.5 else 0.0

    def eval_pred_list(self, pred_list: Sequence[Mapping[str, Any]]) -> float:
        best = [
            max(self.similarity(entry["pred_answer"], answer) for answer in entry["gt_answers"]) for entry in pred_list
        ]
        return sum(best) / len(best)


class TextCapsBleu4Evaluator:
    """Corpus BLEU-4, 0 to 1, as sacrebleu computes it."""

    def eval_pred_list(self, pred_list: Sequence[Mapping[str, Any]]) -> float:
        try:
            import sacrebleu
        except ImportError as error:
            raise ImportError("TextCaps needs sacrebleu: pip install 'move-kd[eval]'") from error
        depth = max(len(entry["gt_answers"]) for entry in pred_list)
        references = [[(list(entry["gt_answers"]) + [None] * depth)[i] for entry in pred_list] for i in range(depth)]
        return sacrebleu.corpus_bleu([entry["pred_answer"] for entry in pred_list], references).score / 100
