"""The third group of flags: transformers' TrainingArguments with LLaVA's additions and the names it has dropped.

The defaults are ours where ours matter: bf16 on an accelerator and float32 without, no host synchronization for a
NaN filter, non-reentrant gradient checkpointing, tensorboard when it is installed.
"""

import importlib.util
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from llava.train.environment import prepare_deepspeed
from llava.train.model_arguments import option

# Options of transformers' Trainer that would do nothing, or the wrong thing, to a distiller.
UNSUPPORTED = {
    "push_to_hub": "upload --output_dir with `hf upload` when the run is done",
    "label_smoothing_factor": "the student computes its own loss",
    "neftune_noise_alpha": "images are spliced into the embeddings that it would disturb",
    "use_liger_kernel": "the splice and the vision tower are not covered by its kernels",
    "parallelism_config": "use --deepspeed scripts/zero3.json",
}


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    cache_dir: str | None = option(None, "where downloaded weights are kept")
    optim: str = option("adamw_torch", "optimizer")
    remove_unused_columns: bool = option(False, "must stay False: a batch holds more than forward takes")
    report_to: list[str] | None = option(None, "tensorboard where installed; wandb, none, ...")  # noqa: RUF009
    bf16: bool | None = option(None, "default: on with an accelerator, off without")  # type: ignore[assignment]
    logging_nan_inf_filter: bool = option(False, "True hides non-finite losses and synchronizes in every step")
    ddp_find_unused_parameters: bool | None = option(False, "every trainable parameter gets a gradient in every step")
    gradient_checkpointing: bool | None = option(True, "recompute activations in backward")
    model_max_length: int = option(4096, "tokens of a sample, images included; longer ones are cut at the right")
    attn_implementation: str | None = option(None, "sdpa, flash_attention_2 or eager")
    torch_compile: bool = option(False, "compile the layers of the vision tower (never the language model)")

    freeze_mm_mlp_adapter: bool = option(False, "keep the projector as it is")
    tune_encoder: bool | None = option(None, "train the experts and routers of the tower")
    tune_encoder_adapter: bool | None = option(None, "False keeps the distillation heads as they are")
    tune_all: bool = option(False, "train everything")
    finetune: bool = option(False, "write the whole student even where only small parts train")
    mm_projector_lr: float | None = option(None, "learning rate of the projector")
    mm_vision_tower_lr: float | None = option(None, "learning rate of the vision tower without its experts")
    mole_lr: float | None = option(None, "learning rate of experts and routers")
    adapter_lr: float | None = option(None, "learning rate of the distillation heads")

    lora_enable: bool = option(False, "train LoRA matrices in place of the language model")
    lora_r: int = option(64, "rank")
    lora_alpha: int = option(16, "scale times rank")
    lora_dropout: float = option(0.05, "dropout in front of the LoRA matrices")
    lora_bias: str = option("none", "biases that train along: none, all or lora_only")
    bits: int = option(16, "4 or 8 loads the language model quantized (with lora_enable)")
    double_quant: bool = option(True, "quantize the quantization constants of 4-bit weights")
    quant_type: str = option("nf4", "nf4 or fp4")

    group_by_modality_length: bool = option(False, "batches of one modality, as long on every process")
    group_by_modality_length_auto: bool = option(False, "the same, with batches of similar length in random order")
    group_by_varlen: bool = option(False, "batches of similar length, shuffled in windows")
    group_by_length: bool = option(False, "batches of similar length")

    report: bool | None = option(None, "curves and pictures in output_dir/report at the end; default: with teachers")
    trainer_mode: str = option("regular", "regular; zeroth-order training is not supported")
    overwrite_output_dir: bool = option(False, "start over: remove the checkpoints in output_dir first")
    warmup_ratio: float = option(0.0, "share of the steps for warm-up; --warmup_steps wins")
    logging_dir: str | None = option(None, "folder of the tensorboard files")
    adafactor: bool = option(False, "same as --optim adafactor")
    split_batches: bool | None = option(None, "split one batch over the processes")
    dispatch_batches: bool | None = option(None, "let rank 0 read for all")
    deepspeed: dict[str, Any] | str | None = option(None, "DeepSpeed JSON file; see scripts/zero*.json")  # noqa: RUF009

    # Set by __post_init__ and read by arguments.py; not flags.
    notes: list[str] = field(default_factory=list, init=False, repr=False)
    compile_backend: str | None = field(default=None, init=False, repr=False)
    compile_mode: str | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self._adapt_to_the_machine()
        self._translate_dropped_names()
        self._take_over_compilation()
        self._require_non_reentrant_checkpointing()
        if isinstance(self.deepspeed, str):
            self.deepspeed = read_deepspeed_config(self.deepspeed, on_cpu=self.use_cpu)
            prepare_deepspeed(on_cpu=self.use_cpu)
        self._validate()
        super().__post_init__()

    def _adapt_to_the_machine(self) -> None:
        if not torch.accelerator.is_available():
            self.use_cpu = True
        if self.use_cpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns of what is meant
        if self.bf16 is None:
            self.bf16 = not self.use_cpu and not self.fp16 and _accelerator_has_bf16()
        if self.use_cpu and self.tf32:
            self.notes.append("--tf32 True is ignored: there is no GPU")
            self.tf32 = None
        if self.accelerator_config is None and self.dataloader_pin_memory and not self.use_cpu:
            self.accelerator_config = {"non_blocking": True}  # or every tensor of a batch is waited for
        if self.report_to is None:
            self.report_to = ["tensorboard" if importlib.util.find_spec("tensorboard") else "none"]
        if "wandb" in self.report_to and importlib.util.find_spec("wandb") is None:
            raise ValueError("--report_to wandb: wandb is not installed; pip install wandb, or leave the flag out")

    def _translate_dropped_names(self) -> None:
        if self.warmup_ratio and not self.warmup_steps:
            if not 0 < self.warmup_ratio < 1:
                raise ValueError(f"--warmup_ratio {self.warmup_ratio} must be at least 0 and below 1")
            self.warmup_steps = self.warmup_ratio
        if self.logging_dir:
            os.environ["TENSORBOARD_LOGGING_DIR"] = self.logging_dir
        if self.adafactor:
            self.optim = "adafactor"
        if self.optim == "adamw_hf":
            self.notes.append("--optim adamw_hf no longer exists; adamw_torch is used")
            self.optim = "adamw_torch"
        for name in ("split_batches", "dispatch_batches"):
            if (value := getattr(self, name)) is not None:
                self.accelerator_config = {**(self.accelerator_config or {}), name: value}  # type: ignore[dict-item]

    def _take_over_compilation(self) -> None:
        if self.torch_compile or self.torch_compile_backend or self.torch_compile_mode:
            self.compile_backend = self.torch_compile_backend or "inductor"
            self.compile_mode = self.torch_compile_mode
        # The Trainer would compile the language model too, whose shapes change with every batch.
        self.torch_compile, self.torch_compile_backend, self.torch_compile_mode = False, None, None

    def _require_non_reentrant_checkpointing(self) -> None:
        if self.activation_checkpointing is None:
            self.activation_checkpointing = self.gradient_checkpointing
        given = self.activation_checkpointing_kwargs or self.gradient_checkpointing_kwargs or {}
        options = json.loads(given) if isinstance(given, str) else dict(given)
        if options.get("use_reentrant"):
            raise ValueError("use_reentrant=True loses the gradients of the routers; leave it out")
        self.activation_checkpointing_kwargs = {**options, "use_reentrant": False}

    def _validate(self) -> None:
        if not self.output_dir:
            raise ValueError("--output_dir is missing: the directory that checkpoints and the trained model go to")
        for name, why in UNSUPPORTED.items():
            if getattr(self, name):
                raise ValueError(f"--{name} is not supported: {why}")
        if self.fsdp:
            raise ValueError("--fsdp is not supported; use --deepspeed scripts/zero3.json to shard the model")
        if self.trainer_mode != "regular":
            raise ValueError(f"--trainer_mode {self.trainer_mode!r} is not supported; there is only 'regular'")
        if self.bits not in (4, 8, 16):
            raise ValueError(f"--bits {self.bits}: choose 4, 8 or 16")
        if self.bits != 16 and not self.lora_enable:
            raise ValueError(f"--bits {self.bits} cannot train by itself; add --lora_enable True")
        if self.bits != 16 and zero_stage(self.deepspeed) == 3:
            raise ValueError(f"--bits {self.bits} does not work under ZeRO-3; use scripts/zero2.json")
        if self.lora_bias not in ("none", "all", "lora_only"):
            raise ValueError(f"--lora_bias {self.lora_bias!r}: choose none, all or lora_only")
        if self.save_only_model and self.load_best_model_at_end:
            raise ValueError(
                "--load_best_model_at_end reads the training state of the best checkpoint, which --save_only_model "
                "leaves out; drop one of the two"
            )
        if self.remove_unused_columns:
            raise ValueError("--remove_unused_columns True would drop images from the batch; leave it out")


def _accelerator_has_bf16() -> bool:
    return torch.cuda.is_bf16_supported() if torch.cuda.is_available() else True


def zero_stage(deepspeed: Any) -> int:
    """The ZeRO stage of a DeepSpeed configuration that has been read; 0 for none."""
    return int((deepspeed or {}).get("zero_optimization", {}).get("stage", 0))


def read_deepspeed_config(path: str, on_cpu: bool) -> dict[str, Any]:
    """The JSON file as a dict. On a machine without a GPU its optimizer section asks for torch's AdamW,
    because DeepSpeed's own would first be compiled. Raises FileNotFoundError and ValueError."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"--deepspeed {path}: no such file; this repository has scripts/zero2.json and others")
    try:
        config = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"--deepspeed {path} is not valid JSON: {error}") from None
    if on_cpu and config.get("optimizer", {}).get("type") in ("Adam", "AdamW"):
        config["optimizer"].setdefault("params", {})["torch_adam"] = True
    return config
