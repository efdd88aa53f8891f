"""Published LLaVA and LLaVA-NeXT models, tiny: loss, logits, gradients and greedy answers from their checkpoints."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from torch import Tensor

import llava.model
from llava.mm_utils import process_images
from tests.parity.vectors import Case, cases

# The cases of MoVE-KD's training name no class; they belong to the distiller's tests.
CASES = [case for case in cases("H_end_to_end") if "model_class" in case.meta]
assert CASES, "no end-to-end case of a plain model"


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.chdir(request.param.path.parent)  # mm_vision_tower is relative to the case
    return request.param


def load(case: Case) -> Any:
    model_class = getattr(llava.model, case.meta["model_class"])
    folder = Path(case.meta["weights"]).parent
    return model_class.from_pretrained(folder, dtype=torch.float32).eval()


def pictures(case: Case) -> list[Image.Image]:
    names = sorted(name for name in case.tensors if name.startswith("input.image"))
    return [Image.fromarray(np.asarray(case.tensors[name])) for name in names]


def recorded_pixels(case: Case) -> list[Tensor]:
    return [case.tensors[f"expected.pixel_values{index}"] for index in range(len(pictures(case)))]


def images_of(case: Case) -> list[Tensor] | Tensor:
    """As process_images gives them: one tensor if every picture is one tile, which then is not packed."""
    pixels = recorded_pixels(case)
    return torch.stack(pixels) if pixels[0].ndim == 3 else pixels


def run(case: Case, model: Any) -> Any:
    inputs = case.group("input")
    return model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"].bool(),
        labels=inputs["labels"],
        images=images_of(case),
        image_sizes=[tuple(size) for size in case.meta["image_sizes"]],
    )


def test_pictures_become_the_recorded_pixels(case: Case) -> None:
    model = load(case)
    processor = model.get_vision_tower().image_processor
    for picture, expected in zip(pictures(case), recorded_pixels(case), strict=True):
        found = process_images([picture], processor, model.config)[0]
        # Pillow 13, which recorded them, shrinks a tall picture's height first, earlier ones its width; what lies
        # between the two passes is rounded to bytes, and on random pixels that is a few gray levels.
        rounds_otherwise = picture.height > picture.width and int(PIL.__version__.split(".")[0]) < 13
        error = (found - expected).abs()
        assert error.max() <= (0.08 if rounds_otherwise else 1e-5)
        assert error.mean() <= (0.01 if rounds_otherwise else 1e-5)


def test_loss_logits_and_gradients_of_a_published_checkpoint(case: Case) -> None:
    model = load(case)
    # A loaded tower is frozen until a stage trains it; some of the recorded runs did.
    model.get_vision_tower().requires_grad_(any("vision_tower" in name for name in case.meta["grad_norms"]))
    output = run(case, model)
    expected = case.group("expected")
    torch.testing.assert_close(output.loss, expected["loss"], rtol=1e-5, atol=1e-5)
    mask = expected["attention_mask"].bool()
    assert output.logits.shape == expected["logits"].shape
    torch.testing.assert_close(output.logits[mask], expected["logits"][mask], rtol=1e-4, atol=1e-5)

    output.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    for name, gradient in case.group("expected.grad").items():
        bound = 1e-3 * float(gradient.abs().max())
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=bound)
    assert gradients.keys() == case.meta["grad_norms"].keys()
    for name, norm in case.meta["grad_norms"].items():
        # The gradient of a key bias is 0 but for rounding.
        assert float(gradients[name].norm()) == pytest.approx(norm, rel=1e-3, abs=1e-7), name


def test_greedy_answer_of_a_published_checkpoint(case: Case) -> None:
    model = load(case)
    prompt = case.tensors["expected.generate.prompt_ids"]
    output = model.generate(
        prompt,
        images=images_of(case)[:1],
        image_sizes=[tuple(case.meta["image_sizes"][0])],
        do_sample=False,
        max_new_tokens=len(case.meta["generated_ids"]),
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    assert output.sequences[0].tolist() == case.meta["generated_ids"]
    scores = torch.stack(output.scores, dim=1)
    torch.testing.assert_close(scores, case.tensors["expected.generate.scores"], rtol=1e-4, atol=1e-4)
