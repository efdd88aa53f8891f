"""Topic C: the distillation loss of the published model for every set of flags, with all its gradients."""

from pathlib import Path

import pytest
import torch

from llava.model.multimodal_encoder.move_kd.adapters import to_published_adapters
from llava.model.multimodal_encoder.move_kd.student import unstack_experts
from tests.parity.published_model import (
    published_distiller,
    published_features,
    published_student,
    released_config,
    whole_batch,
)
from tests.parity.vectors import Case, cases

COMBOS = [(token, teacher) for token in (False, True) for teacher in (False, True)]


def flags_of(case: Case, token: bool, teacher: bool) -> dict:
    return {**case.meta, "token_weight": token, "teacher_weight": teacher}


def run(case: Case, token: bool, teacher: bool, folder: Path):
    """The distiller and what it gave for the recorded batch, with metrics."""
    student = published_student(case, folder)
    student.requires_grad_(False)
    parts = student.parts()
    for name in ("projector", "mole"):
        for parameter in parts[name].values():
            parameter.requires_grad_(True)
    features = published_features(case)
    config = released_config(flags_of(case, token, teacher), case.meta["moe"]["moe_encoder_num_experts"])
    distiller = published_distiller(case, student, features, config)
    distiller.collect_metrics = True
    pixels = case.tensors["input.pixel_values"]
    batch = whole_batch(len(pixels))
    blank = torch.tensor([row in case.meta["text_only_rows"] for row in range(len(pixels))])
    batch["weight"] = batch["tile_weight"] = (~blank).float()
    answer = distiller(
        distill=batch,
        features=features,
        input_ids=case.tensors["input.input_ids"],
        attention_mask=case.tensors["input.attention_mask"].bool(),
        labels=case.tensors["input.labels"],
        images=pixels,
    )
    return distiller, answer


def gradients(distiller) -> dict[str, torch.Tensor]:
    """By published name; None is left out."""
    student = {n: p.grad for n, p in distiller.student.named_parameters() if p.grad is not None}
    adapters = {n: p.grad for n, p in distiller.adapters.named_parameters() if p.grad is not None}
    return unstack_experts(student) | to_published_adapters(adapters)


@pytest.mark.parametrize(("token", "teacher"), COMBOS)
@pytest.mark.parametrize("case", cases("C_kd_loss"), ids=str)
def test_loss_terms_weights_and_gradients_are_the_published_ones(
    case: Case, token: bool, teacher: bool, tmp_path: Path
) -> None:
    combo = f"token{int(token)}_teacher{int(teacher)}"
    if combo not in case.meta["combos"]:
        pytest.skip("not recorded")
    expected, meta = case.group(f"expected.{combo}"), case.meta["combos"][combo]
    distiller, answer = run(case, token, teacher, tmp_path)
    terms = answer["terms"]
    kd = sum(value for name, value in terms.items() if name.startswith("kd/"))
    assert terms["lm"].item() == pytest.approx(meta["lm_loss"], rel=2e-6)
    assert kd.item() == pytest.approx(case.meta["kd_w"] * meta["kd_loss"], rel=1e-5)
    if meta["balance_loss"] is None:
        assert "balance" not in terms
    else:
        assert terms["balance"].item() == pytest.approx(
            case.meta["moe_encoder_balance_w"] * meta["balance_loss"], rel=1e-5
        )
    assert answer["loss"].item() == pytest.approx(meta["loss"], rel=2e-6)
    # One value per teacher: its own weighted loss, in whatever order the release keeps them.
    order = [name.lower() for name in case.meta["teacher_order"]]
    shares = (expected["teacher_loss"] * expected["teacher_weight"]).mean(0)
    for position, name in enumerate(order):
        assert terms[f"kd/{name}"].item() == pytest.approx(case.meta["kd_w"] * shares[position].item(), rel=1e-4)
        mean = meta["teacher_weight_mean"][position]
        assert answer["metrics"][f"weight/{name}"].item() == pytest.approx(mean, rel=1e-4)
    answer["loss"].backward()
    found = gradients(distiller)
    for name, gradient in case.group(f"expected.{combo}.grad").items():
        allowed = 1e-3 * gradient.abs().max().item() + 1e-8
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-3, atol=allowed, msg=lambda text, n=name: f"{n}: {text}"
        )
    for name in case.meta["grad_is_none"][combo]:
        assert name not in found or not found[name].any(), name


@pytest.mark.parametrize("token", [False, True])
@pytest.mark.parametrize("case", cases("C_kd_loss"), ids=str)
def test_clip_alone_keeps_its_share_where_the_release_fails(case: Case, token: bool, tmp_path: Path) -> None:
    if case.meta["teachers"] != ["clip"]:
        pytest.skip("has other teachers")
    _, answer = run(case, token, True, tmp_path)
    recorded = case.tensors[f"expected.clip_loss.token{int(token)}"].mean().item()
    wanted = case.meta["kd_w"] * case.meta["kd_memory_w"] * recorded
    assert answer["terms"]["kd/clip"].item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("case", cases("C_kd_loss"), ids=str)
def test_token_weights_and_student_tokens_are_the_published_ones(case: Case, tmp_path: Path) -> None:
    student = published_student(case, tmp_path).eval()
    with torch.no_grad():
        vision = student.get_vision_tower().encode(case.tensors["input.pixel_values"])
    torch.testing.assert_close(vision.patches, case.tensors["expected.student_tokens"], rtol=1e-4, atol=1e-5)
    attention = published_features(case)["clip"].cls_attention
    assert attention is not None
    torch.testing.assert_close(attention, case.tensors["expected.cls_attention"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(attention.softmax(-1), case.tensors["expected.token_weight"], rtol=1e-5, atol=1e-6)
