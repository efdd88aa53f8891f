"""One tiny world for all training tests of a session, and one finished stage 1 on it."""

from pathlib import Path

import pytest

from tests.train.runs import STAGE_ONE, World, make_world, train_tiny


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def stage_one(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of stage 1, with one checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
        return train_tiny(world, tmp_path_factory.mktemp("stage1"), patch, STAGE_ONE, saving)
