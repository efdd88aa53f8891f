import copy
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llava.model.multimodal_encoder.move_kd.config import DistillConfig, MoLEConfig
from llava.model.multimodal_encoder.move_kd.distiller import Distiller
from llava.model.multimodal_encoder.move_kd.objectives.base import Objective
from tests.move_kd.fakes import SIDE, FakeStudent, batch, features, teachers, tokens

RECIPES = ("release", "paper", "ours")
SETS = [(), ("clip",), ("eva",), ("clip", "eva"), ("clip", "eva", "convnext", "sam")]


def config_for(recipe: str, names: tuple[str, ...]) -> DistillConfig:
    return DistillConfig.from_recipe(recipe, anchor_is_target="clip" in names)


def anchored(names: tuple[str, ...]) -> tuple[str, ...]:
    """Where CLIP is no target, the student's frozen copy still answers as the anchor."""
    return names if "clip" in names or not names else (*names, "clip")


def build(recipe: str, names: tuple[str, ...], **changes: Any) -> Distiller:
    config = config_for(recipe, names)
    if changes:
        config = DistillConfig(**{**vars(config), **changes})
    return Distiller(FakeStudent(), teachers(*anchored(names)), config)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("names", SETS)
def test_any_set_of_teachers_gives_named_terms_that_sum_to_the_loss(recipe: str, names: tuple[str, ...]) -> None:
    distiller = build(recipe, names)
    answer = distiller(batch() if names else None, features(*anchored(names)), images=tokens())
    assert set(answer["terms"]) == {"lm", "balance", *(f"kd/{name}" for name in names)}
    assert torch.equal(sum(answer["terms"].values()), answer["loss"])
    assert answer["loss"].dtype == torch.float32
    assert answer["loss"].shape == ()
    assert not any(value.requires_grad for value in answer["terms"].values())
    assert answer["metrics"] == {}
    answer["loss"].backward()
    missing = [name for name, p in distiller.named_parameters() if p.grad is None and p.requires_grad]
    assert not missing


def test_ten_teachers_share_what_the_anchor_leaves() -> None:
    ten = {f"t{i}": SimpleNamespace(grid=(8, 8), width=6) for i in range(10)} | teachers("clip")
    said = {name: features("eva")["eva"] for name in ten if name != "clip"} | features("clip")
    distiller = Distiller(FakeStudent(), ten, DistillConfig())
    distiller.collect_metrics = True
    metrics = distiller(batch(), said, images=tokens())["metrics"]
    assert metrics["weight/clip"].item() == pytest.approx(0.05)
    assert metrics["weight/t7"].item() == pytest.approx(0.095)


def test_a_student_alone_is_plain_llava() -> None:
    student = FakeStudent()
    x = tokens()
    answer = Distiller(student)(images=x)
    assert set(answer["terms"]) == {"lm"}
    assert torch.equal(answer["loss"], student(x).loss.detach())
    assert not list(Distiller(student).adapters.parameters())


@pytest.mark.parametrize("recipe", RECIPES)
def test_blanks_count_only_as_released(recipe: str) -> None:
    distiller = build(recipe, ("clip", "eva"))
    distiller.eval()
    x, said = tokens(), features("clip", "eva")
    blank = batch(blank=2)
    other = {name: f._replace(patches=f.patches.index_fill(0, torch.tensor([2]), 5.0)) for name, f in said.items()}
    first, second = (distiller(blank, s, images=x)["terms"] for s in (said, other))
    counted = [name for name in first if first[name] != second[name]]
    assert bool(counted) == (recipe == "release")


