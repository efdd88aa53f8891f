"""A model back from its base and its difference (see make_delta).

python -m llava.model.apply_delta --base-model-path DIR --target-model-path DIR --delta-path DIR
"""

import argparse
import os

import torch

from llava.model.delta import rewrite


def apply_delta(
    base_model_path: str | os.PathLike[str],
    target_model_path: str | os.PathLike[str],
    delta_path: str | os.PathLike[str],
) -> None:
    """Write base plus delta to `target_model_path`."""
    rewrite(base_model_path, delta_path, target_model_path, torch.add)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model-path", required=True, help="the base model")
    parser.add_argument("--target-model-path", required=True, help="directory to write")
    parser.add_argument("--delta-path", required=True, help="the difference")
    args = parser.parse_args()
    apply_delta(args.base_model_path, args.target_model_path, args.delta_path)


if __name__ == "__main__":
    main()
