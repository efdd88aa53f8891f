"""What a user may write for a teacher, and what the plug-in directory answers."""

from pathlib import Path

import pytest
import torch

from llava.model.multimodal_encoder.move_kd.plugins import load_plugin, plugin_names
from llava.model.multimodal_encoder.move_kd.teachers import build_teachers, parse_spec, parse_specs
from llava.model.multimodal_encoder.move_kd.teachers.sam import Sam
from tests.tiny_teachers import make_case

TEACHERS = "llava.model.multimodal_encoder.move_kd.teachers"


def test_a_bare_word_leaves_everything_to_the_teacher() -> None:
    spec = parse_spec("sam")
    assert (spec.kind, spec.name) == ("sam", "sam")
    assert (spec.path, spec.size, spec.dtype, spec.mean, spec.std, spec.fit) == (None,) * 6


def test_every_key_is_read() -> None:
    spec = parse_spec("sam:path=/x,size=1024,dtype=bf16,mean=imagenet,name=sam2,fit=crop,chunk=4,layout=upstream")
    assert (spec.kind, spec.name, spec.path, spec.size, spec.chunk) == ("sam", "sam2", "/x", 1024, 4)
    assert (spec.dtype, spec.fit, spec.options) == (torch.bfloat16, "crop", (("layout", "upstream"),))


def test_a_preset_for_the_mean_brings_its_deviation_unless_one_is_given() -> None:
    assert parse_spec("eva:mean=clip").std == (0.26862954, 0.26130258, 0.27577711)
    assert parse_spec("eva:mean=clip,std=half").std == (0.5, 0.5, 0.5)
    assert parse_spec("eva:mean=0.1/0.2/0.3").mean == (0.1, 0.2, 0.3)


def test_the_first_item_may_be_a_bare_path() -> None:
    assert parse_spec("hf:facebook/dinov2-base").path == "facebook/dinov2-base"
    assert parse_spec("hf:facebook/dinov2-base").name == "dinov2-base"
    assert parse_spec("sam:/data/run=1/sam,size=64").path == "/data/run=1/sam"


def test_the_released_word_eva_keeps_its_name() -> None:
    assert (parse_spec("eva").kind, parse_spec("eva").name) == ("eva02", "eva")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sam:size=0", "size must be a positive whole number, not '0'"),
        ("sam:size=big", "size must be a positive whole number, not 'big'"),
        ("sam:dtype=int8", "dtype 'int8' is unknown; use one of fp32"),
        ("sam:mean=1/2", "mean '1/2' is not understood; give three numbers"),
        ("sam:std=0/1/1", "must be positive"),
        ("sam:fit=round", "fit 'round' is unknown; use one of pad, crop, squash"),
        ("sam:size=1,size=2", "size is given twice"),
        ("sam:path=", "path is empty"),
        ("sam:size=1,elsewhere", "'elsewhere' is not key=value"),
        ("sam:name=a.b", "may hold letters, digits"),
        ("sam:digest=xyz", "8 to 64 hexadecimal digits"),
        ("hf", "hf needs a Hub id or a folder"),
        ("", "is no name of a teacher"),
    ],
)
def test_a_wrong_spec_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_spec(text)


def test_an_unknown_teacher_lists_the_files_that_are_there() -> None:
    with pytest.raises(ValueError, match=r"unknown teacher 'samm'; there are: clip, convnext, dinov2, .*sam, siglip2"):
        parse_specs(["samm"])


def test_a_key_no_teacher_of_this_kind_takes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sam takes no layer; accepted: path, .*, layout"):
        build_teachers([make_case("sam", tmp_path) + ",layer=3"])


def test_two_teachers_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two teachers are called 'sam'"):
        parse_specs(["sam", "sam:size=512"])
    assert [spec.name for spec in parse_specs(["sam", "sam:size=512,name=small"])] == ["sam", "small"]


def test_the_released_recipe_sets_what_the_user_left_open() -> None:
    sam, eva, convnext = parse_specs(["sam", "eva:size=512", "convnext"], released=True)
    assert sam.options == (("layout", "upstream"),)
    assert eva.mean == (0.48145466, 0.4578275, 0.40821073)
    assert eva.size == 512
    assert convnext == parse_spec("convnext")
    (spaced,) = parse_specs(["eva:path=/x, mean=imagenet"], released=True)
    assert spaced.mean == (0.485, 0.456, 0.406)
    (own,) = parse_specs(["sam:layout=true"], released=True)
    assert own.options == (("layout", "true"),)


def test_plugins_are_files_that_assign_the_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "shapes"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "base.py").write_text("")
    (package / "_tools.py").write_text("")
    (package / "circle.py").write_text("SHAPE = 3.14\n")
    (package / "empty.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert plugin_names("shapes") == ["circle", "empty"]
    assert load_plugin("shapes", "circle") == 3.14
    with pytest.raises(ValueError, match="unknown shape 'square'; there are: circle, empty"):
        load_plugin("shapes", "square")
    with pytest.raises(ValueError, match=r"offers no shape: it must assign SHAPE = \.\.\."):
        load_plugin("shapes", "empty")


def test_the_directory_is_the_registry() -> None:
    assert load_plugin(TEACHERS, "sam") is Sam
    assert {"clip", "eva02", "convnext", "sam", "pix2struct"} < set(plugin_names(TEACHERS))
