"""LoRA adapters of the language model: a PEFT folder beside the trained tensors that are not LoRA.

An adapter's tensors are told by the module that owns them, never by `lora_` in a name: MoVE-KD's experts have
`lora_A` and `lora_B` as well, and are ordinary trained weights.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import PreTrainedModel
from transformers.utils import logging

from llava.model.checkpoint_gather import gather_state_dict, is_main_process
from llava.model.checkpoint_io import (
    CheckpointError,
    atomic,
    find_file,
    read_json,
    read_tensors,
    write_bin,
    write_json,
)
from llava.model.checkpoint_names import WRAPPERS, publish_experts
from llava.model.checkpoint_save import write_config
from llava.model.llava_arch import LlavaMetaForCausalLM

logger = logging.get_logger(__name__)

ADAPTER = "default"
PEFT_PREFIX = "base_model.model."
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
NON_LORA_FILE = "non_lora_trainables.bin"
# What PEFT writes for one adapted module. An expert's tensor has `mlp.moe_...` in front and never gets here.
LORA_NAME = re.compile(r"^(?P<module>.+)\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)(?:\.(?:weight|bias))?$")


@dataclass(frozen=True)
class LoraFolder:
    """A LoRA directory as read: PEFT's settings, the adapter's tensors without PEFT's prefix, and the rest."""

    source: str
    settings: dict[str, Any]
    lora: dict[str, Tensor]
    non_lora: dict[str, Tensor]

    @property
    def base(self) -> str:
        """The base that the adapter was trained on, by its own word. Raises CheckpointError if it names none."""
        recorded = self.settings.get("base_model_name_or_path")
        if not recorded:
            raise CheckpointError(f"{self.source} holds a LoRA adapter that names no base. Pass model_base.")
        return str(recorded)

    @property
    def modules(self) -> list[str]:
        """The adapted modules, by the tensors that are there: the settings' suffixes may match more."""
        return sorted({match["module"] for name in self.lora if (match := LORA_NAME.match(name))})


def is_lora_folder(path: str | os.PathLike[str]) -> bool:
    return find_file(path, "adapter_config.json") is not None


def read_lora(path: str | os.PathLike[str]) -> LoraFolder:
    """adapter_config.json, adapter_model.* and, if it is there, non_lora_trainables.bin of a directory or hub id.

    Raises CheckpointError if the adapter is not complete.
    """
    settings_file = find_file(path, "adapter_config.json")
    if settings_file is None:
        raise CheckpointError(f"{path} has no adapter_config.json, so it holds no LoRA adapter.")
    weights = next((file for name in ADAPTER_FILES if (file := find_file(path, name))), None)
    if weights is None:
        raise CheckpointError(f"{path} has adapter_config.json but neither {' nor '.join(ADAPTER_FILES)}.")
    tensors = {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in read_tensors(weights).items()}
    lora = {name: tensor for name, tensor in tensors.items() if LORA_NAME.match(name) and not _is_expert(name)}
    non_lora = {name: tensor for name, tensor in tensors.items() if name not in lora}
    if not lora:
        raise CheckpointError(f"{weights} holds no LoRA tensors (names such as '...q_proj.lora_A.weight').")
    non_lora_file = find_file(path, NON_LORA_FILE)
    if non_lora_file is not None:
        non_lora |= {WRAPPERS.sub("", name): tensor for name, tensor in read_tensors(non_lora_file).items()}
    return LoraFolder(str(path), read_json(settings_file), lora, non_lora)


def _is_expert(name: str) -> bool:
    return ".mlp.moe_" in name


def load_lora(model: PreTrainedModel, path: str | os.PathLike[str] | LoraFolder, trainable: bool = False) -> Any:
    """`model` with the adapter of a LoRA directory attached, as a PeftModel; its non-LoRA tensors are not touched.

    Raises CheckpointError if the adapter has tensors for modules that the model lacks, or of other shapes.
    """
    from peft import LoraConfig, PeftModel, set_peft_model_state_dict

    folder = path if isinstance(path, LoraFolder) else read_lora(path)
    _check_modules(model, folder)
    known = {name: value for name, value in folder.settings.items() if name in LoraConfig.__dataclass_fields__}
    config = LoraConfig(**(known | {"target_modules": folder.modules, "inference_mode": not trainable}))
    wrapped = PeftModel(model, config, adapter_name=ADAPTER)
    expected = {name: parameter.shape for name, parameter in lora_parameters(wrapped).items()}
    _check_tensors(folder, {_published(name): shape for name, shape in expected.items()})
    set_peft_model_state_dict(wrapped, {PEFT_PREFIX + name: tensor for name, tensor in folder.lora.items()}, ADAPTER)
    return wrapped if trainable else wrapped.eval()


def with_lora(model: PreTrainedModel, folder: LoraFolder, merge: bool) -> PreTrainedModel:
    """`model` with the adapter added into its weights, in their own dtype, or else in layers beside them."""
    wrapped = load_lora(model, folder)
    return wrapped.merge_and_unload(safe_merge=True) if merge else wrapped.get_base_model()


