"""EVA-02-L as trained for detection (COCO after Objects365): windowed and global attention, rotary positions.

No library carries this backbone, so it is ported here for inference alone. The published file holds a whole detector;
its tensors below `backbone.net.` are used and must be complete, feature pyramid and heads are left out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava.model.multimodal_encoder.move_kd.teachers._weights import find_file, read_checkpoint, refuse, strict_load
from llava.model.multimodal_encoder.move_kd.teachers.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BuildContext,
    Defaults,
    FrozenTeacher,
    square_grid,
)
from llava.model.multimodal_encoder.move_kd.types import TeacherFeatures

PREFIX = "backbone.net."
LARGE_WIDTH, LARGE_DEPTH = 1024, 24


@dataclass(frozen=True)
class EvaConfig:
    """Shape of the network. window: side of an attention window in tokens. global_blocks: blocks that see all tokens.

    position_tokens: length of the stored position embedding; rope_grid: side of the pretraining grid onto which
    rotary positions are scaled.
    """

    width: int
    depth: int
    heads: int
    patch: int
    hidden: int
    window: int
    global_blocks: frozenset[int]
    position_tokens: int
    rope_grid: int = 16


def rotary_table(side: int, head_width: int, rope_grid: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine for a side x side grid, each (side * side, head_width) float32.

    The first half of a head turns with the row, the second with the column; pairs of channels share a frequency.
    Positions are scaled so that any side spans the pretraining grid.
    """
    half = head_width // 2
    frequency = 10000.0 ** -(torch.arange(0, half, 2, device="cpu").float() / half)
    position = torch.arange(side, device="cpu").float() / side * rope_grid
    angle = (position[:, None] * frequency).repeat_interleave(2, dim=-1)  # (side, half)
    rows, columns = angle[:, None].expand(side, side, half), angle[None].expand(side, side, half)
    angle = torch.cat((rows, columns), dim=-1).reshape(side * side, head_width)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighboring channel pairs. x: (B, heads, N, head_width)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack((-odd, even), dim=-1).flatten(-2)
    return x * cos.to(x.dtype) + turned * sin.to(x.dtype)


class EvaAttention(nn.Module):
    """Self-attention with rotary queries and keys; the key projection has no bias."""

    def __init__(self, config: EvaConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(config.width, config.width, bias=False)
        self.v_proj = nn.Linear(config.width, config.width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(config.width))
        self.v_bias = nn.Parameter(torch.zeros(config.width))
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        query = self._split(self.q_proj(x) + self.q_bias)
        key = self._split(self.k_proj(x))
        value = self._split(self.v_proj(x) + self.v_bias)
        mixed = F.scaled_dot_product_attention(rotate(query, cos, sin), rotate(key, cos, sin), value)
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, head_width)


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(width, hidden)
        self.ffn_ln = nn.LayerNorm(hidden, eps=1e-6)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))


