"""Published file formats load; anything missing, extra, misshapen, cut or unsafe is an error that names it."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llava.model.multimodal_encoder.move_kd.teachers import Teacher, build_teachers
from llava.model.multimodal_encoder.move_kd.teachers._weights import read_checkpoint
from llava.model.multimodal_encoder.move_kd.teachers.convnext import config_from as convnext_config
from llava.model.multimodal_encoder.move_kd.teachers.eva02 import config_from as eva_config
from tests.tiny_teachers import CASES, convnext_state, eva_state, make_case, make_convnext, make_eva, make_single

FOLDERS = ["clip", "sam", "pix2struct", "dinov2_registers", "dinov3", "siglip2", "radio"]


def only(spec: str) -> Teacher:
    (teacher,) = build_teachers([spec]).values()
    return teacher


def features(teacher: Teacher) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = teacher.source.size
    return teacher(torch.randint(0, 256, (1, 3, size, size), generator=generator, dtype=torch.uint8)).patches


def edit(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def vision_keys(state: dict[str, Tensor]) -> list[str]:
    return [key for key in sorted(state) if not key.startswith(("text_model", "decoder", "mask_decoder", "prompt"))]


class Payload:
    """Runs a command when it is unpickled by a reader that lets it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("wrapper", ["ema_state", "module", "model", None])
def test_eva_reads_every_published_wrapper(wrapper: str | None, tmp_path: Path) -> None:
    expected = features(only(f"eva:path={make_eva(tmp_path)},size=64"))
    path = tmp_path / "other.pth"
    torch.save(eva_state() if wrapper is None else {wrapper: eva_state(), "optimizer": {"lr": 0.1}}, path)
    assert torch.equal(features(only(f"eva:path={path},size=64")), expected)


def test_eva_reads_its_shape_from_rotary_tables_or_from_the_spec(tmp_path: Path) -> None:
    expected = features(only(f"eva:path={make_eva(tmp_path)},size=64"))
    path = tmp_path / "no_tables.pth"
    torch.save({"model": eva_state(rope=False)}, path)
    assert torch.equal(features(only(f"eva:path={path},size=64,heads=4,window=2,global=1")), expected)


@pytest.mark.parametrize("prefix", ["", "visual.trunk.", "module.visual.trunk."])
@pytest.mark.parametrize("scale", ["gamma", "weight"])
@pytest.mark.parametrize("file", ["model.safetensors", "weights.pt", "pytorch_model.bin"])
def test_convnext_reads_every_published_naming_and_format(prefix: str, scale: str, file: str, tmp_path: Path) -> None:
    (tmp_path / "reference").mkdir()
    expected = features(only(f"convnext:path={make_convnext(tmp_path / 'reference')},size=64"))
    state = convnext_state(prefix, scale)
    if file.endswith("safetensors"):
        save_file(state, tmp_path / file)
    else:
        torch.save({"state_dict": state} if file.endswith("pt") else state, tmp_path / file)
    assert torch.equal(features(only(f"convnext:path={tmp_path / file},size=64")), expected)
    assert torch.equal(features(only(f"convnext:path={tmp_path},size=64")), expected)


def test_convnext_reads_a_transformers_folder(tmp_path: Path) -> None:
    from transformers import ConvNextConfig, ConvNextModel

    from tests.tiny_teachers import randomize

    expected = features(only(f"convnext:path={make_single(tmp_path)},size=64"))
    model = randomize(ConvNextModel(ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 2, 1])))
    model.save_pretrained(tmp_path / "folder")
    assert torch.equal(features(only(f"convnext:path={tmp_path / 'folder'},size=64")), expected)


def test_convnext_norms_follow_the_published_epsilon(tmp_path: Path) -> None:
    path = make_single(tmp_path)
    default, wide = only(f"convnext:path={path},size=64"), only(f"convnext:path={path},size=64,eps=1e-3")
    assert default.net.embeddings.layernorm.eps == 1e-6
    assert wide.net.encoder.stages[0].layers[0].layernorm.eps == 1e-3
    with pytest.raises(ValueError, match="eps must be a number"):
        only(f"convnext:path={path},size=64,eps=tiny")


def test_radio_reads_the_published_names(tmp_path: Path) -> None:
    spec = make_case("radio", tmp_path)
    expected = features(only(spec))
    edit(tmp_path / "radio", _as_published_radio)
    assert torch.equal(features(only(spec)), expected)


