"""Command-line names of other releases: what they are called today, and which of them have no effect here.

Launch scripts written for LLaVA 1.5, LLaVA-NeXT and MoVE-KD (transformers 4.37) parse unchanged. One table lists the
flags that are accepted for that reason alone; each one that is used is named in a warning at start.
"""

from collections.abc import Sequence

# Today's transformers spells these differently; the values mean the same.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "torchdynamo": "torch_compile_backend",
}

# Names that set the same thing: a flag on the command line replaces its sibling from --config.
SAME_SETTING = {"warmup_ratio": "warmup_steps", "activation_checkpointing": "gradient_checkpointing"}

_GONE = "transformers 5 has no such option"
_RESAMPLER = "no resampler is built here"
_SLOW_FAST = "no released model has the token that slow-fast video needs"
_ZERO_ORDER = "only gradient training is supported"

NO_EFFECT = {
    "lazy_preprocess": "samples are always read when they are needed",
    "is_multimodal": "follows from --vision_tower",
    "mpt_attn_impl": "there is no MPT backbone",
    "lora_weight_path": "to go on from LoRA weights, resume or merge them first",
    "verbose_logging": "use --log_level info",
    "model_class_name": "the backbone is chosen by config.json",
    "use_pos_skipping": "positions are never skipped",
    "pos_skipping_range": "positions are never skipped",
    "add_faster_video": _SLOW_FAST,
    "faster_token_stride": _SLOW_FAST,
    "freeze_mm_vision_resampler": _RESAMPLER,
    "mm_mask_drop_mode": _RESAMPLER,
    "mm_mask_drop_skip_percentage": _RESAMPLER,
    "mm_mask_drop_ratio": _RESAMPLER,
    "mm_mask_drop_ratio_upper": _RESAMPLER,
    "mm_mask_drop_ratio_lower": _RESAMPLER,
    "mm_spatial_pool_out_channels": _RESAMPLER,
    "mm_perceiver_depth": _RESAMPLER,
    "mm_perceiver_latents": _RESAMPLER,
    "mm_perceiver_ff_mult": _RESAMPLER,
    "mm_perceiver_pretrained": _RESAMPLER,
    "mm_qformer_depth": _RESAMPLER,
    "mm_qformer_latents": _RESAMPLER,
    "mm_qformer_pretrained": _RESAMPLER,
    "zo_eps": _ZERO_ORDER,
    "zo_num_directions": _ZERO_ORDER,
    "save_safetensors": "full models are always safetensors",
    "half_precision_backend": _GONE,
    "fp16_backend": _GONE,
    "fp16_opt_level": _GONE,
    "jit_mode_eval": _GONE,
    "use_ipex": _GONE,
    "use_mps_device": _GONE,
    "tpu_num_cores": _GONE,
    "tpu_metrics_debug": _GONE,
    "mp_parameters": _GONE,
    "ray_scope": _GONE,
    "past_index": _GONE,
    "use_legacy_prediction_loop": _GONE,
    "include_inputs_for_metrics": _GONE,
    "include_tokens_per_second": _GONE,
    "fsdp_min_num_params": _GONE,
    "fsdp_transformer_layer_cls_to_wrap": _GONE,
    "push_to_hub_organization": _GONE,
}


def flag_name(token: str) -> str | None:
    """`--some-flag=3` -> "some_flag"; None for a value (negative numbers are values)."""
    if not token.startswith("--") or len(token) < 3:
        return None
    return token[2:].split("=", 1)[0].replace("-", "_")


def setting_name(name: str) -> str:
    """The name under which a flag and its older spellings are one setting."""
    name = name.removeprefix("no_") if name.startswith("no_gradient") else name
    name = RENAMED.get(name, name)
    return SAME_SETTING.get(name, name)


def modern_names(argv: Sequence[str]) -> list[str]:
    """`argv` with the older spellings replaced by today's."""
    modern = []
    for token in argv:
        name = flag_name(token)
        if name in RENAMED:
            _, equals, value = token.partition("=")
            token = f"--{RENAMED[name]}{equals}{value}"
        modern.append(token)
    return modern


def warnings_for(given: Sequence[str]) -> list[str]:
    """One line for every flag of `given` (names) that has no effect."""
    return [f"--{name} has no effect: {NO_EFFECT[name]}" for name in given if name in NO_EFFECT]
