"""Teacher networks against recorded maps of the published implementations."""

import pytest
import torch
from transformers import SamVisionConfig, SamVisionModel

from llava.model.multimodal_encoder.move_kd.teachers import build_teachers
from llava.model.multimodal_encoder.move_kd.teachers._weights import strict_load
from llava.model.multimodal_encoder.move_kd.teachers.convnext import build_trunk, trunk_tensors
from llava.model.multimodal_encoder.move_kd.teachers.eva02 import EvaBackbone, EvaConfig, backbone_tensors
from llava.model.multimodal_encoder.move_kd.teachers.sam import upstream_layout
from tests.parity.vectors import Case, cases

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def of_kind(field: str) -> list[Case]:
    found = [case for case in cases("J_teachers") if field in case.meta]
    if not found:
        raise FileNotFoundError(f"no teacher case has the field {field!r}")
    return found


def eva_network(case: Case) -> EvaBackbone:
    meta = case.meta
    state, _ = backbone_tensors(case.group("weight"), str(case))
    config = EvaConfig(
        width=meta["embed_dim"],
        depth=meta["depth"],
        heads=meta["num_heads"],
        patch=meta["patch_size"],
        hidden=meta["mlp_hidden"],
        window=meta["window_size"],
        global_blocks=frozenset(range(meta["depth"])) - frozenset(meta["window_block_indexes"]),
        position_tokens=state["pos_embed"].shape[1],
        rope_grid=meta["pt_hw_seq_len"],
    )
    with torch.device("meta"):
        network = EvaBackbone(config, meta["img_size"])
    return strict_load(network, state, where=str(case)).eval()


@pytest.mark.parametrize("case", of_kind("window_block_indexes"), ids=str)
@torch.no_grad()
def test_eva_map_equals_the_published_one(case: Case) -> None:
    network = eva_network(case)
    features = network(case.tensors["input.pixel_values"]).permute(0, 3, 1, 2)
    torch.testing.assert_close(features, case.tensors["expected.map"], **CLOSE)


@pytest.mark.parametrize("case", of_kind("window_block_indexes"), ids=str)
def test_eva_rotary_tables_equal_the_published_buffers(case: Case) -> None:
    network, buffers = eva_network(case), case.group("buffer")
    for ours, theirs in (("window", "rope_win"), ("global", "rope_glb")):
        torch.testing.assert_close(network.get_buffer(f"{ours}_cos"), buffers[f"{theirs}.freqs_cos"], **CLOSE)
        torch.testing.assert_close(network.get_buffer(f"{ours}_sin"), buffers[f"{theirs}.freqs_sin"], **CLOSE)


@pytest.mark.parametrize("case", of_kind("window_block_indexes"), ids=str)
@pytest.mark.parametrize("with_tables", [True, False])
@torch.no_grad()
def test_eva_teacher_finds_its_shape_and_equals_the_published_map(case: Case, with_tables: bool, tmp_path) -> None:
    """The whole public path: a pickled detector, with rotary tables that tell the shape or with the spec telling it."""
    meta, state = case.meta, case.group("weight")
    if with_tables:
        state |= {f"backbone.net.{key}": value for key, value in case.group("buffer").items()}
        if case.group("buffer")["rope_win.freqs_cos"].shape == case.group("buffer")["rope_glb.freqs_cos"].shape:
            pytest.skip("windows as large as the picture: tables cannot tell the blocks apart, nor need they")
        keys = ""
    else:
        blocks = "/".join(str(i) for i in range(meta["depth"]) if i not in meta["window_block_indexes"])
        keys = f",heads={meta['num_heads']},window={meta['window_size']},global={blocks}"
    torch.save({"model": state, "iteration": 1}, tmp_path / "eva.pth")
    (teacher,) = build_teachers([f"eva:path={tmp_path / 'eva.pth'},size={meta['img_size']}{keys}"]).values()
    features = teacher.encode(case.tensors["input.pixel_values"])
    expected = case.tensors["expected.map"]
    assert features.grid == expected.shape[2:]
    torch.testing.assert_close(features.patches, expected.flatten(2).transpose(1, 2), **CLOSE)


@pytest.mark.parametrize("case", of_kind("depths"), ids=str)
@torch.no_grad()
def test_convnext_stages_equal_the_published_ones(case: Case) -> None:
    network = build_trunk(trunk_tensors(case.group("weight")), case.meta["norm_eps"], str(case)).eval()
    hidden = network.embeddings(case.tensors["input.pixel_values"])
    for index, stage in enumerate(network.encoder.stages):
        hidden = stage(hidden)
        expected = case.tensors[f"expected.stage{index}"]
        torch.testing.assert_close(hidden.flatten(2).transpose(1, 2), expected, **CLOSE)
    torch.testing.assert_close(hidden.flatten(2).transpose(1, 2), case.tensors["expected.tokens"], **CLOSE)


@pytest.mark.parametrize("case", of_kind("depths"), ids=str)
@pytest.mark.parametrize("prefix", ["", "visual.trunk."])
@torch.no_grad()
def test_convnext_teacher_equals_the_published_tokens(case: Case, prefix: str, tmp_path) -> None:
    scales = {name for name in case.meta["layer_scale_names"] if ".blocks." in name}
    state = {}
    for key, value in case.group("weight").items():
        key = key.replace(".weight", ".gamma") if key in scales else key
        state[f"visual.{key}" if prefix and key.startswith("head.") else prefix + key] = value
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    spec = f"convnext:path={tmp_path},size={case.meta['img_size']},eps={case.meta['norm_eps']}"
    (teacher,) = build_teachers([spec]).values()
    features = teacher.encode(case.tensors["input.pixel_values"])
    torch.testing.assert_close(features.patches, case.tensors["expected.tokens"], **CLOSE)


@pytest.mark.parametrize("case", of_kind("vision_config"), ids=str)
@torch.no_grad()
def test_sam_map_and_released_order_equal_the_published_ones(case: Case) -> None:
    network = SamVisionModel(SamVisionConfig(**case.meta["vision_config"])).eval()
    network.load_state_dict(case.group("weight"))
    neck = network(case.tensors["input.pixel_values"]).last_hidden_state
    torch.testing.assert_close(neck, case.tensors["expected.neck_map"], **CLOSE)
    torch.testing.assert_close(upstream_layout(neck), case.tensors["expected.upstream_map"], **CLOSE)
    places = torch.arange(neck[0].numel(), dtype=torch.float64).view(1, *neck.shape[1:])
    assert torch.equal(upstream_layout(places)[0].long(), case.tensors["expected.upstream_permutation"])


@pytest.mark.parametrize("case", of_kind("vision_config"), ids=str)
@pytest.mark.parametrize("layout", ["true", "upstream"])
@torch.no_grad()
def test_sam_teacher_gives_the_tokens_its_adapter_saw(case: Case, layout: str, tmp_path) -> None:
    network = SamVisionModel(SamVisionConfig(**case.meta["vision_config"]))
    network.load_state_dict(case.group("weight"))
    network.save_pretrained(tmp_path)
    size = case.meta["vision_config"]["image_size"]
    (teacher,) = build_teachers([f"sam:path={tmp_path},size={size},layout={layout}"]).values()
    features = teacher.encode(case.tensors["input.pixel_values"])
    expected = case.tensors["expected.neck_map" if layout == "true" else "expected.upstream_map"]
    assert list(features.patches.shape) == case.meta["tokens_seen_by_adapter"]
    torch.testing.assert_close(features.patches, expected.flatten(2).transpose(1, 2), **CLOSE)
