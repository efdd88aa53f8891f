"""Importing this package makes every model beside it known to transformers' Auto classes."""

from llava.model.language_model import (
    llava_gemma,
    llava_llama,
    llava_mistral,
    llava_mixtral,
    llava_mpt,
    llava_qwen,
    llava_qwen_moe,
    move_llava_llama,
)