def _as_published_radio(state: dict[str, Tensor]) -> None:
    places = {
        "embeddings.patch_projection": "patch_generator.embedder",
        "embeddings.position_embedding": "patch_generator.pos_embed",
        "embeddings.cls_register_token": "patch_generator.cls_token.token",
        "encoder.layer": "blocks",
    }
    for key in list(state):
        if key.startswith("radio_model."):
            continue  # saved under the published names already
        value = state.pop(key)
        for ours, theirs in places.items():
            if key.startswith(ours):
                key = f"model.{theirs}{key.removeprefix(ours)}".replace("attention.o_proj", "attn.proj")
        if ".layer_scale" not in key:
            state[f"radio_model.{key}"] = value
    for key in [key for key in state if ".attention.q_proj." in key]:
        parts = [state.pop(key.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        state[key.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_pickle_of_tensors_loads_as_safetensors_do(name: str, tmp_path: Path) -> None:
    spec = make_case(name, tmp_path)
    expected = features(only(spec))
    torch.save(load_file(tmp_path / name / "model.safetensors"), tmp_path / name / "pytorch_model.bin")
    (tmp_path / name / "model.safetensors").unlink()
    assert torch.equal(features(only(spec)), expected)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    spec = make_case(name, tmp_path)
    lost: list[str] = []

    def lose(state: dict[str, Tensor]) -> None:
        # A norm: what attention is called in files differs from what the message may call it.
        lost.append(next(key for key in vision_keys(state) if ".1." in key and "norm" in key))
        del state[lost[0]]

    edit(tmp_path / name, lose)
    with pytest.raises(ValueError, match=f"{tmp_path / name} does not fit") as caught:
        only(spec)
    _, layer, tail = lost[0].rpartition(".1.")
    assert str(caught.value).endswith(layer + tail)
    assert "1 missing" in str(caught.value)


@pytest.mark.parametrize("name", FOLDERS)
def test_an_extra_tensor_is_named(name: str, tmp_path: Path) -> None:
    spec = make_case(name, tmp_path)
    edit(tmp_path / name, lambda state: state.update({"stray.weight": torch.zeros(2)}))
    with pytest.raises(ValueError, match=r"unexpected: .*stray\.weight"):
        only(spec)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_tensor_of_another_shape_is_refused(name: str, tmp_path: Path) -> None:
    spec = make_case(name, tmp_path)

    def grow(state: dict[str, Tensor]) -> None:
        key = next(key for key in vision_keys(state) if state[key].ndim == 2 and ".1." in key)
        state[key] = torch.zeros(3, 5)

    edit(tmp_path / name, grow)
    with pytest.raises(ValueError, match=r"1 of another shape: .*\(3, 5\) instead of"):
        only(spec)


@pytest.mark.parametrize("name", [*FOLDERS, "eva", "convnext"])
@pytest.mark.parametrize("keep", [0, 300, 0.5])
def test_a_cut_file_is_refused(name: str, keep: float, tmp_path: Path) -> None:
    spec = make_case(name, tmp_path)
    files = ("model.safetensors", "eva02_L_coco_det_sys_o365.pth", "open_clip_pytorch_model.bin")
    path = next(tmp_path / name / file for file in files if (tmp_path / name / file).exists())
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep > 1 else keep * len(content))])
    with pytest.raises(ValueError, match=r"cannot be loaded|cannot be read|empty") as caught:
        only(spec)
    assert str(path.parent) in str(caught.value)


@pytest.mark.parametrize("name", ["eva", "convnext", "clip"])
@pytest.mark.parametrize("page", [b"error code: 522", b"rate limit", b"unauthorized"])
def test_an_error_page_in_place_of_weights_is_refused(name: str, page: bytes, tmp_path: Path) -> None:
    """Read as a pickle, these end in an IndexError."""
    spec = make_case(name, tmp_path)
    [file] = [file for file in (tmp_path / name).iterdir() if file.suffix != ".json"]
    file.unlink()
    file.with_name("pytorch_model.bin" if name == "clip" else file.name).write_bytes(page)
    with pytest.raises(ValueError, match="cannot be"):
        only(spec)


def test_a_file_of_the_old_torch_format_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"a": torch.ones(2), "b": {"c": torch.ones(3)}}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for keep in range(1, len(content)):
        path.write_bytes(content[:keep])
        with pytest.raises(ValueError, match="cannot be read"):
            read_checkpoint(path, "teacher")


@pytest.mark.parametrize("name", ["eva", "convnext", "sam", "clip"])
def test_pickled_code_is_not_run(name: str, tmp_path: Path) -> None:
    spec = make_case(name, tmp_path)
    target = tmp_path / "ran"
    files = {"eva": "eva02_L_coco_det_sys_o365.pth", "convnext": "open_clip_pytorch_model.bin"}
    path = tmp_path / name / files.get(name, "pytorch_model.bin")
    (tmp_path / name / "model.safetensors").unlink(missing_ok=True)
    with path.open("wb") as file:
        pickle.dump({"model": Payload(target)}, file)
    with pytest.raises(ValueError, match=r"cannot be (read|loaded)"):
        only(spec)
    torch.save({"model": Payload(target)}, path)
    with pytest.raises(ValueError, match=r"cannot be (read|loaded)"):
        only(spec)
    assert not target.exists()


