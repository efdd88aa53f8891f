"""`load_pretrained_model`: any LLaVA checkpoint, ready to answer. What a directory is, its files say, not its name."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from llava.model.checkpoint import build_student, grow_vocabulary
from llava.model.checkpoint_config import (
    customized_config_dict,
    is_multimodal,
    language_model_config,
    read_config,
    student_config,
)
from llava.model.checkpoint_io import CheckpointError, find_file, has_weights, read_state_dict
from llava.model.checkpoint_lora import NON_LORA_FILE, is_lora_folder, read_lora, with_lora
from llava.model.checkpoint_names import PROJECTOR_NAME, upgrade_state_dict
from llava.model.checkpoint_parts import find_parts, read_part
from llava.model.placement import as_dtype, build_options, resolve_attention, resolve_device_map
from llava.model.tokenizer import add_image_tokens, context_length, has_tokenizer, load_tokenizer

logger = logging.get_logger(__name__)

Loaded = tuple[PreTrainedTokenizerBase, PreTrainedModel, Any, int]


@dataclass(frozen=True)
class Request:
    """What was asked for, with every spelling of an argument resolved."""

    path: str
    base: str | None
    multimodal: bool
    raw_config: Mapping[str, Any]
    overwrite: Mapping[str, Any]
    merge_lora: bool
    build: Mapping[str, Any]  # dtype, attn_implementation, quantization_config, device_map

    @property
    def config(self) -> PreTrainedConfig:
        config = student_config(self.raw_config, self.path, self.overwrite)
        if not config.to_dict().get("mm_vision_tower"):
            raise CheckpointError(
                f"config.json of {self.path} names no mm_vision_tower, so this model cannot see. Add the tower that it "
                "was trained with, or pass overwrite_config={'mm_vision_tower': ...}."
            )
        return config


def load_pretrained_model(
    model_path: str | os.PathLike[str],
    model_base: str | os.PathLike[str] | None,
    model_name: str | None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: Any = "auto",
    device: str | torch.dtype = "cuda",
    use_flash_attn: bool | str = False,
    *,
    torch_dtype: str | torch.dtype | None = "float16",
    attn_implementation: str | None = None,
    customized_config: PreTrainedConfig | Mapping[str, Any] | str | None = None,
    overwrite_config: Mapping[str, Any] | None = None,
    multimodal: bool | None = None,
    merge_lora: bool = True,
    **kwargs: Any,
) -> Loaded:
    """(tokenizer, model, image_processor, context_len) of a full checkpoint, of a projector on `model_base`, of a LoRA
    on `model_base`, or of a plain language model (image_processor None).

    model_name: kept for its callers; read only where no config.json can tell whether a LoRA belongs to a LLaVA model.
    device: other than "cuda", the whole model goes there; a dtype in this place is taken as `torch_dtype`.
    use_flash_attn: a kernel's name in this place is taken as `attn_implementation`.
    torch_dtype: None, "None" or "auto" keep the checkpoint's. attn_implementation: None or "None" is unset, then sdpa.
    customized_config: used in place of config.json. overwrite_config: keys set on the config before the model is built.
    multimodal: True for a LLaVA model whatever config.json says. merge_lora: False leaves an adapter beside the weights
    (quantized weights always do). Other keywords are ignored with a warning.

    Raises CheckpointError (a ValueError) that says what was asked, what there is and what to do.
    """
    if kwargs:
        logger.warning(f"load_pretrained_model ignores {', '.join(sorted(kwargs))}")
    if as_dtype(device) is not None:
        torch_dtype, device = as_dtype(device), "cuda"
    if isinstance(use_flash_attn, str):
        attn_implementation = use_flash_attn
    path, base = str(model_path), None if str(model_base) == "None" else str(model_base)
    raw = _raw_config(path, base, customized_config)
    request = Request(
        path=path,
        base=base,
        multimodal=multimodal or is_multimodal(raw) or _named_llava(path, model_name),
        raw_config=raw,
        overwrite=dict(overwrite_config or {}),
        merge_lora=merge_lora and not (load_8bit or load_4bit),
        build={
            **build_options(torch_dtype, load_8bit, load_4bit),
            "attn_implementation": resolve_attention(attn_implementation, bool(use_flash_attn)),
            "device_map": resolve_device_map(device_map, str(device)),
        },
    )
    return _load_multimodal(request) if request.multimodal else _load_language_model(request)


def _raw_config(path: str, base: str | None, customized: Any) -> Mapping[str, Any]:
    """The config to go by: the one given, the directory's, or its base's if a bare LoRA folder has none."""
    if customized is not None:
        return customized_config_dict(customized)
    if find_file(path, "config.json") is None and is_lora_folder(path):
        return read_config(base or read_lora(path).base)
    return read_config(path)


def _named_llava(path: str, model_name: str | None) -> bool:
    """The name decides only for a LoRA folder without a config.json."""
    return "llava" in (model_name or "").lower() and find_file(path, "config.json") is None


def _load_multimodal(request: Request) -> Loaded:
    if is_lora_folder(request.path) and (request.base or not has_weights(request.path)):
        model, tokenizer_path = _load_with_lora(request)
    elif request.base is not None and not has_weights(request.path):
        model, tokenizer_path = _load_with_parts(request, request.base)
    else:
        if request.base is not None:
            logger.warning(f"{request.path} is a full checkpoint: model_base {request.base} is not used")
        model, tokenizer_path = _load_full(request), request.path
    tokenizer = load_tokenizer(tokenizer_path)
    add_image_tokens(tokenizer, model)
    return tokenizer, model.eval(), _image_processor(model), context_length(model.config)


def _image_processor(model: Any) -> Any:
    tower = model.get_vision_tower()
    try:
        return tower.image_processor
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the image processor of vision tower {tower.vision_tower_name} cannot be loaded "
            f"({str(error).splitlines()[0]}). Copy preprocessor_config.json there from the encoder's own release."
        ) from error


def _load_full(request: Request) -> PreTrainedModel:
    state = upgrade_state_dict(read_state_dict(request.path))
    return build_student(None, request.config, state, request.path, generation=request.path, **request.build)


def _load_with_parts(request: Request, base: str) -> tuple[PreTrainedModel, str]:
    """A language model with the projector, and the experts if there are any, of a stage-1 directory."""
    config = request.config
    state = grow_vocabulary(upgrade_state_dict(read_state_dict(base)), config.vocab_size)
    for part, file in find_parts(request.path).items():
        if part != "adapters":  # heads of the distillation, which an answer does not need
            state |= read_part(part, file)
    source = f"{request.path} on {base}"
    model = build_student(None, config, state, source, generation=base, **request.build)
    return model, request.path if has_tokenizer(request.path) else base


def _load_with_lora(request: Request) -> tuple[PreTrainedModel, str]:
    """A base model with an adapter merged into it; quantized weights keep the adapter beside them."""
    folder = read_lora(request.path)
    base = request.base or folder.base
    config = request.config
    state = grow_vocabulary(upgrade_state_dict(read_state_dict(base)), config.vocab_size)
    state |= upgrade_state_dict(folder.non_lora)
    if not any(PROJECTOR_NAME.match(name) for name in state):
        raise CheckpointError(
            f"{request.path} has no projector in {NON_LORA_FILE}, and its base {base} has none either. "
            f"Fetch {NON_LORA_FILE}, or pass the LLaVA model that the adapter was trained on as model_base."
        )
    source = f"{request.path} on {base}"
    model = build_student(None, config, state, source, generation=base, **request.build)
    return with_lora(model, folder, request.merge_lora), request.path if has_tokenizer(request.path) else base


def _load_language_model(request: Request) -> Loaded:
    """A model that only reads: whole, or a base with a PEFT adapter merged into it."""
    lora = is_lora_folder(request.path) and (request.base is not None or not has_weights(request.path))
    if request.base is not None and not lora:
        raise CheckpointError(
            f"model_base {request.base} was given, but {request.path} is a plain language model "
            f"({request.raw_config.get('model_type')}) and no adapter: drop model_base, or pass multimodal=True."
        )
    folder = read_lora(request.path) if lora else None
    path = request.path if folder is None else request.base or folder.base
    config = language_model_config(dict(read_config(path)) | dict(request.overwrite), path)
    model = _strict_language_model(path, config, request.build)
    if folder is not None:
        model = with_lora(model, folder, request.merge_lora)
    tokenizer = load_tokenizer(request.path if has_tokenizer(request.path) else path)
    return tokenizer, model.eval(), None, context_length(config)


def _strict_language_model(path: str, config: PreTrainedConfig, build: Mapping[str, Any]) -> PreTrainedModel:
    """transformers' own loading, whose warnings about tensors are errors here. Raises CheckpointError."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, config=config, output_loading_info=True, **build)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"the language model in {path} cannot be loaded: {error}") from error
    model, report = loaded
    wrong = {kind: sorted(map(str, names))[:6] for kind, names in report.items() if names}
    if wrong:
        raise CheckpointError(f"the weights in {path} do not fit {type(model).__name__}: {wrong}")
    return model
