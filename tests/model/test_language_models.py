"""What a causal language model that sees must do, whatever the language model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import llava.model
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from tests.tiny import (
    GREEDY,
    HIDDEN_SIZE,
    LANGUAGE_MODELS,
    LANGUAGE_SETTINGS,
    NUM_PATCHES,
    PINPOINTS,
    VISION_WIDTH,
    right_padded,
    tiny_clip_folder,
    tiny_images,
    tiny_llava,
)

IMAGE = IMAGE_TOKEN_INDEX
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
OTHERS: dict[str, dict[str, Any]] = {
    "Gemma": {"head_dim": 16},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "QwenMoe": {"num_experts": 4, **EXPERTS},
    "Mpt": {"d_model": HIDDEN_SIZE, "n_heads": 4, "n_layers": 2, "max_seq_len": 512},
}


def other_llava(name: str, directory: Path, **settings: Any) -> Any:
    config_class = getattr(llava.model, f"Llava{name}Config")
    language = {"vocab_size": LANGUAGE_SETTINGS["vocab_size"]} if name == "Mpt" else LANGUAGE_SETTINGS
    vision = {
        "mm_vision_tower": str(tiny_clip_folder(directory)),
        "mm_hidden_size": VISION_WIDTH,
        "mm_projector_type": "mlp2x_gelu",
    }
    model = getattr(llava.model, f"Llava{name}ForCausalLM")(
        config_class(**(language | OTHERS[name] | vision | settings))
    )
    model.get_vision_tower().load_model()
    return model.eval()


@pytest.fixture(params=[*LANGUAGE_MODELS, *OTHERS])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param in OTHERS:
        return other_llava(request.param, tmp_path)
    return tiny_llava(tmp_path, request.param)


@pytest.fixture
def llama(tmp_path: Path) -> Any:
    return tiny_llava(tmp_path)


def test_a_batch_answers_as_its_rows_do_alone(model: Any) -> None:
    ids, mask = right_padded([1, 5, IMAGE, 7, 9, 10, 11], [1, IMAGE, 8], [1, 33, 34, 35])
    images = tiny_images(3)
    together = model.generate(ids, attention_mask=mask, images=images, **GREEDY)
    for row in range(3):
        alone = model.generate(ids[row : row + 1, mask[row]], images=images[row : row + 1], **GREEDY)
        assert together[row].tolist() == alone[0].tolist()


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_loss_alone_needs_no_logits_before_the_first_label(model: Any, side: str) -> None:
    model.config.tokenizer_padding_side = side
    ids, mask = right_padded([1, 5, IMAGE, 7, 9, 10, 11], [1, IMAGE, 8, 9])
    labels = ids.masked_fill(~mask, IGNORE_INDEX)
    labels[0, :5], labels[1, :2] = IGNORE_INDEX, IGNORE_INDEX
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels, "images": tiny_images(2)}
    whole = model(**inputs)
    model.leave_out_idle_logits()
    part = model(**inputs)
    length = len(ids[0]) - 1 + NUM_PATCHES
    first = 1 + NUM_PATCHES + (3 if side == "left" else 0)
    assert whole.logits.shape[1] == length
    assert part.logits.shape[1] == length - first + 1
    torch.testing.assert_close(part.loss, whole.loss)
    gradients = [torch.autograd.grad(each.loss, model.get_input_embeddings().weight)[0] for each in (whole, part)]
    torch.testing.assert_close(*gradients)


def test_without_any_label_the_loss_alone_is_zero(llama: Any) -> None:
    llama.leave_out_idle_logits()
    ids = torch.tensor([[1, IMAGE, 7]])
    output = llama(input_ids=ids, labels=torch.full_like(ids, IGNORE_INDEX), images=tiny_images(1))
    assert output.loss.item() == 0
    output.loss.backward()


def test_answers_that_pictures_push_out_are_told_once(llama: Any, caplog: pytest.LogCaptureFixture) -> None:
    llama.config.tokenizer_model_max_length = NUM_PATCHES + 2
    ids = torch.tensor([[1, IMAGE, 7, 8]])
    for _ in range(2):
        llama(input_ids=ids, labels=ids, images=tiny_images(1))
    assert caplog.text.count(f"more than the {NUM_PATCHES + 2} tokens") == 1
    assert "--model_max_length raises it" in caplog.text


def test_a_saved_model_loads_as_it_was(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    loaded, report = type(model).from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    again = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again[name], tensor), name


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("Mixtral", "model.layers.0.block_sparse_moe.experts.3.w1.weight"),
        ("QwenMoe", "model.layers.0.mlp.experts.3.gate_proj.weight"),
    ],
)
def test_language_models_of_experts_are_saved_under_published_names(tmp_path: Path, name: str, tensor: str) -> None:
    other_llava(name, tmp_path).save_pretrained(tmp_path / "saved")
    assert tensor in load_file(tmp_path / "saved" / "model.safetensors")


def test_an_offloaded_tower_sees_the_same(tmp_path: Path) -> None:
    model = tiny_llava(tmp_path)
    model.save_pretrained(tmp_path / "saved")
    places = {"model.vision_tower": "disk", "model.mm_projector": "disk", "lm_head": "cpu"}
    places |= {f"model.{name}": "cpu" for name in ("embed_tokens", "layers", "norm", "rotary_emb")}
    offloaded = type(model).from_pretrained(
        tmp_path / "saved", device_map=places, offload_folder=str(tmp_path / "disk")
    )
    assert offloaded.get_vision_tower().device.type == "meta"
    ids, images = torch.tensor([[1, IMAGE, 7]]), tiny_images(1)
    torch.testing.assert_close(
        offloaded(input_ids=ids, images=images).logits, model(input_ids=ids, images=images).logits
    )


def test_auto_classes_know_the_model(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    assert type(AutoConfig.from_pretrained(tmp_path / "saved")) is type(model.config)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")) is type(model)


def test_images_reach_the_loss_and_its_gradients(model: Any) -> None:
    ids, mask = right_padded([1, 5, IMAGE, 7, 9])
    first = model(input_ids=ids, attention_mask=mask, labels=ids, images=tiny_images(1))
    second = model(input_ids=ids, attention_mask=mask, labels=ids, images=tiny_images(1))
    assert first["loss"] != second["loss"]
    assert first["logits"].shape == (1, 4 + NUM_PATCHES, LANGUAGE_SETTINGS["vocab_size"])
    first.loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.get_model().mm_projector.parameters())


def test_parts_hold_every_parameter_once(model: Any) -> None:
    parts = model.parts()
    names = [name for part in parts.values() for name in part]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert all(name.split(".", 1)[1].startswith("mm_projector.") for name in parts["projector"])
    assert all(".vision_tower.vision_model." in name for name in parts["vision_tower"])
    assert parts["mole"] == {}


def test_parts_of_a_move_kd_model(tmp_path: Path) -> None:
    moe = {"moe_encoder": True, "moe_encoder_lora_rank": 4, "moe_encoder_lora_alpha": 1, "moe_encoder_num_experts": 3}
    parts = tiny_llava(tmp_path, moe=moe, mm_patch_merge_type="spatial_unpad").parts()
    assert "model.image_newline" in parts["projector"]
    assert all(any(key in name for key in ("moe_down", "moe_up", "router")) for name in parts["mole"])
    assert any("original_module.fc1" in name for name in parts["vision_tower"])
    assert not any("moe_" in name or "router" in name for name in parts["vision_tower"])


def test_a_text_only_sample_gives_the_projector_a_zero_gradient(llama: Any) -> None:
    ids, mask = right_padded([1, 5, 6, 7])
    llama(input_ids=ids, attention_mask=mask, labels=ids, images=tiny_images(1)).loss.backward()
    for parameter in llama.get_model().mm_projector.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_a_stand_in_changes_nothing_for_the_other_samples(llama: Any) -> None:
    images = tiny_images(2)
    ids, mask = right_padded([1, 5, 6, 7], [1, IMAGE, 9])
    both = llama(input_ids=ids, attention_mask=mask, images=images).logits
    alone = llama(input_ids=ids[1:, :3], images=images[1:]).logits
    torch.testing.assert_close(both[1:, : alone.shape[1]], alone)


def test_a_call_without_a_label_costs_nothing(llama: Any) -> None:
    ids, mask = right_padded([1, 5, IMAGE, 7])
    output = llama(input_ids=ids, attention_mask=mask, labels=torch.full_like(ids, IGNORE_INDEX), images=tiny_images(1))
    assert output.loss == 0
    output.loss.backward()


def test_the_loss_is_the_mean_over_labels(llama: Any) -> None:
    ids, mask = right_padded([1, 5, 6, 7, 8], [1, 9, 10])
    labels = ids.masked_fill(~mask, IGNORE_INDEX)
    output = llama(input_ids=ids, attention_mask=mask, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("images", [tiny_images(1), tiny_images(3)], ids=["too few", "too many"])
def test_a_number_of_images_that_does_not_match_is_refused(llama: Any, images: Tensor) -> None:
    ids, mask = right_padded([1, 5, IMAGE, 7], [1, IMAGE, 8])
    with pytest.raises(ValueError, match=r"2 <image> placeholders .* 2 images are needed"):
        llama(input_ids=ids, attention_mask=mask, images=images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_may_come_in_float16_whatever_the_model_has(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny_llava(tmp_path).to(dtype)
    ids, images = torch.tensor([[1, IMAGE, 7]]), tiny_images(1).half()
    assert model(input_ids=ids, images=images).logits.dtype == dtype
    assert model.generate(ids, images=images, **GREEDY).shape == (1, 5)
    assert model.encode_images(images).dtype == dtype


@pytest.mark.parametrize("modalities", ["video", ["video"]])
def test_a_video_is_pooled_whether_its_modality_is_a_word_or_a_list(llama: Any, modalities: str | list[str]) -> None:
    ids = torch.tensor([[1, IMAGE, 7]])
    logits = llama(input_ids=ids, images=[tiny_images(3)], modalities=modalities).logits
    assert logits.shape[1] == 2 + 3 * NUM_PATCHES // 4


def test_forward_gives_what_the_tower_saw(llama: Any) -> None:
    ids, images = torch.tensor([[1, IMAGE, 7]]), tiny_images(1)
    vision = llama(input_ids=ids, images=images).vision
    assert torch.equal(vision.patches, llama.get_vision_tower().encode(images).patches)
    assert llama(input_ids=torch.tensor([[1, 6, 7]])).vision is None


def test_dpo_forward_gives_logits_and_the_spliced_labels(llama: Any) -> None:
    ids = torch.tensor([[1, IMAGE, 7]])
    logits, labels = llama(input_ids=ids, labels=ids, images=tiny_images(1), dpo_forward=True)
    assert labels.tolist() == [[1, *[IGNORE_INDEX] * NUM_PATCHES, 7]]
    assert logits.shape[:2] == labels.shape


def test_forward_returns_a_tuple_on_request(llama: Any) -> None:
    output = llama(input_ids=torch.tensor([[1, 6, 7]]), return_dict=False)
    assert isinstance(output, tuple)


def test_prepare_inputs_takes_sizes_or_modalities_in_the_seventh_place(tmp_path: Path) -> None:
    anyres = {"mm_patch_merge_type": "spatial_unpad", "image_aspect_ratio": "anyres", "image_grid_pinpoints": PINPOINTS}
    model = tiny_llava(tmp_path, **anyres)
    ids, images = torch.tensor([[1, IMAGE, 7]]), [tiny_images(5)]
    prepare = model.prepare_inputs_labels_for_multimodal
    as_in_15 = prepare(ids, None, None, None, None, images, [(50, 40)])
    as_in_next = prepare(ids, None, None, None, None, images, ["image"], [(50, 40)])
    assert torch.equal(as_in_15[4], as_in_next[4])
    assert as_in_15[0] is as_in_15[1] is as_in_15[2] is as_in_15[5] is None


def test_prepare_inputs_leaves_a_call_without_images_alone(llama: Any) -> None:
    ids = torch.tensor([[1, 6, 7]])
    result = llama.prepare_inputs_labels_for_multimodal(ids, None, None, None, ids, None)
    assert result == (ids, None, None, None, None, ids)


def test_checkpointed_layers_give_the_same_gradients(tmp_path: Path) -> None:
    model = tiny_llava(tmp_path).train().requires_grad_(True)
    ids, images = torch.tensor([[1, 5, IMAGE, 7]]), tiny_images(1)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(input_ids=ids, labels=ids, images=images).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert model.get_vision_tower().vision_tower.vision_model.encoder.layers[0].gradient_checkpointing
    checkpointed = gradients()
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient)


def test_forward_refuses_placeholders_without_images(llama: Any) -> None:
    with pytest.raises(ValueError, match="no images were passed"):
        llama(input_ids=torch.tensor([[1, IMAGE, 7]]))
