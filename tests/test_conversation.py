import base64
import copy
import hashlib
from io import BytesIO

import pytest
from PIL import Image

from llava.conversation import conv_templates, conv_vicuna_v0, default_conversation
from llava.prompt_layout import LAYOUTS, SeparatorStyle

# sha256 of the prompt for U="<image>\nQ1", A="A1", U="Q2", A=None; first 16 digits.
GOLDEN = {
    "v1": "080b3549d584eff2",
    "vicuna_v1": "080b3549d584eff2",
    "llava_v1": "ff54643a6973c941",
    "llava_v0": "129350366331ff2b",
    "v0": "ae7747f153a91441",
    "default": "ae7747f153a91441",
    "v0_mmtag": "d4b0484ba88197b9",
    "v1_mmtag": "a26c3bd4952910c4",
    "llama_2": "ce0da33a83abb4df",
    "llava_llama_2": "5853d830822fd163",
    "mistral_instruct": "b89525f983145741",
    "mpt": "45965cc860c15870",
    "mpt_text": "45965cc860c15870",
    "chatml_direct": "654dfeac3e00574b",
    "mistral_direct": "654dfeac3e00574b",
    "mistral_orca": "b5fcbb55ff04e78b",
    "mistral_zephyr": "577ad887ea9f58a8",
    "qwen_1_5": "928e144fb516e267",
    "qwen_2": "928e144fb516e267",
    "qwen_2_5": "d6e4af3828e11a5a",
    "gemma_instruct": "beee6e94a1288fff",
    "llava_llama_2_simple": "1a20e3af21ddf95b",
    "llava_llama_2_mmtag": "420b360ac5e5882d",
}


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_prompt_has_its_golden_hash(name: str) -> None:
    conversation = conv_templates[name].copy()
    for index, text in enumerate(["<image>\nQ1", "A1", "Q2", None]):
        conversation.append_message(conversation.roles[index % 2], text)
    assert hashlib.sha256(conversation.get_prompt().encode()).hexdigest()[:16] == GOLDEN[name]


def test_one_shot_answer_of_the_first_vicuna_is_the_published_text() -> None:
    answer = conv_vicuna_v0.messages[1][1]
    assert len(answer) == 1383
    assert hashlib.sha256(answer.encode()).hexdigest().startswith("29c0f588aa19dd652ecdbf8232a0bc4d")


def test_every_style_has_a_layout_and_v1_is_the_default() -> None:
    assert set(LAYOUTS) == set(SeparatorStyle)
    assert default_conversation is conv_templates["v1"]


@pytest.mark.parametrize("duplicate", [lambda template: template.copy(), copy.deepcopy])
@pytest.mark.parametrize("name", ["v0", "v1", "llava_llama_3"])
def test_appending_to_a_copy_leaves_the_template_as_it_was(name: str, duplicate) -> None:
    before = len(conv_templates[name].messages)
    conversation = duplicate(conv_templates[name])
    conversation.append_message(conversation.roles[0], "Q")
    assert len(conv_templates[name].messages) == before
    assert conversation.stop_token_ids == conv_templates[name].stop_token_ids


def test_first_picture_goes_in_front_and_several_stay_where_they_are() -> None:
    picture = Image.new("RGB", (2, 2))
    conversation = conv_templates["v1"].copy()
    conversation.append_message("USER", ("What is <image>?", picture, "Pad"))
    assert conversation.get_prompt().endswith("USER: <image>\nWhat is ? ")
    conversation.messages[0][1] = ("Is <image> older than <image>?", [picture, picture], "Pad")
    assert conversation.get_prompt().endswith("USER: Is <image> older than <image>? ")
    conversation.messages[0][1] = ("Which is older?", [picture, picture], "Pad")
    assert conversation.get_prompt().endswith("USER: <image>\n<image>\nWhich is older? ")


def test_tagged_template_shows_the_picture_in_a_turn_of_its_own() -> None:
    conversation = conv_templates["v1_mmtag"].copy()
    conversation.append_message("USER", ("What?", Image.new("RGB", (2, 2)), "Pad"))
    conversation.append_message("ASSISTANT", None)
    assert conversation.get_prompt().endswith(
        "USER: <Image><image></Image> ASSISTANT: Received.</s>USER: What? ASSISTANT:"
    )


def test_chatml_writes_the_pictures_of_a_later_turn_in_front_of_it() -> None:
    conversation = conv_templates["qwen_2"].copy()
    for index, message in enumerate(["Hi", "Hello", ("And these?", ["a.png", "b.png"], "Default")]):
        conversation.append_message(conversation.roles[index % 2], message)
    assert conversation.get_prompt().endswith("<|im_start|>user\n<image><image>And these?<|im_end|>\n")


