"""Which weights are quantized, and how. Only the language model is: the tower, the projector and the head that
writes the logits keep their dtype, because their error would reach every token.
"""

import importlib.util

import torch
from transformers import BitsAndBytesConfig

# "transformer" is what MPT calls its inner model.
PARTS = ("vision_tower", "mm_projector", "vision_resampler")
UNQUANTIZED = [f"{inner}.{part}" for inner in ("model", "transformer") for part in PARTS] + ["lm_head"]


def quantization_config(load_8bit: bool, load_4bit: bool, compute_dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """bitsandbytes settings for 8 bit, or for 4 bit (nf4, double quantization); None for neither.

    Raises ValueError for both at once, ImportError if bitsandbytes is not installed.
    """
    if not (load_8bit or load_4bit):
        return None
    if load_8bit and load_4bit:
        raise ValueError("load_8bit and load_4bit were both asked for. Choose one.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError("loading in 4 or 8 bits needs bitsandbytes, which is not installed: pip install bitsandbytes")
    if load_8bit:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=UNQUANTIZED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_type="nf4",
        llm_int8_skip_modules=UNQUANTIZED,
    )
