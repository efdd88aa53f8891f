"""Chat: prompts, tokens, streaming, stopping, and several threads at once."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel

from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.inference import Chat, ContextExceeded, Decoding, Turn
from llava.template_choice import choose_template, stop_string, until_stop
from llava.token_count import count_tokens
from tests.tiny import NUM_PATCHES, PINPOINTS, save_tiny_llava, tiny_llava, tiny_lm_folder
from tests.tokenizers import chatml

MOE = {
    "moe_encoder": True,
    "moe_encoder_lora_rank": 2,
    "moe_encoder_lora_alpha": 4,
    "moe_encoder_num_experts": 3,
    "moe_encoder_dense": False,
}
ANYRES = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": PINPOINTS, "mm_patch_merge_type": "spatial_unpad"}
GREEDY = Decoding(temperature=0, max_new_tokens=12)
PICTURE = Image.new("RGB", (50, 20), "blue")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    torch.manual_seed(0)
    folder = save_tiny_llava(tmp_path_factory.mktemp("chat"), moe=MOE)
    return Chat.load(str(folder), device="cpu", torch_dtype="float32")


@pytest.fixture(scope="module")
def anyres(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    folder = save_tiny_llava(tmp_path_factory.mktemp("anyres"), **ANYRES)
    return Chat.load(str(folder), device="cpu", torch_dtype="float32")


def ask(chat: Chat, *turns: Turn) -> tuple[str, list[Image.Image], str | None]:
    return chat.prompt(turns)


def test_a_prompt_holds_every_turn_and_its_pictures_in_order(chat: Chat) -> None:
    turns = [Turn("What?", (PICTURE, PICTURE), "A thing."), Turn("And this?", (PICTURE,))]
    prompt = chat.prompt(turns, "vicuna_v1")
    assert prompt.text.endswith(
        "USER: <image>\n<image>\nWhat? ASSISTANT: A thing.</s>USER: <image>\nAnd this? ASSISTANT:"
    )
    assert (len(prompt.images), prompt.stop) == (3, "</s>")


@pytest.mark.parametrize("template", sorted(conv_templates))
def test_every_template_asks_for_each_picture_once(chat: Chat, template: str) -> None:
    prompt = chat.prompt([Turn("What?", (PICTURE,), "A thing."), Turn("And this?")], template)
    assert prompt.text.count("<image>") == 1


def test_tags_of_the_tagged_template_surround_the_picture(chat: Chat) -> None:
    assert "<Image><image></Image>" in chat.prompt([Turn("What?", (PICTURE,))], "v1_mmtag").text


def test_streamed_text_grows_to_the_batched_answer(chat: Chat) -> None:
    text, images, stop = ask(chat, Turn("What is it?", (PICTURE,)))
    pieces = list(chat.stream(text, images, GREEDY, stop))
    assert pieces[-1] == chat.answer_all([text], [images], GREEDY, stop)[0] != ""
    assert all(later.startswith(earlier) for earlier, later in pairwise(pieces))


def test_a_batch_answers_as_its_prompts_would_alone(chat: Chat) -> None:
    asked = [ask(chat, Turn("What is it?", (PICTURE,))), ask(chat, Turn("Tell me a story about a very small cat."))]
    together = chat.answer_all([text for text, _, _ in asked], [images for _, images, _ in asked], GREEDY)
    assert together == [chat.answer_all([text], [images], GREEDY)[0] for text, images, _ in asked]


def test_closing_the_stream_ends_the_generation(chat: Chat) -> None:
    text, images, _ = ask(chat, Turn("What is it?", (PICTURE,)))
    before = threading.active_count()
    stream = chat.stream(text, images, Decoding(temperature=0, max_new_tokens=400))
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_the_cancel_event_ends_the_stream(chat: Chat) -> None:
    cancel = threading.Event()
    text, images, _ = ask(chat, Turn("What is it?", (PICTURE,)))
    count = 0
    for _ in chat.stream(text, images, Decoding(temperature=0, max_new_tokens=400), cancel=cancel):
        count += 1
        cancel.set()
    assert count < 20


def test_an_error_in_the_thread_reaches_the_caller(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(chat.model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        list(chat.stream(*ask(chat, Turn("Hello"))[:2], GREEDY))


@pytest.mark.parametrize("sizes", [[(50, 20)], [(20, 50), (30, 30)], [(300, 20), (28, 28), (90, 100)]])
def test_tokens_of_tiled_pictures_are_counted_as_the_model_packs_them(
    anyres: Chat, sizes: Sequence[tuple[int, int]]
) -> None:
    pictures = tuple(Image.new("RGB", size) for size in sizes)
    text, images, _ = ask(anyres, Turn("What?", pictures))
    inputs = anyres.inputs([text], [images])
    _, _, _, _, embeds, _ = anyres.model.prepare_inputs_labels_for_multimodal(
        inputs["inputs"], None, None, None, None, inputs["images"], image_sizes=inputs["image_sizes"]
    )
    assert count_tokens(anyres.model, inputs) == embeds.shape[1]


def test_tokens_of_a_mixed_batch_are_counted(chat: Chat) -> None:
    texts = [ask(chat, Turn("What?", (PICTURE,)))[0], ask(chat, Turn("No picture, but a longer question?"))[0]]
    inputs = chat.inputs(texts, [[PICTURE], []])
    own = (inputs["inputs"][0] == IMAGE_TOKEN_INDEX).sum().item()
    length = inputs["attention_mask"][0].sum().item()
    assert own == 1
    assert count_tokens(chat.model, inputs) == max(length - 1 + NUM_PATCHES, inputs["attention_mask"][1].sum().item())


def test_an_answer_ends_where_the_context_does(chat: Chat) -> None:
    text, images, _ = ask(chat, Turn("What is it? " * 30, (PICTURE,)))
    room = chat.room(chat.inputs([text], [images]))
    assert 0 < room < 512
    list(chat.stream(text, images, Decoding(temperature=0, max_new_tokens=2)))


@contextmanager
def saying(model: PreTrainedModel, ids: Iterable[int]) -> Iterator[None]:
    """The model writes `ids`, whatever it is asked."""
    script = iter(ids)

    def speak(head: torch.nn.Module, inputs: object, logits: torch.Tensor) -> None:
        logits[..., next(script)] = 1e4

    handle = model.get_output_embeddings().register_forward_hook(speak)
    yield
    handle.remove()


def test_a_stop_that_is_a_special_token_ends_an_answer(tmp_path: Path) -> None:
    tokenizer = chatml()
    tokenizer.eos_token = "<|endoftext|>"
    model = tiny_llava(tmp_path, vocab_size=len(tokenizer))
    chat = Chat(tokenizer, model, model.get_vision_tower().image_processor, 512, template="qwen_1_5")
    text, images, stop = ask(chat, Turn("Is it?"))
    ids = tokenizer("Yes.<|im_end|>\n<|im_start|>user\nAnd?").input_ids
    decoding = Decoding(temperature=0, max_new_tokens=len(ids))
    with saying(model, ids):
        assert chat.answer_all([text], [images], decoding, stop) == ["Yes."]
    with saying(model, ids):
        assert list(chat.stream(text, images, decoding, stop))[-1] == "Yes."


@pytest.mark.parametrize("words", [200, 100_000])
def test_a_prompt_without_room_for_an_answer_is_refused(chat: Chat, words: int) -> None:
    text, images, _ = ask(chat, Turn("what is it? " * words, (PICTURE,)))
    with pytest.raises(ContextExceeded, match=r"llava-tiny"):
        next(chat.stream(text, images, GREEDY))


def test_pictures_and_their_tokens_must_agree(chat: Chat) -> None:
    with pytest.raises(ValueError, match=r"names 1 picture\(s\) .* 0 were given"):
        chat.inputs(["<image>\nWhat?"], [[]])


def test_a_plain_language_model_answers_and_takes_no_pictures(tmp_path: Path) -> None:
    chat = Chat.load(str(tiny_lm_folder(tmp_path)), device="cpu", torch_dtype="float32")
    text, _, stop = ask(chat, Turn("Hello"))
    assert list(chat.stream(text, [], GREEDY, stop))[-1] == chat.answer_all([text], [[]], GREEDY, stop)[0]
    with pytest.raises(ValueError, match="takes no pictures"):
        chat.inputs(["<image>\nWhat?"], [[PICTURE]])


def test_threads_that_share_a_chat_answer_as_one_would(chat: Chat) -> None:
    """Also that recording the experts of one pass does not leak into another."""
    colors = ["red", "green", "blue", "black", "white", "yellow", "cyan", "purple"]
    asked = [ask(chat, Turn("What is it?", (Image.new("RGB", (30, 30), color),))) for color in colors]
    expected = [chat.answer_all([text], [images], GREEDY)[0] for text, images, _ in asked]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda item: list(chat.stream(*item[:2], GREEDY))[-1], asked * 3))
    assert found == expected * 3
    tower = chat.model.get_vision_tower()
    assert all(getattr(module, "record", None) is None for module in tower.modules())
    assert len(tower.encode(torch.zeros(1, 3, 28, 28)).routing) == 3


@pytest.mark.parametrize(
    "options", [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"max_new_tokens": 0}]
)
def test_decoding_refuses_what_it_cannot_do(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Decoding(**options)  # type: ignore[arg-type]


def test_the_config_then_the_name_then_the_type_choose_the_template(chat: Chat) -> None:
    config = chat.model.config
    assert choose_template("llava-v1.5-7b", config) == "llava_v1"
    assert choose_template("llava-v1.6-34b", config) == "chatml_direct"
    assert choose_template("move-kd-7b-v1.0", config) == "vicuna_v1"
    assert choose_template("my-model", config) == "vicuna_v1"


@pytest.mark.parametrize(
    ("template", "stop"),
    [
        ("v0", "###"),
        ("vicuna_v1", "</s>"),
        ("mpt", "<|im_end|>"),
        ("qwen_1_5", "<|im_end|>"),
        ("llava_llama_3", "<|eot_id|>"),
    ],
)
def test_the_stop_string_is_what_ends_an_answer(template: str, stop: str) -> None:
    assert stop_string(conv_templates[template]) == stop


def test_the_beginning_of_a_stop_string_is_held_back_until_the_end() -> None:
    assert until_stop("yes #", ["###"], is_final=False) == "yes"
    assert until_stop("yes #", ["###"]) == "yes #"
    assert until_stop("yes ### Human", ["###"]) == "yes"
