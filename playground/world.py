"""Scenes of a few things on a 3x3 grid: how they are drawn at random, split, and rendered.

A scene is symbolic (what is where); a picture adds jitter, background and noise, all from the scene's seed.
Splits are disjoint twice over: seeds differ by split, and the hash of the symbolic scene decides the split.
Knows nothing of questions, models or files.

Legend: S scenes, K things of all scenes, C cell side in pixels, H picture side in pixels.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "validation", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "validation", "heldout")

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.12, 0.72, 0.20),
    "blue": (0.16, 0.30, 0.95),
    "yellow": (0.95, 0.88, 0.12),
    "purple": (0.58, 0.16, 0.80),
    "orange": (1.00, 0.52, 0.05),
    "cyan": (0.10, 0.85, 0.90),
}
SHAPES = ("circle", "square", "triangle", "cross", "diamond")
TEXTURES = ("solid", "striped", "dotted", "checkered")
SIZES = ("small", "big")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
GRID = 3
MOST_THINGS = 5  # of a scene; questions have words for numbers up to it

GLYPHS: dict[str, tuple[str, ...]] = {
    "0": ("111", "101", "101", "101", "111"),
    "1": ("010", "110", "010", "010", "111"),
    "2": ("111", "001", "111", "100", "111"),
    "3": ("111", "001", "111", "001", "111"),
    "4": ("101", "101", "111", "001", "001"),
    "5": ("111", "100", "111", "001", "111"),
    "6": ("111", "100", "111", "101", "111"),
    "7": ("111", "001", "010", "010", "010"),
    "8": ("111", "101", "111", "101", "111"),
    "9": ("111", "101", "111", "001", "111"),
}


@dataclass(frozen=True)
class WorldConfig:
    """Everything that decides what scenes look like. Two worlds with equal configs are equal to the pixel."""

    seed: int = 0
    cell: int = 32
    min_things: int = 2
    max_things: int = 5
    big_radius: float = 13.5
    small_radius: float = 9.5
    jitter: float = 2.0
    texture_period: int = 6
    texture_dark: float = 0.35
    digits: str = "01247"
    digit_probability: float = 0.6
    digit_dot: int = 3
    noise: float = 0.06
    # Gray, and varying a little: on colored backgrounds the tiny CLIP takes several times as long to see colors.
    background: tuple[float, float] = (0.2, 0.4)
    background_variation: float = 0.1
    validation_percent: int = 10
    heldout_percent: int = 10

    def __post_init__(self) -> None:
        if not 1 <= self.min_things <= self.max_things <= MOST_THINGS:
            raise ValueError(
                f"things per scene: asked for {self.min_things} to {self.max_things}; there can be 1 to {MOST_THINGS}"
            )
        if unknown := set(self.digits) - set(GLYPHS):
            raise ValueError(f"digits {sorted(unknown)} have no glyph; there are {''.join(GLYPHS)}")
        if self.big_radius + self.jitter > self.cell / 2:
            raise ValueError(f"radius {self.big_radius} and jitter {self.jitter} leave a cell of {self.cell} pixels")
        if not self.digits or not 0 < self.digit_probability <= 1 or not 1 <= self.digit_dot <= self.cell // 6:
            raise ValueError(
                f"digits {self.digits!r}, probability {self.digit_probability}, dots of {self.digit_dot} pixels: "
                f"questions ask for digits, so there must be some, with dots of 1 to {self.cell // 6} pixels"
            )
        if not (self.texture_period >= 1 and 0 <= self.noise <= 1 and self.seed >= 0):
            raise ValueError(
                f"texture_period {self.texture_period} must be at least 1, noise {self.noise} lie between 0 and 1, and "
                f"seed {self.seed} not be negative"
            )
        if not isinstance(self.background, list | tuple) or len(self.background) != 2:
            raise ValueError(f"background {self.background} must be two numbers, the darkest and the lightest")
        shares = (self.validation_percent, self.heldout_percent)
        if min(shares) < 1 or sum(shares) > 90:
            raise ValueError(f"validation and held-out scenes: {shares} percent; each needs 1, both have at most 90")

    @property
    def side(self) -> int:
        return GRID * self.cell


@dataclass(frozen=True)
class Thing:
    """One object. cell: 0 to 8 in reading order. digit: its tag, or None."""

    cell: int
    color: str
    shape: str
    texture: str
    size: str
    digit: str | None = None

    @property
    def row(self) -> str:
        return ROWS[self.cell // GRID]

    @property
    def column(self) -> str:
        return COLUMNS[self.cell % GRID]


@dataclass(frozen=True)
class Scene:
    """Things in reading order, and where the picture's chance comes from."""

    things: tuple[Thing, ...]
    seed: tuple[int, ...] = ()

    @property
    def symbols(self) -> str:
        """The scene without its picture: equal for equal scenes, whatever the seed."""
        return ";".join(f"{t.cell}{t.color}{t.shape}{t.texture}{t.size}{t.digit}" for t in self.things)


