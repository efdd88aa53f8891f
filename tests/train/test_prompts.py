"""Labels of conversations: every template, awkward texts, and what is said of samples that cannot be labeled."""

import pytest
import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import tokenizer_image_token
from llava.prompt_layout import SeparatorStyle
from llava.train.prompts import preprocess, preprocess_multimodal, training_template
from tests.tokenizers import byte_level_tokenizer, chatml, llama, sentencepiece_tokenizer
from tests.train.labeling import BYTES, ENDS, always_learned, label, learned_runs, turns


@pytest.mark.parametrize("name", sorted(conv_templates))
@pytest.mark.parametrize("tokenizer", [llama(), BYTES], ids=["sentencepiece", "bytes"])
def test_every_template_labels_a_sample_with_a_picture(name: str, tokenizer) -> None:
    labeled = label(name, turns("<image>\nWhat is it?", "A dog."), tokenizer)
    assert labeled.error is None
    assert labeled.input_ids.dtype == labeled.labels.dtype == torch.int64
    assert labeled.input_ids.shape == labeled.labels.shape
    learned = labeled.labels != IGNORE_INDEX
    assert torch.equal(labeled.labels[learned], labeled.input_ids[learned])
    assert labeled.input_ids.tolist().count(IMAGE_TOKEN_INDEX) == 1
    assert "A dog." in learned_runs(labeled, tokenizer)[-1]


# The published recipe trains two styles on another text than it prompts with.
ALIKE = sorted(
    name
    for name, template in conv_templates.items()
    if template.sep_style not in (SeparatorStyle.SINGLE, SeparatorStyle.PLAIN)
)


@pytest.mark.parametrize("name", ALIKE)
@pytest.mark.parametrize("tokenizer", [llama(), BYTES], ids=["sentencepiece", "bytes"])
def test_ids_are_those_of_the_prompt_at_inference(name: str, tokenizer) -> None:
    template = conv_templates[name]
    texts = ["<image>\nWhat is it? ☂", "A dog.", "Why <image>?", " I see\r\nit."]
    conversation = template.copy()
    for index, text in enumerate(texts):
        conversation.append_message(conversation.roles[index % 2], text)
    expected = tokenizer_image_token(conversation.get_prompt(), tokenizer)
    assert label(name, turns(*texts), tokenizer).input_ids.tolist() == expected


@pytest.mark.parametrize("name", ["v1", "llava_llama_2", "mpt", "gemma_instruct", "qwen_1_5", "llava_llama_3"])
def test_what_the_model_reads_before_an_answer_is_the_prompt_with_an_open_slot(name: str) -> None:
    conversation = conv_templates[name].copy()
    conversation.append_message(conversation.roles[0], "<image>\nWhat?")
    conversation.append_message(conversation.roles[1], None)
    prompt = tokenizer_image_token(conversation.get_prompt(), BYTES)
    assert label(name, turns("<image>\nWhat?", "A dog."), BYTES).input_ids[: len(prompt)].tolist() == prompt


@pytest.mark.parametrize("name", ["v1", "llava_llama_2", "mpt"])
@pytest.mark.parametrize("empty", [0, 1])
def test_empty_answer_is_not_learned_and_the_other_is(name: str, empty: int) -> None:
    answers = ["A dog.", "A dog."]
    answers[empty] = ""
    labeled = label(name, turns("Q1", answers[0], "Q2", answers[1]))
    assert labeled.error is None
    (run,) = learned_runs(labeled, llama())
    assert run == "A dog." + ENDS[name]


@pytest.mark.parametrize("name", ["v1", "llava_llama_2", "mpt", "gemma_instruct"])
@pytest.mark.parametrize("conversation", [turns("Q", ""), turns("Q")], ids=["empty answer", "no answer"])
def test_sample_without_any_answer_says_so_and_learns_nothing(name: str, conversation) -> None:
    labeled = label(name, conversation)
    assert labeled.error == "no answer to learn from"
    assert len(labeled.input_ids)
    assert set(labeled.labels.tolist()) == {IGNORE_INDEX}


