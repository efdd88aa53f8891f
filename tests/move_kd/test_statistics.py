import pytest
import torch
from torch import nn

from llava.model.multimodal_encoder.move_kd import statistics as module
from llava.model.multimodal_encoder.move_kd.statistics import ChannelStatistics, update_statistics


def test_running_statistics_equal_those_of_all_images_at_once() -> None:
    images = torch.randn(10, 7, 5) * torch.tensor([1.0, 5.0, 0.1, 3.0, 20.0]) + torch.tensor(
        [0.0, 50.0, 1.0, -9.0, 2.0]
    )
    statistics = ChannelStatistics(5)
    for chunk in images.split([1, 4, 2, 3]):
        update_statistics([statistics], [chunk], torch.ones(len(chunk)))
    flat = images.flatten(0, 1)
    torch.testing.assert_close(statistics.mean, flat.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(statistics.variance, flat.var(0, unbiased=False), rtol=1e-3, atol=1e-5)
    standardized = statistics(images).flatten(0, 1)
    torch.testing.assert_close(standardized.mean(0), torch.zeros(5), rtol=0, atol=1e-4)
    torch.testing.assert_close(standardized.std(0, unbiased=False), torch.ones(5), rtol=1e-3, atol=1e-3)
    assert (statistics.count.item(), statistics.steps.item()) == (10, 4)


def test_a_channel_far_from_zero_keeps_its_small_spread() -> None:
    statistics = ChannelStatistics(1)
    for _ in range(3):
        update_statistics([statistics], [1000 + 0.1 * torch.randn(8, 64, 1)], torch.ones(8))
        assert statistics.variance.sqrt().item() == pytest.approx(0.1, rel=0.2)


def test_blank_images_do_not_count() -> None:
    images = torch.randn(4, 3, 2)
    with_blanks, without = ChannelStatistics(2), ChannelStatistics(2)
    update_statistics(
        [with_blanks], [torch.cat([images, torch.full((2, 3, 2), 1e6)])], torch.tensor([1.0] * 4 + [0.0] * 2)
    )
    update_statistics([without], [images], torch.ones(4))
    assert torch.equal(with_blanks.mean, without.mean)
    assert torch.equal(with_blanks.variance, without.variance)


def test_a_batch_of_blanks_changes_nothing_and_gives_no_nan() -> None:
    statistics = ChannelStatistics(2)
    update_statistics([statistics], [torch.randn(3, 4, 2)], torch.zeros(3))
    assert torch.equal(statistics.mean, torch.zeros(2))
    assert torch.equal(statistics.variance, torch.ones(2))
    assert statistics.steps.item() == 0
    assert torch.isfinite(statistics(torch.randn(1, 4, 2))).all()


def test_statistics_freeze_after_the_steps_that_were_asked_for() -> None:
    statistics = ChannelStatistics(2, max_steps=2)
    for _ in range(2):
        update_statistics([statistics], [torch.randn(3, 4, 2)], torch.ones(3))
    mean = statistics.mean.clone()
    update_statistics([statistics], [torch.randn(3, 4, 2) + 100], torch.ones(3))
    assert torch.equal(statistics.mean, mean)
    assert statistics.steps.item() == 2


@pytest.mark.parametrize("cast", [nn.Module.bfloat16, nn.Module.half, nn.Module.double])
def test_statistics_stay_float32_when_the_model_is_cast(cast: object) -> None:
    model = nn.ModuleDict({"eva": ChannelStatistics(3), "head": nn.Linear(2, 2)})
    update_statistics([model["eva"]], [torch.randn(3, 4, 3)], torch.ones(3))
    before = model["eva"].mean.clone()
    cast(model)
    assert model["head"].weight.dtype != torch.float32
    assert model["eva"].mean.dtype == torch.float32
    assert torch.equal(model["eva"].mean, before)
    assert model["eva"].steps.dtype == torch.int64


def test_statistics_are_saved_and_restored() -> None:
    first, second = ChannelStatistics(3), ChannelStatistics(3)
    update_statistics([first], [torch.randn(3, 4, 3)], torch.ones(3))
    second.load_state_dict(first.state_dict())
    assert set(first.state_dict()) == {"mean", "variance", "count", "steps"}
    x = torch.randn(2, 4, 3)
    assert torch.equal(first(x), second(x))


def test_two_processes_end_with_the_statistics_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reduction is replaced by a sum with what the other process would send."""
    ours, theirs = torch.randn(3, 4, 2), torch.randn(5, 4, 2) + 3
    alone = ChannelStatistics(2)
    update_statistics([alone], [torch.cat([ours, theirs])], torch.ones(8))
    other = ChannelStatistics(2).moments(theirs, torch.ones(5))
    calls = []

    def all_reduce(tensor: torch.Tensor) -> None:
        calls.append(tensor.shape)
        tensor += other

    monkeypatch.setattr(module.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(module.dist, "all_reduce", all_reduce)
    statistics = ChannelStatistics(2)
    update_statistics([statistics], [ours], torch.ones(3))
    torch.testing.assert_close(statistics.mean, alone.mean)
    torch.testing.assert_close(statistics.variance, alone.variance)
    assert calls == [(5,)]
