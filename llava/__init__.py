"""LLaVA with MoVE-KD: importing the package is cheap, the model classes load when they are first asked for."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODEL_CLASSES = ("LlavaLlamaForCausalLM", "MoVELlavaLlamaForCausalLM", "EvalMoVELlavaLlamaForCausalLM")


def __getattr__(name: str) -> Any:
    if name in _MODEL_CLASSES:
        return getattr(import_module("llava.model"), name)
    raise AttributeError(f"module 'llava' has no attribute {name!r}; its classes are {', '.join(_MODEL_CLASSES)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODEL_CLASSES])
