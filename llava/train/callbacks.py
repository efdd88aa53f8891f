"""What happens beside the steps of a run: the right order of samples after a resume, and a readable console."""

from collections.abc import Callable, Collection
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback


class EpochOrder(TrainerCallback):
    """Tells the sampler its epoch; accelerate does not reach it through a loader that skips batches."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sampler.set_epoch(int(state.epoch or 0))


class QuietConsole:
    """Mixed in before one of transformers' console callbacks: leaves the metrics of distillation, of which there are
    several per layer, to tensorboard and trainer_state.json. hidden: asks for the names to leave out."""

    def __init__(self, hidden: Callable[[], Collection[str]]) -> None:
        super().__init__()
        self.hidden = hidden

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        hidden = self.hidden()
        shown = {name: value for name, value in (logs or {}).items() if name not in hidden}
        super().on_log(args, state, control, logs=shown, **kwargs)  # type: ignore[misc]


class QuietPrinter(QuietConsole, PrinterCallback):
    """Without a progress bar."""


class QuietProgress(QuietConsole, ProgressCallback):
    """With one."""
