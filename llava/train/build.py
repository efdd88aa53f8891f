"""From configs to the things that train: tokenizer, student, distiller with its teachers, data."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, logging

from llava.anyres import parse_grid_pinpoints
from llava.conversation import Conversation, conv_templates
from llava.model.checkpoint import load_parts, load_student
from llava.model.checkpoint_config import read_config
from llava.model.checkpoint_gather import is_partitioned
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.move_kd.config import PUBLISHED_KEYS
from llava.model.quantization import UNQUANTIZED
from llava.model.tokenizer import add_image_tokens, grow_embeddings, load_tokenizer
from llava.train.collator import stack
from llava.train.dataset import make_data_module
from llava.train.run_config import DistillRun, LoraSettings, ModelConfig, QuantizationSettings, Run

logger = logging.get_logger(__name__)


def select_template(name: str) -> Conversation:
    """The template of `--version`; a name that is not known means Vicuna's, as it always did."""
    if name not in conv_templates:
        logger.warning(f"--version {name!r} is no template; vicuna_v1 is used. There are {', '.join(conv_templates)}")
    return conv_templates.get(name, conv_templates["vicuna_v1"])


def build_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The language model's tokenizer, padding on the right with a token that exists."""
    tokenizer = load_tokenizer(config.path)
    tokenizer.model_max_length = config.max_length
    tokenizer.padding_side = "right"
    if config.template == "v0" and tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    elif tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def build_student(run: Run, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The language model with its eyes, ready for `apply_stage`; config.json's entries are in place."""
    config = run.model
    overwrite: dict[str, Any] = {}
    if config.rope_scaling is not None:
        overwrite["rope_scaling"] = dict(config.rope_scaling)
    moe = None if config.vision is None or config.vision.moe is None else experts_of(config.path, config.vision.moe)
    sees_without_experts = moe is not None and lacks_experts(config.path)
    if moe is not None and not sees_without_experts:
        overwrite["moe"] = moe
    student: Any = load_student(
        None,
        config.path,
        attn_implementation=config.attn_implementation,
        dtype=_loading_dtype(run),
        quantization_config=_quantization(config.quantization, config.dtype),
        device_map={"": run.hf.device} if config.quantization else None,
        overwrite_config=overwrite,
    )
    grow_embeddings(student, len(tokenizer))
    if config.lora is not None:
        inject_lora(student, config.lora)
    if sees_without_experts:
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
    if run.hf.activation_checkpointing:
        student.activation_checkpointing_enable(activation_checkpointing_kwargs=run.hf.activation_checkpointing_kwargs)
        run.hf.activation_checkpointing = False  # done; the Trainer would look for it in the distiller
    if config.compile_backend is not None and config.vision is not None:
        compile_tower(student, config.compile_backend, config.compile_mode)
    return student


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


def _record(student: Any, config: ModelConfig) -> None:
    entries = dict(config.extra)
    if entries["image_grid_pinpoints"] is not None:
        side = student.get_vision_tower().image_size
        pinpoints = parse_grid_pinpoints(entries["image_grid_pinpoints"], side)
        entries["image_grid_pinpoints"] = json.loads(json.dumps(pinpoints))
    student.config.update(entries)
    student.config.tokenizer_padding_side = "right"


def compile_tower(student: Any, backend: str, mode: str | None) -> None:
    """Compile each layer of the vision tower by itself: shapes are fixed there, and names stay as they are."""
    for layer in student.get_vision_tower().vision_tower.vision_model.encoder.layers:
        layer.compile(backend=backend, mode=mode)


def build_teachers(run: Run, student: Any) -> dict[str, Any]:
    """Frozen teachers by name; none for plain LLaVA. Their code is imported only here."""
    if run.distill is None or not run.distill.teachers:
        return {}
    from llava.model.multimodal_encoder.move_kd import teachers

    check_students_copy(run.distill, student)
    if run.distill.teacher_cache is not None:
        from llava.model.multimodal_encoder.move_kd.cache_lookup import open_cached_teachers

        return dict(
            open_cached_teachers(
                run.distill.teachers,
                run.distill.teacher_cache,
                student_tower=student.get_vision_tower(),
                dtype=run.distill.teacher_dtype,
                released=run.distill.released,
            )
        )
    built = teachers.build_teachers(
        run.distill.teachers,
        student_tower=student.get_vision_tower(),
        dtype=run.distill.teacher_dtype,
        device=run.hf.device,
        share_student="vision_tower" not in run.stage.trainable and not run.hf.deepspeed,
        released=run.distill.released,
    )
    return teachers.shard_teachers(built) if run.distill.shard_teachers else built


def check_students_copy(distill: DistillRun, student: Any) -> None:
    """Raises ValueError if the student's own tower is to weigh tokens and has no class token."""
    config = distill.config
    implied = config.anchor == "clip" and not config.anchor_is_target
    if implied and not isinstance(student.get_vision_tower(), CLIPVisionTower):
        raise ValueError(
            "tokens are weighed by a CLIP's class attention. No teacher 'clip' is named, and the student's own tower "
            "is no CLIP that could be copied: name one, as in --encoder_teachers clip:path=DIR, or set "
            "--kd_token_weights uniform (and --kd_teacher_weights uniform)"
        )


def build_distiller(run: Run, student: PreTrainedModel, teachers: Mapping[str, Any]) -> Any:
    """The module that trains. Stage-1 files are loaded into it. A teacher of whom more than patches is wanted shows
    on a blank that it gives that. Raises ValueError if files do not fit, or a teacher does not."""
    from llava.model.multimodal_encoder.move_kd.distiller import Distiller

    distiller = Distiller(student, teachers, None if run.distill is None else run.distill.config)
    for path in run.init_from:
        filled = load_parts(distiller, path)
        logger.warning(f"loaded {', '.join(filled) or 'nothing'} from {path}")
    for name, fields in distiller.required.items():
        if fields:
            blank = send_to_device(stack([teachers[name].source.blank()]), run.hf.device)
            distiller.check_answer(name, teachers[name](blank))
    return distiller


def set_precision(distiller: nn.Module, run: Run) -> None:
    """The run's dtype for every weight; DeepSpeed keeps float32 copies of those that train. Without it they are
    float32 themselves, and autocast rounds a copy in each step."""
    for parameter in distiller.parameters():
        if parameter.is_floating_point() and not is_partitioned(parameter):
            exact = parameter.requires_grad and not run.hf.deepspeed
            parameter.data = parameter.data.to(torch.float32 if exact else run.model.dtype)


def build_data(
    run: Run, tokenizer: PreTrainedTokenizerBase, student: Any, teachers: Mapping[str, Any]
) -> dict[str, Any]:
    """train_dataset, eval_dataset and data_collator."""
    processor = student.get_vision_tower().image_processor if run.model.vision is not None else None
    sources = {name: teacher.source for name, teacher in teachers.items()}
    return make_data_module(tokenizer, run.data, processor, select_template(run.model.template), sources)