class Pictures(NamedTuple):
    """pixels: (S, H, H, 3) uint8. owner: (S, H, H) int8, index of the thing drawn there, -1 for background."""

    pixels: NDArray[np.uint8]
    owner: NDArray[np.int8]


def split_of(scene: Scene, config: WorldConfig) -> Split:
    """The only split that may hold this symbolic scene."""
    digest = hashlib.blake2b(scene.symbols.encode(), digest_size=4).digest()
    percent = int.from_bytes(digest, "big") % 100
    if percent < config.heldout_percent:
        return "heldout"
    return "validation" if percent < config.heldout_percent + config.validation_percent else "train"


def draw_scenes(config: WorldConfig, split: Split, count: int, start: int = 0) -> list[Scene]:
    """Scenes number `start` to `start + count` of a split; each depends on its number alone."""
    return [_draw_scene(config, split, number) for number in range(start, start + count)]


def _draw_scene(config: WorldConfig, split: Split, number: int) -> Scene:
    seed = (config.seed, SPLITS.index(split), number)
    chance = np.random.default_rng(seed)
    while True:
        scene = Scene(_draw_things(config, chance), seed)
        if split_of(scene, config) == split:
            return scene


def _draw_things(config: WorldConfig, chance: np.random.Generator) -> tuple[Thing, ...]:
    count = int(chance.integers(config.min_things, config.max_things + 1))
    cells = np.sort(chance.permutation(GRID * GRID)[:count]).tolist()
    sizes = (len(COLORS), len(SHAPES), len(TEXTURES), len(SIZES), len(config.digits))
    picks = (chance.random((count, len(sizes))) * sizes).astype(int).tolist()
    tagged = (chance.random(count) < config.digit_probability).tolist()
    colors = tuple(COLORS)
    return tuple(
        Thing(cell, colors[c], SHAPES[s], TEXTURES[t], SIZES[z], config.digits[d] if has_digit else None)
        for cell, (c, s, t, z, d), has_digit in zip(cells, picks, tagged, strict=True)
    )


def render(scenes: Sequence[Scene], config: WorldConfig) -> Pictures:
    """Pictures of scenes, each equal however many are rendered together."""
    things = [thing for scene in scenes for thing in scene.things]
    backgrounds, noises, jitters = _picture_chance(scenes, config)
    inks, covers = _draw_inks(things, jitters, config)  # (K, C, C, 3), (K, C, C)
    canvas = backgrounds
    owner = np.full(canvas.shape[:3], -1, dtype=np.int8)
    index = 0
    for number, scene in enumerate(scenes):
        for place, thing in enumerate(scene.things):
            row, column = divmod(thing.cell, GRID)
            rows = slice(row * config.cell, (row + 1) * config.cell)
            columns = slice(column * config.cell, (column + 1) * config.cell)
            cover = covers[index]
            canvas[number, rows, columns][cover] = inks[index][cover]
            owner[number, rows, columns][cover] = place
            index += 1
    canvas += noises
    pixels = np.clip(canvas * 255.0 + 0.5, 0, 255).astype(np.uint8)
    return Pictures(pixels, owner)


