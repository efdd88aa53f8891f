"""The command lines of both stages: the flags of an ordinary LLaVA run, with the playground's files and numbers."""

import socket
import sys
from pathlib import Path

import torch

from playground.recipe import Recipe, StageTraining
from playground.teachers import EVA_FILE

ROOT = Path(__file__).resolve().parents[1]
# Added to stage 1, these train the whole tower there too, and not only experts and projector.
EARLY_TOWER = ("--mm_tunable_parts", "mm_mlp_adapter,mm_vision_tower", "--mm_vision_tower_lr", "1e-3")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launcher() -> list[str]:
    """`deepspeed` with one process, from the environment that runs this."""
    return [
        str(Path(sys.executable).with_name("deepspeed")),
        *("--num_gpus", "1", "--master_port", str(free_port())),
        str(ROOT / "llava" / "train" / "train_mem.py"),
        *("--deepspeed", str(ROOT / "scripts" / "zero2.json")),
    ]


def shared_flags(out: Path, stage: StageTraining, output: Path) -> list[str]:
    settings = {
        "model_name_or_path": out / "language",
        "vision_tower": out / "clip",
        "image_folder": out / "data" / "images",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "bf16": False,
        "output_dir": output,
        "max_steps": stage.steps,
        "per_device_train_batch_size": stage.batch,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "save_strategy": "steps",
        "save_steps": stage.save_steps,
        "save_total_limit": 1,
        "learning_rate": stage.rate,
        "adam_beta2": 0.99,
        "weight_decay": 0.0,
        "warmup_ratio": 0.05,
        "lr_scheduler_type": "cosine",
        "logging_steps": min(10, stage.steps),
        "model_max_length": 1024,
        "dataloader_num_workers": 1 if not torch.cuda.is_available() else 4,
        "report_to": "none",
    }
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def teacher_spec(out: Path, recipe: Recipe, kind: str) -> str:
    """A teacher of the playground, as `--encoder_teachers` of training and `--teachers` of the demo take it."""
    folder = out / "teachers" / kind
    return f"{kind}:path={folder / EVA_FILE if kind == 'eva' else folder},size={recipe.world.side}"


def teacher_specs(out: Path, recipe: Recipe) -> list[str]:
    """Those beside CLIP."""
    return [teacher_spec(out, recipe, kind) for kind in recipe.distill.teachers]


def distill_flags(out: Path, recipe: Recipe) -> list[str]:
    """What turns either stage into MoVE-KD: teachers beside CLIP, and experts in the tower."""
    settings = {
        "kd_recipe": "ours",
        "kd_w": recipe.distill.weight,
        "moe_encoder": True,
        "moe_encoder_num_experts": recipe.distill.experts,
        "moe_encoder_lora_rank": recipe.distill.rank,
        "tune_encoder": True,
        "teacher_cache": out / "cache",
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    return ["--encoder_teachers", "clip", *teacher_specs(out, recipe), *flags]


def pretrain_flags(out: Path, recipe: Recipe, output: Path) -> list[str]:
    """Stage 1: the projector, on captions."""
    return [
        *shared_flags(out, recipe.pretrain, output),
        *("--version", "plain", "--tune_mm_mlp_adapter", "True"),
        *("--data_path", str(out / "data" / "pretrain.json")),
    ]


def finetune_flags(out: Path, recipe: Recipe, start: Path, output: Path) -> list[str]:
    """Stage 2: visual instruction tuning of the whole model, from the folder of stage 1."""
    return [
        *shared_flags(out, recipe.finetune, output),
        *("--version", "v1", "--init_from", str(start)),
        *("--mm_tunable_parts", "mm_mlp_adapter,mm_vision_tower,mm_language_model"),
        *("--mm_vision_tower_lr", str(recipe.finetune.tower_rate)),
        *("--data_path", str(out / "data" / "finetune.json")),
    ]
