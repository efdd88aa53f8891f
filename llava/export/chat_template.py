"""A conversation template as the Jinja text that transformers' processors and servers render.

Both are written from the same layout, so a chat becomes the prompt that the model was trained with, to the character.
Pictures of a message stand before its text, each on a line of its own, as in training.
"""

import json

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation
from llava.model.checkpoint_io import CheckpointError
from llava.prompt_layout import LAYOUTS, Layout, Turn, TurnLayout, render

# What a system prompt begins with where the template's own has it inside.
SYSTEM_HEADERS = ("<|im_start|>system\n", "<|system|>\n")
CONTENT = (
    "{%- macro written(content) -%}"
    "{%- if content is string -%}{{ content }}{%- else -%}"
    "{%- for item in content if item.type in ('image', 'image_url') -%}{{ IMAGE }}{%- endfor -%}"
    "{%- for item in content if item.type == 'text' -%}{{ item.text }}{%- endfor -%}"
    "{%- endif -%}"
    "{%- endmacro -%}"
)


def jinja_template(conversation: Conversation, uses_start_end: bool = False) -> str:
    """Renders messages of the roles user, assistant and (first, if at all) system, which replaces the template's own.

    uses_start_end: pictures are wrapped in `<im_start>` and `<im_end>`. The begin-of-text token is not written:
    tokenizing adds it. Raises CheckpointError for templates that announce pictures in words of their own.
    """
    if "mmtag" in conversation.version:
        raise CheckpointError(
            f"the conversation template {conversation.version!r} writes a first picture as a turn of its own, which a "
            "chat template cannot. Choose another with --conv-mode."
        )
    layout = LAYOUTS[conversation.sep_style]
    words = {"sep": conversation.sep, "sep2": conversation.sep if conversation.sep2 is None else conversation.sep2}
    image = DEFAULT_IMAGE_TOKEN
    if uses_start_end:
        image = DEFAULT_IM_START_TOKEN + image + DEFAULT_IM_END_TOKEN
    user, assistant = conversation.roles
    parts = (
        CONTENT.replace("IMAGE", quoted(image + "\n")),
        _system(conversation.system),
        _head(layout, words),
        _given_turns(conversation, layout),
        "{%- for message in messages -%}",
        "{%- if message.role == 'user' -%}",
        _turn(layout, layout.question, words | {"role": user}, opens=not conversation.messages),
        "{%- elif message.role == 'assistant' -%}",
        _turn(layout, layout.answer, words | {"role": assistant}),
        "{%- else -%}{{ raise_exception('there are the roles user and assistant, after one system message') }}",
        "{%- endif -%}{%- endfor -%}",
        "{%- if add_generation_prompt -%}" + shown(layout.answer.header.format(**words, role=assistant)),
        "{%- endif -%}",
    )
    return "".join(parts)


def quoted(text: str) -> str:
    """A string literal of Jinja."""
    return json.dumps(text)


def shown(text: str) -> str:
    """A statement that writes `text`; nothing for no text."""
    return "{{ " + quoted(text) + " }}" if text else ""


def _system(system: str) -> str:
    """Sets `system`, and leaves a system message out of `messages`."""
    header = next((header for header in SYSTEM_HEADERS if system.startswith(header)), "")
    return (
        "{%- set system = " + quoted(system) + " -%}"
        "{%- if messages and messages[0].role == 'system' -%}"
        "{%- set system = " + quoted(header) + " ~ written(messages[0].content) -%}"
        "{%- set messages = messages[1:] -%}"
        "{%- endif -%}"
    )


def _with_system(pattern: str, words: dict[str, str]) -> str:
    """A pattern over {system} as statements."""
    before, mark, after = pattern.partition("{system}")
    return shown(before.format(**words)) + ("{{ system }}" if mark else "") + shown(after.format(**words))


def _head(layout: Layout, words: dict[str, str]) -> str:
    head = _with_system(layout.head, words)
    return "{%- if system -%}" + head + "{%- endif -%}" if layout.head_needs_system and head else head


def _given_turns(conversation: Conversation, layout: Layout) -> str:
    """The turns that belong to the template itself."""
    turns = [Turn(role, text, index % 2 == 1) for index, (role, text) in enumerate(conversation.messages)]
    pieces = render(layout, turns, system="", sep=conversation.sep, sep2=conversation.sep2)
    head = len(layout.head.format(system="", sep=conversation.sep)) if not layout.head_needs_system else 0
    return shown("".join(piece.text for piece in pieces)[head:]) if turns else ""


def _turn(layout: Layout, written: TurnLayout, words: dict[str, str], opens: bool = False) -> str:
    """One message. opens: it may be the first turn, whose text can carry the system prompt."""
    is_answer = written is layout.answer
    text = "{{ written(message.content) | trim }}" if layout.is_trimmed else "{{ written(message.content) }}"
    between = "" if is_answer else shown(layout.between.format(**words))
    if between and opens:
        between = "{%- if not loop.first -%}" + between + "{%- endif -%}"
    carried = ""
    if layout.system_in_question and opens and not is_answer:
        carried = "{%- if loop.first and system -%}" + _with_system(layout.system_in_question, words) + "{%- endif -%}"
    header, lead = shown(written.header.format(**words)), shown(written.lead.format(**words))
    return header + between + lead + carried + text + shown(written.end.format(**words))