def _check_modules(model: nn.Module, folder: LoraFolder) -> None:
    present = {name for name, _ in model.named_modules()}
    unknown = [name for name in folder.modules if name not in present]
    if unknown:
        raise CheckpointError(
            f"the adapter in {folder.source} was trained for {len(unknown)} modules that this model lacks, such as "
            f"{unknown[0]}. Its base was {folder.settings.get('base_model_name_or_path')!r}: pass that as model_base."
        )


def _check_tensors(folder: LoraFolder, expected: Mapping[str, Any]) -> None:
    missing = sorted(expected.keys() - folder.lora.keys())
    wrong = [
        f"{name} is {tuple(tensor.shape)}, not {tuple(expected[name])}"
        for name, tensor in folder.lora.items()
        if name in expected and tensor.shape != expected[name]
    ]
    if missing or wrong:
        raise CheckpointError(
            f"the adapter in {folder.source} does not fit: missing {missing[:4]} ({len(missing)} in all), "
            f"wrong shape {wrong[:4]} ({len(wrong)} in all). Its base was "
            f"{folder.settings.get('base_model_name_or_path')!r}: pass that as model_base."
        )


def lora_parameters(model: nn.Module) -> dict[str, Parameter]:
    """Every parameter that belongs to a LoRA adapter, by its full name, told by the owning module's type."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: dict[str, Parameter] = {}
    for module_name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        for part in module.adapter_layer_names:
            child = getattr(module, part)
            if isinstance(child, nn.Module | nn.ParameterDict):
                found |= {f"{module_name}.{part}.{name}": value for name, value in child.named_parameters()}
    return found


def _published(name: str) -> str:
    """A parameter's name in a PEFT model as files have it, less PEFT's prefix, levels and the adapter's name."""
    plain = WRAPPERS.sub("", name).replace(".base_layer.", ".")
    return plain.replace(f".{ADAPTER}.", ".").removesuffix(f".{ADAPTER}")


def save_lora(
    model: nn.Module, directory: str | os.PathLike[str], state_dict: Mapping[str, Tensor] | None = None
) -> None:
    """The adapter as a PEFT folder, non_lora_trainables.bin (what else was trained, and projector and experts in any
    case, which a base model lacks), and config.json.

    model: a PeftModel, or a student with PEFT's layers inside. state_dict: `lora_folder_parameters`, and what else is
    to be in the folder, gathered already and written by whoever calls; else they are gathered here, which every rank
    must take part in, and rank 0 writes.
    """
    directory = Path(directory)
    adapter = lora_parameters(model)
    if not adapter:
        raise CheckpointError(f"asked to save a LoRA adapter to {directory}, but the model has none.")
    if state_dict is None:
        state_dict = gather_state_dict(lora_folder_parameters(model))
        if not is_main_process():
            return
    _write_adapter(model, directory, {_published(name): state_dict[name] for name in adapter})
    plain = publish_experts({_published(name): state_dict[name] for name in state_dict if name not in adapter})
    write_bin({PEFT_PREFIX + name: tensor for name, tensor in plain.items()}, directory / NON_LORA_FILE)


def lora_folder_parameters(model: nn.Module) -> dict[str, Parameter]:
    """Everything that `save_lora` writes, by name."""
    adapter = lora_parameters(model)
    return {**adapter, **_beside_adapter(model, adapter)}


def _beside_adapter(model: nn.Module, adapter: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Parameters that must be saved although they are not the adapter's, by name."""
    student = _student_in(model)
    parts = student.parts() if isinstance(student, LlavaMetaForCausalLM) else {"projector": {}, "mole": {}}
    own = {id(parameter) for part in ("projector", "mole") for parameter in parts[part].values()}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name not in adapter and (parameter.requires_grad or id(parameter) in own)
    }


def _write_adapter(model: nn.Module, directory: Path, tensors: Mapping[str, Tensor]) -> None:
    with atomic(directory / ADAPTER_FILES[0]) as temporary:
        named = {PEFT_PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(named, temporary, metadata={"format": "pt"})
    student = _student_in(model)
    settings = _peft_settings(model) | {"inference_mode": True}
    settings["base_model_name_or_path"] = settings.get("base_model_name_or_path") or student.config._name_or_path
    write_json(settings, directory / "adapter_config.json")
    write_config(student, directory)


def _peft_settings(model: nn.Module) -> dict[str, Any]:
    """adapter_config.json's content, from the module that holds `peft_config` (a PeftModel or an injected model)."""
    for module in model.modules():
        settings = getattr(module, "peft_config", None)
        if isinstance(settings, dict) and ADAPTER in settings:
            return _jsonable(settings[ADAPTER].to_dict())
    raise CheckpointError("the model has LoRA layers but no PEFT configuration, so the adapter cannot be described.")


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _jsonable(item) for name, item in value.items()}
    if isinstance(value, set | list | tuple):
        return sorted(value) if isinstance(value, set) else [_jsonable(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(getattr(value, "value", value))


def _student_in(model: nn.Module) -> PreTrainedModel:
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise CheckpointError("there is no language model in what was given to save.")
