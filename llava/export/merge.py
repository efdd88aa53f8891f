"""`python -m llava.export merge`: a LoRA added into its base, as a full checkpoint in LLaVA's own format.

The base must be the model that the adapter names, its dtype stays, safetensors are written, and the logits of the
adapter on its base are compared with those of the merged model as read back.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava.constants import IMAGE_TOKEN_INDEX
from llava.export.compare import ROUNDING, Finding, relative, verify
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import CheckpointError, save_student
from llava.model.checkpoint_io import check_output
from llava.model.checkpoint_lora import LoraFolder, read_lora
from llava.model.llava_arch import LlavaMetaForCausalLM


def check_base(folder: LoraFolder, base: str) -> None:
    """Raises CheckpointError if the adapter names a base that ends in another directory or repository name."""
    recorded = folder.settings.get("base_model_name_or_path")
    if recorded and Path(recorded).name != Path(base).name:
        raise CheckpointError(
            f"the adapter in {folder.source} was trained on {recorded!r}, not on {base!r}. "
            "Pass that base, or --any-base if yours is the same model under another name."
        )


@torch.inference_mode()
def probe_logits(model: Any) -> Tensor:
    """Logits (1, L, V) float32 for a fixed text, and for a fixed picture if the model sees."""
    ids = torch.arange(3, 19).remainder(model.config.vocab_size).unsqueeze(0)
    tower = model.get_vision_tower() if isinstance(model, LlavaMetaForCausalLM) else None
    if tower is None:
        return model(input_ids=ids).logits.float()
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, tower.image_size, tower.image_size, generator=generator)
    ids[0, 4] = IMAGE_TOKEN_INDEX
    return model(input_ids=ids, images=image.to(tower.dtype)).logits.float()


def merge_lora(model_path: str, model_base: str, output: str, any_base: bool = False) -> list[Finding]:
    """Merge, save and compare. Raises CheckpointError if the adapter is another base's, the result differs,
    or the output is what is read."""
    check_output(output, model_path, model_base)
    folder = read_lora(model_path)
    if not any_base:
        check_base(folder, model_base)
    name = get_model_name_from_path(model_path)
    options: dict[str, Any] = {"device": "cpu", "torch_dtype": "auto"}
    before = probe_logits(load_pretrained_model(model_path, model_base, name, merge_lora=False, **options)[1])
    tokenizer, model, _, _ = load_pretrained_model(model_path, model_base, name, **options)
    save_student(model, output)
    tokenizer.save_pretrained(output)
    after = probe_logits(load_pretrained_model(output, None, name, **options)[1])
    finding = Finding("logits, as a share of the largest", relative(after, before), ROUNDING[model.dtype])
    print(f"merged {model_path} into {output}")
    verify([finding], Path(output))
    return [finding]