def test_empty_answer_of_a_chat_template_is_learned_as_an_end() -> None:
    labeled = label("qwen_1_5", turns("Q", ""), chatml())
    assert learned_runs(labeled, chatml())[-1].endswith("<|im_start|>assistant\n<|im_end|>\n")


@pytest.mark.parametrize("name", ["v1", "llava_llama_2", "mpt", "gemma_instruct", "qwen_1_5", "llava_llama_3"])
def test_question_left_open_is_read_but_not_learned(name: str) -> None:
    closed, left_open = (label(name, turns(*texts), BYTES) for texts in (("Q1", "A1"), ("Q1", "A1", "What next?")))
    assert len(left_open.input_ids) > len(closed.input_ids)
    assert torch.equal(left_open.labels[: len(closed.labels)], closed.labels)
    assert set(left_open.labels[len(closed.labels) :].tolist()) <= {IGNORE_INDEX} | always_learned(name, BYTES)


def test_end_token_and_role_words_inside_an_answer_are_learned_where_they_stand() -> None:
    text = "open </s> closed ASSISTANT: [/INST] USER: ###"
    assert learned_runs(label("v1", turns("Q", text)), llama()) == [f"{text}</s>"]
    question = label("v1", turns("Why </s> ASSISTANT: here?", "So."))
    assert learned_runs(question, llama()) == ["So.</s>"]


def test_token_that_reaches_from_the_header_into_the_answer_is_learned() -> None:
    tokenizer = byte_level_tokenizer("<|im_start|>", "<|im_end|>", "\n\n")
    assert learned_runs(label("mpt", turns("Q", "\nA dog."), tokenizer), tokenizer) == ["\n\nA dog.<|im_end|>"]


def test_several_pictures_of_a_turn_stay_and_none_is_learned() -> None:
    labeled = label("v1", turns("Is <image> older than <image>?\n<image>", "The first <image>."))
    assert labeled.input_ids.tolist().count(IMAGE_TOKEN_INDEX) == 4
    assert IMAGE_TOKEN_INDEX not in labeled.labels.tolist()
    assert labeled.error is None


def test_image_word_of_a_text_sample_stays_text() -> None:
    labeled = label("v1", turns("Write <image> tags.", "<image>"), has_image=False)
    assert IMAGE_TOKEN_INDEX not in labeled.input_ids.tolist()
    assert learned_runs(labeled, llama()) == ["<image></s>"]


def test_picture_moves_to_the_front_unless_there_are_several() -> None:
    sample = turns("Look <image> here\r\n", "<image>", "A <image> b <image>", "So.")
    (moved,) = preprocess_multimodal([sample], conv_templates["v1"])
    assert [turn["value"] for turn in moved] == ["<image>\nLook  here", "<image>", "A <image> b <image>", "So."]
    assert sample[0]["value"] == "Look <image> here\r\n"
    (wrapped,) = preprocess_multimodal([sample], conv_templates["v1"], mm_use_im_start_end=True)
    assert wrapped[2]["value"] == "A <im_start><image><im_end> b <im_start><image><im_end>"
    (tagged,) = preprocess_multimodal([sample], conv_templates["v1_mmtag"])
    assert tagged[0]["value"] == "<Image><image></Image>\nLook  here"


def test_wrapped_picture_gives_start_placeholder_end() -> None:
    tokenizer = sentencepiece_tokenizer(added=("<im_start>", "<im_end>"))
    (sample,) = preprocess_multimodal([turns("<image>\nQ", "A")], conv_templates["v1"], mm_use_im_start_end=True)
    ids = label("v1", sample, tokenizer).input_ids.tolist()
    start, end = tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>"])
    position = ids.index(IMAGE_TOKEN_INDEX)
    assert ids[position - 1 : position + 2] == [start, IMAGE_TOKEN_INDEX, end]


