"""`python -m llava.export encoder`: the vision tower alone, as a backbone that AutoModel loads."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava.export.card import Card
from llava.export.compare import BACKEND, PIXEL_LEVELS, ROUNDING, Finding, check_complete, relative, sample_pictures
from llava.export.hf import Source, finish
from llava.export.history import read_history
from llava.export.native import SHIPPED, Shape, exported_name, exported_vision_config, write_config
from llava.export.processor import single_image_processor
from llava.mm_utils import expand2square
from llava.model.checkpoint import gather_state_dict
from llava.model.checkpoint_io import CheckpointError, check_output, write_safetensors

PLAIN_PREFIXES = (("", ""),)  # `vision_model.` in front, as published encoders have it
SHIPPED_PREFIXES = (("vision_model.", ""),)


def export_encoder(source: Source, output: str | Path) -> list[Finding]:
    """Write the tower to `output` and compare. Raises CheckpointError if it cannot be exported or differs."""
    check_output(output, source.model_path, source.model_base)
    chat = source.load()
    model: Any = chat.model
    tower = model.get_vision_tower()
    if model.config.to_dict().get("s2"):
        raise CheckpointError("a multi-scale (s2) tower is a way to use an encoder: take the encoder itself.")
    directory = Path(output)
    directory.mkdir(parents=True, exist_ok=True)
    config = write_encoder(model, tower, directory)
    findings = compare_encoder(tower, model.config.to_dict().get("image_aspect_ratio"), directory)
    card = Card(
        name=source.model_path,
        settings=model.config.to_dict(),
        shape=Shape.of(model),
        architecture=config.architectures[0],
        parameters=sum(parameter.numel() for parameter in tower.parameters()),
        history=read_history(source.model_path),
        findings=findings,
        template=None,
        features=features_code(tower),
    )
    finish(card, directory)
    return findings


def write_encoder(model: Any, tower: Any, directory: Path) -> Any:
    """Weights, config, image processor and, where there are experts, the code. Returns the config."""
    config = exported_vision_config(tower)
    has_experts = Shape.of(model).has_experts
    config.architectures = [_architecture(tower, has_experts)]
    config.dtype = str(tower.dtype).removeprefix("torch.")
    if has_experts:
        shutil.copyfile(SHIPPED, directory / SHIPPED.name)
        config.auto_map = {
            "AutoConfig": f"{SHIPPED.stem}.ClipMoleVisionConfig",
            "AutoModel": f"{SHIPPED.stem}.ClipMoleVisionModel",
        }
    state = gather_state_dict(tower.vision_tower.state_dict())
    prefixes = SHIPPED_PREFIXES if has_experts else PLAIN_PREFIXES
    write_safetensors({exported_name(name, prefixes): tensor for name, tensor in state.items()}, directory)
    write_config(config, directory)
    single_image_processor(tower, model.config.to_dict().get("image_aspect_ratio")).save_pretrained(directory)
    return config


def features_code(tower: Any) -> str:
    """The expression that `_features` stands for, of this tower."""
    if not tower.has_class_token:
        return "outputs.hidden_states[-1]"
    states = [f"outputs.hidden_states[{layer}]" for layer in tower.layers]
    joined = states[0] if len(states) == 1 else f"torch.cat([{', '.join(states)}], dim=-1)"
    return joined if tower.select_feature.endswith("cls_patch") else f"{joined}[:, 1:]  # without the class token"


def _architecture(tower: Any, has_experts: bool) -> str:
    if has_experts:
        return "ClipMoleVisionModel"
    return "CLIPVisionModel" if tower.has_class_token else "SiglipVisionModel"


@torch.inference_mode()
def compare_encoder(tower: Any, aspect_ratio: str | None, directory: Path) -> list[Finding]:
    """Pixels and features of a few pictures. Raises CheckpointError if the weights are not read whole."""
    from transformers import AutoImageProcessor, AutoModel

    processor = AutoImageProcessor.from_pretrained(directory, backend=BACKEND)
    loaded: Any = AutoModel.from_pretrained(
        directory, trust_remote_code=True, dtype=tower.dtype, output_loading_info=True
    )
    model, report = loaded
    check_complete(report, directory)
    pictures = sample_pictures(tower.image_size)
    ours = _prepared(tower, pictures, aspect_ratio)
    theirs = processor(images=pictures, return_tensors="pt")["pixel_values"]
    std = torch.tensor([float(value) for value in tower.image_processor.image_std])[:, None, None]
    levels = float(((theirs - ours).abs() * std * 255).max())
    given = _features(model.eval().to(tower.device), theirs.to(tower.device, tower.dtype), tower)
    wanted = tower.encode(ours.to(tower.device)).features
    return [
        Finding(f"pixels of {len(pictures)} pictures, in levels of 255", levels, PIXEL_LEVELS),
        Finding("features, as a share of the largest", relative(given, wanted), ROUNDING[tower.dtype]),
    ]


def _prepared(tower: Any, pictures: list[Any], aspect_ratio: str | None) -> Tensor:
    """(T, 3, S, S), as LLaVA prepares one tile for this tower."""
    if aspect_ratio == "pad":
        background = tuple(int(channel * 255) for channel in tower.image_processor.image_mean)
        pictures = [expand2square(picture, background) for picture in pictures]
    return tower.image_processor.preprocess(pictures, return_tensors="pt")["pixel_values"]


def _features(model: Any, pixels: Tensor, tower: Any) -> Tensor:
    states = model(pixel_values=pixels, output_hidden_states=True).hidden_states
    if not tower.has_class_token:
        return states[-1]
    hidden = torch.cat([states[layer] for layer in tower.layers], dim=-1)
    return hidden if tower.select_feature.endswith("cls_patch") else hidden[:, 1:]
