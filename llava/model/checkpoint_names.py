"""Names of tensors: every published spelling, brought to the one our modules use. Pure functions on names.

Our own names are those of the original LLaVA format, so an original checkpoint passes through unchanged.
"""

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from llava.model.checkpoint_io import CheckpointError

TOWER = "model.vision_tower.vision_tower."
VISION_MODEL = TOWER + "vision_model."
PROJECTOR = "model.mm_projector."
RESAMPLER = "model.vision_resampler."
NEWLINE = "model.image_newline"
CLIP_MOLE = "clip_mole_vision_model"  # the type of an exported tower with experts
VISION_PARTS = (TOWER, PROJECTOR, RESAMPLER, NEWLINE)

# Wrappers that a training run leaves in front of every name: PEFT, DDP, torch.compile, our distiller.
WRAPPERS = re.compile(r"^(?:(?:base_model\.model|module|_orig_mod|student)\.)+")
BARE_TOWER = re.compile(r"^(?:embeddings|pre_layrnorm|encoder|post_layernorm|head)(?:\.|$)")
# mm_projector.bin is matched by what follows "mm_projector.", whatever stands in front.
PROJECTOR_NAME = re.compile(r"^(?:.*\.)?mm_projector\.(?P<rest>.+)$")
RESAMPLER_NAME = re.compile(r"^(?:.*\.)?vision_resampler\.(?P<rest>.+)$")

IGNORABLE = re.compile(r"(?:^|\.)(?:rotary_emb\.inv_freq|embeddings\.position_ids)$")
ADAPTER_NAME = re.compile(r"^(?:[\w-]+_adapter_[12]\.(?:weight|bias)|adapters\..+)$")  # of any name a teacher may have
TEACHER_NAME = re.compile(r"^(?:.*\.)?(?:vision_teachers?|teachers?)\.")
EXPERT_NAME = re.compile(r"\.mlp\.(?:moe_down|moe_up)\.\d+\.lora_[AB]\.")
STACKED_NAME = re.compile(r"\.mlp\.(?:moe_down|moe_up)\.(?:reduce|expand)_(?:weight|bias)$")
MOLE_NAME = re.compile(r"\.mlp\.(?:moe_down|moe_up|router)\.")

# Longest first: HF-native names as files have them (4.x) and as modules have them (4.52 and later).
HF_PREFIXES = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("model.multi_modal_projector.linear_1.", PROJECTOR + "0."),
    ("multi_modal_projector.linear_1.", PROJECTOR + "0."),
    ("model.multi_modal_projector.linear_2.", PROJECTOR + "2."),
    ("multi_modal_projector.linear_2.", PROJECTOR + "2."),
    ("image_newline", NEWLINE),
)
HF_TOWER = re.compile(r"^(?:model\.)?vision_tower\.(?:vision_model\.)?(?P<rest>(?:embed|pre_|encoder|post_|head).+)$")
HF_MARKS = ("language_model.", "model.language_model.", "multi_modal_projector.", "model.multi_modal_projector.")


def upgrade_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Any published layout under our names: wrappers removed, HF-native and flattened towers renamed, published
    experts stacked, tensors that no model needs (rotary tables, position ids, teachers, adapters) dropped.

    Raises CheckpointError if two tensors end up under one name.
    """
    plain = {WRAPPERS.sub("", name): tensor for name, tensor in state.items()}
    rename = hf_native_name if any(name.startswith(HF_MARKS) for name in plain) else original_name
    renamed: dict[str, Tensor] = {}
    for name, tensor in plain.items():
        if is_ignorable(name):
            continue
        if (new_name := rename(name)) in renamed:
            raise CheckpointError(f"the checkpoint holds {new_name!r} twice, the second time as {name!r}.")
        renamed[new_name] = tensor
    return stack_experts(renamed)


def is_ignorable(name: str) -> bool:
    """Whether a tensor may stand in a checkpoint although no model of ours has it."""
    return any(pattern.search(name) for pattern in (IGNORABLE, ADAPTER_NAME, TEACHER_NAME))


def original_name(name: str) -> str:
    """A name of the original format; a tower saved without its `vision_model.` level gets it back."""
    # PEFT leaves one `model.` too many in files that LLaVA's own scripts wrote from a wrapped model.
    if name.startswith(("model.model.", "model.lm_head.")):
        name = name.removeprefix("model.")
    name = canonical_name(name)
    rest = name.removeprefix(TOWER)
    return VISION_MODEL + rest if rest != name and BARE_TOWER.match(rest) else name


def hf_native_name(name: str) -> str:
    """A name of transformers' own LlavaForConditionalGeneration or LlavaNextForConditionalGeneration, as ours."""
    for prefix, ours in HF_PREFIXES:
        if name.startswith(prefix):
            return ours + name.removeprefix(prefix)
    if tower := HF_TOWER.match(name):
        return VISION_MODEL + tower["rest"]
    return name


def tower_name(name: str) -> str | None:
    """A name in a vision encoder's own checkpoint (CLIP whole or half, flattened or not), as ours in a LLaVA model.

    None for what is not part of the vision half (text tower, projections, logit scale).
    """
    if IGNORABLE.search(name):
        return None
    rest = name.removeprefix("vision_model.")
    return VISION_MODEL + rest if BARE_TOWER.match(rest) else None


def fit_inner_name(state: Mapping[str, Tensor], inner: str) -> dict[str, Tensor]:
    """Vision tensors below the inner model's own attribute: all but MPT call it `model`, MPT `transformer`."""
    return {
        f"{inner}.{name.removeprefix('model.')}" if name.startswith(VISION_PARTS) else name: tensor
        for name, tensor in state.items()
    }


def canonical_name(name: str) -> str:
    """The inverse for one name."""
    return re.sub(r"^transformer\.(?=vision_tower\.|mm_projector\.|vision_resampler\.|image_newline$)", "model.", name)


def fit_expert_layers(state: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """Tower MLPs under the name that the model has them by: inside an expert layer, or plain.

    A plain CLIP goes into a tower with experts, and a published tower with experts everywhere into one that has them
    only where they run.
    """
    fitted = {}
    for name, tensor in state.items():
        if name not in expected:
            plain = name.replace(".mlp.original_module.", ".mlp.")
            wrapped = re.sub(r"\.mlp\.(fc[12])\.", r".mlp.original_module.\1.", name)
            name = next((other for other in (plain, wrapped) if other in expected), name)
        fitted[name] = tensor
    return fitted


def stack_experts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published per-expert tensors as our stacked ones; a state without any is returned as it is.

    Raises CheckpointError if an expert is not complete.
    """
    if not any(EXPERT_NAME.search(name) for name in state):
        return state
    # Imported here: plain LLaVA needs nothing of MoVE-KD.
    from llava.model.multimodal_encoder.move_kd.student import stack_published_experts

    try:
        return stack_published_experts(state)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def publish_experts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our stacked experts as published per-expert tensors; a state without any is returned as it is."""
    if not any(STACKED_NAME.search(name) for name in state):
        return state
    from llava.model.multimodal_encoder.move_kd.student import unstack_experts

    return unstack_experts(state)


def projector_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """mm_projector.bin under our names: matched by what follows `mm_projector.`; other tensors keep their names."""
    renamed = {}
    for name, tensor in state.items():
        if match := PROJECTOR_NAME.match(name):
            name = PROJECTOR + match["rest"]
        elif match := RESAMPLER_NAME.match(name):
            name = RESAMPLER + match["rest"]
        renamed[WRAPPERS.sub("", name)] = tensor
    return renamed
