"""transformers' Trainer, told how a distiller computes its loss, what it logs, how samples are ordered and saved.

It knows the distiller's output ({"loss", "terms", "metrics"}), not what the terms mean, and no model class.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerBase, PrinterCallback, ProgressCallback, Trainer
from transformers.trainer_utils import EvalLoopOutput

from llava.train.callbacks import EpochOrder, QuietPrinter, QuietProgress
from llava.train.checkpointing import CheckpointWriter
from llava.train.meter import StepMeter, add_counted, sum_by_name
from llava.train.optimizer import parameter_groups
from llava.train.order import ShuffledSampler
from llava.train.resume import checkpoint_to_resume, keep_newest, mark_complete, remove_checkpoints
from llava.train.run_config import Run
from llava.train.sampler import LengthGroupedSampler


class LLaVATrainer(Trainer):
    """Trains `distiller` as `run` says. teachers: frozen, outside the model; empty for plain LLaVA."""

    def __init__(
        self,
        distiller: nn.Module,
        run: Run,
        *,
        tokenizer: PreTrainedTokenizerBase,
        teachers: Mapping[str, Any],
        **data: Any,
    ) -> None:
        run.hf._n_gpu = min(run.hf.n_gpu, 1)  # one process drives one device; more need a launcher
        super().__init__(model=distiller, args=run.hf, **data)
        self.run = run
        self.distiller: Any = distiller
        self.output_dir = str(run.hf.output_dir)
        self.tokenizer = tokenizer
        self.teachers = teachers
        # The distiller's loss is a mean over its micro-batch, so the Trainer must divide by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = False
        self.meter = StepMeter()
        self.eval_sums: dict[str, Tensor] = {}
        self.writer = CheckpointWriter(self)
        for noisy, quiet in ((PrinterCallback, QuietPrinter), (ProgressCallback, QuietProgress)):
            if self.pop_callback(noisy) is not None:
                self.add_callback(quiet(lambda: self.meter.metrics))

    # -- the step

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The distiller's total for one micro-batch: a float32 scalar."""
        batch = dict(inputs)
        samples: Sequence[str] = batch.pop("ids")
        self.distiller.collect_metrics = model.training and self._logs_next()
        outputs = model(**batch, features=self._teacher_features(batch))
        if model.training:
            self.meter.add(outputs, samples, count_images(batch))
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def _logs_next(self) -> bool:
        step = self.state.global_step + 1
        return step % max(int(self.state.logging_steps or 1), 1) == 0 or (step == 1 and self.args.logging_first_step)

    def _teacher_features(self, batch: Mapping[str, Any]) -> dict[str, Any] | None:
        if not self.teachers:
            return None
        views = batch["distill"]["views"]
        # no_grad rather than inference_mode: the adapters must save these tensors for backward.
        with torch.no_grad(), self.meter.teachers:
            return {name: teacher(views[teacher.source.key]) for name, teacher in self.teachers.items()}

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """The loss of one validation batch; its terms are kept for `evaluation_loop`."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        for name, value in outputs["terms"].items():
            add_counted(self.eval_sums, name, value, torch.ones((), device=loss.device))
        return loss.detach(), None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        self.eval_sums = {}
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        means = {name: total / count for name, (total, count) in sum_by_name(self.eval_sums).items()}
        (output.metrics or {}).update({f"{prefix}_{name}": mean for name, mean in means.items()})
        self.meter.pause()
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Training logs get the loss terms, the distiller's metrics and the throughput since the last one.

        Raises NonFiniteLoss if one of the losses since then was not finite.
        """
        if "loss" in logs:
            logs.update(self.meter.drain())
        super().log(logs, start_time)

    # -- what trains, and in which order

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        groups = parameter_groups(
            self.distiller,
            self.distiller.parts(),
            self.run.learning_rates,
            self.args.learning_rate,
            self.args.weight_decay,
        )
        if self.optimizer is None:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = kind(groups, **settings)
        elif not isinstance(self.optimizer, torch.optim.Optimizer):
            self.optimizer.params = groups  # DeepSpeed builds the optimizer that its JSON file names from these
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        if self.run.sampling == "shuffle":
            sampler: Any = ShuffledSampler(len(dataset), seed)
        else:
            lengths = dataset.modality_lengths if self.run.sampling.startswith("modality") else dataset.lengths
            processes = self.args.world_size * self.args.gradient_accumulation_steps
            sampler = LengthGroupedSampler(self._train_batch_size, processes, lengths, self.run.sampling, seed)
        self.add_callback(EpochOrder(sampler))
        return sampler

    # -- checkpoints

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> Any:
        """Train from `resume_from_checkpoint`, or from where the output directory's last complete checkpoint is."""
        if self.run.start_over and self.args.should_save:
            remove_checkpoints(self.output_dir)
        self.accelerator.wait_for_everyone()
        asked = self.run.resume_from if resume_from_checkpoint is None else str(resume_from_checkpoint)
        found = checkpoint_to_resume(self.output_dir, asked, self.writer.engine)
        output = super().train(resume_from_checkpoint=found, **kwargs)
        self.meter.check()  # the steps since the last log
        return output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """What was trained, under published names: the whole student, or its light parts, or a LoRA folder."""
        self.writer.write_model(output_dir or self.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.meter.check()
        directory = self.writer.begin(self.state.global_step)
        if self.state.best_global_step:
            best = Path(self.output_dir) / f"checkpoint-{self.state.best_global_step}"
            self.state.best_model_checkpoint = str(best) if best.exists() else self.state.best_model_checkpoint
        self.save_model(directory, _internal_call=True)
        if not self.args.save_only_model:
            self.writer.write_state(directory)
            self._save_scaler(directory)
            self._save_rng_state(directory)
        if self.args.should_save:
            self.state.save_to_json(f"{directory}/trainer_state.json")
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_complete(directory, self.state.global_step, self.writer.engine, not self.args.save_only_model)
        self.accelerator.wait_for_everyone()  # with a disk per machine, the older one goes when all have the newer
        if self.args.should_save:
            keep_newest(self.output_dir, self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()
        self.meter.pause()

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        if not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        # The engine rounds float32 buffers (rotary tables, statistics) to the weights' dtype; they must stay exact.
        buffers = {name: buffer.clone() for name, buffer in self.distiller.named_buffers()}
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        for name, buffer in self.distiller.named_buffers():
            buffer.data = buffers[name].to(buffer.device)
        if resume_from_checkpoint is not None:
            self.writer.read_engine(resume_from_checkpoint)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True  # resumed at the end: the Trainer would take one step more
        else:
            super()._run_epoch(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.writer.read_state(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        best = str(self.state.best_model_checkpoint)
        (self.writer.read_engine if self.is_deepspeed_enabled else self.writer.read_state)(best)


def count_images(batch: Mapping[str, Any]) -> int:
    """Pictures and videos of a batch, without the blanks of text-only samples; known without asking the device."""
    return sum(modality != "text" for modality in batch.get("modalities", ()))
