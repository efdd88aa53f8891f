from pathlib import Path

import pytest
import torch

from llava.model.multimodal_encoder.move_kd.teachers import build_teachers
from playground import teachers
from playground.world import SHAPES, SIZES, TEXTURES, Scene, Thing, WorldConfig, render

TINY = teachers.TeacherTraining(steps=2, batch=2, scenes=4)
THING = Thing(4, "red", "square", "dotted", "big", "7")


@pytest.mark.parametrize("kind", teachers.KINDS)
def test_a_trained_teacher_is_loaded_with_equal_features(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, pupils = WorldConfig(), []
    monkeypatch.setattr(teachers, "measure", lambda pupil, lessons: pupils.append(pupil.eval()) or {})
    teachers.train(kind, TINY, world, tmp_path)
    path = tmp_path / teachers.EVA_FILE if kind == "eva" else tmp_path
    teacher = build_teachers([f"{kind}:path={path},size={world.side}"])[kind]
    pixels = torch.from_numpy(render([Scene((THING,), (0, 0, 0))], world).pixels).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = pupils[0].body((pixels / 255 - pupils[0].mean) / pupils[0].std).flatten(2).transpose(1, 2)
        torch.testing.assert_close(teacher(pixels).patches, expected, rtol=1e-4, atol=1e-4)


def test_labels_say_what_is_where() -> None:
    scenes = [Scene((THING,), (0, 0, 0))]
    pictures = render(scenes, WorldConfig())
    cells = teachers.label_cells(scenes, pictures)
    assert cells["texture"][0].tolist() == [0, 0, 0, 0, 1 + TEXTURES.index("dotted"), 0, 0, 0, 0]
    assert cells["digit"][0, 4] == 8
    patches = teachers.label_patches(scenes, pictures)
    middle = 5 * 12 + 5
    assert patches["shape"][0, middle] == 1 + SHAPES.index("square")
    assert patches["size"][0, middle] == 1 + SIZES.index("big")
    assert patches["shape"][0, 0] == 0
    pixels = teachers.label_pixels(scenes, pictures)
    assert pixels["mask"].sum() == (pictures.owner >= 0).sum()
    assert (pixels["edge"] <= pixels["mask"]).all()
    assert 0 < pixels["edge"].sum() < pixels["mask"].sum()
