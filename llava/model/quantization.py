"""Which weights are quantized, and how. Only the language model is: the tower, the projector and the head that
writes the logits keep their dtype, because their error would reach every token.
"""

import importlib.util

import torch
from torch import nn
from transformers import BitsAndBytesConfig

# "transformer" is what MPT calls its inner model.
PARTS = ("vision_tower", "mm_projector", "vision_resampler")
UNQUANTIZED = [f"{inner}.{part}" for inner in ("model", "transformer") for part in PARTS] + ["lm_head"]

CPU_BLOCK = (32, 64)  # outputs and inputs of the blocks in which bitsandbytes packs 4-bit weights for a CPU


def quantization_config(
    load_8bit: bool,
    load_4bit: bool,
    compute_dtype: torch.dtype,
    *,
    double_quant: bool = True,
    quant_type: str = "nf4",
) -> BitsAndBytesConfig | None:
    """bitsandbytes settings for 8 bit, or for 4 bit; None for neither.

    Raises ValueError for both at once, ImportError if bitsandbytes is not installed.
    """
    if not (load_8bit or load_4bit):
        return None
    if load_8bit and load_4bit:
        raise ValueError("load_8bit and load_4bit were both asked for. Choose one.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError("4 or 8 bits need bitsandbytes, which is not installed: pip install bitsandbytes")
    if load_8bit:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=UNQUANTIZED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_quant_type=quant_type,
        llm_int8_skip_modules=UNQUANTIZED,
    )


def leave_odd_widths_unpacked(model: nn.Module) -> None:
    """On CPUs bitsandbytes packs 4-bit layers at their first use and fails where they are no whole number of blocks:
    those are run as they are."""
    from bitsandbytes.nn import Linear4bit

    rows, columns = CPU_BLOCK
    for module in model.modules():
        if isinstance(module, Linear4bit) and (module.out_features % rows or module.in_features % columns):
            module.support_avx512bf16_for_cpu = False