def test_a_step_of_blanks_alone_costs_only_the_language_model_and_has_zero_gradients() -> None:
    distiller = build("ours", ("clip", "eva"))
    none = {name: value * 0 if name != "tile_index" else value for name, value in batch().items()}
    answer = distiller(none, features("clip", "eva"), images=tokens())
    assert torch.equal(answer["loss"], answer["terms"]["lm"])
    answer["loss"].backward()
    for parameter in distiller.adapters.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_teachers_may_show_some_of_the_tiles() -> None:
    distiller = build("paper", ("clip", "eva"))
    some = {"tile_index": torch.tensor([3, 1]), "weight": torch.ones(2), "tile_weight": torch.ones(4)}
    x, said = tokens(4), features("clip", "eva", images=2)
    before = distiller(some, said, images=x)["terms"]["kd/eva"]
    changed = x.clone()
    changed[0] += 1.0
    assert torch.equal(distiller(some, said, images=changed)["terms"]["kd/eva"], before)
    changed[3] += 1.0
    assert not torch.equal(distiller(some, said, images=changed)["terms"]["kd/eva"], before)


@pytest.mark.parametrize(
    "change",
    [
        {"heads": "teacher"},
        {"heads": "interpolate"},
        {"experts": "own"},
        {"standardize": False},
        {"grid": "pool"},
        {"token_weights": "uniform"},
        {"token_weights": "attention"},
        {"token_weights": "release"},
        {"heads": "teacher", "teacher_weights": "similarity"},
        {"heads": "interpolate", "teacher_weights": "release"},
        {"balance": "pooled"},
        {"anchor_share": 0.8},
        {"blank_weight": 1.0},
        {"objectives": (("weighted_mse", 1.0),)},
    ],
)
def test_every_part_of_the_recipe_can_be_switched_by_itself(change: dict[str, Any]) -> None:
    """Same seed, same batch with a blank, off balance: each switch alone changes the loss."""
    losses = []
    for changes in ({}, change):
        torch.manual_seed(3)
        distiller = build("ours", ("clip", "eva", "sam"), **changes)
        with torch.no_grad():
            distiller.student.layers[0].router.bias.copy_(torch.tensor([4.0, 0.0, 0.0]))
        torch.manual_seed(4)
        losses.append(distiller(batch(blank=1), features("clip", "eva", "sam"), images=tokens())["loss"])
    assert losses[0] != losses[1]


def test_a_teacher_with_an_expert_of_its_own_reaches_no_other_expert_and_no_router() -> None:
    distiller = build("ours", ("clip", "eva", "sam"), experts="own")
    answer = distiller(batch(), features("clip", "eva", "sam"), images=tokens())
    inputs = distiller.distill_inputs(distiller.student(tokens()).vision, batch(), features("clip", "eva", "sam"))
    inputs.pairs["eva"].prediction.square().sum().backward()
    for layer in distiller.student.layers:
        assert not layer.router.weight.grad.any()
        for bank in (layer.moe_down, layer.moe_up):
            assert [bool(expert.any()) for expert in bank.expand_weight.grad] == [False, True, False]
    swapped = build("ours", ("clip", "sam", "eva"), experts="own")
    swapped.load_state_dict(distiller.state_dict())
    again = swapped.distill_inputs(inputs.student, batch(), inputs.teachers)
    torch.testing.assert_close(again.pairs["eva"].prediction, inputs.pairs["eva"].prediction)
    assert len(inputs.student.routing[0].choice) == len(inputs.student.patches)
    assert set(answer["terms"]) == {"lm", "balance", "kd/clip", "kd/eva", "kd/sam"}


