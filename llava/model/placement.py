"""How and where a model is put: dtype, bits, attention kernel and device, from every spelling that callers use."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers.utils import is_flash_attn_2_available, logging

from llava.model.quantization import quantization_config

logger = logging.get_logger(__name__)


def build_options(torch_dtype: str | torch.dtype | None, load_8bit: bool, load_4bit: bool) -> dict[str, Any]:
    """`dtype` and `quantization_config` for from_pretrained; quantized weights compute in float16 unless told."""
    dtype = resolve_dtype(torch_dtype)
    compute_dtype = torch.float16 if isinstance(dtype, str) else dtype
    return {"dtype": dtype, "quantization_config": quantization_config(load_8bit, load_4bit, compute_dtype)}


def as_dtype(value: Any) -> torch.dtype | None:
    """A dtype, or the name of one; None for anything else (a device)."""
    if isinstance(value, torch.dtype):
        return value
    found = getattr(torch, str(value).removeprefix("torch."), None)
    return found if isinstance(found, torch.dtype) else None


def resolve_dtype(value: str | torch.dtype | None) -> torch.dtype | str:
    """A floating dtype, or "auto" for the checkpoint's own. Raises ValueError for anything else."""
    if str(value) in ("None", "auto"):
        return "auto"
    dtype = as_dtype(value)
    if dtype is None or not dtype.is_floating_point:
        raise ValueError(f"torch_dtype {value!r} is no floating dtype. Use float16, bfloat16, float32 or auto.")
    return dtype


def resolve_attention(name: str | None, use_flash_attn: bool) -> str:
    """The attention kernel: the one named, else flash if asked for, else sdpa. Flash falls back if not installed."""
    if str(name) == "None":
        name = "flash_attention_2" if use_flash_attn else "sdpa"
    if name == "flash_attention_2" and not is_flash_attn_2_available():
        logger.warning("flash attention was asked for but is not installed (pip install flash-attn): using sdpa")
        return "sdpa"
    return str(name)


def resolve_device_map(device_map: Any, device: str) -> Any:
    """Where the weights go. `device` other than "cuda" takes the whole model; "auto" without a GPU is the CPU.

    Raises ValueError for a CUDA device on a machine that has none.
    """
    if device != "cuda":
        device_map = {"": device}
    elif device_map in ("auto", None, "None") and not torch.cuda.is_available():
        device_map = {"": "cpu"}
    elif isinstance(device_map, str) and device_map not in ("auto", "balanced", "balanced_low_0", "sequential"):
        device_map = {"": device_map}
    wanted = device_map.values() if isinstance(device_map, Mapping) else ()
    if not torch.cuda.is_available() and any(str(place).startswith("cuda") or place == 0 for place in wanted):
        raise ValueError(f"device_map {device_map!r} needs CUDA, which this machine lacks. Use device='cpu'.")
    return device_map
