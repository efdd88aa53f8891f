"""The student as a run wants it: language model, vision modules, experts, LoRA, quantization."""

import json
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from llava.anyres import parse_grid_pinpoints
from llava.conversation import SeparatorStyle, conv_templates
from llava.mm_utils import ImageLayout
from llava.model.checkpoint import load_student
from llava.model.checkpoint_config import is_hf_native, read_config
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.move_kd.config import MoLEConfig
from llava.model.quantization import quantization_config
from llava.model.tokenizer import add_image_tokens, grow_embeddings
from llava.train.run_config import LoraSettings, ModelConfig, QuantizationSettings, Run

# Keys of config.json's `moe` that may change when training goes on, and those that only told how experts began.
CHANGEABLE = ("moe_gate", "moe_dropout")
BEGINNINGS = ("moe_init_a", "moe_init_b")


def build_student(run: Run, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The language model with its eyes, ready for `apply_stage`; config.json's entries are in place.

    Raises ValueError for experts that do not fit or are not there, CheckpointError for a checkpoint that is no use.
    """
    config = run.model
    moe = None
    if config.vision is not None and config.vision.moe is not None:
        moe = experts_of(config.path, config.vision.moe, config.vision.moe_given)
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
    if config.vision is not None and has_tower(config.path):
        overwrite["mm_vision_tower"] = config.vision.vision_tower
    if config.rope_scaling is not None:
        overwrite["rope_scaling"] = dict(config.rope_scaling)
    return overwrite if moe is None else {**overwrite, "moe": dict(moe)}


def _make_efficient(student: Any, run: Run) -> None:
    """No logits that no loss reads; gradient checkpointing and compilation, as far as they are asked for."""
    student.leave_out_idle_logits()
    if run.hf.activation_checkpointing:
        student.activation_checkpointing_enable(activation_checkpointing_kwargs=run.hf.activation_checkpointing_kwargs)
        run.hf.activation_checkpointing = False  # done; the Trainer would look for it in the distiller
    if run.model.compile_backend is not None and run.model.vision is not None:
        compile_tower(student, run.model.compile_backend, run.model.compile_mode)


def _loading_dtype(run: Run) -> torch.dtype:
    """Weights that train outside DeepSpeed are float32 from the start: rounding them first would lose digits."""
    trained = run.stage.trainable & ({"vision_tower"} if run.stage.lora else {"vision_tower", "language_model"})
    rounds = run.hf.deepspeed or run.model.quantization is not None
    return torch.float32 if trained and not rounds else run.model.dtype


def _quantization(settings: QuantizationSettings | None, compute_dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if settings is None:
        return None
    return quantization_config(
        settings.bits == 8,
        settings.bits == 4,
        compute_dtype,
        double_quant=settings.double_quant,
        quant_type=settings.quant_type,
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


def experts_of(path: str, asked: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """The `moe` entry of config.json: the one asked for, or where the checkpoint has experts its own, with the gate and
    the dropout that flags name. given: the keys of `asked` that flags name.

    Raises ValueError if flags name another form than the checkpoint's experts have.
    """
    stored = read_config(path).get("moe")
    if not stored or not stored.get("moe_encoder"):
        return dict(asked)
    own = MoLEConfig.from_dict(stored).to_dict()
    changed = {name: asked[name] for name in CHANGEABLE if name in given}
    if "moe_encoder_dense" in given and asked["moe_encoder_dense"] != own["moe_encoder_dense"]:
        changed["moe_gate"] = asked["moe_gate"]
    for name in given:
        if name not in (*CHANGEABLE, *BEGINNINGS, "moe_encoder_dense") and own[name] != asked[name]:
            raise ValueError(f"--{name} {asked[name]} does not fit the experts of {path}, which say {own[name]}")
    return MoLEConfig.from_dict({**own, **changed}).to_dict() if changed else dict(stored)


def has_tower(path: str) -> bool:
    raw = read_config(path)
    return raw.get("mm_vision_tower") is not None or is_hf_native(raw)


def lacks_experts(path: str) -> bool:
    """Whether a checkpoint has a vision tower, and that one without experts."""
    config = read_config(path)
    return config.get("mm_vision_tower") is not None and not (config.get("moe") or {}).get("moe_encoder")


def _record(student: Any, config: ModelConfig) -> None:
    entries = dict(config.extra)
    if entries["image_grid_pinpoints"] is not None and ImageLayout(entries["image_aspect_ratio"]).is_anyres:
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


def unused_parameters(distiller: Any, trains_experts: bool) -> frozenset[str]:
    """Tower parameters that no loss reaches, by name: the layers after the last one that is read, and routers that
    nothing hears (of the gate `top1`, without a balance term)."""
    tower = distiller.student.get_vision_tower()
    if tower is None:
        return frozenset()
    unused = [*tower.vision_tower.vision_model.post_layernorm.parameters()]
    if isinstance(tower, CLIPVisionTower):
        balances = trains_experts and "balance" in distiller.objectives
        unused += _unused_in_layers(tower, distiller.distill_config.balance if balances else None)
    found = {id(parameter) for parameter in unused}
    return frozenset(name for name, parameter in distiller.named_parameters() if id(parameter) in found)


def _unused_in_layers(tower: CLIPVisionTower, balance: str | None) -> list[nn.Parameter]:
    """balance: the form of the term that hears the routers. Over all layers ("pooled") it hears those behind too; then
    all but the MLP that comes last are used."""
    layers: list[Any] = list(tower.vision_tower.vision_model.encoder.layers)
    read, behind = layers[: max(tower.layers)], layers[max(tower.layers) :]
    moe = None if tower.settings.moe is None else MoLEConfig.from_dict(tower.settings.moe)
    heard = moe is not None and balance is not None and moe.experts > 1
    if heard and balance == "pooled" and tower.num_run_layers > max(tower.layers):
        last = behind[-1].mlp
        routers = {id(parameter) for parameter in last.router.parameters()}
        unused = [parameter for parameter in last.parameters() if id(parameter) not in routers]
    else:
        unused = [parameter for layer in behind for parameter in layer.parameters()]
    if moe is not None and moe.gate == "top1" and not heard:
        unused += [parameter for layer in read for parameter in layer.mlp.router.parameters()]
    return unused
