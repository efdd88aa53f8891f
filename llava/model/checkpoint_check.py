"""Does a state dict fit a model? Names, shapes and kinds of tensors are compared before anything is built for real.

transformers only warns about missing and unexpected tensors; here both are errors, but for the allow-list below.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Size, Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion
from transformers.initialization import no_init_weights

from llava.model.checkpoint_io import CheckpointError
from llava.model.checkpoint_names import MOLE_NAME, VISION_MODEL, VISION_PARTS, canonical_name

SHOWN = 6
TOWER_LAYER = re.compile(re.escape(VISION_MODEL) + r"encoder\.layers\.(?P<index>\d+)\.")
TOWER_END = re.compile(re.escape(VISION_MODEL) + r"(?:post_layernorm|head)\.")


def build_skeleton(model_class: type[PreTrainedModel], config: PreTrainedConfig, source: str) -> PreTrainedModel:
    """The model without memory (on the meta device): its names and shapes, in a fraction of a second.

    Raises CheckpointError if the config cannot be built, as where the vision tower that it names cannot be found.
    """
    meta: AbstractContextManager[object] = torch.device("meta")
    try:
        with meta, no_init_weights():
            return model_class(config)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise CheckpointError(f"config.json of {source} cannot be built: {error}") from error


def expected_shapes(skeleton: PreTrainedModel) -> dict[str, Size]:
    """Every tensor that a checkpoint of this model holds, by the name that it has in files."""
    return {name: tensor.shape for name, tensor in as_in_files(skeleton, skeleton.state_dict()).items()}


def as_in_files(model: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's tensors as files hold them: where transformers stacks a language model's experts, one by one."""
    if get_checkpoint_conversion_mapping(model.config.model_type) is None:
        return dict(state)
    # Not the tower: Mixtral's rule would rename its MLPs as well.
    vision = {name: tensor for name, tensor in state.items() if canonical_name(name).startswith(VISION_PARTS)}
    language = {name: tensor for name, tensor in state.items() if name not in vision}
    return revert_weight_conversion(model, language) | vision


def check_state(state: Mapping[str, Tensor], skeleton: PreTrainedModel, source: str) -> dict[str, Tensor]:
    """`state` less what the allow-list lets a checkpoint have in excess.

    Raises CheckpointError naming tensors that are missing, unexpected, of the wrong shape, or not floating point.
    """
    expected = expected_shapes(skeleton)
    tied = {name: str(other) for name, other in skeleton.all_tied_weights_keys.items()}
    missing = [name for name in expected if name not in state and tied.get(name) not in state]
    unexpected = [name for name in state if name not in expected and not may_be_left_over(name, expected)]
    shared = {name: tensor for name, tensor in state.items() if name in expected}
    shapes = [
        f"{name} is {tuple(tensor.shape)}, the model has {tuple(expected[name])}"
        for name, tensor in shared.items()
        if tensor.shape != expected[name]
    ]
    kinds = [f"{name} is {tensor.dtype}" for name, tensor in shared.items() if not tensor.is_floating_point()]
    if missing or unexpected or shapes or kinds:
        parts = (
            _named("missing", missing, "They are in no file of it."),
            _named("not known to the model", unexpected, "Is this another architecture?"),
            _named("of the wrong shape", shapes, "Is this the config.json or the base of another size?"),
            _named("not floating point", kinds, "Quantized files are not read: use the original weights."),
        )
        name = type(skeleton).__name__
        raise CheckpointError(f"{source} does not fit {name}.\n" + "\n".join(part for part in parts if part))
    return shared


def _named(what: str, names: list[str], hint: str) -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} tensors are {what}: {', '.join(names[:SHOWN])}{more}. {hint}"


def is_read(name: str, num_layers: int) -> bool:
    """Whether a tensor is the pretrained tower's (no expert's), and used where its first `num_layers` layers run."""
    if not name.startswith(VISION_MODEL) or MOLE_NAME.search(name) or TOWER_END.match(name):
        return False
    layer = TOWER_LAYER.match(name)
    return layer is None or int(layer["index"]) < num_layers


def may_be_left_over(name: str, expected: Collection[str]) -> bool:
    """The end of a tower, which LLaVA never reads and so may leave unbuilt: last layers, final norm, pooling head;
    and the experts of such layers in a tower whose other layers have theirs."""
    if TOWER_END.match(name):
        return any(other.startswith(VISION_MODEL) for other in expected)
    layer = TOWER_LAYER.match(name)
    if layer is None:
        return False
    if MOLE_NAME.search(name):
        # Experts may only be dropped behind the last layer that has them, or a model without any would lose all.
        return int(layer["index"]) > _last_layer(other for other in expected if MOLE_NAME.search(other))
    return int(layer["index"]) > _last_layer(expected)


def _last_layer(names: Iterable[str]) -> int:
    """The largest layer index among tower names; a huge number if there is none, so that nothing comes after it."""
    indices = [int(match["index"]) for name in names if (match := TOWER_LAYER.match(name))]
    return max(indices, default=10**9)
