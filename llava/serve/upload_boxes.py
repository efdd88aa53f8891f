"""Boxes for uploaded pictures, with rules of their own for what a browser may hand in."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
from gradio import component_meta
from gradio_client.utils import is_http_url_like


@contextmanager
def no_stub_files() -> Iterator[None]:
    """Gradio writes a type stub beside the file of each component class; ours stay out of the installed package."""
    write, component_meta.create_or_modify_pyi = component_meta.create_or_modify_pyi, lambda *arguments: None
    try:
        yield
    finally:
        component_meta.create_or_modify_pyi = write


class UploadsOnly:
    """Mixed in before a component that takes files: gradio would fetch what a forged request names by its address."""

    async def async_move_resource_to_block_cache(self, url_or_file_path: Any) -> str | None:
        if is_http_url_like(str(url_or_file_path)):
            raise ValueError("pictures are uploaded here, not named by an address")
        return await super().async_move_resource_to_block_cache(url_or_file_path)  # type: ignore[misc]


with no_stub_files():

    class PictureBox(UploadsOnly, gr.Image):
        """An image box that gives the file as it was uploaded; it is decoded under our own limits."""

        def preprocess(self, payload: Any) -> str | None:
            return None if payload is None else str(payload.path)

        def get_block_name(self) -> str:
            return "image"

        get_block_class = get_block_name

    class QuestionBox(UploadsOnly, gr.MultimodalTextbox):
        """Text with pictures."""

        def get_block_name(self) -> str:
            return "multimodaltextbox"

        get_block_class = get_block_name
