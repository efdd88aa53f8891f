"""Merge a LoRA adapter into its base and save a full checkpoint.

    python scripts/merge_lora_weights.py --model-path LORA --model-base BASE --save-model-path OUT

The published name of `python -m llava.export merge`.
"""

import argparse
import sys

from llava.export.merge import merge_lora
from llava.model.checkpoint import CheckpointError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True, help="directory with adapter_config.json")
    parser.add_argument("--model-base", required=True, help="the model that the adapter was trained on")
    parser.add_argument("--save-model-path", required=True, help="directory to write")
    parser.add_argument("--any-base", action="store_true", help="do not compare the base's name with the adapter's")
    args = parser.parse_args()
    try:
        merge_lora(args.model_path, args.model_base, args.save_model_path, args.any_base)
    except (CheckpointError, OSError) as error:
        sys.exit(f"merge_lora_weights: {error}")


if __name__ == "__main__":
    main()