def test_the_anchor_that_is_no_target_weighs_tokens_and_has_no_term() -> None:
    distiller = Distiller(FakeStudent(), teachers("eva", "clip"), DistillConfig(anchor_is_target=False))
    assert set(distiller.adapters) == {"eva"}
    said = features("eva", "clip")
    with pytest.raises(ValueError, match=r"no features of \['clip'\]"):
        distiller(batch(), {"eva": said["eva"]}, images=tokens())
    assert "kd/clip" not in distiller(batch(), said, images=tokens())["terms"]


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=r"'clip', but the teachers are \['eva'\]"):
        Distiller(FakeStudent(), teachers("eva"))
    with pytest.raises(ValueError, match="unknown objective 'huber'"):
        build("ours", ("clip",), objectives=(("huber", 1.0),))
    distiller = build("ours", ("clip", "eva"))
    with pytest.raises(ValueError, match=r"holds no teacher images, but \['clip', 'eva'\]"):
        distiller(images=tokens())
    with pytest.raises(ValueError, match="encoded no image"):
        distiller(batch(), features("clip", "eva"), images=None)
    mute = features("clip", "eva")
    mute["clip"] = mute["clip"]._replace(cls_attention=None)
    with pytest.raises(ValueError, match="reads cls_attention of teacher 'clip'"):
        distiller(batch(), mute, images=tokens())
    distiller.student.forward = lambda **_: SimpleNamespace(loss=None, vision=None)
    with pytest.raises(ValueError, match="no loss"):
        distiller(images=None)


def test_validation_without_teachers_gives_the_language_models_loss() -> None:
    distiller = build("ours", ("clip", "eva")).eval()
    assert set(distiller(images=tokens())["terms"]) == {"lm", "balance"}


def test_statistics_learn_in_training_from_real_images_and_rest_in_evaluation() -> None:
    distiller = build("ours", ("clip", "eva"))
    statistics = distiller.adapters["eva"].statistics
    said = features("clip", "eva")
    distiller(batch(blank=0), said, images=tokens())
    real = said["eva"].patches[1:].flatten(0, 1)
    torch.testing.assert_close(statistics.mean, real.mean(0))
    assert statistics.count.item() == 2
    distiller.eval()(batch(), features("clip", "eva"), images=tokens())
    assert statistics.count.item() == 2
    assert {"adapters.eva.statistics.mean", "adapters.clip.statistics.count"} <= set(distiller.adapter_buffers())


def test_metrics_are_made_only_when_asked_for_and_leave_the_loss_alone() -> None:
    torch.manual_seed(0)
    distiller = build("ours", ("clip", "eva"))
    other = copy.deepcopy(distiller)
    other.collect_metrics = True
    x, said = tokens(), features("clip", "eva")
    plain, measured = (d(batch(blank=2), said, images=x) for d in (distiller, other))
    assert torch.equal(plain["loss"], measured["loss"])
    metrics = measured["metrics"]
    for kind in ("weight", "residual", "cosine", "cka"):
        assert {f"{kind}/clip", f"{kind}/eva"} <= set(metrics)
    loads = [metrics[f"expert_load/0/{expert}"] for expert in range(3)]
    assert sum(loads).item() == pytest.approx(1.0)
    assert 0 < metrics["routing_entropy/1"].item() <= 1
    assert 0 < metrics["token_entropy"].item() <= torch.tensor(float(SIDE**2)).log().item()
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())
    assert 0 <= metrics["cka/eva"].item() <= 1


def test_cka_is_one_for_a_rotated_copy_and_blind_to_blanks() -> None:
    from llava.model.multimodal_encoder.move_kd.metrics import linear_cka

    x = torch.randn(40, 6)
    turn = torch.linalg.qr(torch.randn(6, 6))[0]
    weight = torch.ones(40)
    assert linear_cka(x, 3 * x @ turn + 2, weight).item() == pytest.approx(1.0, abs=1e-5)
    spoiled = x.clone()
    spoiled[:10] = torch.randn(10, 6) * 50
    weight[:10] = 0.0
    assert linear_cka(x, spoiled @ turn, weight).item() == pytest.approx(1.0, abs=1e-5)
    assert linear_cka(x, torch.randn(40, 6), torch.ones(40)).item() < 0.6


def test_parts_cover_every_parameter_once_under_its_own_name() -> None:
    distiller = build("ours", ("clip", "eva"))
    parts = distiller.parts()
    names = [name for part in parts.values() for name in part]
    assert sorted(names) == sorted(name for name, _ in distiller.named_parameters())
    assert set(parts) == {"mole", "language_model", "adapters"}
    assert all(name.startswith("adapters.eva.") for name in parts["adapters"])
    owned = dict(distiller.named_parameters())
    assert all(owned[name] is parameter for part in parts.values() for name, parameter in part.items())


