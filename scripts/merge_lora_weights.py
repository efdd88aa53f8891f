"""Merge a LoRA adapter into its base and save a full checkpoint.

    python scripts/merge_lora_weights.py --model-path LORA --model-base BASE --save-model-path OUT

Checks that BASE is the model that the adapter names, keeps BASE's dtype, writes safetensors, and compares the
logits of the adapter on its base with those of the merged model as read back from OUT.
"""

import argparse
import sys
from pathlib import Path

import torch

from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import CheckpointError, save_student
from llava.model.checkpoint_lora import LoraFolder, read_lora

# Largest difference of a logit, as a share of the largest logit, that rounding explains.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def check_base(folder: LoraFolder, base: str) -> None:
    """Raises CheckpointError if the adapter names a base that ends in another directory or repository name."""
    recorded = folder.settings.get("base_model_name_or_path")
    if recorded and Path(recorded).name != Path(base).name:
        raise CheckpointError(
            f"the adapter in {folder.source} was trained on {recorded!r}, not on {base!r}. "
            "Pass that base, or --any-base if yours is the same model under another name."
        )


@torch.inference_mode()
def probe_logits(model: torch.nn.Module) -> torch.Tensor:
    """Logits (1, L, V) float32 for a fixed text, and for a fixed picture if the model sees."""
    ids = torch.arange(3, 19).remainder(model.config.vocab_size).unsqueeze(0)
    if not hasattr(model, "get_vision_tower"):
        return model(input_ids=ids).logits.float()
    tower = model.get_vision_tower()
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, tower.image_size, tower.image_size, generator=generator)
    ids[0, 4] = -200
    return model(input_ids=ids, images=image.to(tower.dtype)).logits.float()


def merge_lora(model_path: str, model_base: str, save_model_path: str, any_base: bool = False) -> float:
    """Merge and save; returns the largest relative difference of a logit. Raises CheckpointError."""
    folder = read_lora(model_path)
    if not any_base:
        check_base(folder, model_base)
    name = get_model_name_from_path(model_path)
    options = {"device": "cpu", "torch_dtype": "auto"}
    before = probe_logits(load_pretrained_model(model_path, model_base, name, merge_lora=False, **options)[1])
    tokenizer, model, _, _ = load_pretrained_model(model_path, model_base, name, **options)
    save_student(model, save_model_path)
    tokenizer.save_pretrained(save_model_path)
    after = probe_logits(load_pretrained_model(save_model_path, None, name, **options)[1])
    difference = float((before - after).abs().max() / before.abs().max())
    if not difference <= TOLERANCE[model.dtype]:
        raise CheckpointError(
            f"the merged model in {save_model_path} answers differently: a logit differs by {difference:.2%} of the "
            f"largest, more than rounding to {model.dtype} explains. Do not use it."
        )
    return difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True, help="directory with adapter_config.json")
    parser.add_argument("--model-base", required=True, help="the model that the adapter was trained on")
    parser.add_argument("--save-model-path", required=True, help="directory to write")
    parser.add_argument("--any-base", action="store_true", help="do not compare the base's name with the adapter's")
    args = parser.parse_args()
    try:
        difference = merge_lora(args.model_path, args.model_base, args.save_model_path, args.any_base)
    except (CheckpointError, OSError) as error:
        sys.exit(f"merge_lora_weights: {error}")
    print(f"saved {args.save_model_path}; logits before and after differ by at most {difference:.1e} of the largest")


if __name__ == "__main__":
    main()
