"""Scores of LLaVA-NeXT's interleaved benchmark: accuracy for choices, ROUGE-L for open answers.

Reads DIR/result.jsonl, as `llava.eval.model_vqa` writes it for an interleaved question file, and writes
eval_dataset.json, eval_dataset_details.json and eval_cat.json beside it.

    python -m llava.eval.evaluate_interleave --result-dir DIR
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.errors import readable_errors
from llava.eval.m4c_evaluator import EvalAIAnswerProcessor
from llava.eval.rouge import rouge_l
from llava.eval.scores import read_answers

CATEGORIES = {
    "spot_the_diff": ("Spot-the-Diff", "Birds-to-Words", "CLEVR-Change"),
    "image_edit_instruct": ("IEdit", "HQ-Edit", "MagicBrush"),
    "visual_story_telling": ("AESOP", "FlintstonesSV", "PororoSV", "VIST"),
    "visual_cloze": ("COMICS_Dialogue", "RecipeQA_VisualCloze"),
    "text_rich_vqa": ("WebQA", "TQA", "OCR-VQA", "DocVQA"),
    "multi_image_vqa": (
        "MIT-States_StateCoherence",
        "MIT-States_PropertyCoherence",
        "VISION",
        "RecipeQA_ImageCoherence",
    ),
    "puzzle": ("RAVEN",),
    "nlrv2": ("NLVR2_Mantis",),
    "qbench": ("QBench",),
}
CHOICES = tuple("abcdefgh")
LONGEST = 512  # characters of an open answer that are compared


def normalize(answer: str) -> str:
    """Lower-case, without punctuation and what encloses the answer."""
    plain = EvalAIAnswerProcessor().process_punctuation(answer.replace("\n", " ").replace("\t", " ").strip())
    for mark in ("'", '"', ")", "("):
        plain = plain.strip(mark)
    return plain.strip().lower()


def choice_score(prediction: str, truth: str) -> float:
    """A single letter after a colon stands for the answer."""
    chosen = normalize(prediction)
    for part in chosen.split(":") if ":" in chosen else []:
        if part.strip() in CHOICES:
            chosen = part.strip()
    return float(chosen == normalize(truth))


def open_score(prediction: str, truth: str) -> float:
    predicted, true = normalize(prediction)[:LONGEST], normalize(truth)
    return rouge_l(predicted, true) if predicted.strip(". ") else 0.0


def score_dataset(rows: Sequence[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """The metric's name and [{id, score}]. An open question without a truth is left out, as published."""
    kind = rows[0]["question_type"]
    if kind == "multi-choice":
        pairs = [(row, choice_score(row["pred_response"], row["gt_response"])) for row in rows]
        return "Accuracy", [{"id": str(row["sample_id"]), "score": value} for row, value in pairs]
    if kind == "open-ended":
        kept = [row for row in rows if normalize(row["gt_response"]).strip(". ")]
        pairs = [(row, open_score(row["pred_response"], row["gt_response"])) for row in kept]
        return "Rouge-L f", [{"id": str(row["sample_id"]), "score": value} for row, value in pairs]
    raise ValueError(f"{rows[0]['dataset']} has questions of type {kind!r}; known are multi-choice and open-ended")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result-dir", required=True)
    folder = Path(parser.parse_args(argv).result_dir)
    datasets: dict[str, list[dict[str, Any]]] = {}
    keys = ("dataset", "sample_id", "pred_response", "gt_response", "question_type")
    for row in read_answers(folder / "result.jsonl", keys):
        datasets.setdefault(row["dataset"], []).append(row)
    results, details = {}, {}
    for name, rows in datasets.items():
        metric, details[name] = score_dataset(rows)
        results[name] = {metric: sum(row["score"] for row in details[name]) / max(1, len(details[name]))}
        print(f"{name}:  {results[name]}")
    categories = {}
    for category, members in CATEGORIES.items():
        values = [value for name in members if name in results for value in results[name].values()]
        if values:
            categories[category] = sum(values) / len(values)
            print(f"{category}:  {100 * categories[category]:.2f}")
    for name, content in (("eval_dataset", results), ("eval_dataset_details", details), ("eval_cat", categories)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=4), encoding="utf-8")


if __name__ == "__main__":
    with readable_errors():
        main()
