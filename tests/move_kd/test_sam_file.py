"""SAM from its authors' file: the same network as from a transformers folder, or an error that names what is wrong."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llava.model.multimodal_encoder.move_kd.teachers import build_teachers
from llava.model.multimodal_encoder.move_kd.teachers._sam_file import config_from
from tests.tiny_teachers import make_sam

BACK = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^layers\.(\d+)\.layer_norm([12])\.", r"blocks.\1.norm\2."),
    (r"^layers\.", "blocks."),
    (r"^neck\.conv1\.", "neck.0."),
    (r"^neck\.layer_norm1\.", "neck.1."),
    (r"^neck\.conv2\.", "neck.2."),
    (r"^neck\.layer_norm2\.", "neck.3."),
)


def published(folder: Path) -> dict[str, Tensor]:
    """The tensors of a transformers folder under the authors' names, with some of the decoder's."""
    state = {"mask_decoder.iou_token.weight": torch.zeros(1, 16), "prompt_encoder.no_mask_embed.weight": torch.ones(2)}
    for key, value in load_file(folder / "model.safetensors").items():
        if key.startswith("vision_encoder."):
            name = key.removeprefix("vision_encoder.")
            for pattern, replacement in BACK:
                name = re.sub(pattern, replacement, name)
            state[f"image_encoder.{name}"] = value
    return state


def test_the_authors_file_gives_the_network_of_the_folder(tmp_path: Path) -> None:
    folder = Path(make_sam(tmp_path))
    alone = tmp_path / "alone"
    alone.mkdir()
    torch.save(published(folder), alone / "sam_vit_l_0b3195.pth")
    specs = [f"sam:path={path},size=64,name={name}" for name, path in {
        "folder": folder, "file": alone / "sam_vit_l_0b3195.pth", "inside": alone}.items()]  # fmt: skip
    expected, *others = build_teachers(specs).values()
    pictures = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    for teacher in others:
        assert torch.equal(teacher(pictures).patches, expected(pictures).patches)
        assert teacher.digest == expected.digest
    (larger,) = build_teachers([f"sam:path={alone},size=96"]).values()
    assert larger.grid == (6, 6)


Change = Callable[[dict[str, Tensor]], object]
LOST = "image_encoder.blocks.1.mlp.lin2.bias"
BROKEN: dict[str, tuple[Change, str]] = {
    "missing": (lambda state: state.pop(LOST), r"missing: .*layers\.1\.mlp\.lin2\.bias"),
    "no encoder": (lambda state: state.pop("image_encoder.pos_embed"), r"missing: image_encoder\.pos_embed"),
    "extra": (lambda state: state.update({"image_encoder.stray": torch.zeros(1)}), r"unexpected: .*stray"),
    "another model's": (lambda state: state.update({"blocks.0.w": torch.zeros(1)}), r"unexpected: blocks\.0\.w"),
    "shape": (
        lambda state: state.update({"image_encoder.neck.2.weight": torch.zeros(16, 16, 1, 1)}),
        r"neck\.conv2\.weight \(16, 16, 1, 1\) instead of \(16, 16, 3, 3\)",
    ),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_by_name(change: Change, message: str, tmp_path: Path) -> None:
    state = published(Path(make_sam(tmp_path)))
    change(state)
    torch.save(state, tmp_path / "sam.pth")
    with pytest.raises(ValueError, match=message):
        build_teachers([f"sam:path={tmp_path / 'sam.pth'},size=64"])
    (tmp_path / "sam.pth").write_bytes((tmp_path / "sam.pth").read_bytes()[:-50])
    with pytest.raises(ValueError, match="cannot be read"):
        build_teachers([f"sam:path={tmp_path / 'sam.pth'},size=64"])


def test_the_published_large_file_has_its_published_shape() -> None:
    """Shapes alone decide; no weights of that size are made."""
    state = {
        "pos_embed": torch.empty(1, 64, 64, 1024, device="meta"),
        "patch_embed.proj.weight": torch.empty(1024, 3, 16, 16, device="meta"),
        "neck.0.weight": torch.empty(256, 1024, 1, 1, device="meta"),
        "blocks.0.mlp.lin1.weight": torch.empty(4096, 1024, device="meta"),
    }
    for block in range(24):
        span = 64 if block in (5, 11, 17, 23) else 14
        state[f"blocks.{block}.attn.rel_pos_h"] = torch.empty(2 * span - 1, 64, device="meta")
    config = config_from(state)
    assert (config.num_hidden_layers, config.num_attention_heads, config.window_size) == (24, 16, 14)
    assert (config.global_attn_indexes, config.image_size, config.mlp_dim) == ([5, 11, 17, 23], 1024, 4096)
    del state["blocks.23.attn.rel_pos_h"]
    assert config_from(state).num_hidden_layers == 24
