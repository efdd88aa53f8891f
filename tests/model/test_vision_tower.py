"""Towers against transformers' own encoders, and the surface that LLaVA's clients know."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel, SiglipVisionModel

from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.clip_encoder import (
    CLIPVisionTower,
    CLIPVisionTowerS2,
    merge_squares,
    split_squares,
)
from llava.model.multimodal_encoder.siglip_encoder import SigLipImageProcessor, SigLipVisionTower
from tests.tiny import (
    IMAGE_SIZE,
    NUM_PATCHES,
    VISION_WIDTH,
    tiny_clip_config,
    tiny_clip_folder,
    tiny_images,
    tiny_siglip_folder,
)

MOE = {"moe_encoder": True, "moe_encoder_lora_rank": 4, "moe_encoder_lora_alpha": 1, "moe_encoder_num_experts": 3}


def settings(folder: Path, **overrides: Any) -> SimpleNamespace:
    values = {"mm_vision_tower": str(folder), "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch"}
    return SimpleNamespace(**(values | overrides))


def hidden_states(folder: Path, images: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return CLIPVisionModel.from_pretrained(folder)(images, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("layer", [-3, -2, -1, 0, 2])
def test_features_are_the_hidden_states_of_the_selected_layer(tmp_path: Path, layer: int) -> None:
    folder, images = tiny_clip_folder(tmp_path), tiny_images(2)
    tower = build_vision_tower(settings(folder, mm_vision_select_layer=layer))
    expected = hidden_states(folder, images)[layer]
    vision = tower.encode(images)
    torch.testing.assert_close(vision.patches, expected[:, 1:])
    torch.testing.assert_close(vision.cls, expected[:, 0])
    assert vision.features is vision.patches
    assert vision.cls_attention is None
    assert vision.routing == ()


def test_cls_patch_keeps_the_class_token(tmp_path: Path) -> None:
    tower = build_vision_tower(settings(tiny_clip_folder(tmp_path), mm_vision_select_feature="cls_patch"))
    vision = tower.encode(tiny_images(1))
    assert torch.equal(vision.features, torch.cat([vision.cls[:, None], vision.patches], dim=1))


def test_slicefour_joins_four_layers(tmp_path: Path) -> None:
    folder, images = tiny_clip_folder(tmp_path, num_hidden_layers=8), tiny_images(1)
    tower = build_vision_tower(settings(folder, mm_vision_select_feature="slicefour_patch"))
    states = hidden_states(folder, images)
    expected = torch.cat([states[index][:, 1:] for index in (0, 2, 4, 6, 8)], dim=-1)
    assert tower.hidden_size == expected.shape[-1]
    torch.testing.assert_close(tower(images), expected)


def test_a_tower_that_is_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)vision tower '.*/clip' cannot be read.*--vision_tower.*config\.json"):
        build_vision_tower(settings(tmp_path / "clip"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [({"mm_vision_select_layer": -5}, "0 to 3"), ({"mm_vision_select_feature": "cls"}, "'cls' is not known")],
)
def test_a_layer_or_feature_that_does_not_exist_is_refused(
    tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_vision_tower(settings(tiny_clip_folder(tmp_path), **overrides))


def test_layers_above_the_selected_one_are_kept_but_do_not_run(tmp_path: Path) -> None:
    tower = build_vision_tower(settings(tiny_clip_folder(tmp_path)))
    layers = tower.vision_tower.vision_model.encoder.layers
    ran: list[int] = []
    for index, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    tower(tiny_images(1))
    assert len(layers) == 3
    assert ran == [0, 1]


def test_class_attention_is_that_of_the_block_that_made_the_features(tmp_path: Path) -> None:
    folder, images = tiny_clip_folder(tmp_path), tiny_images(2)
    tower = build_vision_tower(settings(folder))
    eager = CLIPVisionModel.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        expected = eager(images, output_attentions=True).attentions[-2].mean(dim=1)[:, 0, 1:]
    torch.testing.assert_close(tower.encode(images, with_cls_attention=True).cls_attention, expected)


def test_a_loaded_tower_is_frozen_and_records_nothing(tmp_path: Path) -> None:
    tower = build_vision_tower(settings(tiny_clip_folder(tmp_path)))
    assert not tower.is_trainable
    assert tower(tiny_images(1)).grad_fn is None
    tower.requires_grad_(True)
    assert tower(tiny_images(1)).grad_fn is not None
    with torch.no_grad():
        assert tower(tiny_images(1)).grad_fn is None


def test_published_parameter_names(tmp_path: Path) -> None:
    folder = tiny_clip_folder(tmp_path)
    tower = build_vision_tower(settings(folder))
    assert set(tower.state_dict()) == {f"vision_tower.{name}" for name in load_file(folder / "model.safetensors")}
    assert not list(tower.buffers())


@pytest.mark.parametrize("layout", ["flattened", "whole clip", "torch file"])
def test_every_layout_of_clip_loads(tmp_path: Path, layout: str) -> None:
    folder = tiny_clip_folder(tmp_path)
    expected = build_vision_tower(settings(folder)).state_dict()
    file = folder / "model.safetensors"
    state = load_file(file)
    if layout == "flattened":
        save_file({name.removeprefix("vision_model."): tensor for name, tensor in state.items()}, file)
    elif layout == "torch file":
        torch.save({**state, "vision_model.embeddings.position_ids": torch.arange(17)}, folder / "pytorch_model.bin")
        file.unlink()
    else:
        text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = CLIPConfig(vision_config=tiny_clip_config().to_dict(), text_config=text, projection_dim=16)
        config.save_pretrained(folder)
        both = {name: tensor for name, tensor in CLIPModel(config).state_dict().items() if "vision" not in name}
        save_file({**both, **state}, file)
    loaded = build_vision_tower(settings(folder)).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    folder = tiny_clip_folder(tmp_path)
    state = load_file(folder / "model.safetensors")
    del state["vision_model.encoder.layers.1.mlp.fc2.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks 1 of the .*'encoder\.layers\.1\.mlp\.fc2\.weight"):
        build_vision_tower(settings(folder))


def test_delay_load_builds_the_modules_and_leaves_the_weights_for_later(tmp_path: Path) -> None:
    folder = tiny_clip_folder(tmp_path)
    tower = build_vision_tower(settings(folder), delay_load=True)
    assert not tower.is_loaded
    assert tower.hidden_size == VISION_WIDTH
    tower.load_model(device_map="cpu")
    assert tower.is_loaded
    images = tiny_images(1)
    torch.testing.assert_close(tower(images), hidden_states(folder, images)[-2][:, 1:])


def test_loading_twice_keeps_weights_that_were_trained(tmp_path: Path) -> None:
    tower = build_vision_tower(settings(tiny_clip_folder(tmp_path)))
    weight = tower.vision_tower.vision_model.embeddings.class_embedding
    weight.data.fill_(1.0)
    tower.load_model()
    assert bool((weight == 1.0).all())


def test_surface_that_clients_know(tmp_path: Path) -> None:
    folder = tiny_clip_folder(tmp_path)
    tower = CLIPVisionTower(str(folder), args=settings(folder))
    assert tower.vision_tower_name == str(folder)
    assert (tower.select_layer, tower.select_feature) == (-2, "patch")
    assert (tower.num_patches, tower.num_patches_per_side, tower.image_size) == (NUM_PATCHES, 4, IMAGE_SIZE)
    assert (tower.dtype, tower.device.type) == (torch.float32, "cpu")
    assert tower.dummy_feature.shape == (1, VISION_WIDTH)
    assert tower.config.hidden_size == VISION_WIDTH
    pixels = tower.image_processor.preprocess(Image.new("RGB", (50, 40)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_a_list_of_images_gives_a_list_in_the_dtype_of_each(tmp_path: Path) -> None:
    tower = build_vision_tower(settings(tiny_clip_folder(tmp_path)))
    images = tiny_images(2)
    features = tower([images[0], images[1].double()])
    assert [feature.shape for feature in features] == [(1, NUM_PATCHES, VISION_WIDTH)] * 2
    assert [feature.dtype for feature in features] == [torch.float32, torch.float64]
    torch.testing.assert_close(torch.cat([features[0], features[1].float()]), tower(images))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_come_back_in_the_dtype_of_the_images(tmp_path: Path, dtype: torch.dtype) -> None:
    tower = build_vision_tower(settings(tiny_clip_folder(tmp_path))).to(dtype)
    assert tower(tiny_images(1)).dtype == torch.float32
    assert tower.encode(tiny_images(1)).features.dtype == dtype


def test_images_of_the_wrong_size_are_refused(tmp_path: Path) -> None:
    tower = build_vision_tower(settings(tiny_clip_folder(tmp_path)))
    with pytest.raises(ValueError, match="28 x 28 px, these are 32 x 32"):
        tower(tiny_images(1, side=32))


def test_experts_stand_around_the_loaded_mlps_and_leave_features_alone_at_first(tmp_path: Path) -> None:
    folder, images = tiny_clip_folder(tmp_path), tiny_images(2)
    moe = {**MOE, "moe_init_b": "zero", "moe_layers": "used"}
    tower = build_vision_tower(settings(folder, moe=moe)).eval()
    vision = tower.encode(images)
    torch.testing.assert_close(vision.features, hidden_states(folder, images)[-2][:, 1:])
    assert len(vision.routing) == 2
    assert tower.is_trainable  # experts are not frozen by loading
    assert set(tower.plain_parameters()) | set(tower.expert_parameters()) == set(dict(tower.named_parameters()))


def test_a_training_tower_shows_what_single_experts_see_where_asked(tmp_path: Path) -> None:
    folder, images = tiny_clip_folder(tmp_path), tiny_images(2, side=56)
    tower = build_vision_tower(settings(folder, moe=MOE | {"moe_dropout": 0.0}, s2=True, s2_scales="28,56")).train()
    assert isinstance(tower, CLIPVisionTowerS2)
    plain = tower.encode(images)
    assert plain.solos is None
    tower.show_solos(2)
    vision = tower.encode(images)
    torch.testing.assert_close(vision.features, plain.features)
    assert vision.solos is not None
    for expert, seen in enumerate(vision.solos):
        for layer in tower.vision_tower.vision_model.encoder.layers:
            layer.mlp.solos = 0
            layer.mlp.router.weight.data.zero_()
            layer.mlp.router.bias.data = 50 * (torch.arange(layer.mlp.config.experts) == expert).float()
        tower.eval()
        torch.testing.assert_close(seen, tower.encode(images).patches, rtol=1e-4, atol=1e-5)
    assert tower.encode(images).solos is None
    with pytest.raises(ValueError, match=r"4 teachers need as many experts of their own; the vision tower has 3"):
        tower.show_solos(4)
    with pytest.raises(ValueError, match=r"has no"):
        build_vision_tower(settings(folder)).show_solos(1)


def test_experts_in_all_layers_are_all_heard(tmp_path: Path) -> None:
    tower = build_vision_tower(settings(tiny_clip_folder(tmp_path), moe=MOE))
    assert len(tower.encode(tiny_images(1)).routing) == 3


def test_siglip_gives_the_state_before_its_last_layer(tmp_path: Path) -> None:
    folder, images = tiny_siglip_folder(tmp_path), tiny_images(2)
    tower = build_vision_tower(settings(folder))
    assert isinstance(tower, SigLipVisionTower)
    with torch.no_grad():
        states = SiglipVisionModel.from_pretrained(folder)(images, output_hidden_states=True).hidden_states
    torch.testing.assert_close(tower(images), states[-2])
    assert len(tower.vision_tower.vision_model.encoder.layers) == 2
    assert tower.encode(images).cls is None


def test_siglip_has_no_class_attention_and_no_experts(tmp_path: Path) -> None:
    folder = tiny_siglip_folder(tmp_path)
    with pytest.raises(ValueError, match="no class token"):
        build_vision_tower(settings(folder)).encode(tiny_images(1), with_cls_attention=True)
    with pytest.raises(ValueError, match="need a CLIP"):
        build_vision_tower(settings(folder, moe=MOE))


def test_siglip_processor_squashes_and_centers_values() -> None:
    processor = SigLipImageProcessor(8)
    white = Image.new("L", (20, 10), 255)
    assert torch.equal(processor.preprocess(white)["pixel_values"], torch.ones(1, 3, 8, 8))
    video = np.zeros((5, 10, 20, 3), dtype=np.uint8)
    frames = processor.preprocess(video, return_tensors="pt")["pixel_values"]
    assert torch.equal(frames, -torch.ones(5, 3, 8, 8))
    assert processor([white, white])["pixel_values"].shape == (2, 3, 8, 8)
    assert (processor.size, processor.crop_size) == ((8, 8), {"height": 8, "width": 8})


def test_s2_joins_the_features_of_a_picture_and_of_its_enlargements(tmp_path: Path) -> None:
    folder = tiny_clip_folder(tmp_path)
    tower = build_vision_tower(settings(folder, s2=True, s2_scales="28,56"))
    assert isinstance(tower, CLIPVisionTowerS2)
    assert tower.hidden_size == 2 * VISION_WIDTH
    image = tiny_images(1, side=56)
    features = tower(image)
    assert features.shape == (1, NUM_PATCHES, 2 * VISION_WIDTH)
    plain = build_vision_tower(settings(folder))
    small = torch.nn.functional.interpolate(image, (28, 28), mode="bicubic")
    torch.testing.assert_close(features[..., :VISION_WIDTH], plain(small))
    # The first token of the second half is the mean over the upper left quarter of the upper left square.
    corner = plain(image[:, :, :28, :28])[0].unflatten(0, (4, 4))[:2, :2].mean(dim=(0, 1))
    torch.testing.assert_close(features[0, 0, VISION_WIDTH:], corner)


def test_s2_processor_gives_the_largest_scale(tmp_path: Path) -> None:
    tower = build_vision_tower(settings(tiny_clip_folder(tmp_path), s2=True, s2_scales="56,28"))
    pixels = tower.image_processor.preprocess(Image.new("RGB", (90, 60)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 56, 56)


def test_s2_must_start_from_the_encoder_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must begin with 28, not 336"):
        build_vision_tower(settings(tiny_clip_folder(tmp_path), s2=True))


def test_squares_are_put_together_as_they_were() -> None:
    images = torch.arange(2 * 3 * 36.0).view(2, 3, 6, 6)
    squares = split_squares(images, 3)
    assert torch.equal(squares[2:4], images[:, :, :2, 2:4])
    assert torch.equal(merge_squares(squares, 3), images)


def test_a_name_that_is_no_tower_is_refused() -> None:
    with pytest.raises(ValueError, match="neither a folder here"):
        build_vision_tower(SimpleNamespace(mm_vision_tower="imagebind_huge"))
    with pytest.raises(ValueError, match="names no vision tower"):
        build_vision_tower(SimpleNamespace(mm_vision_tower=None))
