"""MMBench's tables of questions, options and pictures in base64. Knows no torch."""

import csv
import sys
from pathlib import Path
from typing import Any

from llava.eval.questions import require_keys

LETTERS = ("A", "B", "C", "D")
EMPTY = {"", "nan", "-nan", "none"}
# LLaVA and MMBench's server read the tables with pandas, for which these are missing too, exactly as they are written.
MISSING = {"NA", "N/A", "n/a", "<NA>", "NULL", "null", "#N/A", "#NA", "#N/A N/A"}


def present(value: Any) -> bool:
    """Whether a cell holds something: an option `NA` is none, as in the published scores."""
    text = "" if value is None else str(value).strip()
    return text not in MISSING and text.lower() not in EMPTY


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """Rows of an MMBench table. Raises ValueError that names a row without index, question, image or first option."""
    csv.field_size_limit(sys.maxsize)
    with open(Path(path).expanduser(), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for number, row in enumerate(rows, 1):
        require_keys(row, ("index", "question", "image", "A"), f"{path}: row {number}")
    return rows
