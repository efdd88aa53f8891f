"""Every teacher, from a checkpoint in its published format, through the path that training takes."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    CLIPImageProcessorPil,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    DetrConfig,
    DetrModel,
    Pix2StructForConditionalGeneration,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    SamVisionConfig,
    SamVisionModel,
    SwinConfig,
    SwinModel,
    ViTMAEConfig,
    ViTMAEModel,
    YolosConfig,
    YolosModel,
)
from transformers.models.pix2struct.image_processing_pil_pix2struct import Pix2StructImageProcessorPil

from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.move_kd.plugins import plugin_names
from llava.model.multimodal_encoder.move_kd.teachers import Teacher, build_teachers
from llava.model.multimodal_encoder.move_kd.teachers._stem import ByteStem
from llava.model.multimodal_encoder.move_kd.teachers.base import FrozenTeacher
from llava.model.multimodal_encoder.move_kd.teachers.eva02 import EvaBackbone, EvaConfig
from llava.model.multimodal_encoder.move_kd.teachers.pix2struct import flatten_patches, standardize
from llava.model.multimodal_encoder.move_kd.teachers.sam import upstream_layout
from llava.model.multimodal_encoder.move_kd.types import ImageSpec, View
from tests.pixels import standardized
from tests.tiny_teachers import CASES, SMALL, make_case, randomize


def pixels_for(teacher: Teacher, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randint(0, 256, (count, 30, 40, 3), generator=generator, dtype=torch.uint8)
    views = [View(Image.fromarray(picture.numpy()), "pad") for picture in noise]
    return torch.stack([teacher.source.prepare(view) for view in views])


def only(spec: str, **settings: object) -> Teacher:
    (teacher,) = build_teachers([spec], **settings).values()  # type: ignore[arg-type]
    return teacher


@pytest.mark.parametrize("name", CASES)
def test_teacher_gives_features_of_its_stated_grid_and_width(name: str, tmp_path: Path) -> None:
    teacher = only(make_case(name, tmp_path))
    _, _, side, width, has_cls = CASES[name]
    features = teacher(pixels_for(teacher))
    assert teacher.grid == features.grid == (side, side)
    assert teacher.width == width
    assert features.patches.shape == (2, side * side, width)
    assert features.patches.isfinite().all()
    assert (features.cls is not None) == has_cls


@pytest.mark.parametrize("name", CASES)
def test_teacher_is_frozen_stays_in_eval_mode_and_gives_no_gradient(name: str, tmp_path: Path) -> None:
    teacher = only(make_case(name, tmp_path))
    teacher.train(True)
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    features = teacher(pixels_for(teacher))
    assert not features.patches.requires_grad
    assert not features.patches.is_inference()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_pixels_are_standardized_and_rounded_once(dtype: torch.dtype, tmp_path: Path) -> None:
    teacher = only(make_case("eva", tmp_path), dtype=dtype)
    prepared = pixels_for(teacher)
    assert isinstance(teacher.source, ImageSpec)
    expected, found = standardized(prepared, teacher.source), teacher.normalize(prepared)  # type: ignore[attr-defined]
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("name", ["eva", "convnext", "sam"])
def test_bytes_are_read_as_the_standardized_pixels_are(name: str, tmp_path: Path) -> None:
    spec = make_case(name, tmp_path)
    exact, rounded = only(spec), only(spec, dtype=torch.bfloat16)
    assert isinstance(exact, FrozenTeacher)
    assert isinstance(rounded, FrozenTeacher)
    prepared = pixels_for(exact)
    expected = exact.encode(exact.normalize(prepared)).patches
    torch.testing.assert_close(exact(prepared).patches, expected, rtol=1e-4, atol=1e-5)
    usual = rounded.encode(rounded.normalize(prepared)).patches
    assert (rounded(prepared).patches - expected).norm() < 1.2 * (usual - expected).norm()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("patch", [(2, 4), (3, 3), (5, 6), (16, 16)])
def test_a_stem_cuts_bytes_as_its_convolution_cuts_standardized_pixels(
    patch: tuple[int, int], dtype: torch.dtype, bias: bool
) -> None:
    conv = torch.nn.Conv2d(3, 5, patch, patch, bias=bias).requires_grad_(False)
    pixels = torch.randint(0, 256, (2, 3, 3 * patch[0], 2 * patch[1]), dtype=torch.uint8)
    mean, std = (0.48, 0.45, 0.40), (0.26, 0.25, 0.28)
    level, spread = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    expected = conv((pixels / 255.0 - level) / spread)
    stem = ByteStem(conv.to(dtype), mean, std)
    assert stem.state_dict().keys() == conv.state_dict().keys()
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(stem(pixels).float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_teacher_in_bfloat16_answers_near_its_float32_self(name: str, tmp_path: Path) -> None:
    spec = make_case(name, tmp_path)
    exact, rounded = only(spec), only(spec, dtype=torch.bfloat16)
    prepared = pixels_for(exact)
    one, two = exact(prepared).patches, rounded(prepared).patches
    assert two.dtype == torch.bfloat16
    assert (one - two.float()).norm() < 0.15 * one.norm()


def test_every_teacher_file_has_a_tiny_checkpoint_here() -> None:
    files = set(plugin_names("llava.model.multimodal_encoder.move_kd.teachers"))
    tried = {"eva02" if case.startswith("eva") else case.partition("_")[0] for case in CASES}
    assert files == tried | {"hf"}


def test_clip_gives_the_hidden_state_and_attention_row_of_the_selected_layer(tmp_path: Path) -> None:
    teacher = only(make_case("clip_vision", tmp_path))
    prepared = pixels_for(teacher)
    reference = CLIPVisionModel.from_pretrained(tmp_path / "clip_vision", attn_implementation="eager")
    output = reference(teacher.normalize(prepared), output_hidden_states=True, output_attentions=True)
    features = teacher(prepared)
    torch.testing.assert_close(features.patches, output.hidden_states[-2][:, 1:])
    torch.testing.assert_close(features.cls, output.hidden_states[-2][:, 0])
    torch.testing.assert_close(features.cls_attention, output.attentions[-2][:, :, 0, 1:].mean(1))


def test_clip_keeps_only_the_blocks_it_runs(tmp_path: Path) -> None:
    teacher = only(make_case("clip", tmp_path))
    assert len(teacher.net.encoder.layers) == 2
    assert len(only(make_case("clip", tmp_path) + ",layer=1").net.encoder.layers) == 1
    with pytest.raises(ValueError, match="no such output"):
        only(make_case("clip", tmp_path) + ",layer=9")


@pytest.mark.parametrize("name", ["dinov2", "dinov2_registers", "dinov3", "siglip2"])
def test_vit_teachers_equal_the_library_model(name: str, tmp_path: Path) -> None:
    teacher = only(make_case(name, tmp_path))
    prepared = pixels_for(teacher)
    reference = AutoModel.from_pretrained(tmp_path / name)
    hidden = reference(teacher.normalize(prepared)).last_hidden_state
    features = teacher(prepared)
    torch.testing.assert_close(features.patches, hidden[:, -features.patches.shape[1] :])


def test_naflex_siglip_equals_the_library_model_with_a_full_mask(tmp_path: Path) -> None:
    teacher = only(make_case("siglip2_naflex", tmp_path))
    prepared = pixels_for(teacher)
    reference = AutoModel.from_pretrained(tmp_path / "siglip2_naflex")
    pixels = teacher.normalize(prepared)
    patches = pixels.unfold(2, 7, 7).unfold(3, 7, 7).permute(0, 2, 3, 4, 5, 1).reshape(2, 16, -1)
    output = reference(patches, pixel_attention_mask=torch.ones(2, 16), spatial_shapes=torch.tensor([[4, 4]] * 2))
    torch.testing.assert_close(teacher(prepared).patches, output.last_hidden_state)


def test_radio_equals_the_library_model_on_unit_range_pixels(tmp_path: Path) -> None:
    teacher = only(make_case("radio", tmp_path))
    prepared = pixels_for(teacher)
    output = AutoModel.from_pretrained(tmp_path / "radio")(prepared / 255.0)
    torch.testing.assert_close(teacher(prepared).patches, output.features)


def test_pix2struct_patches_equal_the_published_processor(tmp_path: Path) -> None:
    picture = torch.randint(0, 256, (40, 40, 3), dtype=torch.uint8)
    processor = Pix2StructImageProcessorPil(patch_size={"height": 4, "width": 4}, max_patches=41)
    expected = processor(Image.fromarray(picture.numpy()), return_tensors="pt")["flattened_patches"]
    ours = flatten_patches(standardize(picture.permute(2, 0, 1)[None]), 6, 4)
    torch.testing.assert_close(ours, expected[:, :36], rtol=1e-4, atol=1e-4)


def test_pix2struct_features_equal_the_library_model_resized_with_aligned_corners(tmp_path: Path) -> None:
    teacher = only(make_case("pix2struct", tmp_path))
    prepared = pixels_for(teacher)
    reference = Pix2StructForConditionalGeneration.from_pretrained(tmp_path / "pix2struct").encoder
    patches = flatten_patches(teacher.normalize(prepared), 6, 4)
    padded = torch.nn.functional.pad(patches, (0, 0, 0, 5))
    mask = torch.cat((torch.ones(2, 36), torch.zeros(2, 5)), dim=1)
    hidden = reference(padded, attention_mask=mask).last_hidden_state[:, :36]
    square = hidden.transpose(1, 2).reshape(2, 32, 6, 6)
    expected = torch.nn.functional.interpolate(square, (4, 4), mode="bilinear", align_corners=True)
    torch.testing.assert_close(teacher(prepared).patches, expected.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)


def test_sam_token_holds_every_channel_of_one_position(tmp_path: Path) -> None:
    spec = make_case("sam", tmp_path)
    teacher, released = only(spec), only(spec + ",layout=upstream")
    prepared = pixels_for(teacher)
    neck = teacher.net(teacher.normalize(prepared)).last_hidden_state
    torch.testing.assert_close(teacher(prepared).patches[:, 6], neck[:, :, 1, 2])
    scrambled = released(prepared).patches
    assert not torch.allclose(scrambled, teacher(prepared).patches)
    torch.testing.assert_close(scrambled.flatten(1).sort().values, neck.flatten(1).sort().values)


@pytest.mark.parametrize("name", ["clip", "sam", "dinov2", "dinov3", "siglip2", "siglip2_naflex", "radio", "eva"])
def test_another_size_changes_the_grid_and_still_runs(name: str, tmp_path: Path) -> None:
    spec = make_case(name, tmp_path)
    patch = 16 if name in ("sam", "eva") else 7
    spec = spec.replace("size=64", "size=96").replace("size=28", "size=42")
    spec = spec if "size=" in spec else spec + ",size=42"
    teacher = only(spec)
    assert teacher.grid == (6, 6)
    assert teacher.source.size == 6 * patch
    assert teacher(pixels_for(teacher)).patches.isfinite().all()


def test_a_size_that_no_patch_fits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size 30 is no multiple of its patch or stride 7"):
        only(make_case("dinov2", tmp_path).replace("size=28", "size=30"))


@pytest.mark.parametrize("name", ["dinov2_registers", "dinov3", "siglip2", "clip_vision", "convnext_folder"])
def test_generic_teacher_takes_any_library_backbone(name: str, tmp_path: Path) -> None:
    if name == "convnext_folder":
        path = tmp_path / name
        config = ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], image_size=64)
        ConvNextModel(config).save_pretrained(path)
    else:
        make_case(name, tmp_path)
        path = tmp_path / name
    teacher = only(f"hf:{path},mean=imagenet,name=any")
    features = teacher(pixels_for(teacher))
    assert teacher.name == "any"
    assert features.patches.shape == (2, teacher.grid[0] * teacher.grid[1], teacher.width)


def test_generic_teacher_reads_statistics_from_the_checkpoint_or_asks_for_them(tmp_path: Path) -> None:
    make_case("dinov2", tmp_path)
    with pytest.raises(ValueError, match="add mean="):
        only(f"hf:{tmp_path / 'dinov2'}")
    (tmp_path / "dinov2" / "preprocessor_config.json").write_text(
        '{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}'
    )
    teacher = only(f"hf:{tmp_path / 'dinov2'}")
    assert (teacher.mean, teacher.std) == ((0.1, 0.2, 0.3), (1, 2, 3))


def test_chunks_give_the_same_features_as_one_batch(tmp_path: Path) -> None:
    spec = make_case("clip", tmp_path)
    whole, parts = only(spec), only(spec + ",chunk=2")
    prepared = pixels_for(whole, count=5)
    for one, two in zip(whole(prepared), parts(prepared), strict=True):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(two))


def backbone(folder: Path, model: PreTrainedModel) -> str:
    """Its spec, with a size and statistics."""
    randomize(model).save_pretrained(folder)
    return f"hf:{folder},size=32,mean=half"


SMALL_VIT = {**SMALL, "intermediate_size": 64, "image_size": 32, "patch_size": 8}


def test_backbones_whose_answer_is_no_grid_of_patches_are_refused(tmp_path: Path) -> None:
    """MAE drops and shuffles patches, DETR answers with 16 queries, YOLOS with 1 + 16 + 83 tokens, a square number."""
    torch.manual_seed(0)
    stages = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"])
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 16, "num_queries": 16}
    detr = DetrConfig(backbone=None, backbone_config=stages, use_timm_backbone=False, **heads, **layers)
    yolos = YolosConfig(**{**SMALL_VIT, "image_size": [32, 32]}, num_detection_tokens=83)
    cases = {
        "drops or shuffles patches at random": ViTMAEModel(ViTMAEConfig(**SMALL_VIT)),
        "whose queries are no grid": DetrModel(detr),
        "gives 100 tokens at 32 px and patches of 8 px": YolosModel(yolos),
    }
    for index, (message, model) in enumerate(cases.items()):
        with pytest.raises(ValueError, match=message):
            only(backbone(tmp_path / str(index), model))


def test_a_backbone_that_merges_patches_is_taken_as_the_square_it_gives(tmp_path: Path) -> None:
    config = SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    teacher = only(backbone(tmp_path / "swin", SwinModel(config)))
    assert (teacher.grid, teacher.width) == ((4, 4), 16)


def test_a_backbone_that_cannot_run_in_the_runs_precision_is_refused_at_once(tmp_path: Path) -> None:
    """A batch norm's statistics stay float32, which its half-precision input does not fit."""
    spec = backbone(tmp_path, ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])))
    with pytest.raises(ValueError, match=r"as torch.bfloat16.*add dtype=fp32"):
        only(spec, dtype=torch.bfloat16)
    teacher = only(f"{spec},dtype=fp32", dtype=torch.bfloat16)
    assert teacher(pixels_for(teacher)).patches.dtype == torch.float32


