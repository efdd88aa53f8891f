"""How the web page turns a question into a request: published limits, and templates chosen by the model's name.

The page knows models by name only; the worker that answers may be anywhere.
"""

from typing import Any

from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, conv_templates
from llava.inference import stop_string
from llava.template_choice import TEMPLATE_BY_NAME

TEXT_LIMIT, TEXT_LIMIT_WITH_IMAGE = 1536, 1200
MULTI_TEXT_LIMIT, MULTI_TEXT_PER_IMAGE = 3072, 512
MAX_NEW_TOKENS = 1536


def template_of(model: str) -> str:
    """The key in `conv_templates` for a model that is known by its name alone."""
    name = model.lower()
    if "llava" in name or "move-kd" in name:
        return _template_of_llava(name)
    if "mpt" in name:
        return "mpt_text"
    return "llama_2" if "llama-2" in name else "vicuna_v1"


def _template_of_llava(name: str) -> str:
    is_tagged = "mmtag" in name or ("plain" in name and "finetune" not in name)
    for word, template in TEMPLATE_BY_NAME:
        if word in name:
            return "v1_mmtag" if template == "llava_v1" and is_tagged else template
    return "v0_mmtag" if is_tagged else "llava_v0"


def cut_text(text: str, images: int, is_multi: bool) -> str:
    """As much of a question as the page sends."""
    if is_multi:
        return text[: max(0, MULTI_TEXT_LIMIT - MULTI_TEXT_PER_IMAGE * images)]
    return text[: TEXT_LIMIT_WITH_IMAGE if images else TEXT_LIMIT]


def user_message(text: str, images: list[Image.Image], mode: str, is_multi: bool) -> Any:
    """What `Conversation.append_message` takes for a question with its pictures."""
    text = cut_text(text, len(images), is_multi)
    if not images:
        return text
    if is_multi:
        return f"{DEFAULT_IMAGE_TOKEN}\n" * len(images) + text.replace(DEFAULT_IMAGE_TOKEN, ""), images, mode
    return text if DEFAULT_IMAGE_TOKEN in text else f"{text}\n{DEFAULT_IMAGE_TOKEN}", images[0], mode


def with_template(conversation: Conversation, template: str) -> Conversation:
    """The turns of a conversation in another template, in its own words for the roles."""
    fresh = conv_templates[template].copy()
    for index, (_, message) in enumerate(conversation.messages[conversation.offset :]):
        fresh.append_message(fresh.roles[index % 2], message)
    return fresh


def request_body(
    conversation: Conversation, model: str, temperature: float, top_p: float, max_new_tokens: int
) -> dict[str, Any]:
    """What the worker is sent."""
    return {
        "model": model,
        "prompt": conversation.get_prompt(),
        "temperature": float(temperature),
        "top_p": float(top_p),
        "max_new_tokens": min(int(max_new_tokens), MAX_NEW_TOKENS),
        "stop": stop_string(conversation),
        "images": conversation.get_images(),
    }
