"""Runs lmms-eval on a local task and writes what each model answered: lmms_worker.py FOLDER CHECKPOINT OUTPUT MODEL...

A process of its own, because importing lmms-eval changes global settings. MODEL: llava, simple, chat. Under torchrun
the first process writes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager

from llava.train.environment import leave_processes

MODELS: dict[str, tuple[str, str, bool, list[str]]] = {
    # lmms-eval 0.7.3 cannot score its own wrapper's loglikelihood: it turns the pair into a string.
    "llava": ("llava", "device_map=auto", True, ["tiny_vqa", "tiny_long"]),
    "simple": ("move_kd", "conv_template=vicuna_v1", True, ["tiny_vqa", "tiny_long", "tiny_choice"]),
    "chat": ("move_kd", "conv_template=vicuna_v1", False, ["tiny_vqa", "tiny_long", "tiny_pair"]),
    "bfloat16": ("move_kd", "conv_template=vicuna_v1,dtype=bfloat16", False, ["tiny_vqa"]),
    "float16": ("move_kd", "conv_template=vicuna_v1,dtype=float16", False, ["tiny_vqa"]),
}


def evaluate(name: str, tasks: Path, checkpoint: str) -> dict[str, Any] | None:
    model, arguments, is_simple, names = MODELS[name]
    result = simple_evaluate(
        model=model,
        model_args=f"pretrained={checkpoint},{arguments}",
        tasks=names,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        batch_size=2,
        device="cpu",
        log_samples=True,
        force_simple=is_simple,
    )
    if result is None:
        return None
    return {
        task: {sample["doc_id"]: sample["filtered_resps"][0] for sample in samples}
        if task != "tiny_choice"
        else {sample["doc_id"]: sample["filtered_resps"] for sample in samples}
        for task, samples in result["samples"].items()
    }


def losses(model: Any, document: dict[str, Any]) -> list[Any]:
    """Of three answers to one question, asked without the evaluator."""
    model.task_dict = {"t": {"test": [document]}}
    metadata = {"task": "t", "doc_id": 0, "repeats": 1}
    requests = [
        Instance("loglikelihood", ("What?", answer, lambda row: [row["image"]], 0, "t", "test"), index, dict(metadata))
        for index, answer in enumerate(("red", "green", "a dark blue one"))
    ]
    rank = model.loglikelihood if model.__class__.__name__ == "Llava" else model.rank_answers
    return [loss for loss, _ in rank(requests)]


def compare_losses(checkpoint: str) -> dict[str, list[float]]:
    from PIL import Image

    document = {"image": Image.new("RGB", (40, 30), "red")}
    stock = get_model("llava", force_simple=True)(pretrained=checkpoint, device_map="auto", device="cpu")
    ours = get_model("move_kd", force_simple=True)(
        pretrained=checkpoint, device="cpu", conv_template="vicuna_v1", batch_size=3
    )
    return {"llava": losses(stock, document), "simple": losses(ours, document)}


def main() -> None:
    folder, checkpoint, output = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    answers: dict[str, Any] = {}
    for name in sys.argv[4:]:
        answers[name] = compare_losses(checkpoint) if name == "losses" else evaluate(name, folder, checkpoint)
    if all(answer is not None for answer in answers.values()):
        output.write_text(json.dumps(answers))
    leave_processes()


if __name__ == "__main__":
    main()
