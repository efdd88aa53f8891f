"""Colors of features, attention and experts."""

import numpy as np
import pytest
import torch
from PIL import Image

from llava.visualize import (
    colors_to_image,
    css_color,
    expert_color,
    expert_colors,
    expert_load,
    heat_colors,
    overlay,
    pca_colors,
    pixels_to_image,
)


def test_groups_of_features_get_colors_of_their_own() -> None:
    groups = torch.randn(4, 32) * 5
    member = torch.arange(16) // 4
    colors = pca_colors(groups[member] + 0.01 * torch.randn(16, 32), (4, 4)).reshape(16, 3)
    within = max(np.ptp(colors[member == group], axis=0).max() for group in range(4))
    between = min(abs(colors[a * 4] - colors[b * 4]).max() for a in range(4) for b in range(a))
    assert within < 0.1 < between


def test_colors_do_not_depend_on_the_sign_that_the_decomposition_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(16, 8)
    colors = pca_colors(features, (4, 4))
    left, values, right = torch.linalg.svd(features - features.mean(dim=0), full_matrices=False)
    signs = torch.tensor([-1.0, 1, -1, 1, 1, 1, 1, 1])
    for flip in (signs, -signs):
        flipped = left * flip, values, flip[:, None] * right
        monkeypatch.setattr(torch.linalg, "svd", lambda *_, found=flipped, **__: found)
        np.testing.assert_allclose(pca_colors(features, (4, 4)), colors, atol=1e-4)


@pytest.mark.parametrize(
    "features", [torch.zeros(9, 5), torch.ones(9, 1), torch.randn(9, 2), torch.randn(1, 4).expand(9, 4)]
)
def test_features_without_three_components_are_shown_all_the_same(features: torch.Tensor) -> None:
    colors = pca_colors(features, (3, 3))
    assert colors.shape == (3, 3, 3)
    assert np.isfinite(colors).all()
    assert (colors[..., 2] == 0.5).all()


def test_heat_runs_from_dark_to_bright() -> None:
    colors = heat_colors(torch.arange(6.0), (2, 3))
    brightness = colors.sum(axis=-1).flatten()
    assert (np.diff(brightness) > 0).all()
    assert np.isfinite(heat_colors(torch.ones(6), (2, 3))).all()


def test_each_patch_has_the_color_of_its_expert() -> None:
    colors = expert_colors(torch.tensor([0, 1, 2, 1]), (2, 2), 3)
    np.testing.assert_allclose(colors[0, 1], expert_color(1), atol=1e-6)
    np.testing.assert_allclose(colors[1, 0], expert_color(2), atol=1e-6)
    assert len({expert_color(expert) for expert in range(14)}) == 14


def test_the_load_is_each_experts_share_of_the_tokens() -> None:
    assert expert_load(torch.tensor([[0, 0, 2, 0]]), 4) == [0.75, 0, 0.25, 0]


def test_the_encoders_input_becomes_the_picture_again() -> None:
    picture = Image.effect_noise((20, 20), 80).convert("RGB")
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255.0
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    standardized = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    np.testing.assert_array_equal(np.asarray(pixels_to_image(standardized, mean, std)), np.asarray(picture))


def test_an_overlay_has_the_pictures_size_and_the_maps_hues() -> None:
    colors = expert_colors(torch.tensor([0, 1, 2, 1]), (2, 2), 3)
    picture = Image.new("RGB", (40, 40), "white")
    assert overlay(picture, colors).size == (40, 40)
    assert np.asarray(overlay(picture, colors, 1.0))[0, 0].tolist() == [round(c * 255) for c in expert_color(0)]
    assert overlay(picture, colors, 0.0).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(ValueError, match="opacity"):
        overlay(picture, colors, 2)


def test_maps_are_scaled_up_in_squares() -> None:
    image = colors_to_image(np.zeros((2, 3, 3), dtype=np.float32), 30)
    assert image.size == (30, 20)


def test_a_grid_that_does_not_fit_is_refused() -> None:
    for call in (pca_colors, heat_colors):
        with pytest.raises(ValueError, match="5 tokens do not fill a grid of 2 x 3"):
            call(torch.zeros(5) if call is heat_colors else torch.zeros(5, 2), (2, 3))


def test_colors_are_written_for_web_pages() -> None:
    assert css_color((1, 0, 0.5)) == "#ff0080"
