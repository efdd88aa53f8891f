"""The public `eval_model`, as the README of LLaVA calls it, and its command line."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from llava.eval.answering import prompt_of
from llava.eval.questions import open_rgb
from llava.eval.run_llava import Query, answer, eval_model, main
from llava.inference import Chat, Decoding
from llava.mm_utils import get_model_name_from_path
from llava.remote import load_image

GREEDY = Decoding(0, max_new_tokens=6)


def arguments(**attributes: object) -> object:
    """Class attributes on an instance without its own: what `type("Args", (), {...})()` gives."""
    return type("Args", (), attributes)()


@pytest.fixture
def expected(chat: Chat, pictures: Path) -> Callable[..., str]:
    def ask(message: str, *names: str) -> str:
        images = [Image.open(pictures / name) for name in names]
        return chat.answer_all([prompt_of(chat, message, len(images))], [images], GREEDY, "</s>")[0]

    return ask


def test_eval_model_answers_the_readmes_arguments(
    checkpoint: Path, pictures: Path, expected: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    args = arguments(
        model_path=str(checkpoint),
        model_base=None,
        model_name=get_model_name_from_path(str(checkpoint)),
        query="What is shown?",
        conv_mode=None,
        image_file=str(pictures / "red.png"),
        sep=",",
        temperature=0,
        top_p=None,
        num_beams=1,
        max_new_tokens=6,
        device="cpu",
    )
    text = eval_model(args)
    assert text == expected("What is shown?", "red.png")
    assert capsys.readouterr().out.splitlines()[-1] == text.splitlines()[-1]


def test_arguments_may_lack_everything_optional() -> None:
    query = Query.of(arguments(model_path="m", query="q", image_file="a,b"))
    assert query == Query("m", "a,b", "q", None, None, None, ",", 0.2, None, 1, 512, "auto")
    with pytest.raises(ValueError, match="eval_model needs image_file, query; it was given model_path"):
        Query.of(arguments(model_path="m"))


def test_several_pictures_come_first_or_where_the_placeholder_stands(
    chat: Chat, pictures: Path, expected: Callable[..., str]
) -> None:
    images = [Image.open(pictures / name) for name in ("red.png", "blue.png")]
    assert answer(chat, "Which?", images, GREEDY) == expected("<image>\n<image>\nWhich?", "red.png", "blue.png")
    placed = "Is <image-placeholder> or <image-placeholder> red?"
    assert answer(chat, placed, images, GREEDY) == expected("Is <image> or <image> red?", "red.png", "blue.png")
    with pytest.raises(ValueError, match=r"names 1 picture\(s\) .* 2 were given"):
        answer(chat, "Is <image-placeholder> red?", images, GREEDY)


def test_the_command_line_warns_about_a_template_that_does_not_suit(
    checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model-path", str(checkpoint), "--query", "What?", "--temperature", "0", "--max_new_tokens", "3"]
    files = f"{pictures / 'red.png'};{pictures / 'blue.png'}"
    main([*flags, "--image-file", files, "--sep", ";", "--conv-mode", "llava_v0", "--device", "cpu"])
    assert "suggests the template vicuna_v1; --conv-mode llava_v0 is used" in capsys.readouterr().out


def test_a_missing_picture_is_named_before_the_model_is_loaded(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.png")
    with pytest.raises((FileNotFoundError, ValueError), match=r"gone\.png"):
        eval_model(arguments(model_path=str(tmp_path / "nowhere"), query="q", image_file=gone))


def test_photos_are_turned_upright_here_and_read_as_stored_by_benchmarks(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.jpg", exif=exif)
    assert load_image(str(tmp_path / "photo.jpg")).size == (30, 40)
    assert open_rgb(tmp_path / "photo.jpg").size == (40, 30)