def test_autocast_around_the_teacher_changes_nothing(tmp_path: Path) -> None:
    teacher = only(make_case("dinov2", tmp_path))
    prepared = pixels_for(teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = teacher(prepared).patches
    assert torch.equal(inside, teacher(prepared).patches)


def test_digest_tells_weights_apart_and_is_checked_when_given(tmp_path: Path) -> None:
    spec = make_case("dinov2", tmp_path)
    digest = only(spec).digest
    assert only(f"{spec},digest={digest[:12]}").digest == digest
    assert only(make_case("dinov3", tmp_path)).digest != digest
    with pytest.raises(ValueError, match="the spec asks for 00000000"):
        only(f"{spec},digest=00000000")


def test_blank_pictures_have_the_form_of_prepared_ones(tmp_path: Path) -> None:
    teacher = only(make_case("sam", tmp_path))
    assert teacher.source.blank().shape == pixels_for(teacher)[0].shape


NEW_TEACHER = """
import torch
from llava.model.multimodal_encoder.move_kd.teachers.base import Defaults, FrozenTeacher
from llava.model.multimodal_encoder.move_kd.types import TeacherFeatures

class Means(FrozenTeacher):
    defaults = Defaults(paths=("nowhere",), size=8, mean=(0, 0, 0), std=(1, 1, 1), licence="MIT")

    def load(self, context):
        return torch.nn.Linear(3, 5)

    def layout(self):
        return (2, 2), 5

    def encode(self, pixels):
        colors = torch.nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(2).transpose(1, 2)
        return TeacherFeatures(self.net(colors), self.grid)

TEACHER = Means
"""


def test_a_new_teacher_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import llava.model.multimodal_encoder.move_kd.teachers as package

    (tmp_path / "means.py").write_text(NEW_TEACHER)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    teacher = only("means:dtype=bf16,name=colors")
    assert teacher.name == "colors"
    assert teacher(pixels_for(teacher)).patches.shape == (2, 4, 5)
    assert "means" in plugin_names(package.__name__)


def student_tower(path: Path, **extra: object) -> torch.nn.Module:
    return build_vision_tower(SimpleNamespace(mm_vision_tower=str(path), **extra))


def with_processor(path: Path) -> Path:
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(path)
    return path


def test_clip_is_by_default_a_copy_of_the_students_own_tower(tmp_path: Path) -> None:
    make_case("clip_vision", tmp_path)
    tower = student_tower(with_processor(tmp_path / "clip_vision"))
    teacher = only("clip", student_tower=tower)
    prepared = pixels_for(teacher)
    student = tower.encode(teacher.normalize(prepared), with_cls_attention=True)
    features = teacher(prepared)
    torch.testing.assert_close(features.patches, student.patches)
    torch.testing.assert_close(features.cls, student.cls)
    torch.testing.assert_close(features.cls_attention, student.cls_attention)
    assert not teacher.shares_student


@pytest.mark.parametrize("has_experts", [False, True])
def test_clip_shares_the_tensors_of_an_equal_frozen_student(has_experts: bool, tmp_path: Path) -> None:
    make_case("clip_vision", tmp_path)
    moe = {
        "moe_encoder": True,
        "moe_encoder_lora_rank": 2,
        "moe_encoder_lora_alpha": 2,
        "moe_encoder_num_experts": 2,
    }
    tower = student_tower(with_processor(tmp_path / "clip_vision"), **({"moe": moe} if has_experts else {}))
    alone = only("clip", student_tower=tower)
    shared = only("clip", student_tower=tower, shared_dtype=torch.float32)
    assert shared.shares_student
    own = {id(parameter) for parameter in tower.parameters()}
    assert all(id(parameter) in own for parameter in shared.parameters())
    prepared = pixels_for(alone)
    assert torch.equal(shared(prepared).patches, alone(prepared).patches)
    assert shared.digest == alone.digest


def test_clip_does_not_share_with_a_student_of_other_weights_or_dtype(tmp_path: Path) -> None:
    make_case("clip_vision", tmp_path)
    tower = student_tower(with_processor(tmp_path / "clip_vision"))
    assert not only("clip", student_tower=tower, shared_dtype=torch.float32, dtype=torch.bfloat16).shares_student
    assert not only("clip", student_tower=tower, shared_dtype=torch.bfloat16, dtype=torch.bfloat16).shares_student
    with torch.no_grad():
        next(parameter for name, parameter in tower.named_parameters() if "layers.0" in name).add_(1e-3)
    assert not only("clip", student_tower=tower, shared_dtype=torch.float32).shares_student


def test_a_shared_clip_refuses_to_teach_once_the_student_is_trained(tmp_path: Path) -> None:
    make_case("clip_vision", tmp_path)
    tower = student_tower(with_processor(tmp_path / "clip_vision"))
    teacher = only("clip", student_tower=tower, shared_dtype=torch.float32)
    tower.requires_grad_(True)
    with pytest.raises(RuntimeError, match="told it would stay frozen"):
        teacher(pixels_for(teacher))


def test_full_size_networks_give_the_published_tokens() -> None:
    """On the meta device, where only shapes are computed."""
    pixels = torch.empty(2, 3, 1024, 1024, device="meta")
    config = EvaConfig(1024, 24, 16, 16, 2730, 16, frozenset(range(2, 24, 3)), 197)
    with torch.device("meta"):
        eva = EvaBackbone(config, 1024).to("meta")
        convnext = ConvNextModel(ConvNextConfig(hidden_sizes=[384, 768, 1536, 3072], depths=[3, 4, 30, 3]))
        sam = SamVisionModel(SamVisionConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16))
    assert eva(pixels).shape == (2, 64, 64, 1024)
    assert round(sum(parameter.numel() for parameter in eva.parameters()) / 1e6) == 303
    assert convnext.encoder(convnext.embeddings(pixels)).last_hidden_state.shape == (2, 3072, 32, 32)
    assert (
        round(sum(parameter.numel() for parameter in convnext.parameters()) / 1e6) == 843
    )  # 846.5 with the classifier
    assert sam.vision_encoder.neck.conv1.out_channels == 256
    assert upstream_layout(torch.empty(2, 256, 64, 64, device="meta")).shape == (2, 256, 64, 64)
