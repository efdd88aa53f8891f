"""README.md of an export: what it is, how to load it, how it was made, how close it is, and on which terms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.export.compare import Finding
from llava.export.history import History, public_name, recipe_of
from llava.export.native import ROUTED_NOTE, Shape, backbone_of
from llava.model.multimodal_encoder.move_kd.config import MoLEConfig
from llava.model.multimodal_encoder.move_kd.plugins import load_plugin

LANGUAGE_LICENCES = {
    "llama": "Llama 2 Community License for what descends from Llama 2, Vicuna 1.5 among them; Llama 3 Community "
    "License for what descends from Llama 3. Both pass on to this model",
    "mistral": "Apache-2.0 for Mistral-7B; other models of this type have their own terms",
    "mixtral": "Apache-2.0",
    "qwen2": "Apache-2.0 for most sizes, Qwen's own licences for 3B and 72B",
    "qwen2_moe": "Tongyi Qianwen licence",
    "gemma": "Gemma Terms of Use, which pass on to this model",
}
TOWER_LICENCES = {True: "Apache-2.0 (SigLIP)", False: "MIT (OpenAI CLIP)"}
NEXT_DIFFERENCES = (
    "Where padding does not fall on whole rows of the grid of tiles, transformers rounds and LLaVA cuts off, so that "
    "about one picture size in 100,000 (such as 1722 x 656) takes another number of tokens."
)
BACKEND_DIFFERENCE = (
    "Pixels are equal with the Pillow backend. Where torchvision is installed, transformers uses it instead and pixels "
    'differ by a few levels of 255; `AutoProcessor.from_pretrained(..., backend="pil")` avoids that.'
)


@dataclass(frozen=True)
class Card:
    """settings: config.json of the model that was exported. template: None for an encoder. features: of an encoder,
    the code by which `outputs` gives what the projector sees."""

    name: str
    settings: Mapping[str, Any]
    shape: Shape
    architecture: str
    parameters: int
    history: History
    findings: Sequence[Finding]
    template: str | None
    features: str = ""

    @property
    def title(self) -> str:
        return f"{public_name(self.name)}" + ("" if self.template else " (vision encoder)")

    def text(self) -> str:
        parts = [_front_matter(self), f"# {self.title}", _summary(self), _usage(self), _training(self)]
        parts += [_closeness(self), _limits(self), _licences(self)]
        return "\n\n".join(part for part in parts if part) + "\n"

    def write(self, directory: Path) -> None:
        (directory / "README.md").write_text(self.text(), encoding="utf-8")


def _front_matter(card: Card) -> str:
    kind = "image-text-to-text" if card.template else "image-feature-extraction"
    tags = ["llava", *(["move-kd", "custom_code"] if card.shape.has_experts else [])]
    rows = ["---", "library_name: transformers", f"pipeline_tag: {kind}", "license: other", "tags:"]
    return "\n".join([*rows, *(f"- {tag}" for tag in tags), "---"])


def _summary(card: Card) -> str:
    tower = public_name(card.settings["mm_vision_tower"])
    experts = " with a mixture of low-rank experts around its MLPs" if card.shape.has_experts else ""
    if card.template is None:
        return f"The vision encoder of a LLaVA model: {tower}{experts}, {counted(card.parameters)}."
    language = backbone_of(card.settings)
    return (
        f"A LLaVA model of {counted(card.parameters)}: {tower}{experts}, a projector, and a language "
        f"model of type {language}. Class `{card.architecture}`."
    )


def counted(parameters: int) -> str:
    return f"{parameters / 1e9:,.2f} B parameters" if parameters >= 1e9 else f"{parameters / 1e6:,.1f} M parameters"


def _usage(card: Card) -> str:
    trust = ", trust_remote_code=True" if card.shape.has_experts else ""
    return _use_encoder(card, trust) if card.template is None else _use_model(card, trust)


def _use_model(card: Card, trust: str) -> str:
    skip = '["model.vision_tower", "model.multi_modal_projector", "lm_head"]'
    bits = "BitsAndBytesConfig(load_in_4bit=True" + ("" if trust else f", llm_int8_skip_modules={skip}") + ")"
    return f"""## Use

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained(PATH{trust})
model = AutoModelForImageTextToText.from_pretrained(PATH, dtype="auto", device_map="auto"{trust})
chat = [{{"role": "user", "content": [
    {{"type": "image", "path": "picture.jpg"}}, {{"type": "text", "text": "What is this?"}}]}}]
