"""Importing this package makes every model beside it known to transformers' Auto classes."""

from llava.model.language_model import llava_llama, llava_mistral, llava_qwen, move_llava_llama
