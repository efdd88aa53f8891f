"""What a checkpoint of a run holds: the trained model under published names, and the state to go on from.

`checkpoint-N` has both; the output directory has the model alone. DeepSpeed keeps its own state; without it the trained
tensors are kept as they are, in their own dtype, because the published files may be rounded. Weights that do not train
are never part of the state: they come from where they came from at first.
"""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils.deepspeed import DeepSpeedSchedulerWrapper
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from llava.model.checkpoint import gather_state_dict, save_lora, save_parts, save_student
from llava.model.checkpoint_gather import copy_into
from llava.model.checkpoint_lora import lora_folder_parameters
from llava.model.checkpoint_save import persistent_buffers, write_config
from llava.train.resume import Engine
from llava.train.stages import count_parameters, trained_parts
from llava.train.training_arguments import zero_stage

if TYPE_CHECKING:
    from llava.train.llava_trainer import LLaVATrainer

STATE_FILE = "trained_state.safetensors"
LIGHT_PARTS = ("projector", "mole", "adapters")


class CheckpointWriter:
    """Writes and reads checkpoints for one trainer. Every process calls every method; rank 0 writes shared files, or
    with `save_on_each_node` the first process of each machine."""

    def __init__(self, trainer: "LLaVATrainer") -> None:
        self.trainer: Any = trainer
        self.run = trainer.run
        self.distiller = trainer.distiller

    @property
    def engine(self) -> Engine:
        args = self.trainer.args
        name = f"zero{zero_stage(args.deepspeed)}" if self.trainer.is_deepspeed_enabled else "torch"
        readers = 1 if self.trainer.accelerator.split_batches else args.world_size
        return Engine(name, args.world_size, readers * args.train_batch_size * args.gradient_accumulation_steps)

    def begin(self, step: int) -> str:
        """An empty `checkpoint-N`: what an interrupted write of the same step left behind is removed."""
        directory = Path(self.trainer.args.output_dir) / f"checkpoint-{step}"
        if self.trainer.args.should_save:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
        self.trainer.accelerator.wait_for_everyone()
        return str(directory)

    # -- the model

    def write_model(self, directory: str) -> None:
        """The whole student, or a LoRA folder, or the light parts; adapters and tokenizer beside them."""
        student, writes = self.distiller.student, self.trainer.args.should_save
        if writes:
            Path(directory).mkdir(parents=True, exist_ok=True)
        used_cache, student.config.use_cache = student.config.use_cache, True
        if self.run.stage.lora:
            tower = student.parts()["vision_tower"] if self.run.brings_tower else {}
            adapter = self._gather({**lora_folder_parameters(student), **tower})
            if writes:
                save_lora(student, directory, adapter)
        elif self.run.save_whole:
            whole = self._whole_student(student)
            if writes:
                save_student(student, directory, whole)
        light = self._light_parts()
        if self.run.stage.lora or self.run.save_whole:
            light = {part: state for part, state in light.items() if part != "mole"}
        if writes:
            save_parts(directory, **light)
            if not (self.run.stage.lora or self.run.save_whole):
                write_config(student, Path(directory), self.run.model.dtype)
            self.trainer.tokenizer.save_pretrained(directory)
        student.config.use_cache = used_cache

    def _gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors on the processes that write; empty elsewhere."""
        return gather_state_dict(tensors, keep=self.trainer.args.should_save)

    def _whole_student(self, student: PreTrainedModel) -> dict[str, Tensor]:
        """Every tensor of the student, rounded to the run's dtype."""
        state = self._gather({**dict(student.named_parameters()), **persistent_buffers(student)})
        dtype = self.run.model.dtype
        return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}

    def _light_parts(self) -> dict[str, dict[str, Tensor]]:
        """Gathered tensors of the small parts that exist, trained or not, so that the next stage finds them all."""
        parts = self.distiller.parts()
        named: dict[str, Mapping[str, Tensor]] = {part: parts[part] for part in LIGHT_PARTS if parts[part]}
        if self.distiller.targets:  # whose file is there even where nothing lies between student and teachers
            named["adapters"] = {**parts["adapters"], **self.distiller.adapter_buffers()}
        if self.run.stage.embeddings:
            named["projector"] = {**named["projector"], **trained_parts(parts)["language_model"]}
        return {part: self._gather(tensors) for part, tensors in named.items()}

    # -- the state

    def write_state(self, directory: str) -> None:
        """Optimizer, scheduler and trained tensors (buffers too), as the engine keeps them."""
        trainer = self.trainer
        if trainer.is_deepspeed_enabled:
            trainer.model_wrapped.save_checkpoint(directory, exclude_frozen_parameters=True)
            if trainer.args.should_save and not isinstance(trainer.lr_scheduler, DeepSpeedSchedulerWrapper):
                torch.save(trainer.lr_scheduler.state_dict(), f"{directory}/scheduler.pt")
        else:
            trainer._save_optimizer_and_scheduler(directory)
        if trainer.args.should_save:
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in self._kept().items()}
            save_file(state, f"{directory}/{STATE_FILE}", metadata={"trained": self._digest()})

    def read_state(self, directory: str) -> None:
        """Trained tensors without DeepSpeed, buffers with it. Raises ValueError for a run that trains other tensors."""
        self._check_digest(directory)
        copy_into(self._kept(), load_file(f"{directory}/{STATE_FILE}"))

    def read_engine(self, directory: str) -> None:
        """DeepSpeed's own state: its optimizer shards, and the trained weights that it holds."""
        self._check_digest(directory)
        # Named, because the file that says which folder is the latest is on the first machine's disk alone.
        tag = next((path.name for path in Path(directory).glob("global_step*")), None)
        loaded, _ = self.trainer.model_wrapped.load_checkpoint(directory, tag, load_module_strict=False)
        if loaded is None:
            raise ValueError(f"DeepSpeed found nothing to load in {directory}")
        self.read_state(directory)

    def _digest(self) -> str:
        """Stands for the names and sizes of all that trains, in its order: the optimizer's state goes by that."""
        named = self.distiller.named_parameters()
        trained = [f"{name} {count_parameters(value)}" for name, value in named if value.requires_grad]
        return hashlib.sha256("\n".join(trained).encode()).hexdigest()

    def _check_digest(self, directory: str) -> None:
        with safe_open(f"{directory}/{STATE_FILE}", framework="pt") as file:
            found = (file.metadata() or {}).get("trained")
        if found != self._digest():
            raise ValueError(
                f"{directory} was written by a run that trained other tensors, or teachers in another order. Resume "
                "with the flags of that run, or choose another --output_dir."
            )

    def _kept(self) -> dict[str, Any]:
        """What the state file holds, by name: buffers, and without DeepSpeed the trained parameters."""
        buffers = dict(self.distiller.named_buffers())
        kept = {name: buffers[name] for name in self.distiller.state_dict() if name in buffers}
        if self.trainer.is_deepspeed_enabled:
            return kept
        return kept | {name: value for name, value in self.distiller.named_parameters() if value.requires_grad}
