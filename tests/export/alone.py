"""Loads exports with transformers alone: run as a program of its own, in which `llava` cannot be imported.

    python alone.py OUT.json KIND=DIRECTORY...

Writes for each what it answers to fixed pictures and questions, with the weights whole, saved again, and quantized.
"""

import json
import sys
from typing import Any

import torch
import transformers
from PIL import Image

COUNT = 6


class NoLlava:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] in ("llava", "tests"):
            raise ImportError(f"{name} must not be needed")


def picture(width: int, height: int, seed: int) -> Image.Image:
    pixels = torch.randint(0, 256, (5, 5, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize((width, height), Image.Resampling.BICUBIC)


def chats() -> list[list[dict[str, Any]]]:
    first, second = picture(60, 31, 1), picture(28, 45, 2)

    def ask(text: str, *images: Image.Image) -> dict[str, Any]:
        content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": text}]
        return {"role": "user", "content": content}

    answer = {"role": "assistant", "content": [{"type": "text", "text": "A plain."}]}
    return [
        [ask("What is this?", first)],
        [ask("Compare them.", first, second)],
        [ask("Hm?", second), answer, ask("So?")],
    ]


def answers(model: Any, processor: Any, batched: bool = False) -> list[list[int]]:
    found = []
    groups = [chats()] if batched else [[chat] for chat in chats()]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    for group in groups:
        inputs = processor.apply_chat_template(group, **options, padding=True).to(model.device, model.dtype)
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=COUNT, min_new_tokens=COUNT)
        found += ids[:, inputs["input_ids"].shape[1] :].tolist()
    return found


def load(directory: str, **options: Any) -> Any:
    return transformers.AutoModelForImageTextToText.from_pretrained(directory, trust_remote_code=True, **options).eval()


def linear_kinds(model: Any) -> dict[str, list[str]]:
    """The classes of linear layers, by the part of the model they are in."""
    kinds: dict[str, set[str]] = {}
    for name, module in model.named_modules():
        if "Linear" in type(module).__name__:
            part = next(
                (part for part in ("vision_tower", "multi_modal_projector", "lm_head") if part in name), "language"
            )
            kinds.setdefault(part, set()).add(type(module).__name__)
    return {part: sorted(names) for part, names in kinds.items()}


def examine(directory: str, quantizes: bool) -> dict[str, Any]:
    processor = transformers.AutoProcessor.from_pretrained(directory, trust_remote_code=True, backend="pil")
    model = load(directory, dtype="auto", device_map={"": "cpu"})
    result: dict[str, Any] = {"class": type(model).__name__, "single": answers(model, processor)}
    result["batched"] = answers(model, processor, batched=True)
    model.save_pretrained(directory + "-again")
    processor.save_pretrained(directory + "-again")
    again = transformers.AutoProcessor.from_pretrained(directory + "-again", trust_remote_code=True, backend="pil")
    result["again"] = answers(load(directory + "-again"), again)
    for bits in (4, 8) if quantizes else ():
        settings = transformers.BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
        quantized = load(directory, quantization_config=settings, device_map={"": "cpu"}, dtype=torch.float32)
        result[f"linear_{bits}"] = linear_kinds(quantized)
        result[f"answers_{bits}"] = answers(quantized, processor)
    return result


def examine_encoder(directory: str) -> dict[str, Any]:
    processor = transformers.AutoImageProcessor.from_pretrained(directory, backend="pil")
    model = transformers.AutoModel.from_pretrained(directory, trust_remote_code=True).eval()
    inputs = processor(images=[picture(60, 31, 1), picture(28, 45, 2)], return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    return {"class": type(model).__name__, "states": [state.tolist() for state in states]}


def main() -> None:
    sys.meta_path.insert(0, NoLlava())  # type: ignore[arg-type]
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    results = {}
    for argument in sys.argv[2:]:
        kind, _, directory = argument.partition("=")
        is_encoder = kind.startswith("encoder")
        results[kind] = examine_encoder(directory) if is_encoder else examine(directory, kind.startswith("experts"))
    with open(sys.argv[1], "w") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main()
