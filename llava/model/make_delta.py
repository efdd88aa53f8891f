"""A model as its difference from its base, for weights that may not be passed on whole.

python -m llava.model.make_delta --base-model-path DIR --target-model-path DIR --delta-path DIR
"""

import argparse
import os

import torch

from llava.model.delta import rewrite


def make_delta(
    base_model_path: str | os.PathLike[str],
    target_model_path: str | os.PathLike[str],
    delta_path: str | os.PathLike[str],
    hub_repo_id: str | None = None,
) -> None:
    """Write target minus base to `delta_path`, and upload it if a hub repository is named."""
    rewrite(base_model_path, target_model_path, delta_path, torch.sub)
    if hub_repo_id is not None:
        from huggingface_hub import upload_folder

        upload_folder(repo_id=hub_repo_id, folder_path=str(delta_path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model-path", required=True, help="the base model")
    parser.add_argument("--target-model-path", required=True, help="the model trained from it")
    parser.add_argument("--delta-path", required=True, help="directory to write")
    parser.add_argument("--hub-repo-id", default=None, help="upload the difference to this repository as well")
    args = parser.parse_args()
    make_delta(args.base_model_path, args.target_model_path, args.delta_path, args.hub_repo_id)


if __name__ == "__main__":
    main()
