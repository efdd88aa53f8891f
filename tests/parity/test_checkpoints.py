"""Checkpoints written by the published implementations: strictly loaded, and written back under the same names."""

from pathlib import Path

import pytest
import torch

from llava.model.checkpoint import load_student, read_state_dict, save_student, upgrade_state_dict
from llava.model.checkpoint_names import is_ignorable, publish_experts
from llava.model.checkpoint_parts import find_parts, read_part
from tests.parity.vectors import Case, cases

ALL = cases("H_end_to_end")
FULL = [case for case in ALL if (case.path.parent / "checkpoint").is_dir()]
STAGE_ONE = [case for case in ALL if (case.path.parent / "pretrain_output").is_dir()]


def test_there_are_checkpoints_of_both_kinds() -> None:
    assert FULL
    assert STAGE_ONE


@pytest.mark.parametrize("case", FULL, ids=str)
def test_a_published_checkpoint_loads_strictly_and_is_written_back(case: Case, tmp_path: Path) -> None:
    folder = case.path.parent / "checkpoint"
    student = load_student(None, folder, overwrite_config={"mm_vision_tower": str(case.path.parent / "clip")})
    published = {name: tensor for name, tensor in read_state_dict(folder).items() if not is_ignorable(name)}
    loaded = student.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in upgrade_state_dict(published).items())
    save_student(student, tmp_path)
    written = read_state_dict(tmp_path)
    assert published.keys() <= written.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in published.items())
    assert all(".vision_tower." in name for name in written.keys() - published.keys())


@pytest.mark.parametrize("case", STAGE_ONE, ids=str)
def test_published_stage_one_files_are_read_and_written_back(case: Case) -> None:
    parts = find_parts(case.path.parent / "pretrain_output")
    assert set(parts) == {"projector", "mole", "adapters"}
    for part in ("projector", "mole"):
        original = read_state_dict(parts[part])
        again = publish_experts(read_part(part, parts[part]))
        assert again.keys() == original.keys()
        assert all(torch.equal(again[name], tensor) for name, tensor in original.items())
