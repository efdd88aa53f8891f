"""Small services around a run: log files, printing by rank, video frames, moderation. Nothing here knows a model."""

import json
import logging
import logging.handlers
import os
import sys
import threading
import urllib.request
from typing import Any, NamedTuple, TextIO

import numpy as np
import torch

from llava.constants import LOGDIR

server_error_msg = "**NETWORK ERROR DUE TO HIGH TRAFFIC. PLEASE REGENERATE OR REFRESH THIS PAGE.**"
moderation_msg = "YOUR INPUT VIOLATES OUR CONTENT MODERATION GUIDELINES. PLEASE TRY AGAIN."

_FORMAT = logging.Formatter("%(asctime)s | %(levelname)s | %(name)s | %(message)s", "%Y-%m-%d %H:%M:%S")


def build_logger(logger_name: str, logger_filename: str, redirect: bool = True) -> logging.Logger:
    """A logger whose lines, like those of every other logger, go to the terminal and to a file in LOGDIR.

    The file rotates daily (UTC). redirect: what is printed to stdout and stderr is logged as well, under these names.
    """
    root = logging.getLogger()
    if not root.handlers:
        logging.basicConfig(level=logging.INFO)
    root.handlers[0].setFormatter(_FORMAT)
    path = os.path.abspath(os.path.join(LOGDIR, logger_filename))
    if not any(isinstance(handler, logging.FileHandler) and handler.baseFilename == path for handler in root.handlers):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        handler = logging.handlers.TimedRotatingFileHandler(path, when="D", utc=True, encoding="utf-8")
        handler.setFormatter(_FORMAT)
        root.addHandler(handler)
    if redirect and not isinstance(sys.stdout, StreamToLogger):
        sys.stdout = StreamToLogger(_logger("stdout", logging.INFO), logging.INFO)  # type: ignore[assignment]
        sys.stderr = StreamToLogger(_logger("stderr", logging.ERROR), logging.ERROR)  # type: ignore[assignment]
    return _logger(logger_name, logging.INFO)


def _logger(name: str, level: int) -> logging.Logger:
    logger = logging.getLogger(name)
    logger.setLevel(level)
    return logger


class StreamToLogger:
    """A text stream that logs complete lines; a line without its end waits for more, or for `flush`."""

    def __init__(self, logger: logging.Logger, log_level: int = logging.INFO) -> None:
        self.terminal: TextIO = sys.stdout
        self.logger = logger
        self.log_level = log_level
        self.linebuf = ""

    def __getattr__(self, attr: str) -> Any:
        return getattr(self.terminal, attr)

    def write(self, text: str) -> int:
        *lines, self.linebuf = (self.linebuf + text).split("\n")
        for line in lines:
            self.logger.log(self.log_level, line.rstrip())
        return len(text)

    def flush(self) -> None:
        if self.linebuf:
            self.logger.log(self.log_level, self.linebuf.rstrip())
        self.linebuf = ""


def disable_torch_init() -> None:
    """Does nothing: loading a checkpoint no longer spends time on random weights. Older clients call it first."""


def violates_moderation(text: str) -> bool:
    """Whether OpenAI's moderation endpoint flags `text`; False, with a warning, when it cannot be reached.

    Raises ValueError when OPENAI_API_KEY is not set.
    """
    key = os.environ.get("OPENAI_API_KEY")
    if not key:
        raise ValueError("moderation asks OpenAI and needs OPENAI_API_KEY in the environment; set it or turn it off")
    request = urllib.request.Request(
        "https://api.openai.com/v1/moderations",
        data=json.dumps({"input": text.replace("\n", "")}).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:
            return bool(json.load(reply)["results"][0]["flagged"])
    except (OSError, ValueError, KeyError, IndexError) as error:
        logging.getLogger(__name__).warning("moderation failed, text passes: %r", error)
        return False


def pretty_print_semaphore(semaphore: threading.Semaphore | Any | None) -> str:
    """A semaphore's free places, for a status line."""
    return "None" if semaphore is None else f"Semaphore(value={semaphore._value}, locked={semaphore._value == 0})"


def _rank() -> int | None:
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if is_distributed else None


def rank0_print(*args: Any) -> None:
    """Prints on the first process of a distributed run only."""
    rank = _rank()
    if rank is None:
        print(*args)
    elif rank == 0:
        print("Rank 0: ", *args)


def rank_print(*args: Any) -> None:
    """Prints on every process, with its rank in a distributed run."""
    rank = _rank()
    print(*args) if rank is None else print(f"Rank {rank}: ", *args)


class VideoFrames(NamedTuple):
    """frames: (F, H, W, 3) uint8. duration: seconds. times: "0.00s,1.00s,..." of the frames.
    num_frames: F."""

    frames: np.ndarray
    duration: float
    times: str
    num_frames: int


def sample_frames(
    total: int, frames_per_second: float, *, video_fps: float, frames_upbound: int, force_sample: bool
) -> list[int]:
    """Indices of the frames to show: `video_fps` a second, or `frames_upbound` spread evenly.

    The even spread is taken when there would be more than `frames_upbound` (0: no bound), and with `force_sample`.
    """
    if total < 1:
        raise ValueError("the video has no frames; the file is damaged or no video")
    step = max(round(frames_per_second / video_fps), 1)
    indices = list(range(0, total, step))
    if frames_upbound > 0 and (len(indices) > frames_upbound or force_sample):
        return np.linspace(0, total - 1, frames_upbound, dtype=int).tolist()
    return indices


def _frame_plan(total: int, rate: float, data_args: Any) -> tuple[list[int], str]:
    indices = sample_frames(
        total,
        rate,
        video_fps=data_args.video_fps,
        frames_upbound=data_args.frames_upbound,
        force_sample=data_args.force_sample,
    )
    return indices, ",".join(f"{index / rate:.2f}s" for index in indices)


def process_video_with_decord(video_file: str, data_args: Any) -> VideoFrames:
    """Frames of a video, read by decord. data_args: video_fps, frames_upbound, force_sample."""
    from decord import VideoReader, cpu

    reader = VideoReader(video_file, ctx=cpu(0), num_threads=1)
    rate = reader.get_avg_fps()
    indices, times = _frame_plan(len(reader), rate, data_args)
    return VideoFrames(reader.get_batch(indices).asnumpy(), len(reader) / rate, times, len(indices))


def process_video_with_pyav(video_file: str, data_args: Any) -> VideoFrames:
    """Frames of a video, read by PyAV. data_args: video_fps, frames_upbound, force_sample."""
    import av

    with av.open(video_file) as container:
        stream = container.streams.video[0]
        rate, total = float(stream.average_rate), stream.frames
    if not total:  # some containers do not say
        with av.open(video_file) as container:
            total = sum(1 for _ in container.decode(video=0))
    indices, times = _frame_plan(total, rate, data_args)
    wanted = set(indices)
    with av.open(video_file) as container:
        decoded = enumerate(container.decode(video=0))
        kept = {index: frame.to_ndarray(format="rgb24") for index, frame in decoded if index in wanted}
    frames = np.stack([kept[index] for index in indices if index in kept])
    return VideoFrames(frames, total / rate, times, len(frames))