inputs = processor.apply_chat_template(
    chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
inputs = inputs.to(model.device, model.dtype)
answer = model.generate(**inputs, max_new_tokens=200)[0, inputs["input_ids"].shape[1]:]
print(processor.decode(answer, skip_special_tokens=True))
```

In 4 bits, with the vision tower whole: `quantization_config={bits}`.
The chat template is `{card.template}`; the begin-of-text token is added by the tokenizer, not by the template."""


def _use_encoder(card: Card, trust: str) -> str:
    return f"""## Use

```python
import torch
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained(PATH)
model = AutoModel.from_pretrained(PATH{trust})
outputs = model(**processor(images=[picture], return_tensors="pt"), output_hidden_states=True)
features = {card.features}
```

These are the features that LLaVA's projector sees. Layers behind them are as they were before training."""


def _training(card: Card) -> str:
    history, rows = card.history, []
    if card.shape.has_experts:
        mole = MoLEConfig.from_dict(card.settings["moe"])
        recipe = recipe_of(mole)
        rows.append(
            f"- Method: MoVE-KD. {mole.experts} experts of rank {mole.rank} per layer, gate `{mole.gate}`, scale "
            f"{mole.scale:g}, in {'all layers' if mole.layers == 'all' else 'the layers that are used'}"
            + (f" (recipe `{recipe}`)." if recipe else ".")
        )
        known = ", ".join(history.teachers) or "not recorded in the checkpoint"
        rows.append(f"- Teachers: {known}.")
    if history.steps is not None:
        epochs = "" if history.epochs is None else f", {history.epochs:.2f} epochs"
        rows.append(f"- Last stage: {history.steps} steps{epochs}.")
    data = card.settings.get("training_data")
    rows.append(
        f"- Data of the last stage: `{data}`." if data else "- Data: not recorded in the checkpoint; name it here."
    )
    rows += [f"- Last logged `{name}`: {value:.4g}" for name, value in sorted(history.metrics.items())]
    return "## Training\n\n" + "\n".join(rows)


def _closeness(card: Card) -> str:
    rows = "\n".join(f"- {finding}" for finding in card.findings)
    differences = [BACKEND_DIFFERENCE, *([NEXT_DIFFERENCES] if card.shape.has_tiles and card.template else [])]
    return "## Compared with the model it was made from\n\n" + rows + "\n\n" + "\n\n".join(differences)


def _limits(card: Card) -> str:
    return f"## Limits\n\n{ROUTED_NOTE}" if card.shape.has_experts else ""


def _licences(card: Card) -> str:
    rows = [f"- Vision tower: {TOWER_LICENCES[card.shape.is_siglip]}, unless it came from elsewhere."]
    if card.template is not None:
        backbone = backbone_of(card.settings)
        rows.append(f"- Language model ({backbone}): {LANGUAGE_LICENCES.get(backbone, 'see its own release')}.")
    rows += [f"- Teacher {name}: {teacher_licence(name)}." for name in card.history.teachers]
    rows.append("- Data: pictures and instructions have terms of their own.")
    return "## Licences\n\nCheck these before you publish or sell:\n\n" + "\n".join(rows)


def teacher_licence(name: str) -> str:
    """The licence of a teacher's published weights; a teacher is known by the name that it was logged under."""
    package = "llava.model.multimodal_encoder.move_kd.teachers"
    try:
        return load_plugin(package, {"eva": "eva02"}.get(name, name)).defaults.licence
    except ValueError:
        return "see the checkpoint that it was built from"