def _picture_chance(
    scenes: Sequence[Scene], config: WorldConfig
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Backgrounds and noise, (S, H, H, 3) each, and the things' offsets (K, 2) in pixels."""
    side = config.side
    coarse = np.empty((len(scenes), 4, 4, 3), np.float32)
    noise = np.empty((len(scenes), side, side, 3), np.float32)
    jitters = []
    for number, scene in enumerate(scenes):
        chance = np.random.default_rng((*scene.seed, 1))
        darkest, lightest = config.background
        base = darkest + (lightest - darkest) * chance.random(1, dtype=np.float32)
        coarse[number] = base + (chance.random((4, 4, 3), dtype=np.float32) - 0.5) * config.background_variation
        chance.standard_normal(out=noise[number], dtype=np.float32)
        jitters.append(chance.uniform(-config.jitter, config.jitter, (len(scene.things), 2)).astype(np.float32))
    noise *= config.noise
    weights = _bilinear(side)  # (H, 4)
    background = np.einsum("hr,srck,wc->shwk", weights, coarse, weights, optimize=True)
    return np.ascontiguousarray(background, dtype=np.float32), noise, np.concatenate(jitters)


def _bilinear(side: int) -> NDArray[np.float32]:
    """Weights (H, 4) that stretch four values over `side` pixels."""
    places = np.linspace(0, 3, side)
    return np.clip(1.0 - np.abs(places[:, None] - np.arange(4)[None]), 0, 1).astype(np.float32)


def _draw_inks(
    things: Sequence[Thing], jitters: NDArray[np.float32], config: WorldConfig
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Color (K, C, C, 3) and coverage (K, C, C) of every thing within its cell."""
    axis = np.arange(config.cell, dtype=np.float32) - (config.cell - 1) / 2
    y = axis[None, :, None] - jitters[:, 0, None, None]
    x = axis[None, None, :] - jitters[:, 1, None, None]
    radii = {"big": config.big_radius, "small": config.small_radius}
    radius = np.array([radii[thing.size] for thing in things], np.float32)[:, None, None]
    cover = _cover(np.array([SHAPES.index(thing.shape) for thing in things]), y, x, radius)
    dark = _dark(np.array([TEXTURES.index(thing.texture) for thing in things]), y, x, config.texture_period)
    colors = np.array([COLORS[thing.color] for thing in things], np.float32)[:, None, None, :]
    inks = colors * np.where(dark, np.float32(config.texture_dark), np.float32(1))[..., None]
    for number, thing in enumerate(things):
        if thing.digit is not None:
            _stamp_digit(inks[number], cover[number], thing, jitters[number], config)
    return inks, cover


def _cover(
    shapes: NDArray[np.int_], y: NDArray[np.float32], x: NDArray[np.float32], radius: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Which pixels a shape fills, (K, C, C). Areas are made similar, so that area does not tell the shape."""
    across, down = np.abs(x), np.abs(y)
    masks = {
        "circle": x * x + y * y <= (0.92 * radius) ** 2,
        "square": np.maximum(across, down) <= 0.82 * radius,
        "triangle": (down <= 0.9 * radius) & (across <= (y + 0.9 * radius) * 0.62),
        "cross": (np.minimum(across, down) <= 0.36 * radius) & (np.maximum(across, down) <= radius),
        "diamond": across + down <= 1.1 * radius,
    }
    return np.choose(shapes[:, None, None], [np.broadcast_to(masks[shape], masks["circle"].shape) for shape in SHAPES])


def _dark(textures: NDArray[np.int_], y: NDArray[np.float32], x: NDArray[np.float32], period: int) -> NDArray[np.bool_]:
    """Which pixels are in a texture's dark phase, (K, C, C)."""
    half = period / 2
    row, column = np.floor(y / half) % 2 == 1, np.floor(x / half) % 2 == 1
    shape = np.broadcast_shapes(row.shape, column.shape)
    masks = {
        "solid": np.zeros(shape, bool),
        "striped": np.broadcast_to(row, shape),
        "dotted": row & column,
        "checkered": row ^ column,
    }
    return np.choose(textures[:, None, None], [masks[texture] for texture in TEXTURES])


def _stamp_digit(
    ink: NDArray[np.float32],
    cover: NDArray[np.bool_],
    thing: Thing,
    jitter: NDArray[np.float32],
    config: WorldConfig,
) -> None:
    """Put the tag, a light glyph on a dark plate, at the lower right of the thing's cell."""
    assert thing.digit is not None
    dot = config.digit_dot
    glyph = np.array([[mark == "1" for mark in line] for line in GLYPHS[thing.digit]])
    glyph = np.pad(glyph.repeat(dot, 0).repeat(dot, 1), 1)
    height, width = glyph.shape
    bottom, right = np.rint(config.cell - config.jitter + jitter).astype(int).clip(max=config.cell).tolist()
    place = (slice(bottom - height, bottom), slice(right - width, right))
    ink[place] = np.where(glyph[..., None], np.float32(0.97), np.float32(0.06))
    cover[place] = True