@pytest.mark.parametrize("name", ["qwen_1_5", "llava_llama_3"])
def test_pictures_that_a_later_turn_names_itself_are_not_named_again(name: str) -> None:
    conversation, image = conv_templates[name].copy(), Image.new("RGB", (2, 2))
    for index, message in enumerate(["Q1", "A1", ("Q2\n<image>", image, "Default"), None]):
        conversation.append_message(conversation.roles[index % 2], message)
    assert conversation.get_prompt().count("<image>") == len(conversation.get_images()) == 1


def test_llama_3_is_rendered_without_a_tokenizer_and_by_one_that_is_set() -> None:
    class Tokenizer:
        bos_token = "<B>"

        def apply_chat_template(self, turns, tokenize, add_generation_prompt) -> str:
            return "<B>" + "|".join(f"{turn['role']}={turn['content']}" for turn in turns)

    conversation = conv_templates["llava_llama_3"].copy()
    conversation.append_message("user", " Q ")
    conversation.append_message("assistant", None)
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    assert conversation.get_prompt() == (
        f"{header.format('system')}{conversation.system}<|eot_id|>"
        f"{header.format('user')}Q<|eot_id|>{header.format('assistant')}"
    )
    conversation.tokenizer = Tokenizer()
    assert conversation.get_prompt() == f"system={conversation.system}|user= Q "


@pytest.mark.parametrize(("name", "roles"), [("gemma_instruct", (0, 0)), ("llama_2", (1, 0)), ("llama_2", ())])
def test_turns_that_a_style_cannot_write_are_refused(name: str, roles: tuple[int, ...]) -> None:
    conversation = conv_templates[name].copy()
    for role in roles:
        conversation.append_message(conversation.roles[role], "text")
    with pytest.raises(ValueError, match=r"alternate|first message"):
        conversation.get_prompt()


@pytest.mark.parametrize(
    ("mode", "size", "expected"),
    [
        ("Default", (100, 50), (100, 50)),
        ("Crop", (2688, 1344), (1344, 672)),
        ("Pad", (100, 50), (100, 100)),
        ("Resize", (100, 50), (336, 336)),
        ("Default", (300, 3000), (134, 1340)),
    ],
)
def test_picture_is_shown_at_most_1344_long(mode: str, size: tuple[int, int], expected: tuple[int, int]) -> None:
    shown = default_conversation.process_image(Image.new("RGB", size), mode, return_pil=True)
    assert shown.size == expected


def test_unknown_picture_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="Invalid image_process_mode: Tile"):
        default_conversation.process_image(Image.new("RGB", (2, 2)), "Tile")


def test_pictures_are_collected_from_objects_lists_and_paths(tmp_path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (6, 4)).save(path)
    conversation = conv_templates["v0"].copy()  # its two example turns are not the user's
    conversation.append_message("Human", ("<image>", Image.new("RGB", (2, 2)), "Default"))
    conversation.append_message("Assistant", "A")
    conversation.append_message("Human", ("<image><image>", [str(path), path], "Pad"))
    assert [image.size for image in conversation.get_images(return_pil=True)] == [(2, 2), (6, 6), (6, 6)]
    assert conversation.get_images(return_path=True)[1:] == [str(path), path]
    conversation.append_message("Assistant", "B")
    conversation.append_message("Human", ("<image>", "clip.mp4", "Default"))
    assert conversation.get_images()[-1] == "clip.mp4"
    encoded = conversation.get_images()[1]
    assert Image.open(BytesIO(base64.b64decode(encoded))).format == "PNG"


def test_chat_page_and_log_show_no_raw_pictures() -> None:
    conversation = conv_templates["v1"].copy()
    conversation.append_message("USER", ("<image>\nWhat?", Image.new("RGBA", (2, 2)), "Default"))
    conversation.append_message("ASSISTANT", "A boat.")
    (question, answer), *rest = conversation.to_gradio_chatbot()
    assert not rest
    assert question.startswith('<img src="data:image/jpeg;base64,')
    assert question.endswith("/>\nWhat?")
    assert answer == "A boat."
    assert conversation.dict()["messages"] == [["USER", "<image>\nWhat?"], ["ASSISTANT", "A boat."]]
    assert set(conversation.dict()) == {"system", "roles", "messages", "offset", "sep", "sep2"}


def test_files_are_told_apart_by_their_names() -> None:
    assert default_conversation.is_image_file("a/B.JPG")
    assert default_conversation.is_video_file("a/b.mp4")
    assert not default_conversation.is_image_file("a/b.mp4")
