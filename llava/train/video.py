"""Frames of a video: from a folder or list of picture files, or from a video file through decord or PyAV.

Neither reader is required: a run without video files never imports them.
"""

import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.train.data_config import DataConfig
from llava.train.images import load_picture, read_file
from llava.train.records import BadSample, DataError

FOLDER_FPS = 2.0  # what a folder of frames is taken to have
FOLDER_FRAMES = 10  # how many of them are shown, unless force_sample asks for frames_upbound


class Frames(NamedTuple):
    """images: RGB. times: seconds of each. duration: seconds of the whole video."""

    images: list[Image.Image]
    times: list[float]
    duration: float


def load_frames(video: str | Sequence[str], config: DataConfig, where: str) -> Frames:
    """The frames that the model is shown. Raises BadSample naming the record and the file.

    Raises DataError when a video file is met and neither decord nor PyAV is installed.
    """
    folder = config.video_folder or config.image_folder
    if not isinstance(video, str):
        return from_files(list(video), folder, config.video_fps, config.frames_upbound or len(video), where)
    path = os.path.join(folder, video) if folder else video
    if os.path.isdir(path):
        files = sorted(entry.path for entry in os.scandir(path) if entry.is_file())
        if not files:
            raise BadSample(f"{where}: the folder {path} holds no frames", "empty_video")
        return from_files(
            files, None, FOLDER_FPS, config.frames_upbound if config.force_sample else FOLDER_FRAMES, where
        )
    read_header(path, where)
    return choose_reader(path)(path, config, where)


def read_header(path: str, where: str) -> None:
    if not os.path.isfile(path) or os.path.getsize(path) == 0:
        read_file(path, where, "video")  # raises the error that says which


def from_files(files: Sequence[str], folder: str | None, fps: float, limit: int, where: str) -> Frames:
    chosen = spread(len(files), min(limit, len(files)))
    images = [load_picture(files[index], folder, where).image for index in chosen]
    if len({image.size for image in images}) > 1:
        images = [image.resize(images[0].size) for image in images]
    return Frames(images, [index / fps for index in chosen], len(files) / fps)


def spread(total: int, count: int) -> list[int]:
    """`count` positions from the first to the last of `total`, evenly spaced and rounded down."""
    return np.linspace(0, total - 1, count, dtype=int).tolist()


def sampled_positions(total: int, fps: float, config: DataConfig) -> list[int]:
    """Which of `total` frames are shown: `video_fps` per second, or where they are too many, `frames_upbound`."""
    positions = list(range(0, total, max(round(fps / config.video_fps), 1)))
    if config.frames_upbound and (len(positions) > config.frames_upbound or config.force_sample):
        return spread(total, config.frames_upbound)
    return positions


def choose_reader(path: str) -> Callable[[str, DataConfig, str], Frames]:
    if importlib.util.find_spec("decord") is not None:
        return read_with_decord
    if importlib.util.find_spec("av") is not None:
        return read_with_av
    raise DataError(
        f"{path} is a video file; reading one needs decord or PyAV (pip install av). "
        "A folder or a list of frame pictures needs neither"
    )


def read_with_decord(path: str, config: DataConfig, where: str) -> Frames:
    import decord

    def read() -> tuple[int, float, Callable[[list[int]], Sequence[Any]]]:
        reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
        return len(reader), float(reader.get_avg_fps()), lambda positions: reader.get_batch(positions).asnumpy()

    return read_file_with(read, path, config, where)


def read_with_av(path: str, config: DataConfig, where: str) -> Frames:
    import av

    def read() -> tuple[int, float, Callable[[list[int]], Sequence[Any]]]:
        with av.open(path) as container:
            stream = container.streams.video[0]
            fps = float(stream.average_rate)
            total = sum(1 for _ in container.decode(video=0))
        return total, fps, lambda positions: decode_with_av(path, set(positions), positions)

    return read_file_with(read, path, config, where)


def decode_with_av(path: str, wanted: set[int], positions: list[int]) -> list[np.ndarray]:
    import av

    with av.open(path) as container:
        frames = {
            index: frame.to_ndarray(format="rgb24")
            for index, frame in enumerate(container.decode(video=0))
            if index in wanted
        }
    return [frames[position] for position in positions]


def read_file_with(read: Callable[[], Any], path: str, config: DataConfig, where: str) -> Frames:
    try:
        total, fps, get = read()
        if total < 1 or fps <= 0:
            raise ValueError(f"it has {total} frames at {fps} per second")
        positions = sampled_positions(total, fps, config)
        images = [Image.fromarray(frame).convert("RGB") for frame in get(positions)]
    except Exception as error:  # the readers raise types of their own
        raise BadSample(f"{where}: {path} cannot be read as a video: {error!r}", "corrupt_video") from None
    return Frames(images, [position / fps for position in positions], total / fps)


def with_time_instruction(text: str, frames: Frames) -> str:
    """The first question with the sentences that tell when the frames were taken, `<image>` in front."""
    times = ",".join(f"{time:.2f}s" for time in frames.times)
    question = text.replace(DEFAULT_IMAGE_TOKEN, "").strip("\n")
    return (
        f"{DEFAULT_IMAGE_TOKEN}\nThe video lasts for {frames.duration:.2f} seconds, and {len(frames.images)} frames "
        f"are uniformly sampled from it. These frames are located at {times}.Please answer the following questions "
        f"related to this video.\n{question}"
    )
