import pytest
import torch
import torch.nn.functional as F

from llava.model.multimodal_encoder.move_kd.adapters import (
    Interpolated,
    SameSpace,
    Shape,
    StudentHead,
    TeacherAdapter,
    build_alignments,
    from_published_adapters,
    to_published_adapters,
)
from llava.model.multimodal_encoder.move_kd.config import DistillConfig
from llava.model.multimodal_encoder.move_kd.grids import to_grid, unshuffle, unshuffle_factor
from llava.model.multimodal_encoder.move_kd.types import TeacherFeatures

STUDENT = Shape((4, 4), 8)


def test_whole_multiples_are_averaged_per_student_token() -> None:
    tokens = torch.randn(2, 64, 3)
    pooled = to_grid(tokens, (8, 8), (4, 4)).view(2, 4, 4, 3)
    grid = tokens.view(2, 8, 8, 3)
    torch.testing.assert_close(pooled[:, 1, 2], grid[:, 2:4, 4:6].mean((1, 2)))


@pytest.mark.parametrize("side", [3, 5, 6, 11])
def test_any_grid_reaches_any_other_and_keeps_a_constant(side: int) -> None:
    tokens = torch.full((1, side * side, 2), 3.0)
    torch.testing.assert_close(to_grid(tokens, (side, side), (4, 4)), torch.full((1, 16, 2), 3.0))


def test_resizing_keeps_rows_and_columns_apart() -> None:
    rows = torch.arange(6.0).repeat_interleave(6).view(1, 36, 1)
    resized = to_grid(rows, (6, 6), (4, 4)).view(4, 4)
    torch.testing.assert_close(resized, resized[:, :1].expand(4, 4))
    assert (resized[1:, 0] > resized[:-1, 0]).all()


def test_a_stacked_token_holds_its_block_of_the_finer_grid() -> None:
    tokens = torch.randn(1, 64, 3)
    stacked = unshuffle(tokens, (8, 8), 2).view(4, 4, 12)
    grid = tokens.view(8, 8, 3)
    block = torch.cat([grid[4, 6], grid[4, 7], grid[5, 6], grid[5, 7]])
    assert torch.equal(stacked[2, 3], block)


@pytest.mark.parametrize(("side", "factor"), [(4, 1), (6, 1), (8, 2), (11, 2), (12, 3), (64, 4), (2, 1)])
def test_finer_teachers_are_stacked_by_whole_factors(side: int, factor: int) -> None:
    assert unshuffle_factor((side, side), (4, 4)) == factor


def features(side: int, width: int) -> TeacherFeatures:
    return TeacherFeatures(torch.randn(2, side * side, width), (side, side))


@pytest.mark.parametrize("heads", ["student", "linear", "teacher", "interpolate"])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("grid", ["unshuffle", "pool"])
@pytest.mark.parametrize(("side", "width"), [(4, 8), (8, 6), (6, 10), (3, 5)])
def test_every_alignment_meets_on_the_students_grid(
    heads: str, standardize: bool, grid: str, side: int, width: int
) -> None:
    config = DistillConfig(heads=heads, standardize=standardize, grid=grid)
    alignment = build_alignments({"eva": Shape((side, side), width)}, STUDENT, config)["eva"]
    pair = alignment(torch.randn(2, 16, 8), features(side, width))
    assert pair.prediction.shape == pair.target.shape
    assert pair.prediction.shape[:2] == (2, 16)
    assert pair.target.requires_grad == (heads == "teacher")


def test_the_published_adapter_maps_channels_then_positions() -> None:
    adapter = TeacherAdapter(Shape((6, 6), 5), STUDENT, DistillConfig(heads="teacher", standardize=False))
    said = features(6, 5)
    pair = adapter(torch.randn(2, 16, 8), said)
    by_hand = F.gelu(said.patches @ adapter.channels.weight.t() + adapter.channels.bias)
    by_hand = torch.einsum("mkd,nk->mnd", by_hand, adapter.tokens.weight) + adapter.tokens.bias[:, None]
    torch.testing.assert_close(pair.target, by_hand)


def test_a_linear_head_sees_the_student_through_one_layer() -> None:
    torch.manual_seed(0)
    config = DistillConfig(heads="linear", standardize=False)
    head = build_alignments({"eva": Shape((8, 8), 6)}, STUDENT, config)["eva"]
    patches = torch.randn(2, 16, 8)
    by_hand = F.layer_norm(patches, (8,)) @ head.output.weight.t() + head.output.bias
    torch.testing.assert_close(head(patches, features(8, 6)).prediction, by_hand)


def test_the_anchor_is_compared_as_it_is_and_only_where_it_fits() -> None:
    config = DistillConfig()
    same = build_alignments({"clip": STUDENT, "eva": STUDENT}, STUDENT, config)
    assert isinstance(same["clip"], SameSpace)
    assert isinstance(same["eva"], StudentHead)
    assert not list(same["clip"].parameters())
    other = build_alignments({"clip": Shape((6, 6), 8)}, STUDENT, config)
    assert isinstance(other["clip"], StudentHead)
    patches = torch.randn(2, 16, 8)
    pair = same["clip"](patches, TeacherFeatures(patches.clone(), (4, 4)))
    assert torch.equal(pair.prediction, pair.target)


def test_a_student_that_repeats_a_teacher_of_its_width_has_no_interpolation_error() -> None:
    patches = torch.randn(2, 16, 8)
    config = DistillConfig(heads="interpolate", standardize=False)
    pair = Interpolated(STUDENT, STUDENT, config)(patches, TeacherFeatures(patches, (4, 4)))
    assert torch.equal(pair.prediction, pair.target)


def test_half_precision_students_and_teachers_meet_in_float32() -> None:
    for heads in ("student", "teacher", "interpolate"):
        alignment = build_alignments({"eva": Shape((8, 8), 6)}, STUDENT, DistillConfig(heads=heads)).bfloat16()["eva"]
        said = TeacherFeatures(torch.randn(2, 64, 6).bfloat16(), (8, 8))
        pair = alignment(torch.randn(2, 16, 8).bfloat16(), said)
        assert (pair.prediction.dtype, pair.target.dtype) == (torch.float32, torch.float32)


def test_published_adapter_names_come_and_go() -> None:
    config = DistillConfig(heads="teacher")
    alignments = build_alignments({"clip": STUDENT, "eva": Shape((8, 8), 6)}, STUDENT, config)
    state = alignments.state_dict()
    published = to_published_adapters(state)
    assert published["eva_adapter_1.weight"].shape == (8, 6)
    assert published["eva_adapter_2.weight"].shape == (16, 64)
    assert "adapters.eva.statistics.mean" in published
    assert from_published_adapters(published).keys() == state.keys()
    heads = build_alignments({"eva": Shape((8, 8), 6)}, STUDENT, DistillConfig()).state_dict()
    assert from_published_adapters(to_published_adapters(heads)).keys() == heads.keys()
    with pytest.raises(ValueError, match="mm_projector"):
        from_published_adapters({"model.mm_projector.0.weight": torch.zeros(1)})