class EvaBlock(nn.Module):
    def __init__(self, config: EvaConfig, windowed: bool) -> None:
        super().__init__()
        self.window = config.window if windowed else 0
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = EvaAttention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = SwiGLU(config.width, config.hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(M, H, W, D) to the same."""
        height, width = x.shape[1:3]
        normed = self.norm1(x)
        if self.window:
            windows, padded = to_windows(normed, self.window)
            mixed = from_windows(self.attn(windows, cos, sin), self.window, padded, (height, width))
        else:
            mixed = self.attn(normed.flatten(1, 2), cos, sin).unflatten(1, (height, width))
        x = x + mixed
        return x + self.mlp(self.norm2(x))


def to_windows(x: Tensor, window: int) -> tuple[Tensor, tuple[int, int]]:
    """(M, H, W, D) to (M * windows, window * window, D), zeros added below and right; and the padded (H, W)."""
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    rows, columns = x.shape[1] // window, x.shape[2] // window
    tiles = x.unflatten(2, (columns, window)).unflatten(1, (rows, window)).transpose(2, 3)
    return tiles.flatten(3, 4).flatten(0, 2), (x.shape[1], x.shape[2])


def from_windows(tiles: Tensor, window: int, padded: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Undo `to_windows`: (M * windows, window * window, D) to (M, H, W, D)."""
    rows, columns = padded[0] // window, padded[1] // window
    x = tiles.reshape(-1, rows, columns, window, window, tiles.shape[-1]).transpose(2, 3)
    return x.flatten(3, 4).flatten(1, 2)[:, : size[0], : size[1]]


class EvaBackbone(nn.Module):
    """Square pictures of side `size` to a token map; no class token, no final norm."""

    def __init__(self, config: EvaConfig, size: int) -> None:
        super().__init__()
        self.side = size // config.patch
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, config.width, config.patch, config.patch)})
        self.pos_embed = nn.Parameter(torch.zeros(1, config.position_tokens, config.width))
        windowed = [index not in config.global_blocks for index in range(config.depth)]
        self.blocks = nn.ModuleList(EvaBlock(config, flag) for flag in windowed)
        tables = {"window": config.window, "global": self.side}
        for name, side in tables.items():
            cos, sin = rotary_table(side, config.width // config.heads, config.rope_grid)
            self.register_buffer(f"{name}_cos", cos, persistent=False)
            self.register_buffer(f"{name}_sin", sin, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(M, 3, S, S) to (M, H, W, D)."""
        x = self.patch_embed["proj"](pixels).permute(0, 2, 3, 1)
        x = x + self._positions().to(x.dtype)
        for block in self.blocks:
            name = "window" if block.window else "global"
            x = block(x, getattr(self, f"{name}_cos"), getattr(self, f"{name}_sin"))
        return x

    def _positions(self) -> Tensor:
        """(1, H, W, D): the stored square without its class entry, resized bicubically."""
        stored: Tensor = self.pos_embed
        side = int(stored.shape[1] ** 0.5)
        if side * side != stored.shape[1]:
            stored = stored[:, 1:]
            side = int(stored.shape[1] ** 0.5)
        square = stored.unflatten(1, (side, side))
        if side == self.side:
            return square
        shape = (self.side, self.side)
        return F.interpolate(square.permute(0, 3, 1, 2).float(), shape, mode="bicubic").permute(0, 2, 3, 1)


def backbone_tensors(checkpoint: Mapping[str, Any], where: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(weights, rotary tables) below `backbone.net.`, prefix removed.

    The names sit at the top, or below `ema_state`, `module` or `model` (the first of these that is there).
    Raises ValueError if there is no such tensor.
    """
    holder = next((key for key in ("ema_state", "module", "model") if isinstance(checkpoint.get(key), Mapping)), None)
    named = checkpoint if holder is None else checkpoint[holder]
    inside = {key: value for key, value in named.items() if key.startswith(PREFIX) and isinstance(value, Tensor)}
    if not inside:
        top = ", ".join(list(map(str, named))[:6])
        raise ValueError(f"{where} has no tensor below '{PREFIX}'; it starts with: {top}")
    inside = {key.removeprefix(PREFIX): value for key, value in inside.items()}
    tables = {key: value for key, value in inside.items() if "rope" in key}
    return {key: value for key, value in inside.items() if "rope" not in key}, tables


def config_from(state: Mapping[str, Tensor], tables: Mapping[str, Tensor], choices: Mapping[str, str]) -> EvaConfig:
    """The network's shape, from its tensors wherever they tell, else from the choices (window, heads, global).

    Stored rotary tables tell head width, window and which blocks are global; without them the published
    detector's values are used: heads 64 wide, windows of 16, every third block global.
    """
    depth = 1 + max(int(key.split(".")[1]) for key in (*state, *tables) if key.startswith("blocks."))
    patches, positions = state["patch_embed.proj.weight"], state["pos_embed"]
    width = patches.shape[0]
    depth = max(depth, LARGE_DEPTH) if width == LARGE_WIDTH else depth  # a file that lost its last blocks must not pass
    window = int(choices["window"] or _table_side(tables, "rope_win.freqs_cos") or 16)
    head_width = next((table.shape[-1] for table in tables.values()), 64)
    if choices["global"]:
        global_blocks = frozenset(int(index) for index in choices["global"].split("/"))
    else:
        lengths = {index: tables.get(f"blocks.{index}.attn.rope.freqs_cos") for index in range(depth)}
        told = {index for index, table in lengths.items() if table is not None and len(table) != window**2}
        global_blocks = frozenset(told or range(2, depth, 3))
    return EvaConfig(
        width=width,
        depth=depth,
        heads=int(choices["heads"] or width // head_width),
        patch=patches.shape[-1],
        hidden=state["blocks.0.mlp.w1.weight"].shape[0],
        window=window,
        global_blocks=global_blocks,
        position_tokens=positions.shape[1],
    )


def _table_side(tables: Mapping[str, Tensor], name: str) -> int | None:
    return round(len(tables[name]) ** 0.5) if name in tables else None


class Eva02(FrozenTeacher):
    defaults = Defaults(
        paths=(
            "checkpoints/EVA/eva02/det/eva02_L_coco_det_sys_o365.pth",
            "Yuxin-CV/EVA-02:eva02/det/eva02_L_coco_det_sys_o365.pth",
        ),
        size=1024,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        licence="MIT",
        released={"mean": "clip"},
    )
    options: ClassVar = {"heads": "", "window": "", "global": ""}
    version = 3
    stem = "patch_embed.proj"
    net: EvaBackbone

    def load(self, context: BuildContext) -> EvaBackbone:
        path = find_file(self.path, ("eva02_L_coco_det_sys_o365.pth",), f"teacher {self.name!r}")
        where = f"teacher {self.name!r}: {path}"
        state, tables = backbone_tensors(read_checkpoint(path, f"teacher {self.name!r}"), where)
        required = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.w1.weight")
        refuse(where, missing=[PREFIX + key for key in required if key not in state], unexpected=())
        self._check_shape()
        self.config = config_from(state, tables, self.choices)
        if self.config.width % self.config.heads or max(self.config.global_blocks, default=0) >= self.config.depth:
            raise self.refuse(
                f"heads or global do not fit a network {self.config.width} wide and {self.config.depth} deep"
            )
        square_grid(self._find_size(), self.config.patch, self)
        with torch.device("meta"):
            net = EvaBackbone(self.config, self._find_size())
        return strict_load(net, {key: tensor.float() for key, tensor in state.items()}, where=where)

    def _check_shape(self) -> None:
        forms = {"heads": r"[1-9]\d*", "window": r"[1-9]\d*", "global": r"\d+(/\d+)*"}
        for key, form in forms.items():
            if self.choices[key] and not re.fullmatch(form, self.choices[key]):
                raise self.refuse(
                    f"{key}={self.choices[key]} is not understood; write heads=16, window=16, global=2/5/8"
                )

    def layout(self) -> tuple[tuple[int, int], int]:
        return square_grid(self.size, self.config.patch, self), self.config.width

    def encode(self, pixels: Tensor) -> TeacherFeatures:
        return TeacherFeatures(self.net(pixels).flatten(1, 2), self.grid)


TEACHER = Eva02
