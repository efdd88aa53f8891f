"""What must be in place before a process trains: launcher variables, and DeepSpeed on a machine without a GPU."""

import atexit
import importlib.util
import logging
import os
import socket
import sys
import warnings
from typing import Any

import huggingface_hub.constants
import torch.distributed

# Imported by transformers and peft, it warns of inference kernels that training does not use.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def say(message: str) -> None:
    """Print a line once, not on every process."""
    if rank() == 0:
        print(message, flush=True)


def gather_objects(value: Any) -> list[Any]:
    """What every process has, by rank. Every process must call it."""
    if not torch.distributed.is_initialized():
        return [value]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered


def leave_processes() -> None:
    """The end of a program: once every process is done, the process group is left. Over gloo the program ends here,
    its exit handlers run: a thread of gloo that still holds a tensor while Python is torn down would abort it."""
    if not torch.distributed.is_initialized():
        return
    over_gloo = torch.distributed.get_backend() == "gloo"
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    if over_gloo:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def use_cache(directory: str) -> None:
    """Keep downloaded weights in `directory` from now on."""
    huggingface_hub.constants.HF_HUB_CACHE = directory


def prepare_deepspeed(on_cpu: bool) -> None:
    """Make `--deepspeed` work however the process was started. Raises ValueError where DeepSpeed is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise ValueError("--deepspeed: DeepSpeed is not installed; pip install 'move-kd[train]', or drop the flag")
    if on_cpu:
        # The optional shared-memory collectives would be compiled first, which takes minutes.
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed's own calls, once per collective.
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    _set_single_process_defaults()
    if on_cpu:
        # ZeRO-3 loads weights before the Trainer opens the process group, and must know the number of processes then.
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo", verbose=False)


def _set_single_process_defaults() -> None:
    """Started without a launcher: one process, on a port that is free."""
    if "RANK" in os.environ:
        return
    if {"WORLD_SIZE", "LOCAL_RANK"} & set(os.environ):
        raise ValueError("RANK is not set but WORLD_SIZE or LOCAL_RANK is; start with `deepspeed` or `torchrun`")
    defaults = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**defaults, "MASTER_PORT": str(free_port())}.items():
        os.environ.setdefault(name, value)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
