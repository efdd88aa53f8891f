"""The demo's second tab: what the encoder makes of the picture at hand."""

import logging
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from llava.inference import Chat
from llava.remote import SERVING_LIMITS, decode_image
from llava.serve.demo_chat import ChatTab, Entries, explain
from llava.serve.encoder_view import MAP_SIDE, EncoderView, look
from llava.serve.upload_boxes import PictureBox
from llava.visualize import colors_to_image, css_color, expert_color, overlay

PROMPT = "Upload a picture, or ask about one in the chat and come back."

logger = logging.getLogger("demo")


class EncoderTab:
    """Components and events. The picture is the chat's last one until another is put in its place."""

    def __init__(self, chat: Chat, teachers: Mapping[str, Any]) -> None:
        self.chat = chat
        self.teachers = teachers
        self.view = gr.State(None)
        self.source = gr.State(None)  # the chat's picture that is shown, or None for an upload
        with gr.Row():
            with gr.Column(min_width=200):
                self.picture = PictureBox(
                    show_label=False, sources=["upload"], type="filepath", height=240, elem_id="encoder-picture"
                )
            with gr.Column(min_width=200, scale=2):
                self.note = gr.Markdown(PROMPT, elem_id="encoder-note")
        with gr.Column(visible=False) as self.panel:
            self.tile = gr.Slider(1, 2, 1, step=1, label="Tile", info="1 shows the whole picture", visible=False)
            with gr.Row(elem_classes="maps"):
                self.given = labeled_map("Input", "given")
                self.attention = labeled_map("Class attention", "attention")
                self.features = labeled_map("Student (PCA)", "features")
                self.beside = [labeled_map(f"{name} (PCA)", f"teacher-{name}") for name in teachers]
            with gr.Column(visible=False) as self.expert_panel:
                self._add_experts()

    def _add_experts(self) -> None:
        gr.Markdown("### Experts\nWhich expert each patch went to, layer by layer.")
        self.layer = gr.Slider(1, 2, 1, step=1, label="Layer", elem_id="layer")
        with gr.Row():
            self.experts = labeled_map("Expert of each patch", "experts")
            with gr.Column(min_width=240, scale=2):
                self.loads = gr.HTML(elem_id="loads")

    @property
    def outputs(self) -> list[Any]:
        maps = [self.given, self.attention, self.features, *self.beside]
        controls = [self.view, self.note, self.panel, self.tile, self.layer, self.expert_panel]
        return [*controls, *maps, self.experts, self.loads]

    @property
    def drawings(self) -> list[Any]:
        """The outputs that change with the tile."""
        return self.outputs[6:]

    def connect(self, tab: gr.Tab, chat_tab: ChatTab) -> None:
        hidden: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "encoder", "concurrency_limit": 1}
        taken = [self.picture, self.source, *self.outputs]
        tab.select(self.take_from_chat, [chat_tab.entries, self.source, self.picture], taken, **hidden)
        self.picture.upload(self.take_upload, self.picture, [self.source, *self.outputs], **hidden)
        self.picture.clear(self.empty, None, [self.source, *self.outputs], **hidden)
        self.tile.input(self.draw_tile, [self.view, self.tile, self.layer], self.drawings, **hidden)
        self.layer.input(self.draw_experts, [self.view, self.tile, self.layer], [self.experts, self.loads], **hidden)

    def take_from_chat(self, entries: Entries, source: str | None, picture: str | None) -> list[Any]:
        """The chat's newest picture, unless it is shown already or the user has put another one here."""
        pairs = [pair for entry in entries for pair in zip(entry.copies, entry.files, strict=True)]
        if not pairs or pairs[-1][0] == source or (picture is not None and source is None):
            return [gr.skip()] * (2 + len(self.outputs))
        copy, file = pairs[-1]
        return [copy, copy, *self._look_at(file)]

    def take_upload(self, path: str | None) -> list[Any]:
        return self.empty() if path is None else [None, *self._look_at(path)]

    def empty(self) -> list[Any]:
        return [None, *self._blank(PROMPT)]

    def _look_at(self, path: str) -> list[Any]:
        try:
            view = look(self.chat, decode_image(Path(path).read_bytes(), SERVING_LIMITS), self.teachers)
        except Exception as error:  # whatever it is, the user is told
            logger.warning("looking failed: %s", explain(error), exc_info=not isinstance(error, ValueError))
            return self._blank(f"**Error.** {explain(error)}")
        tiles, layers = len(view.tiles), view.layers
        note = "\n".join(f"- {sentence}" for sentence in (self._summary(view), *view.missing))
        return [
            view,
            note,
            gr.Column(visible=True),
            gr.Slider(maximum=max(2, tiles), value=1, visible=tiles > 1),
            gr.Slider(maximum=max(2, layers), value=layers, interactive=layers > 1, label=f"Layer (of {layers})"),
            gr.Column(visible=layers > 0),
            *self.draw_tile(view, 1, max(1, layers)),
        ]

    @staticmethod
    def _summary(view: EncoderView) -> str:
        tiles = f"{len(view.tiles)} tiles" if len(view.tiles) > 1 else "one tile"
        text = f"The encoder sees {tiles} of {view.grid[0]} x {view.grid[1]} patches."
        return text + " In a PCA map, patches of like features are alike in color; each encoder has colors of its own."

    def _blank(self, note: str) -> list[Any]:
        nothing = [None] * len(self.drawings)
        return [None, note, gr.Column(visible=False), gr.skip(), gr.skip(), gr.skip(), *nothing]

    def draw_tile(self, view: EncoderView | None, tile: int, layer: int) -> list[Any]:
        """All maps of a tile. tile and layer: from 1 on."""
        if view is None:
            return [gr.skip()] * len(self.drawings)
        shown = view.tiles[tile - 1]
        attention = None if shown.attention is None else overlay(shown.image, shown.attention, 0.6, is_smooth=True)
        found = [shown.teachers.get(name) for name in self.teachers]
        beside = [None if colors is None else colors_to_image(colors, MAP_SIDE) for colors in found]
        features = colors_to_image(shown.features, MAP_SIDE)
        return [shown.image, attention, features, *beside, *self.draw_experts(view, tile, layer)]

    def draw_experts(self, view: EncoderView | None, tile: int, layer: int) -> list[Any]:
        if view is None or view.layers == 0:
            return [None, ""]
        return [view.expert_map(tile - 1, layer), load_table(view.loads(tile - 1), layer)]


