"""Flags of every published launch script parse, and mean what they say."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml

from llava.model.checkpoint_io import find_file
from llava.train.arguments import FlagParser, parse_run
from llava.train.legacy_flags import NO_EFFECT, RENAMED
from llava.train.run_config import Run
from llava.train.training_arguments import read_deepspeed_config

ROOT = Path(__file__).parents[2]


def words(text: str) -> list[str]:
    return text.split()


LLAVA_1_5 = words("""model_name_or_path version freeze_backbone tune_mm_mlp_adapter vision_tower mm_vision_select_layer
    pretrain_mm_mlp_adapter mm_projector_type mm_use_im_start_end mm_use_im_patch_token mm_patch_merge_type
    mm_vision_select_feature data_path lazy_preprocess is_multimodal image_folder image_aspect_ratio cache_dir optim
    remove_unused_columns freeze_mm_mlp_adapter mpt_attn_impl model_max_length double_quant quant_type bits lora_enable
    lora_r lora_alpha lora_dropout lora_weight_path lora_bias mm_projector_lr group_by_modality_length""")
TRAINER = words("""deepspeed bf16 fp16 output_dir run_name num_train_epochs per_device_train_batch_size
    per_device_eval_batch_size gradient_accumulation_steps evaluation_strategy save_strategy save_steps
    save_total_limit learning_rate weight_decay warmup_ratio lr_scheduler_type logging_steps tf32
    gradient_checkpointing dataloader_num_workers dataloader_drop_last report_to torch_compile torch_compile_backend
    local_rank""")
LLAVA_NEXT = words("""model_class_name mm_tunable_parts tune_mm_vision_resampler vision_tower_pretrained
    unfreeze_mm_vision_tower unfreeze_language_model mm_resampler_type mm_mask_drop_mode mm_mask_drop_skip_percentage
    mm_mask_drop_ratio mm_mask_drop_ratio_upper mm_mask_drop_ratio_lower mm_spatial_pool_stride mm_spatial_pool_mode
    mm_spatial_pool_out_channels mm_perceiver_depth mm_perceiver_latents mm_perceiver_ff_mult mm_perceiver_pretrained
    mm_qformer_depth mm_qformer_latents mm_qformer_pretrained rope_scaling_factor rope_scaling_type use_pos_skipping
    pos_skipping_range s2 s2_scales delay_load mm_newline_position add_faster_video faster_token_stride early_mix_text
    image_grid_pinpoints image_crop_resolution image_split_resolution video_folder video_fps frames_upbound
    add_time_instruction force_sample freeze_mm_vision_resampler mm_vision_tower_lr group_by_varlen
    group_by_modality_length_auto auto_find_batch_size verbose_logging attn_implementation trainer_mode zo_eps
    zo_num_directions""")
MOVE_KD = words("""encoder_teachers pretrain_encoder_adapter pretrain_mole_encoder moe_encoder moe_encoder_dense
    moe_encoder_lora_rank moe_encoder_lora_alpha moe_encoder_num_experts finetune tune_encoder tune_encoder_adapter
    tune_all kd kd_w kd_memory_w token_weight teacher_weight moe_encoder_balance_w""")
# What transformers 4.37 had and transformers 5 has not.
DROPPED = words("""overwrite_output_dir evaluation_strategy per_gpu_train_batch_size per_gpu_eval_batch_size
    warmup_ratio
    logging_dir save_safetensors no_cuda use_mps_device jit_mode_eval use_ipex fp16_opt_level half_precision_backend
    tpu_num_cores tpu_metrics_debug past_index fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap adafactor
    group_by_length use_legacy_prediction_loop include_inputs_for_metrics fp16_backend push_to_hub_model_id
    push_to_hub_organization push_to_hub_token mp_parameters torchdynamo ray_scope dispatch_batches split_batches
    include_tokens_per_second""")


@pytest.fixture
def minimal(tmp_path: Path) -> list[str]:
    return ["--model_name_or_path", "m", "--data_path", "d.json", "--output_dir", str(tmp_path), "--vision_tower", "v"]


@pytest.mark.parametrize("name", sorted({*LLAVA_1_5, *TRAINER, *LLAVA_NEXT, *MOVE_KD, *DROPPED}))
def test_every_published_flag_is_known(name: str) -> None:
    assert f"--{RENAMED.get(name, name)}" in FlagParser().known_flags()


@pytest.mark.parametrize("name", sorted(NO_EFFECT))
def test_a_flag_without_effect_is_accepted_and_warned_about(name: str, minimal: list[str]) -> None:
    run = parse_run([*minimal, f"--{name}", "1"])
    assert any(f"--{name} has no effect" in line for line in run.warnings)


def test_the_start_of_experts_that_a_file_brings_has_no_effect(minimal: list[str], tmp_path: Path) -> None:
    (tmp_path / "mole.bin").touch()
    flags = ["--moe_encoder", "True", "--moe_init_b", "kaiming", "--pretrain_mole_encoder"]
    said = "--moe_init_b has no effect: --pretrain_mole_encoder brings the experts"
    assert said in parse_run([*minimal, *flags, str(tmp_path / "mole.bin")]).warnings
    assert said not in parse_run([*minimal, *flags[:-1]]).warnings


def test_nothing_is_warned_about_by_default(minimal: list[str]) -> None:
    assert parse_run(minimal).warnings == ()


def test_records_that_nothing_evaluates_are_told(minimal: list[str]) -> None:
    held_out = [*minimal, "--eval_split", "0.1"]
    assert any("--eval_split are never evaluated" in line for line in parse_run(held_out).warnings)
    assert parse_run([*held_out, "--eval_strategy", "epoch"]).warnings == ()


def test_the_freezing_of_a_projector_that_another_flag_trains_is_told(minimal: list[str]) -> None:
    run = parse_run([*minimal, "--freeze_mm_mlp_adapter", "True", "--mm_tunable_parts", "mm_mlp_adapter"])
    assert "projector" in run.stage.trainable
    assert any("--freeze_mm_mlp_adapter has no effect" in line for line in run.warnings)


def test_a_run_is_logged_in_several_places(minimal: list[str]) -> None:
    assert parse_run([*minimal, "--report_to", "tensorboard", "mlflow"]).hf.report_to == ["tensorboard", "mlflow"]
    assert parse_run([*minimal, "--report_to", "none"]).hf.report_to == []


def test_batches_are_copied_without_waiting_where_they_are_pinned(
    minimal: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not parse_run([*minimal, "--use_cpu", "True"]).hf.accelerator_config.non_blocking
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert parse_run([*minimal, "--bf16", "False"]).hf.accelerator_config.non_blocking
    unpinned = parse_run([*minimal, "--bf16", "False", "--dataloader_pin_memory", "False"])
    assert not unpinned.hf.accelerator_config.non_blocking
    given = parse_run([*minimal, "--bf16", "False", "--split_batches", "True"]).hf.accelerator_config
    assert (given.split_batches, given.non_blocking) == (True, True)


def test_older_names_set_what_they_always_did(minimal: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    old = "--evaluation_strategy epoch --warmup_ratio 0.03 --no_cuda True --per_gpu_train_batch_size 3 --eval_split 2"
    run = parse_run(
        [*minimal, *old.split(), "--adafactor", "True", "--overwrite_output_dir", "--split_batches", "True"]
    )
    hf = run.hf
    assert (hf.eval_strategy, hf.use_cpu, hf.per_device_train_batch_size, hf.optim) == ("epoch", True, 3, "adafactor")
    assert hf.get_warmup_steps(1000) == 30
    assert hf.accelerator_config.split_batches
    assert run.start_over


def test_warmup_steps_win_over_warmup_ratio(minimal: list[str]) -> None:
    assert parse_run([*minimal, "--warmup_steps", "7", "--warmup_ratio", "0.5"]).hf.get_warmup_steps(1000) == 7


def test_values_are_given_in_every_published_way(minimal: list[str]) -> None:
    run = parse_run([*minimal, "--mm_tunable_parts=mm_mlp_adapter", "--group_by_length", "--lora_r", "8"])
    assert run.stage.trainable == {"projector", "adapters"}
    assert run.sampling == "length_auto"


@pytest.mark.parametrize(
    ("flag", "mode"),
    [
        ("--group_by_modality_length True", "modality"),
        ("--group_by_modality_length_auto True", "modality_auto"),
        ("--group_by_varlen True", "variable"),
        ("--group_by_length True", "length_auto"),
        ("--train_sampling_strategy group_by_length", "length_auto"),
    ],
)
def test_each_grouping_flag_chooses_an_order(minimal: list[str], flag: str, mode: str) -> None:
    assert parse_run([*minimal, *flag.split()]).sampling == mode
    assert parse_run(minimal).sampling == "shuffle"


def test_the_machine_decides_where_no_flag_does(minimal: list[str]) -> None:
    run = parse_run([*minimal, "--tf32", "True"])
    if not torch.accelerator.is_available():
        assert run.hf.use_cpu
        assert run.model.dtype == torch.float32
        assert any("tf32" in line for line in run.warnings)
    assert parse_run([*minimal, "--bf16", "True"]).model.dtype == torch.bfloat16


def test_missing_flash_attention_falls_back_with_a_warning(minimal: list[str]) -> None:
    assert parse_run(minimal).model.attn_implementation == "sdpa"
    if not torch.cuda.is_available():
        run = parse_run(minimal, attn_implementation="flash_attention_2")
        assert run.model.attn_implementation == "sdpa"
        assert any("flash-attn" in line for line in run.warnings)
    assert parse_run([*minimal, "--attn_implementation", "eager"]).model.attn_implementation == "eager"


def test_the_trainer_never_compiles_the_language_model(minimal: list[str]) -> None:
    run = parse_run([*minimal, "--torch_compile", "True", "--torch_compile_mode", "max-autotune"])
    assert (run.model.compile_backend, run.model.compile_mode) == ("inductor", "max-autotune")
    assert not run.hf.torch_compile


def test_gradient_checkpointing_never_reenters(minimal: list[str]) -> None:
    assert parse_run(minimal).hf.activation_checkpointing_kwargs == {"use_reentrant": False}
    assert not parse_run([*minimal, "--gradient_checkpointing", "False"]).hf.activation_checkpointing
    with pytest.raises(ValueError, match="use_reentrant"):
        parse_run([*minimal, "--gradient_checkpointing_kwargs", '{"use_reentrant": true}'])


def test_the_command_line_wins_over_the_config_file(minimal: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    settings = {
        "learning_rate": 1e-4,
        "evaluation_strategy": "no",
        "warmup_ratio": 0.1,
        "lora_enable": True,
        "image_grid_pinpoints": [[336, 672], [672, 336]],
        "encoder_teachers": ["clip", "eva"],
        "save_steps": None,
    }
    path.write_text(yaml.safe_dump(settings))
    run = parse_run([*minimal, "--config", str(path), "--learning_rate", "3e-4", "--warmup_steps", "0.2"])
    assert run.hf.learning_rate == 3e-4
    assert run.hf.get_warmup_steps(100) == 20
    assert run.stage.lora
    assert run.distill is not None
    assert run.distill.teachers == ("clip", "eva")
    assert json.loads(str(run.data.image_grid_pinpoints)) == [[336, 672], [672, 336]]


WRONG: list[tuple[list[str], str]] = [
    (["--lerning_rate", "1"], "did you mean --learning_rate"),
    (["--bits", "4"], "lora_enable"),
    (["--bits", "5", "--lora_enable", "True"], "4, 8 or 16"),
    (["--mm_tunable_parts", "mm_mlp_adapter,head"], "mm_language_model"),
    (["--freeze_backbone", "True", "--freeze_mm_mlp_adapter", "True"], "freeze the whole student"),
    (["--group_by_length", "True", "--group_by_varlen", "True"], "one way"),
    (["--lora_enable", "maybe"], "lora_enable"),
    (["--fsdp", "full_shard"], "zero3.json"),
    (["--label_smoothing_factor", "0.1"], "not supported"),
    (["--trainer_mode", "zo"], "regular"),
    (["--warmup_ratio", "3"], "warmup_ratio"),
    (["--mm_resampler_type", "perceiver"], "perceiver"),
    (["--image_aspect_ratio", "tall"], "tall"),
    (["--lora_bias", "some"], "lora_only"),
    (["--train_sampling_strategy", "batch_rebalance"], "batch_rebalance"),
    (["--eval_strategy", "epoch"], "add --eval_data_path or --eval_split"),
    (["--save_only_model", "True", "--load_best_model_at_end", "True"], "drop one of the two"),
]


@pytest.mark.parametrize(("flags", "text"), WRONG, ids=[" ".join(flags) for flags, _ in WRONG])
def test_a_mistake_is_one_line_that_says_what_to_do(flags: list[str], text: str, minimal: list[str]) -> None:
    with pytest.raises(ValueError, match=text):
        parse_run([*minimal, *flags])


@pytest.mark.parametrize("flag", ["--deepspeed", "--init_from", "--pretrain_mm_mlp_adapter", "--config"])
def test_a_missing_file_is_named(flag: str, minimal: list[str]) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        parse_run([*minimal, flag, "nowhere.bin"])


@pytest.mark.parametrize("flag", ["--model_name_or_path", "--data_path", "--output_dir"])
def test_what_a_run_cannot_do_without_is_asked_for(flag: str, minimal: list[str]) -> None:
    position = minimal.index(flag)
    with pytest.raises(ValueError, match=flag):
        parse_run(minimal[:position] + minimal[position + 2 :])


def test_learning_rates_are_kept_by_part(minimal: list[str]) -> None:
    flags = "--learning_rate 1 --mm_projector_lr 2 --mm_vision_tower_lr 3 --mole_lr 4 --adapter_lr 0"
    rates = parse_run([*minimal, *flags.split()]).learning_rates
    assert rates == {"language_model": 1, "projector": 2, "vision_tower": 3, "mole": 4, "adapters": 0}


def test_config_json_records_what_clients_read(minimal: list[str]) -> None:
    extra = parse_run([*minimal, "--image_aspect_ratio", "pad", "--mm_projector_lr", "2e-5"]).model.extra
    assert (extra["image_aspect_ratio"], extra["mm_projector_lr"]) == ("pad", 2e-5)
    assert extra["tokenizer_model_max_length"] == 4096
    assert extra["mm_use_im_start_end"] is False


def test_the_hub_is_read_from_the_cache_that_is_asked_for(
    minimal: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "nowhere")
    repository, commit = tmp_path / "cache" / "models--org--m", "0" * 40
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "config.json").write_text('{"moe": {"moe_encoder": true}}')
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    run = parse_run([*minimal, "--model_name_or_path", "org/m", "--cache_dir", str(tmp_path / "cache")])
    assert run.model.vision is not None
    assert run.model.vision.moe is not None
    assert find_file("org/m", "generation_config.json") is None


# -- DeepSpeed files and launch scripts

CONFIGS = sorted((ROOT / "scripts").glob("zero*.json"))
SCRIPTS = sorted(path for path in (ROOT / "scripts").rglob("*.sh") if "deepspeed llava/train" in path.read_text())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_deepspeed_files_hold_the_published_settings(path: Path) -> None:
    config = json.loads(path.read_text())
    stage = 3 if path.name.startswith("zero3") else 2
    assert config["zero_optimization"]["stage"] == stage
    assert config["fp16"]["initial_scale_power"] == 16
    assert {config[name] for name in ("train_batch_size", "train_micro_batch_size_per_gpu")} == {"auto"}
    if stage == 3:
        assert config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]
    if "offload" in path.name:
        assert config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"


def test_all_published_deepspeed_files_are_there() -> None:
    names = words("zero2 zero3 zero2_offload zero3_offload zero2_fused_adamw zero3pp zero2_finetune")
    assert {path.stem for path in CONFIGS} >= set(names)


def test_without_a_gpu_the_optimizer_is_not_compiled() -> None:
    path = str(ROOT / "scripts" / "zero3_offload.json")
    assert read_deepspeed_config(path, on_cpu=True)["optimizer"]["params"]["torch_adam"]
    assert "torch_adam" not in read_deepspeed_config(path, on_cpu=False)["optimizer"]["params"]


def _flags_of(script: Path, folder: Path) -> list[str]:
    """The arguments that a script passes on, with its variables pointed into `folder`."""
    stub = 'deepspeed() { shift; printf "%s\\0" "$@"; }; export -f deepspeed; exec bash "$0"'
    (folder / "stage1").mkdir()
    for name in ("mm_projector.bin", "mole_encoder.bin", "encoder_adapter.bin"):
        (folder / "stage1" / name).touch()
    places = {name: str(folder) for name in ("MODEL", "VISION_TOWER", "IMAGES", "VIDEOS", "OUT", "PATH_TO_DATA")}
    env = {**places, "DATA": str(folder / "data.json"), "STAGE1": str(folder / "stage1"), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(["bash", "-c", stub, str(script)], env=env, capture_output=True, check=True, cwd=ROOT)
    return [flag.decode() for flag in result.stdout.split(b"\0")[:-1]]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_launch_scripts_parse_without_a_warning_of_flags_that_do_nothing(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava.train.training_arguments.prepare_deepspeed", lambda **_: None)
    monkeypatch.chdir(ROOT)
    run = parse_run(_flags_of(script, tmp_path), "flash_attention_2")
    assert not [line for line in run.warnings if "no effect" in line]
    expected = ("pretrain" in script.name, "lora" in script.name)
    assert (run.stage.name == "pretrain", run.stage.lora) == expected
    assert run.model.vision is not None
    assert run.model.vision.mm_vision_select_layer == -2


PUBLISHED: dict[str, dict[str, Any]] = {
    "v1_5/pretrain.sh": {"learning_rate": 1e-3, "per_device_train_batch_size": 32, "save_steps": 24000},
    "v1_5/finetune.sh": {"learning_rate": 2e-5, "per_device_train_batch_size": 16, "save_steps": 50000},
    "v1_5/finetune_lora.sh": {"learning_rate": 2e-4, "lora_r": 128, "lora_alpha": 256, "mm_projector_lr": 2e-5},
    "v1_5/finetune_task_lora.sh": {"learning_rate": 2e-4, "lora_r": 128, "mm_projector_lr": 2e-5},
    "v1_5/finetune_qlora.sh": {"bits": 4, "lora_enable": True},
    "next/pretrain_clip.sh": {"learning_rate": 1e-3, "per_device_train_batch_size": 16, "model_max_length": 8192},
    "next/direct_finetune_clip.sh": {"learning_rate": 1e-5, "mm_vision_tower_lr": 2e-6, "model_max_length": 32768},
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_launch_scripts_hold_the_published_hyper_parameters(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava.train.training_arguments.prepare_deepspeed", lambda **_: None)
    monkeypatch.chdir(ROOT)
    run: Run = parse_run(_flags_of(ROOT / "scripts" / name, tmp_path))
    assert {key: getattr(run.hf, key) for key in PUBLISHED[name]} == PUBLISHED[name]
    assert (run.hf.weight_decay, run.hf.warmup_steps, run.hf.lr_scheduler_type) == (0, 0.03, "cosine")


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").rglob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_have_no_syntax_error(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_importing_the_arguments_does_not_import_deepspeed() -> None:
    code = "import sys, llava.train.arguments; sys.exit('deepspeed' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
