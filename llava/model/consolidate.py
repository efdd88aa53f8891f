"""Rewrite a checkpoint of any published layout as safetensors in float16 under original names.

python -m llava.model.consolidate --src DIR --dst DIR
"""

import argparse
import os

import torch

from llava.model.checkpoint import load_student, save_student
from llava.model.checkpoint_io import check_output
from llava.model.tokenizer import has_tokenizer, load_tokenizer


def consolidate_ckpt(src_path: str | os.PathLike[str], dst_path: str | os.PathLike[str]) -> None:
    """The model in `src_path`, tower included, written to `dst_path` in float16 with its tokenizer.

    Raises CheckpointError if they are one directory, whose weights would lose their precision.
    """
    check_output(dst_path, src_path)
    save_student(load_student(None, src_path, dtype=torch.float16), dst_path)
    if has_tokenizer(src_path):
        load_tokenizer(src_path).save_pretrained(dst_path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--src", required=True, help="checkpoint to read")
    parser.add_argument("--dst", required=True, help="directory to write")
    args = parser.parse_args()
    consolidate_ckpt(args.src, args.dst)


if __name__ == "__main__":
    main()
