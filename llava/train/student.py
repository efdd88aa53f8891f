"""The student as a run wants it: language model, vision modules, experts, LoRA, quantization."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from llava.anyres import parse_grid_pinpoints
from llava.conversation import SeparatorStyle, conv_templates
from llava.model.checkpoint import load_student
from llava.model.checkpoint_config import read_config
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.move_kd.config import PUBLISHED_KEYS
from llava.model.quantization import UNQUANTIZED
from llava.model.tokenizer import add_image_tokens, grow_embeddings
from llava.train.run_config import LoraSettings, ModelConfig, QuantizationSettings, Run


def build_student(run: Run, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The language model with its eyes, ready for `apply_stage`; config.json's entries are in place.

    Raises ValueError for experts that do not fit or are not there, CheckpointError for a checkpoint that is no use.
    """
    config = run.model
    moe = None if config.vision is None or config.vision.moe is None else experts_of(config.path, config.vision.moe)
    new_experts = moe is not None and lacks_experts(config.path)
    student: Any = load_student(
        None,
        config.path,
        attn_implementation=config.attn_implementation,
        dtype=_loading_dtype(run),
        quantization_config=_quantization(config.quantization, config.dtype),
        device_map={"": run.hf.device} if config.quantization else None,
        overwrite_config=_overwritten(config, None if new_experts else moe),
    )
    grow_embeddings(student, len(tokenizer))
    if config.lora is not None:
        inject_lora(student, config.lora)
    if moe is not None and new_experts:
        student.config.moe = moe
        student.get_vision_tower().add_experts(moe)
    if config.vision is not None:
        student.get_model().initialize_vision_modules(config.vision)
        _record(student, config)
        add_image_tokens(tokenizer, student)
    if run.needs_experts and not student.parts()["mole"]:
        raise ValueError(
            "--tune_encoder True trains experts, and the student has none; add --moe_encoder True, or drop the flag"
        )
    _make_efficient(student, run)
    return student


def _overwritten(config: ModelConfig, moe: Mapping[str, Any] | None) -> dict[str, Any]:
    """Entries of config.json that must hold before the model is built."""
    overwrite: dict[str, Any] = {}
    if config.rope_scaling is not None:
        overwrite["rope_scaling"] = dict(config.rope_scaling)
    return overwrite if moe is None else {**overwrite, "moe": dict(moe)}


def _make_efficient(student: Any, run: Run) -> None:
    """Gradient checkpointing and compilation, as far as they are asked for."""
    if run.hf.activation_checkpointing:
        student.activation_checkpointing_enable(activation_checkpointing_kwargs=run.hf.activation_checkpointing_kwargs)
        run.hf.activation_checkpointing = False  # done; the Trainer would look for it in the distiller
    if run.model.compile_backend is not None and run.model.vision is not None:
        compile_tower(student, run.model.compile_backend, run.model.compile_mode)


def _loading_dtype(run: Run) -> torch.dtype:
    """Weights that train outside DeepSpeed are float32 from the start: rounding them first would lose digits."""
    trains_whole = "language_model" in run.stage.trainable and not run.stage.lora
    return torch.float32 if trains_whole and not run.hf.deepspeed else run.model.dtype


def _quantization(settings: QuantizationSettings | None, compute_dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if settings is None:
        return None
    if settings.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=UNQUANTIZED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_use_double_quant=settings.double_quant,
        bnb_4bit_quant_type=settings.quant_type,
        llm_int8_skip_modules=UNQUANTIZED,
    )


def inject_lora(student: PreTrainedModel, settings: LoraSettings) -> None:
    """LoRA matrices beside every linear layer of the language model's blocks, and nowhere else.

    They are put into the student rather than around it, so that its parameters keep their names.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = [name for name, module in student.named_modules() if isinstance(module, nn.Linear)]
    layers = sorted({name.rpartition(".")[2] for name in names if name.startswith("model.layers.")})
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        bias=settings.bias,  # type: ignore[arg-type]
        target_modules=rf"model\.layers\.\d+\.(?:[^.]+\.)*(?:{'|'.join(layers)})",
        task_type="CAUSAL_LM",
        base_model_name_or_path=student.config._name_or_path,
    )
    inject_adapter_in_model(config, student)


def experts_of(path: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The `moe` entry of config.json: the checkpoint's own where it has experts, else the one asked for.

    Raises ValueError if the two have other sizes.
    """
    own = read_config(path).get("moe")
    if not own or not own.get("moe_encoder"):
        return dict(asked)
    different = [name for name in PUBLISHED_KEYS if own.get(name) != asked[name]]
    if different:
        name = different[0]
        raise ValueError(f"--{name} {asked[name]} does not fit the experts of {path}, which say {own.get(name)}")
    return dict(own)


def lacks_experts(path: str) -> bool:
    """Whether a checkpoint has a vision tower, and that one without experts."""
    config = read_config(path)
    return config.get("mm_vision_tower") is not None and not (config.get("moe") or {}).get("moe_encoder")


def _record(student: Any, config: ModelConfig) -> None:
    entries = dict(config.extra)
    if entries["image_grid_pinpoints"] is not None:
        side = student.get_vision_tower().image_size
        pinpoints = parse_grid_pinpoints(entries["image_grid_pinpoints"], side)
        entries["image_grid_pinpoints"] = json.loads(json.dumps(pinpoints))
    student.config.update(entries)
    student.config.tokenizer_padding_side = "right"
    template = conv_templates.get(config.template)
    if template is not None and template.sep_style is not SeparatorStyle.PLAIN:  # captions are no way to chat
        student.config.conversation_template = config.template


def compile_tower(student: Any, backend: str, mode: str | None) -> None:
    """Compile attention and MLP of each layer of the vision tower: shapes are fixed there, and names stay as they are.

    Not the layers themselves: what gradient checkpointing re-runs must be inside it, not around it.
    """
    for layer in student.get_vision_tower().vision_tower.vision_model.encoder.layers:
        for block in (layer.self_attn, layer.mlp):
            block.compile(backend=backend, mode=mode)


def unused_parameters(distiller: Any, balances: bool) -> frozenset[str]:
    """Tower parameters that no loss reaches, by name: the layers after the last one that is read.

    balances: the routers of those layers are heard by a balance term. Then all but the MLP that comes last are used.
    """
    tower = distiller.student.get_vision_tower()
    if tower is None:
        return frozenset()
    model = tower.vision_tower.vision_model
    unused = {id(parameter) for parameter in model.post_layernorm.parameters()}
    if isinstance(tower, CLIPVisionTower):
        behind = list(model.encoder.layers[max(tower.layers) :])
        if balances and tower.num_run_layers > max(tower.layers):
            last = behind[-1].mlp
            unused |= {id(parameter) for parameter in last.parameters()} - {id(p) for p in last.router.parameters()}
        else:
            unused |= {id(parameter) for layer in behind for parameter in layer.parameters()}
    return frozenset(name for name, parameter in distiller.named_parameters() if id(parameter) in unused)
