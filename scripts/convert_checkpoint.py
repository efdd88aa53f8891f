"""Convert a checkpoint of any layout to the original LLaVA format, or to transformers' own classes.

    python scripts/convert_checkpoint.py --model-path DIR [--model-base DIR] --output DIR --format original|hf

What is written is read back and compared with what was read. `--format hf` is `python -m llava.export hf`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from llava.export.compare import ROUNDING, Finding, relative, verify
from llava.export.hf import Source, export_hf
from llava.export.merge import probe_logits
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import CheckpointError, save_student
from llava.model.checkpoint_io import check_output


def to_original(model_path: str, model_base: str | None, output: str) -> list[Finding]:
    """Write a full checkpoint under published names and compare logits. Raises CheckpointError."""
    check_output(output, model_path, model_base)
    options: dict[str, Any] = {"device": "cpu", "torch_dtype": "auto"}
    tokenizer, model, _, _ = load_pretrained_model(model_path, model_base, "llava", **options)
    before = probe_logits(model)
    save_student(model, output)
    tokenizer.save_pretrained(output)
    after = probe_logits(load_pretrained_model(output, None, "llava", **options)[1])
    finding = Finding("logits, as a share of the largest", relative(after, before), ROUNDING[model.dtype])
    print(f"wrote {output}")
    verify([finding], Path(output))
    return [finding]


def convert(model_path: str, model_base: str | None, output: str, target: str) -> list[Finding]:
    """Convert and compare. Raises CheckpointError."""
    if target == "hf":
        return export_hf(Source(model_path, model_base), output)
    return to_original(model_path, model_base, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True, help="checkpoint to read, any layout")
    parser.add_argument("--model-base", default=None, help="base model of a projector or LoRA directory")
    parser.add_argument("--output", required=True, help="directory to write")
    parser.add_argument("--format", required=True, choices=("original", "hf"), help="layout to write")
    args = parser.parse_args()
    try:
        convert(args.model_path, args.model_base, args.output, args.format)
    except (CheckpointError, OSError) as error:
        sys.exit(f"convert_checkpoint: {error}")


if __name__ == "__main__":
    main()