def test_the_step_in_bfloat16_is_close_to_the_one_in_float32() -> None:
    distiller = build("paper", ("clip", "eva"))
    x, said = tokens(), features("clip", "eva")
    exact = distiller(batch(), said, images=x)["terms"]
    half = {name: f._replace(patches=f.patches.bfloat16()) for name, f in said.items()}
    rounded = distiller.bfloat16()(batch(), half, images=x.bfloat16())["terms"]
    for name in ("kd/clip", "kd/eva", "balance"):
        assert rounded[name].dtype == torch.float32
        assert rounded[name].item() == pytest.approx(exact[name].item(), rel=0.05)


def test_objectives_are_computed_in_float32_inside_autocast() -> None:
    distiller = build("ours", ("clip", "eva"))
    x, said = tokens(), features("clip", "eva")
    with torch.autocast("cpu", torch.bfloat16):
        inputs = distiller.distill_inputs(distiller.student(x).vision, batch(), said)
        terms = distiller(batch(), said, images=x)["terms"]
    for name, (objective, weight) in distiller.objectives.items():
        for part, value in objective(inputs).items():
            torch.testing.assert_close(terms[f"{name}/{part}" if part else name], weight * value, rtol=1e-6, atol=0)


def test_a_strangers_objective_needs_one_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """The example of the protocol's docstring, put beside the others."""
    from llava.model.multimodal_encoder.move_kd import objectives

    (tmp_path / "huber.py").write_text(
        "import torch.nn.functional as F\n"
        "from llava.model.multimodal_encoder.move_kd.objectives.base import Objective, weighted_mean\n"
        "class Huber(Objective):\n"
        "    def __call__(self, inputs):\n"
        "        return {\n"
        "            name: weighted_mean(F.smooth_l1_loss(*pair, reduction='none').mean((1, 2)), inputs.weight)\n"
        "            for name, pair in inputs.pairs.items()\n"
        "        }\n"
        "OBJECTIVE = Huber\n"
    )
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(tmp_path)])
    try:
        distiller = build("ours", ("clip", "eva"), objectives=(("weighted_mse", 1.0), ("huber", 0.5)))
        terms = distiller(batch(), features("clip", "eva"), images=tokens())["terms"]
        assert {"kd/eva", "huber/clip", "huber/eva"} <= set(terms)
    finally:
        sys.modules.pop(f"{objectives.__name__}.huber", None)


def test_two_objectives_of_one_label_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from llava.model.multimodal_encoder.move_kd.objectives.weighted_mse import WeightedMSE

    monkeypatch.setattr(WeightedMSE, "label", "balance")
    with pytest.raises(ValueError, match="logs as 'balance', which is taken"):
        build("ours", ("clip",))


def test_objectives_hold_no_parameters_and_need_no_checkpoint() -> None:
    distiller = build("ours", ("clip", "eva"))
    assert all(isinstance(objective, Objective) for objective, _ in distiller.objectives.values())
    assert not any("objective" in name for name in distiller.state_dict())


def test_what_a_trainer_asks_of_a_model_comes_from_the_student() -> None:
    student = FakeStudent(MoLEConfig(rank=2))
    calls = []
    student.device, student.dtype = torch.device("cpu"), torch.float32
    student.gradient_checkpointing_enable = lambda kwargs: calls.append(kwargs)
    student.gradient_checkpointing_disable = lambda: calls.append("off")
    distiller = Distiller(student)
    assert distiller.config is student.config
    assert (distiller.device, distiller.dtype) == (student.device, student.dtype)
    distiller.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    distiller.gradient_checkpointing_disable()
    assert calls == [{"use_reentrant": False}, "off"]
    assert distiller.is_gradient_checkpointing is False
    assert distiller.accepts_loss_kwargs is False
