"""One rank of a ZeRO-3 run on the CPU: load, compare, save, fill parts, save again. Started by test_zero3.py."""

import sys
from pathlib import Path

import torch
from transformers.integrations import HfDeepSpeedConfig

from llava.model.checkpoint import (
    gather_state_dict,
    load_parts,
    load_student,
    read_state_dict,
    read_tower,
    save_parts,
    save_student,
)
from llava.model.checkpoint_gather import copy_into, is_main_process, is_partitioned
from llava.model.checkpoint_names import fit_expert_layers, publish_experts
from llava.train.environment import leave_processes, prepare_deepspeed

SETTINGS = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
}


def main(checkpoint: Path, out: Path) -> None:
    prepare_deepspeed(on_cpu=True)
    keep_alive = HfDeepSpeedConfig(SETTINGS)  # its existence is what from_pretrained looks for
    student = load_student(None, checkpoint, dtype=torch.float32)
    assert all(is_partitioned(parameter) for parameter in student.parameters())
    named = dict(student.named_parameters())
    whole = gather_state_dict(named)
    assert bool(whole) == is_main_process()
    save_student(student, out / "whole")
    parts = student.parts()
    projector, mole = gather_state_dict(parts["projector"]), gather_state_dict(parts["mole"])
    if is_main_process():
        save_parts(out / "whole", projector=projector)  # as a stage that trains the tower
        save_parts(out / "parts", projector=projector, mole=mole or None)
    light = parts["projector"] | parts["mole"]
    copy_into(named, {name: torch.full(parameter.ds_shape, 3.0) for name, parameter in light.items()})
    changed = gather_state_dict(light)
    assert all((tensor == 3.0).all() for tensor in changed.values())
    torch.distributed.barrier()
    assert load_parts(student, out / "parts") == [name for name in ("projector", "mole") if parts[name]]
    again = gather_state_dict(named)
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    seeing = light | parts["vision_tower"]
    copy_into(named, {name: torch.full(parameter.ds_shape, 2.0) for name, parameter in seeing.items()})
    torch.distributed.barrier()
    assert load_parts(student, out / "whole") == ["projector", "vision_tower"]
    again = gather_state_dict(named)
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    if is_main_process():
        source, saved = read_state_dict(checkpoint), read_state_dict(out / "whole")
        tower = fit_expert_layers(read_tower(student.config.mm_vision_tower), source)
        assert len(saved) == len(publish_experts(whole))
        assert all(torch.equal(tensor, source.get(name, tower.get(name))) for name, tensor in saved.items())
        (out / "done").touch()
    del keep_alive
    leave_processes()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