def test_eva_names_missing_and_misshapen_tensors_and_ignores_the_detector(tmp_path: Path) -> None:
    state = eva_state()
    del state["backbone.net.blocks.1.mlp.w2.bias"]
    state["backbone.net.blocks.2.attn.q_bias"] = torch.zeros(5)
    state["backbone.net.stray"] = torch.zeros(5)
    torch.save({"model": state}, tmp_path / "eva.pth")
    with pytest.raises(ValueError, match=r"1 missing: blocks\.1\.mlp\.w2\.bias") as caught:
        only(f"eva:path={tmp_path / 'eva.pth'},size=64")
    assert "1 unexpected: stray" in str(caught.value)
    assert "blocks.2.attn.q_bias (5,) instead of (32,)" in str(caught.value)


def test_eva_refuses_a_file_without_a_backbone(tmp_path: Path) -> None:
    torch.save({"model": {"fc.weight": torch.zeros(2)}}, tmp_path / "eva.pth")
    with pytest.raises(ValueError, match=r"no tensor below 'backbone\.net\.'; it starts with: fc\.weight"):
        only(f"eva:path={tmp_path / 'eva.pth'}")
    torch.save(torch.zeros(3), tmp_path / "eva.pth")
    with pytest.raises(ValueError, match="holds a Tensor, not named tensors"):
        only(f"eva:path={tmp_path / 'eva.pth'}")


def test_convnext_names_missing_tensors_and_foreign_files(tmp_path: Path) -> None:
    state = convnext_state("visual.trunk.")
    del state["visual.trunk.stages.2.blocks.1.gamma"]
    torch.save(state, tmp_path / "a.bin")
    with pytest.raises(ValueError, match=r"missing: encoder\.stages\.2\.layers\.1\.layer_scale_parameter"):
        only(f"convnext:path={tmp_path / 'a.bin'},size=64")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "a.bin")
    with pytest.raises(ValueError, match=r"missing: embeddings\.patch_embeddings\.weight"):
        only(f"convnext:path={tmp_path / 'a.bin'}")


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    make_case("dinov2", tmp_path)
    with pytest.raises(ValueError, match="holds a 'dinov2' model; accepted: sam, sam_vision_model"):
        only(f"sam:path={tmp_path / 'dinov2'}")


@pytest.mark.parametrize("kind", ["clip", "sam", "eva", "convnext", "pix2struct", "dinov2", "hf"])
def test_a_path_that_is_not_there_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no (file or )?folder"):
        only(f"{kind}:path={tmp_path / 'nowhere'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no config\.json|no weight file"):
        only(f"{kind}:path={tmp_path / 'empty'}")


def test_a_folder_with_a_config_but_no_weights_is_refused(tmp_path: Path) -> None:
    spec = make_case("sam", tmp_path)
    (tmp_path / "sam" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot be loaded"):
        only(spec)


def test_every_case_is_covered_by_a_broken_file_test() -> None:
    tried = {name.partition("_")[0] for name in FOLDERS} | {"eva", "convnext"}
    assert {case.partition("_")[0] for case in CASES} <= tried


def test_full_size_networks_that_lost_their_last_block_are_not_taken_for_smaller_ones() -> None:
    """Shapes alone decide here, so no weights of that size are made."""
    widths = (384, 768, 1536, 3072)
    state = {f"encoder.stages.{i}.layers.0.dwconv.weight": torch.empty(w, device="meta") for i, w in enumerate(widths)}
    state["embeddings.patch_embeddings.weight"] = torch.empty(384, 3, 4, 4, device="meta")
    assert convnext_config(state, "file").depths == [3, 4, 30, 3]
    state = {
        "patch_embed.proj.weight": torch.empty(1024, 3, 16, 16, device="meta"),
        "pos_embed": torch.empty(1, 197, 1024, device="meta"),
        "blocks.0.mlp.w1.weight": torch.empty(2730, 1024, device="meta"),
    }
    config = eva_config(state, {}, {"window": "", "heads": "", "global": ""})
    assert (config.depth, config.heads, config.window, config.patch, config.hidden) == (24, 16, 16, 16, 2730)
    assert config.global_blocks == {2, 5, 8, 11, 14, 17, 20, 23}
