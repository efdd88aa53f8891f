"""Convert a checkpoint of any layout to the original LLaVA format, or to transformers' own classes.

    python scripts/convert_checkpoint.py --model-path DIR [--model-base DIR] --output DIR --format original|hf

Compares the logits of what was read with those of what was written. MoVE-KD models stay in the original format:
their experts are chosen per patch, which transformers' LLaVA classes cannot do.
"""

import argparse
import sys

import torch

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import CheckpointError, save_student
from llava.model.hf_export import export_hf

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
PROMPT = (3, 5, 7, IMAGE_TOKEN_INDEX, 9, 11)


@torch.inference_mode()
def original_logits(model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """(1, L, V) float32 of our class for a fixed prompt with one picture."""
    return model(input_ids=torch.tensor([PROMPT]), images=pixels.to(model.dtype)).logits.float()


@torch.inference_mode()
def native_logits(directory: str, pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The same of transformers' class, whose prompt holds one placeholder per feature."""
    from transformers import AutoModelForImageTextToText

    model, report = AutoModelForImageTextToText.from_pretrained(directory, dtype=dtype, output_loading_info=True)
    if report["missing_keys"] or report["unexpected_keys"]:
        raise CheckpointError(f"transformers reads {directory} with tensors missing or left over: {report}")
    vision = model.config.vision_config
    count = (vision.image_size // vision.patch_size) ** 2
    count += model.config.vision_feature_select_strategy == "full"
    if model.config.model_type == "llava_next":
        return model(input_ids=torch.tensor([[token for token in PROMPT if token >= 0]])).logits.float()
    placeholders = [model.config.image_token_index] * count
    ids = [other for token in PROMPT for other in (placeholders if token < 0 else [token])]
    return model(input_ids=torch.tensor([ids]), pixel_values=pixels.to(dtype)).logits.float()


@torch.inference_mode()
def text_logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.tensor([[token for token in PROMPT if token >= 0]])
    return model(input_ids=ids).logits.float()


def convert(model_path: str, model_base: str | None, output: str, target: str) -> float:
    """Convert and compare; returns the largest relative difference of a logit. Raises CheckpointError."""
    options = {"device": "cpu", "torch_dtype": "auto"}
    tokenizer, model, _, _ = load_pretrained_model(model_path, model_base, "llava", **options)
    side = model.get_vision_tower().image_size
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    before = original_logits(model, pixels)
    if target == "hf":
        export_hf(model, tokenizer, output)
        after = native_logits(output, pixels, model.dtype)
        if after.shape[1] < before.shape[1]:  # tiles of LLaVA-NeXT: text alone is compared
            before = text_logits(model)
        after = after[..., : before.shape[-1]]
    else:
        save_student(model, output)
        tokenizer.save_pretrained(output)
        after = original_logits(load_pretrained_model(output, None, "llava", **options)[1], pixels)
    difference = float((before - after).abs().max() / before.abs().max())
    if not difference <= TOLERANCE[model.dtype]:
        raise CheckpointError(f"{output} answers differently: a logit differs by {difference:.2%}. Do not use it.")
    return difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True, help="checkpoint to read, any layout")
    parser.add_argument("--model-base", default=None, help="base model of a projector or LoRA directory")
    parser.add_argument("--output", required=True, help="directory to write")
    parser.add_argument("--format", required=True, choices=("original", "hf"), help="layout to write")
    args = parser.parse_args()
    try:
        difference = convert(args.model_path, args.model_base, args.output, args.format)
    except (CheckpointError, OSError) as error:
        sys.exit(f"convert_checkpoint: {error}")
    print(f"saved {args.output}; logits before and after differ by at most {difference:.1e} of the largest")


if __name__ == "__main__":
    main()
