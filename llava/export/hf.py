"""`python -m llava.export hf`: a whole model for transformers, checked against the one that it was made from."""

import gc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava.conversation import Conversation, conv_templates
from llava.export.card import Card
from llava.export.chat_template import jinja_template
from llava.export.compare import Finding, compare, record, verify
from llava.export.generation import write_generation_settings
from llava.export.history import read_history
from llava.export.native import ROUTED_NOTE, Shape, check_exportable, write_model
from llava.export.processor import exported_processor, exported_tokenizer, save_processor
from llava.inference import Chat, place
from llava.model.checkpoint_io import CheckpointError, check_output


@dataclass(frozen=True)
class Source:
    """What to export. dtype: None keeps the checkpoint's. template: None takes the checkpoint's own."""

    model_path: str
    model_base: str | None = None
    dtype: str | None = None
    device: str = "auto"
    template: str | None = None

    def load(self) -> Chat:
        """Raises CheckpointError, or ValueError for a template or dtype that does not exist."""
        options: dict[str, Any] = {"device": place(self.device)["device"], "torch_dtype": self.dtype or "auto"}
        chat = Chat.load(self.model_path, self.model_base, self.template, **options)
        if not chat.sees:
            raise CheckpointError(f"{self.model_path} is a language model without a vision tower: nothing to export.")
        return chat


def export_hf(source: Source, output: str | Path) -> list[Finding]:
    """Write the model to `output` and compare. Raises CheckpointError if it cannot be exported or differs."""
    check_output(output, source.model_path, source.model_base)
    chat = source.load()
    check_exportable(chat.model)
    conversation: Conversation = conv_templates[chat.template]
    template = jinja_template(conversation, bool(chat.settings.get("mm_use_im_start_end")))
    directory = Path(output)
    directory.mkdir(parents=True, exist_ok=True)
    expected = record(chat)
    tokenizer = exported_tokenizer(chat.tokenizer)
    config = write_model(chat.model, tokenizer, directory, chat.template)
    save_processor(exported_processor(config, chat.model.get_vision_tower(), tokenizer, template), directory)
    write_generation_settings(chat.model.generation_config, conversation, tokenizer, directory)
    card = Card(
        name=source.model_path,
        settings=chat.settings,
        shape=Shape.of(chat.model),
        architecture=config.architectures[0],
        parameters=chat.model.num_parameters(),
        history=read_history(source.model_path),
        findings=[],
        template=chat.template,
    )
    device = str(chat.model.device)
    del chat  # its memory is wanted for the export
    gc.collect()
    findings = compare(expected, directory, device)
    finish(replace(card, findings=findings), directory)
    return findings


def finish(card: Card, directory: Path) -> None:
    """The card, the findings on the screen, and what the export is no good for. Raises CheckpointError as `verify`."""
    card.write(directory)
    print(f"wrote {directory}, a {card.architecture}")
    verify(card.findings, directory)
    if card.shape.has_experts:
        print(f"  Load it with trust_remote_code=True. {ROUTED_NOTE}")
