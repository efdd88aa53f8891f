from dataclasses import replace

import numpy as np
import pytest

from playground.world import GRID, SHAPES, SPLITS, Scene, Thing, WorldConfig, draw_scenes, render, split_of

WORLD = WorldConfig()


def scene(**changes: object) -> Scene:
    thing = Thing(4, "red", "square", "solid", "big", None)
    return Scene((replace(thing, **changes),), (0, 0, 0))


def test_equal_numbers_give_equal_scenes_and_pictures_however_many_are_drawn_together() -> None:
    several = draw_scenes(WORLD, "train", 6)
    alone = draw_scenes(WORLD, "train", 1, start=4)
    assert several[4] == alone[0]
    together, single = render(several, WORLD), render(alone, WORLD)
    assert (together.pixels[4] == single.pixels[0]).all()
    assert (together.owner[4] == single.owner[0]).all()


def test_another_seed_gives_other_scenes() -> None:
    assert draw_scenes(WORLD, "train", 5) != draw_scenes(replace(WORLD, seed=1), "train", 5)


def test_no_symbolic_scene_is_in_two_splits() -> None:
    # Single things are few, so that equal ones would be drawn again and again.
    crowded = replace(WORLD, min_things=1, max_things=1)
    symbols = {split: {s.symbols for s in draw_scenes(crowded, split, 200)} for split in SPLITS}
    assert not symbols["train"] & symbols["validation"]
    assert not symbols["train"] & symbols["heldout"]
    assert not symbols["validation"] & symbols["heldout"]


def test_the_split_depends_on_what_is_seen_and_not_on_the_seed() -> None:
    for split in SPLITS:
        for drawn in draw_scenes(WORLD, split, 20):
            assert split_of(drawn, WORLD) == split
            assert split_of(replace(drawn, seed=(9, 9, 9)), WORLD) == split
    seeds = {s.seed for split in SPLITS for s in draw_scenes(WORLD, split, 20)}
    assert len(seeds) == 60


def test_things_are_within_the_limits_and_in_reading_order() -> None:
    drawn = draw_scenes(WORLD, "train", 200)
    assert {len(s.things) for s in drawn} == {2, 3, 4, 5}
    for s in drawn:
        cells = [thing.cell for thing in s.things]
        assert cells == sorted(set(cells))


@pytest.mark.parametrize(
    ("changes"),
    [{"shape": shape} for shape in SHAPES if shape != "square"]
    + [{"color": "blue"}, {"texture": "dotted"}, {"size": "small"}, {"digit": "7"}, {"cell": 0}],
    ids=str,
)
def test_every_attribute_can_be_seen(changes: dict[str, object]) -> None:
    pixels = render([scene(), scene(**changes)], WORLD).pixels.astype(int)
    assert (np.abs(pixels[0] - pixels[1]) > 20).any(-1).sum() > 20


def test_the_owner_map_marks_each_thing_in_its_own_cell() -> None:
    drawn = draw_scenes(WORLD, "train", 20)
    owner = render(drawn, WORLD).owner
    for number, s in enumerate(drawn):
        assert set(np.unique(owner[number])) == {-1, *range(len(s.things))}
        for place, thing in enumerate(s.things):
            rows, columns = np.nonzero(owner[number] == place)
            assert set((rows // WORLD.cell * GRID + columns // WORLD.cell).tolist()) == {thing.cell}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_things": 6}, "to 6; there can be 1 to 5"),
        ({"digits": "0x"}, "x"),
        ({"digits": ""}, "there must be some"),
        ({"digit_probability": 0.0}, "probability 0.0"),
        ({"digit_dot": 6}, "dots of 6"),
        ({"big_radius": 15.0}, "15.0"),
        ({"texture_period": 0}, "texture_period 0"),
        ({"noise": float("nan")}, "noise nan"),
        ({"seed": -1}, "seed -1"),
        ({"background": 0.3}, "two numbers"),
        ({"heldout_percent": 0}, "0"),
        ({"validation_percent": 50, "heldout_percent": 45}, "at most 90"),
    ],
)
def test_a_world_that_cannot_be_drawn_is_refused(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        replace(WORLD, **changes)
