"""What is logged, and which samples are named when a loss is not finite."""

import math

import pytest
import torch

from llava.train.meter import NonFiniteLoss, StepMeter


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