def labeled_map(label: str, name: str) -> gr.Image:
    """A map below its name, rather than behind it."""
    with gr.Column(min_width=150):
        gr.Markdown(label)
        return gr.Image(
            show_label=False,
            interactive=False,
            type="pil",
            format="png",
            buttons=["fullscreen"],
            elem_id=f"map-{name}",
            alt_text=label,
        )


def load_table(loads: list[list[float]], layer: int) -> str:
    """HTML: a legend with each expert's share in `layer`, and a bar per layer, the first layer on top."""
    colors = [css_color(expert_color(expert)) for expert in range(len(loads[0]))]
    legend = "".join(
        f'<span class="key"><i style="background:{color}"></i>expert {expert + 1}: {share:.0%}</span>'
        for expert, (color, share) in enumerate(zip(colors, loads[layer - 1], strict=True))
    )
    rows = []
    for number, shares in enumerate(loads, 1):
        parts = "".join(
            f'<b style="width:{share:.2%};background:{color}" title="{share:.0%}"></b>'
            for share, color in zip(shares, colors, strict=True)
        )
        chosen = ' class="chosen"' if number == layer else ""
        rows.append(f"<li{chosen}><em>{number}</em><div>{parts}</div></li>")
    title = escape(f"Load by layer; legend for layer {layer}")
    return f'<div class="load"><p>{title}</p><p>{legend}</p><ol>{"".join(rows)}</ol></div>'
