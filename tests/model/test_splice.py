"""The splice as a pure function, on cases small enough to write out."""

import pytest
import torch
from torch import Tensor

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.splice import Spliced, splice

IMAGE, NONE = IMAGE_TOKEN_INDEX, IGNORE_INDEX


def spliced(ids: list[list[int]], lengths: list[int], **options: object) -> Spliced:
    """Token t is embedded as (t, t), image k as rows of (100 + k)."""
    input_ids = torch.tensor(ids)
    text = input_ids[..., None].expand(-1, -1, 2).float()
    images = [torch.full((length, 2), 100.0 + index) for index, length in enumerate(lengths)]
    return splice(text, images, input_ids, labels=input_ids, **options)


def values(result: Spliced) -> list[list[float]]:
    return result.embeds[..., 0].tolist()


def test_images_stand_where_their_placeholders_were() -> None:
    result = spliced([[1, IMAGE, 2, IMAGE, 3]], [2, 1])
    assert values(result) == [[1, 100, 100, 2, 101, 3]]
    assert result.labels.tolist() == [[1, NONE, NONE, 2, NONE, 3]]
    assert result.mask.all()
    assert result.positions.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_the_first_label_is_that_of_the_sample_that_begins_first() -> None:
    ids = torch.tensor([[1, IMAGE, 2, 3], [4, 5, 6, 7]])
    labels = torch.tensor([[NONE, IMAGE, NONE, 3], [NONE, NONE, 6, 7]])
    text, images = torch.zeros(2, 4, 2), [torch.zeros(3, 2), torch.zeros(3, 2)]
    assert splice(text, images, ids, labels).first_label == 2
    assert splice(text, images, ids, labels, padding_side="left").first_label == 4
    assert splice(text, images, ids).first_label == 6


def test_labels_behind_the_limit_are_counted() -> None:
    ids = torch.tensor([[1, IMAGE, 2, 3], [4, 5, 6, 0]])
    labels = torch.tensor([[NONE, NONE, 2, 3], [NONE, 5, 6, 7]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    text, images = torch.zeros(2, 4, 2), [torch.zeros(3, 2), torch.zeros(3, 2)]
    limits = (None, 6, 5, 4, 2)
    assert [splice(text, images, ids, labels, mask, max_length=n).lost_labels for n in limits] == [0, 0, 1, 2, 3]
    assert splice(text, images, ids, None, mask, max_length=2).lost_labels == 0


def test_adjacent_first_and_last_placeholders() -> None:
    assert values(spliced([[IMAGE, IMAGE, 7, IMAGE]], [1, 1, 2])) == [[100, 101, 7, 102, 102]]


def test_shorter_samples_are_padded_on_the_right() -> None:
    result = spliced([[1, IMAGE, 2], [3, 4, 5]], [3, 2])
    assert values(result) == [[1, 100, 100, 100, 2], [3, 4, 5, 0, 0]]
    assert result.labels.tolist()[1] == [3, 4, 5, NONE, NONE]
    assert result.mask.tolist()[1] == [True, True, True, False, False]
    assert result.positions.tolist()[1] == [0, 1, 2, 0, 0]


def test_shorter_samples_are_padded_on_the_left() -> None:
    result = spliced([[1, IMAGE, 2], [3, 4, 5]], [3, 2], padding_side="left")
    assert values(result)[1] == [0, 0, 3, 4, 5]
    assert result.mask.tolist()[1] == [False, False, True, True, True]
    assert result.positions.tolist()[1] == [0, 0, 0, 1, 2]


def test_padding_of_the_input_is_dropped_wherever_it_is() -> None:
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]])
    result = spliced([[9, 1, IMAGE, 2], [3, 4, 5, 9]], [1, 1], attention_mask=mask)
    assert values(result) == [[1, 100, 2], [3, 4, 5]]


def test_a_masked_placeholder_is_no_placeholder() -> None:
    mask = torch.tensor([[1, 1, 0]])
    assert values(spliced([[1, 2, IMAGE]], [4], attention_mask=mask)) == [[1, 2]]


def test_a_sample_without_a_placeholder_consumes_one_image() -> None:
    assert values(spliced([[1, 2], [3, IMAGE]], [5, 1])) == [[1, 2], [3, 101]]


def test_truncation_may_cut_an_image() -> None:
    assert values(spliced([[1, IMAGE, 2]], [4], max_length=3)) == [[1, 100, 100]]


def test_without_labels_everything_is_ignored() -> None:
    ids = torch.tensor([[1, IMAGE]])
    result = splice(torch.zeros(1, 2, 3), [torch.ones(2, 3)], ids)
    assert result.labels.tolist() == [[NONE] * 3]


@pytest.mark.parametrize("shown", [True, False])
def test_every_image_has_a_gradient_which_is_zero_where_it_is_not_shown(shown: bool) -> None:
    image: Tensor = torch.ones(2, 3, requires_grad=True)
    ids = torch.tensor([[1, IMAGE if shown else 5]])
    splice(torch.zeros(1, 2, 3), [image], ids).embeds.sum().backward()
    assert image.grad is not None
    assert bool(image.grad.any()) == shown


def test_images_take_the_dtype_of_the_text() -> None:
    ids = torch.tensor([[1, IMAGE]])
    result = splice(torch.zeros(1, 2, 3, dtype=torch.bfloat16), [torch.ones(2, 3)], ids)
    assert result.embeds.dtype == torch.bfloat16


def test_a_wrong_number_of_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1 <image> placeholders and 1 samples without any, so 2 .* but 1 came"):
        spliced([[1, IMAGE], [2, 3]], [1])
