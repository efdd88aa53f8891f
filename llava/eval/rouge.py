"""ROUGE-L of one text against another, as LLaVA-NeXT's interleaved benchmark counts it."""

import numpy as np


def rouge_l(prediction: str, truth: str) -> float:
    """F1 over the different words that longest common subsequences of sentence pairs cover, 0 to 1.

    Sentences end at periods; both texts must hold a word.
    """
    predicted, true = _sentences(prediction), _sentences(truth)
    covered: set[str] = set()
    for sentence in true:
        for candidate in predicted:
            covered |= set(_common_subsequence(sentence, candidate))
    precision = len(covered) / len({word for sentence in predicted for word in sentence})
    recall = len(covered) / len({word for sentence in true for word in sentence})
    return 2 * precision * recall / (precision + recall + 1e-8)


def _sentences(text: str) -> list[list[str]]:
    return [sentence.split() for sentence in text.split(".") if sentence.split()]


def _common_subsequence(first: list[str], second: list[str]) -> list[str]:
    lengths = np.zeros((len(first) + 1, len(second) + 1), dtype=int)
    for row, left in enumerate(first, 1):
        for column, right in enumerate(second, 1):
            best = max(lengths[row - 1, column], lengths[row, column - 1])
            lengths[row, column] = lengths[row - 1, column - 1] + 1 if left == right else best
    words: list[str] = []
    row, column = len(first), len(second)
    while row and column:
        if first[row - 1] == second[column - 1]:
            words.append(first[row - 1])
            row, column = row - 1, column - 1
        elif lengths[row - 1, column] > lengths[row, column - 1]:
            row -= 1
        else:
            column -= 1
    return words[::-1]
