"""Whole tensors of a model whose parameters ZeRO-3 has spread over the ranks: reading them out, writing into them.

DeepSpeed is imported only where a parameter is in fact partitioned.
"""

from collections.abc import Mapping

import torch
import torch.distributed
from torch import Tensor


def is_main_process() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def is_partitioned(parameter: Tensor) -> bool:
    """Whether DeepSpeed ZeRO-3 owns this parameter, so that its data here is empty outside a gather."""
    return hasattr(parameter, "ds_id")


def full_shape(parameter: Tensor) -> torch.Size:
    return torch.Size(parameter.ds_shape) if is_partitioned(parameter) else parameter.shape  # type: ignore[attr-defined]


def gather_state_dict(named_params: Mapping[str, Tensor], keep: bool | None = None) -> dict[str, Tensor]:
    """CPU copies of whole tensors, by name. Every rank must call it; the ranks that `keep` them get them (by default
    rank 0 alone), the others an empty dict.

    One parameter at a time, so that a device never holds more than one gathered tensor.
    """
    keep = is_main_process() if keep is None else keep
    state: dict[str, Tensor] = {}
    for name, parameter in named_params.items():
        if not is_partitioned(parameter):
            if keep:
                state[name] = parameter.detach().to("cpu", copy=True)
            continue
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            if keep:
                state[name] = parameter.detach().to("cpu", copy=True)
    return state


@torch.no_grad()
def copy_into(named_params: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy each tensor of `state` into the parameter or buffer of that name, in its dtype and on its device.

    Every rank must call it with the same names; under ZeRO-3 rank 0's values count.
    """
    for name, tensor in state.items():
        parameter = named_params[name]
        if not is_partitioned(parameter):
            parameter.copy_(tensor)
            continue
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if is_main_process():
                parameter.copy_(tensor)
