"""What is logged, and which samples are named when a loss is not finite."""

import math

import pytest
import torch

from llava.errors import NonFiniteLoss
from llava.train.meter import StepMeter, add_counted, sum_by_name


def _outputs(lm: float, kd: float | None = None, **metrics: float) -> dict[str, object]:
    terms = {"lm": torch.tensor(lm)} | ({} if kd is None else {"kd": torch.tensor(kd)})
    total = torch.stack(list(terms.values())).sum()
    return {"loss": total, "terms": terms, "metrics": {name: torch.tensor(value) for name, value in metrics.items()}}


def test_terms_are_averaged_over_steps_and_metrics_over_where_they_were_measured() -> None:
    meter = StepMeter()
    meter.add(_outputs(1.0, 4.0), ["a"], 2)
    meter.add(_outputs(3.0, 2.0, entropy=0.5), ["b"], 2)
    logs = meter.drain()
    assert (logs["lm"], logs["kd"], logs["entropy"]) == (2.0, 3.0, 0.5)
    assert logs["images_per_second"] > 0
    assert meter.drain() == {}
    assert meter.metrics == {"entropy"}


def test_a_term_that_only_some_steps_have_is_averaged_over_those_and_watched_in_them() -> None:
    meter = StepMeter()
    for lm, kd in ((1.0, None), (2.0, 4.0), (3.0, 2.0)):
        meter.add(_outputs(lm, kd), ["a"], 1)
    logs = meter.drain()
    assert (logs["lm"], logs["kd"]) == (2.0, 3.0)
    for samples, lm, kd in ((["a"], 1.0, None), (["b"], 1.0, math.nan), (["c"], math.nan, None)):
        meter.add(_outputs(lm, kd), samples, 1)
    with pytest.raises(NonFiniteLoss, match=r"^kd not finite 1 micro-batches before the last, in samples b$"):
        meter.check()


def test_processes_with_different_terms_sum_equally_many_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a collective would wait for ever."""
    meters = StepMeter(), StepMeter()
    meters[0].add(_outputs(1.0), ["a"], 1)
    meters[1].add(_outputs(1.0, 4.0), ["b"], 1)
    everywhere = [name for meter in meters for name in ("", *meter.sums)]
    monkeypatch.setattr("llava.train.meter.gather_objects", lambda own: [own, everywhere])
    sizes: list[int] = []

    def summed(values: torch.Tensor) -> list[float]:
        sizes.append(len(values))
        return values.tolist()

    monkeypatch.setattr("llava.train.meter._sum_over_processes", summed)
    logs = [meter.drain() for meter in meters]
    assert sizes[0] == sizes[1]
    assert "kd" not in logs[0]
    assert logs[1]["kd"] == 4.0


def test_sums_of_a_validation_count_each_name_by_itself() -> None:
    sums: dict[str, torch.Tensor] = {}
    assert sum_by_name(sums) == {}
    for name, value in (("lm", 1.0), ("kd", 4.0), ("lm", 2.0)):
        add_counted(sums, name, torch.tensor(value), torch.ones(()))
    assert sum_by_name(sums) == {"lm": (3.0, 2.0), "kd": (4.0, 1.0)}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_bad_micro_batch_is_named_with_its_term(bad: float) -> None:
    meter = StepMeter()
    for samples, kd in ((["a", "b"], 1.0), (["c", "d"], bad), (["e", "f"], bad)):
        meter.add(_outputs(1.0, kd), samples, 2)
    with pytest.raises(NonFiniteLoss, match=r"^kd not finite 1 micro-batches before the last, in samples c, d$"):
        meter.check()
    with pytest.raises(NonFiniteLoss, match="c, d"):
        meter.drain()


def test_finite_losses_pass_the_check() -> None:
    meter = StepMeter()
    meter.check()
    meter.add(_outputs(1.0), ["a"], 0)
    meter.check()


def test_nothing_in_a_step_asks_the_device() -> None:
    """Meta tensors have no values: any read of one on the host raises."""
    meter = StepMeter()
    with torch.device("meta"):
        outputs = {"loss": torch.ones(()), "terms": {"lm": torch.ones(())}, "metrics": {"load": torch.ones(())}}
        meter.add(outputs, ["a"], 1)
        meter.add(outputs, ["b"], 1)
    with pytest.raises(RuntimeError):
        meter.drain()
