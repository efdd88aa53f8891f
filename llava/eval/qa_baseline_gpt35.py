"""Answers questions without pictures with GPT-3.5, as a baseline for reviews; not answered is `#ERROR#`.

    OPENAI_API_KEY=... python -m llava.eval.qa_baseline_gpt35 -q questions.jsonl -o answers.jsonl

OPENAI_BASE_URL (https://api.openai.com/v1) names another server that speaks the same interface.
"""

import argparse
import json
import os
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava.errors import readable_errors
from llava.eval.answer_log import short_uuid
from llava.eval.questions import read_jsonl

MODEL, MODEL_ID = "gpt-3.5-turbo", "gpt-3.5-turbo:20230327"
SYSTEM = "You are a helpful assistant."
TRIES, PAUSE_SECONDS, SECONDS, AT_ONCE = 3, 1.0, 120, 32


def openai_chat(max_tokens: int) -> Callable[[str], str]:
    """A function that asks one question, and raises what networks and JSON raise.

    Raises ValueError if OPENAI_API_KEY is not set.
    """
    key, base = os.environ.get("OPENAI_API_KEY"), os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1")
    if not key:
        raise ValueError("this baseline asks OpenAI and needs OPENAI_API_KEY in the environment")

    def ask(question: str) -> str:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        request = urllib.request.Request(
            f"{base.rstrip('/')}/chat/completions",
            data=json.dumps({"model": MODEL, "messages": messages, "max_tokens": max_tokens}).encode(),
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=SECONDS) as reply:
            return str(json.load(reply)["choices"][0]["message"]["content"])

    return ask


def answer(question: dict[str, Any], ask: Callable[[str], str]) -> dict[str, Any]:
    """An answer line; three tries."""
    row = {"answer_id": short_uuid(), "question_id": question["question_id"], "model_id": MODEL_ID, "text": "#ERROR#"}
    for _ in range(TRIES):
        try:
            return {**row, "text": ask(question["text"])}
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            print(f"[ERROR] question {question['question_id']}: {error}")
            time.sleep(PAUSE_SECONDS)
    return row


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-q", "--question", required=True)
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--max-tokens", type=int, default=1024, help="of an answer")
    args = parser.parse_args(argv)
    questions, ask = read_jsonl(args.question), openai_chat(args.max_tokens)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(tqdm(pool.map(lambda question: answer(question, ask), questions), total=len(questions)))
    answers.sort(key=lambda row: row["question_id"])
    output = Path(args.output).expanduser()
    output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in answers), encoding="utf-8")


if __name__ == "__main__":
    with readable_errors():
        main()
