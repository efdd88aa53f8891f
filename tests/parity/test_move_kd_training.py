"""Topic H: published MoVE-KD models trained for a few steps; losses, gradients and the files that come out."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from llava.model.checkpoint import load_student
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.move_kd.adapters import to_published_adapters
from llava.model.multimodal_encoder.move_kd.distiller import Distiller
from llava.model.multimodal_encoder.move_kd.student import unstack_experts
from llava.model.multimodal_encoder.move_kd.types import TeacherFeatures
from tests.parity.published_model import (
    published_distiller,
    published_features,
    published_student,
    released_config,
    whole_batch,
)
from tests.parity.vectors import Case, cases

RELEASED_ORDER = ("clip", "sam", "eva", "pix2struct", "convnext")  # of what a case records per teacher
RUNS = [case for case in cases("H_end_to_end") if "train" in case.meta]


def test_there_are_runs_to_compare_with() -> None:
    assert RUNS


def clip_features(folder: Path, pixels: torch.Tensor, layer: int) -> TeacherFeatures:
    tower = CLIPVisionTower(str(folder), SimpleNamespace(mm_vision_select_layer=layer))
    with torch.no_grad():
        vision = tower.encode(pixels, with_cls_attention=True)
    side = tower.num_patches_per_side
    return TeacherFeatures(vision.patches, (side, side), vision.cls, vision.cls_attention)


def prepared(case: Case) -> tuple[Distiller, dict]:
    """The distiller with what the run trains set to train, and its one batch."""
    folder = case.path.parent
    student = published_student(case, folder / "clip")
    pixels = case.tensors["expected.pixel_values"]
    stored = published_features(case)
    features = {"clip": clip_features(folder / "clip", pixels, case.meta.get("select_layer", -2)), **stored}
    config = released_config(case.meta["train"], case.meta["moe"]["moe_encoder_num_experts"])
    distiller = published_distiller(case, student, features, config)
    parts = distiller.parts()
    trained = set(parts) if case.meta["trainable"] == "all" else {"projector", "mole", "adapters"}
    for name, parameters in parts.items():
        for parameter in parameters.values():
            parameter.requires_grad_(name in trained)
    batch = {
        "distill": whole_batch(len(pixels)),
        "features": features,
        "input_ids": case.tensors["input.input_ids"],
        "attention_mask": case.tensors["input.attention_mask"].bool(),
        "labels": case.tensors["input.labels"],
        "images": pixels,
    }
    return distiller.train(), batch


def learning_rate(case: Case) -> float:
    text = case.meta["description"]
    return float(text[text.index("(lr ") + 4 :].split(",")[0])


def published(distiller: Distiller, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors named as in `distiller`, under the names of published files."""
    student = {n.removeprefix("student."): t for n, t in values.items() if n.startswith("student.")}
    adapters = {n.removeprefix("adapters."): t for n, t in values.items() if n.startswith("adapters.")}
    return unstack_experts(student) | to_published_adapters(adapters)


@pytest.mark.parametrize("case", RUNS, ids=str)
def test_losses_of_every_step_are_the_published_ones(case: Case) -> None:
    distiller, batch = prepared(case)
    optimizer = torch.optim.SGD([p for p in distiller.parameters() if p.requires_grad], lr=learning_rate(case))
    flags, steps = case.meta["train"], case.meta["steps"]
    for number, expected in enumerate(steps):
        answer = distiller(**batch)
        terms = answer["terms"]
        kd = sum(value for name, value in terms.items() if name.startswith("kd/"))
        assert terms["lm"].item() == pytest.approx(expected["lm_loss"], rel=5e-6)
        assert kd.item() == pytest.approx(flags["kd_w"] * expected["kd_loss"], rel=2e-5)
        balance = flags["moe_encoder_balance_w"] * expected["balance_loss"]
        assert terms["balance"].item() == pytest.approx(balance, rel=2e-5)
        assert answer["loss"].item() == pytest.approx(expected["loss"], rel=5e-6)
        if number < len(steps) - 1:
            optimizer.zero_grad()
            answer["loss"].backward()
            optimizer.step()
    compare_files(case, distiller)


def compare_files(case: Case, distiller: Distiller) -> None:
    """Everything the published code wrote at the end of the run."""
    folder = case.path.parent
    found = published(distiller, {name: tensor.detach() for name, tensor in distiller.state_dict().items()})
    written: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("checkpoint/*.safetensors")):
        written |= load_file(file)
    for file in sorted(folder.glob("pretrain_output/*.bin")):
        written |= torch.load(file, weights_only=True)
    assert written
    for name, tensor in written.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("case", RUNS, ids=str)
def test_gradients_of_the_first_step_have_the_published_norms(case: Case) -> None:
    distiller, batch = prepared(case)
    distiller(**batch)["loss"].backward()
    gradients = {name: p.grad for name, p in distiller.named_parameters() if p.grad is not None}
    found = published(distiller, gradients)
    for name, norm in case.meta["grad_norms_step0"].items():
        assert found[name].norm().item() == pytest.approx(norm, rel=2e-3, abs=1e-8), name


@pytest.mark.parametrize("case", RUNS, ids=str)
def test_errors_and_weights_of_the_first_step_are_the_published_ones(case: Case) -> None:
    distiller, batch = prepared(case)
    distiller.collect_metrics = True
    answer = distiller(**batch)
    weights = torch.tensor(case.meta["steps"][0]["teacher_weight"])
    errors = case.tensors["expected.teacher_loss_step0"]
    for position, name in enumerate(name for name in RELEASED_ORDER if name in case.meta["teachers"]):
        weight = weights[:, position].mean().item()
        assert answer["metrics"][f"weight/{name}"].item() == pytest.approx(weight, rel=1e-4)
        wanted = case.meta["train"]["kd_w"] * (weights * errors)[:, position].mean().item()
        assert answer["terms"][f"kd/{name}"].item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("case", RUNS, ids=str)
def test_logits_and_token_weights_before_the_first_step_are_the_published_ones(case: Case) -> None:
    distiller, batch = prepared(case)
    inputs = {name: value for name, value in batch.items() if name not in ("distill", "features")}
    student = distiller.student.eval()
    with torch.no_grad():
        logits = student(**inputs).logits
    mask = student.prepare_inputs_labels_for_multimodal(
        inputs["input_ids"], None, inputs["attention_mask"], None, inputs["labels"], inputs["images"]
    )[2].bool()
    expected = case.tensors["expected.logits_step0"]
    assert logits.shape == expected.shape
    torch.testing.assert_close(logits[mask], expected[mask], rtol=1e-4, atol=2e-5)
    weights = batch["features"]["clip"].cls_attention.softmax(-1)
    torch.testing.assert_close(weights, case.tensors["expected.token_weight_step0"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", [case for case in RUNS if case.meta.get("generation")], ids=str)
def test_a_finetuned_model_gives_the_published_answer(case: Case) -> None:
    folder = case.path.parent
    model = load_student(None, folder / "checkpoint", overwrite_config={"mm_vision_tower": str(folder / "clip")}).eval()
    wanted = case.meta["generation"]["generated_ids"]
    output = model.generate(
        case.tensors["expected.generate.prompt_ids"],
        images=case.tensors["expected.generate.pixel_values"],
        do_sample=False,
        max_new_tokens=len(wanted),
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    assert output.sequences[0].tolist() == wanted
    scores = torch.stack(output.scores, dim=1)
    torch.testing.assert_close(scores, case.tensors["expected.generate.scores"], rtol=1e-4, atol=1e-4)
