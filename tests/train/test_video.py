"""Videos as folders or lists of frames, and as files where a reader is installed."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.multimodal_encoder.move_kd.types import ImageSpec
from llava.train.collator import Collator
from llava.train.data_config import DataConfig
from llava.train.records import BadSample, DataError
from llava.train.video import Frames, load_frames, sampled_positions, with_time_instruction
from tests.train.data import SIDE, draw, make_dataset, turns


def frames(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    return [draw(folder / f"{index:03d}.png", 40, 30, index) for index in range(count)]


def record(video: Any, question: str = "<image>\nWhat happens?") -> dict[str, Any]:
    return {"id": "v", "video": video, "conversations": turns(question, "It moves.")}


def test_folder_of_frames_is_one_entry_of_as_many_tiles(tmp_path: Path) -> None:
    frames(tmp_path / "clip", 4)
    spec = ImageSpec(8, (0.5,) * 3, (0.5,) * 3)
    item = make_dataset([record("clip")], video_folder=str(tmp_path), sources={"a": spec}, image_aspect_ratio="pad")[0]
    assert [image.shape for image in item["image"]] == [(4, 3, SIDE, SIDE)]
    assert item["modalities"] == ["video"]
    assert item["image_sizes"] == [(40, 30)]
    assert (item["input_ids"] == IMAGE_TOKEN_INDEX).sum() == 1
    assert item["tile_of_view"] == [2]
    every = make_dataset([record("clip")], tmp_path, {"a": spec}, distill_views="all")[0]
    assert every["tile_of_view"] == [0, 1, 2, 3]
    batch = Collator(0)([item, every])
    assert batch["distill"]["tile_index"].tolist() == [2, 4, 5, 6, 7]
    assert batch["distill"]["tile_weight"].tolist() == [1] * 8
    assert isinstance(batch["images"], list)


def test_list_of_frames_is_taken_whole_or_spread_over_the_bound(tmp_path: Path) -> None:
    names = frames(tmp_path, 7)
    config = DataConfig(image_folder=str(tmp_path), video_fps=2)
    whole = load_frames(tuple(names), config, "here")
    assert len(whole.images) == 7
    assert (whole.times[2], whole.duration) == (1.0, 3.5)
    bounded = load_frames(tuple(names), DataConfig(image_folder=str(tmp_path), frames_upbound=3), "here")
    assert bounded.times == [0, 3, 6]


def test_folder_shows_ten_frames_unless_a_number_is_forced(tmp_path: Path) -> None:
    frames(tmp_path / "clip", 21)
    config = DataConfig(video_folder=str(tmp_path))
    assert load_frames("clip", config, "here").times == [index / 2 for index in (0, 2, 4, 6, 8, 11, 13, 15, 17, 20)]
    forced = DataConfig(video_folder=str(tmp_path), frames_upbound=3, force_sample=True)
    assert load_frames("clip", forced, "here").times == [0, 5, 10]


@pytest.mark.parametrize(
    ("total", "fps", "settings", "expected"),
    [
        (10, 4, {}, [0, 4, 8]),
        (10, 4, {"video_fps": 2}, [0, 2, 4, 6, 8]),
        (10, 4, {"video_fps": 2, "frames_upbound": 3}, [0, 4, 9]),
        (10, 4, {"frames_upbound": 4}, [0, 4, 8]),
        (10, 4, {"frames_upbound": 4, "force_sample": True}, [0, 3, 6, 9]),
        (3, 0.2, {}, [0, 1, 2]),
    ],
)
def test_frames_are_taken_by_the_second_up_to_the_bound(
    total: int, fps: float, settings: dict[str, Any], expected: list[int]
) -> None:
    assert sampled_positions(total, fps, DataConfig(**settings)) == expected


def test_time_instruction_names_duration_and_times(tmp_path: Path) -> None:
    shown = Frames([Image.new("RGB", (2, 2))] * 2, [0.0, 1.5], 3.25)
    assert with_time_instruction("<image>\nWhat?", shown) == (
        "<image>\nThe video lasts for 3.25 seconds, and 2 frames are uniformly sampled from it. These frames are "
        "located at 0.00s,1.50s.Please answer the following questions related to this video.\nWhat?"
    )
    frames(tmp_path / "clip", 2)
    told = make_dataset([record("clip", "What?")], tmp_path, add_time_instruction=True)[0]
    assert (told["input_ids"] == IMAGE_TOKEN_INDEX).sum() == 1


def test_frames_of_another_size_are_brought_to_the_first(tmp_path: Path) -> None:
    names = (draw(tmp_path / "a.png", 40, 30), draw(tmp_path / "b.png", 20, 30))
    images = load_frames(names, DataConfig(image_folder=str(tmp_path)), "here").images
    assert [image.size for image in images] == [(40, 30)] * 2


def test_unusable_videos_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "zero.mp4").write_bytes(b"")
    frames(tmp_path / "clip", 1)
    (tmp_path / "clip" / "notes.txt").write_text("not a frame")
    config = DataConfig(video_folder=str(tmp_path))
    for video, reason in (
        ("gone.mp4", "missing_video"),
        ("zero.mp4", "empty_video"),
        ("empty", "empty_video"),
        ("clip", "corrupt_image"),
        (("gone.png",), "missing_image"),
    ):
        with pytest.raises(BadSample, match=r"^here") as caught:
            load_frames(video, config, "here")
        assert caught.value.reason == reason


def test_video_file_without_a_reader_stops_the_run_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(DataError, match="pip install av") as caught:
        make_dataset([record("a.mp4")], tmp_path)[0]
    assert not isinstance(caught.value, BadSample)


class FakeReader:
    def __init__(self, path: str, ctx: object, num_threads: int) -> None:
        if Path(path).read_bytes() == b"broken":
            raise RuntimeError("no stream")

    def __len__(self) -> int:
        return 6

    def get_avg_fps(self) -> float:
        return 2.0

    def get_batch(self, positions: list[int]) -> Any:
        batch = np.stack([np.full((30, 40, 3), 10 * position, dtype=np.uint8) for position in positions])
        return SimpleNamespace(asnumpy=lambda: batch)


def test_video_file_is_read_through_decord(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("decord")
    fake.VideoReader, fake.cpu = FakeReader, lambda index: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "decord", fake)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "decord" or None)
    (tmp_path / "a.mp4").write_bytes(b"x")
    read = load_frames("a.mp4", DataConfig(video_folder=str(tmp_path)), "here")
    assert [np.asarray(image)[0, 0, 0] for image in read.images] == [0, 20, 40]
    assert (read.times, read.duration) == ([0, 1, 2], 3)
    (tmp_path / "b.mp4").write_bytes(b"broken")
    with pytest.raises(BadSample, match=r"b\.mp4 cannot be read as a video.*no stream") as caught:
        load_frames("b.mp4", DataConfig(video_folder=str(tmp_path)), "here")
    assert caught.value.reason == "corrupt_video"
    item = make_dataset([record("a.mp4")], tmp_path)[0]
    assert item["image"][0].shape == (3, 3, SIDE, SIDE)
    assert torch.isfinite(item["image"][0]).all()
