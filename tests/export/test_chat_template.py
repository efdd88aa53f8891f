"""The Jinja text of every template against the prompt that our own conversation gives."""

from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llava.conversation import conv_templates
from llava.export.chat_template import jinja_template
from llava.model.checkpoint_io import CheckpointError

WRITABLE = sorted(name for name in conv_templates if "mmtag" not in name)
QUESTION = 'What "is" this?\nSay it \\ in 5 words: {{ 1 }} {% x %} ü'


def refuse(message: str) -> None:
    raise ValueError(message)


def rendered(template: str, messages: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(template).render(messages=messages, add_generation_prompt=add_generation_prompt)


def user(*texts: str, images: int = 0) -> dict[str, Any]:
    content: list[dict[str, str]] = [{"type": "text", "text": text} for text in texts]
    return {"role": "user", "content": content + [{"type": "image"}] * images}


def prompt(name: str, turns: list[tuple[str, str | None]], image: str = "<image>\n") -> str:
    conversation = conv_templates[name].copy()
    for question, answer in turns:
        conversation.append_message(conversation.roles[0], question.replace("@", image))
        conversation.append_message(conversation.roles[1], answer)
    return conversation.get_prompt()


@pytest.mark.parametrize("name", WRITABLE)
def test_a_chat_of_several_turns_and_pictures_becomes_the_same_prompt(name: str) -> None:
    messages = [
        user(QUESTION, images=2),
        {"role": "assistant", "content": "A plain."},
        user("And that?", images=1),
        {"role": "assistant", "content": [{"type": "text", "text": "Noise."}]},
        {"role": "user", "content": " Sure? "},
    ]
    turns: list[tuple[str, str | None]] = [
        ("@@" + QUESTION, "A plain."),
        ("@And that?", "Noise."),
        (" Sure? ", None),
    ]
    template = jinja_template(conv_templates[name])
    assert rendered(template, messages) == prompt(name, turns)
    assert rendered(template, messages[:1]) == prompt(name, [("@@" + QUESTION, None)])


@pytest.mark.parametrize("name", WRITABLE)
def test_a_finished_chat_ends_with_its_answer(name: str) -> None:
    conversation = conv_templates[name].copy()
    conversation.append_message(conversation.roles[0], "Why?")
    conversation.append_message(conversation.roles[1], "So.")
    messages = [user("Why?"), {"role": "assistant", "content": "So."}]
    given = rendered(jinja_template(conv_templates[name]), messages, add_generation_prompt=False)
    assert given == conversation.get_prompt()


@pytest.mark.parametrize("name", WRITABLE)
def test_a_system_message_takes_the_place_of_the_templates_own(name: str) -> None:
    conversation = conv_templates[name].copy()
    header = next(
        (head for head in ("<|im_start|>system\n", "<|system|>\n") if conversation.system.startswith(head)), ""
    )
    conversation.system = header + "Be brief."
    conversation.append_message(conversation.roles[0], "Why?")
    conversation.append_message(conversation.roles[1], None)
    messages = [{"role": "system", "content": "Be brief."}, user("Why?")]
    assert rendered(jinja_template(conv_templates[name]), messages) == conversation.get_prompt()


def test_pictures_are_wrapped_where_the_model_was_trained_so() -> None:
    template = jinja_template(conv_templates["v1"], uses_start_end=True)
    wrapped = prompt("v1", [("@Why?", None)], image="<im_start><image><im_end>\n")
    assert rendered(template, [user("Why?", images=1)]) == wrapped


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(ValueError, match="roles user and assistant"):
        rendered(jinja_template(conv_templates["v1"]), [user("a"), {"role": "tool", "content": "b"}])


@pytest.mark.parametrize("name", sorted(set(conv_templates) - set(WRITABLE)))
def test_templates_with_a_turn_for_the_picture_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="Choose another with --conv-mode"):
        jinja_template(conv_templates[name])