def test_turns_before_the_first_question_are_dropped() -> None:
    whole, dropped = turns("Q", "A"), [{"from": "gpt", "value": "Welcome."}, {"from": "gpt", "value": "Hi."}]
    for name in ("v1", "qwen_1_5", "plain"):
        asked = [{**whole[0], "value": "<image>\nQ"}, whole[1]]
        expected, got = label(name, asked, chatml()), label(name, dropped + asked, chatml())
        assert torch.equal(got.input_ids, expected.input_ids)
        assert torch.equal(got.labels, expected.labels)


@pytest.mark.parametrize(
    ("name", "conversation", "message"),
    [
        ("v1", [], "no turn of a human"),
        ("v1", [{"from": "gpt", "value": "A"}], "no turn of a human"),
        ("v1", [{"from": "human", "value": None}], "a turn is"),
        ("v1", [{"value": "Q"}], "a turn is"),
        ("v1", [*turns("Q", "A"), {"from": "tool", "value": "x"}], "no role for 'tool'"),
        ("gemma_instruct", [*turns("Q"), *turns("Q", "A")], "alternate"),
        ("plain", turns("<image>", "A", "Q", "A"), "one human and one gpt turn"),
        ("plain", turns("Q", "A"), "names none"),
    ],
)
def test_turns_that_make_no_prompt_are_reported_with_their_fault(name: str, conversation, message: str) -> None:
    labeled = label(name, conversation)
    assert message in (labeled.error or "")
    assert labeled.input_ids.shape == labeled.labels.shape == (0,)


def test_other_roles_are_kept_by_chat_templates_and_not_learned() -> None:
    labeled = label("qwen_1_5", [*turns("Q"), {"role": "tool", "content": "42"}, *turns("", "It is 42.")[1:]], chatml())
    text = chatml().decode(labeled.input_ids)
    assert "<|im_start|>tool\n42<|im_end|>\n" in text
    learned = "".join(learned_runs(labeled, chatml()))
    assert learned.endswith("assistant\nIt is 42.<|im_end|>\n")
    assert learned.count("42") == 1


def test_two_questions_in_a_row_are_both_read() -> None:
    labeled = label("v1", [*turns("Q1"), *turns("Q2", "A")])
    assert llama().decode(labeled.input_ids).endswith("USER: Q1 USER: Q2 ASSISTANT: A</s>")
    assert learned_runs(labeled, llama()) == ["A</s>"]


def test_ids_are_cut_at_max_length_and_lost_answers_or_pictures_are_reported() -> None:
    sample = turns("<image>\nWhat is it?", "A dog.", "And <image>?", "A cat.")
    whole = label("v1", sample)
    cut = label("v1", sample, max_length=len(whole.input_ids) - 2)
    assert torch.equal(cut.input_ids, whole.input_ids[:-2])
    assert torch.equal(cut.labels, whole.labels[:-2])
    first_answer = (whole.labels != IGNORE_INDEX).nonzero()[0].item()
    lost = label("v1", sample, max_length=first_answer + 2)
    assert "pictures lie beyond" in lost.error
    assert "--model_max_length" in lost.error
    assert set(lost.labels.tolist()) == {IGNORE_INDEX}
    text = label("v1", turns("Q", "A dog."), max_length=5)
    assert "the answer lies beyond 5 tokens" in text.error


def test_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="Slow gives no character offsets"):
        preprocess([turns("Q", "A")], Slow(), conv_templates["v1"], has_image=False)


def test_templates_are_found_by_name_and_an_unknown_one_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert training_template("v0").roles == conv_templates["v0"].roles
    assert training_template("v1") is not conv_templates["v1"]
    assert capsys.readouterr().out == ""
    assert training_template("v9").version == "v1"
    assert "--version 'v9' is no template; vicuna_v1 is used" in capsys.readouterr().out
