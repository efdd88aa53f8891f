"""A mixture of LoRA experts around an MLP: stacked tensors, every expert computed, gated in rank space.

No loop over experts, no gather, no shape that depends on data: each parameter takes part in each step on every
process, so sharded training cannot hang and the device never waits for the host.
Legend: T tiles, N tokens, D width in, O width out, E experts, R rank.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava.model.multimodal_encoder.move_kd.config import MoLEConfig
from llava.model.multimodal_encoder.move_kd.types import Routing


def one_hot_like(probs: Tensor, choice: Tensor) -> Tensor:
    """`choice` (T, N) as zeros and ones of the shape of `probs` (T, N, E)."""
    return torch.zeros_like(probs).scatter(-1, choice.unsqueeze(-1), 1.0)


def top1(probs: Tensor, choice: Tensor) -> Tensor:
    return one_hot_like(probs.detach(), choice)


def top1_ste(probs: Tensor, choice: Tensor) -> Tensor:
    return top1(probs, choice) + (probs - probs.detach())


def top1_prob(probs: Tensor, choice: Tensor) -> Tensor:
    return top1(probs, choice) * probs


def soft(probs: Tensor, choice: Tensor) -> Tensor:
    return probs


# probs (T, N, E) float32 and the chosen expert (T, N), to each expert's factor (T, N, E).
GATES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "top1": top1,
    "top1_ste": top1_ste,
    "top1_prob": top1_prob,
    "soft": soft,
    "dense": soft,
}


def init_weight_(weight: Tensor, kind: str, fan_in: int) -> None:
    """In place. `kaiming` has the gain of a ReLU, as released; `linear` is a linear layer's default."""
    if kind == "zero":
        nn.init.zeros_(weight)
        return
    bound = (6.0 / fan_in) ** 0.5 if kind == "kaiming" else fan_in**-0.5
    nn.init.uniform_(weight, -bound, bound)


class StackedLoRA(nn.Module):
    """One LoRA branch per expert for one projection, added to what the projection gave.

    reduce_weight (E, R, D), reduce_bias (E, R), expand_weight (E, R, O), expand_bias (E, O). Published models hold them
    as lora_A and lora_B of each expert; `expand_weight` is lora_B transposed, so that all experts are one matrix.
    """

    def __init__(self, width_in: int, width_out: int, config: MoLEConfig, like: Tensor) -> None:
        super().__init__()
        self.config = config
        self.width_in = width_in

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(config.experts, *shape, dtype=like.dtype, device=like.device))

        self.reduce_weight = empty(config.rank, width_in)
        self.reduce_bias = empty(config.rank)
        self.expand_weight = empty(config.rank, width_out)
        self.expand_bias = empty(width_out)
        self.dropout = nn.Dropout(config.dropout) if config.dropout > 0 else nn.Identity()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        init_weight_(self.reduce_weight, self.config.init_a, self.width_in)
        init_weight_(self.expand_weight, self.config.init_b, self.config.rank)
        nn.init.zeros_(self.reduce_bias)
        nn.init.zeros_(self.expand_bias)

    def forward(self, x: Tensor, gate: Tensor, base: Tensor) -> Tensor:
        """x (T, N, D), gate (T, N, E), base (T, N, O): base plus every expert's branch times its gate.

        Without gradients `base` is overwritten; it must be the caller's own.
        """
        gate = (gate * self.config.scale).to(x.dtype)
        ranks = F.linear(self.dropout(x), self.reduce_weight.flatten(0, 1), self.reduce_bias.flatten())
        ranks = (ranks.unflatten(-1, (*gate.shape[-1:], -1)) * gate.unsqueeze(-1)).flatten(-2)  # (T, N, E*R)
        # The bias of lora_B rides along as one more row per expert, gated like the rest.
        ranks = torch.cat([ranks, gate.to(ranks.dtype)], dim=-1).to(base.dtype).flatten(0, -2)
        expand = torch.cat([self.expand_weight.flatten(0, 1), self.expand_bias]).to(base.dtype)  # (E*R + E, O)
        rows = base.flatten(0, -2)
        # Accumulating in place saves a pass over the widest activation. Not under autograd: ZeRO-3 hands out
        # a module's output as a view that must not be written to.
        total = torch.addmm(rows, ranks, expand) if torch.is_grad_enabled() else rows.addmm_(ranks, expand)
        return total.view(base.shape)


class MoLE(nn.Module):
    """Drop-in for an MLP with `fc1`, `activation_fn` and `fc2`: the same MLP, with experts on both projections.

    One router looks at the MLP's input; both projections follow it. Parameter names are the published ones
    (`original_module`, `moe_down` for fc1, `moe_up` for fc2, `router`), with the experts stacked.
    While `solos` is K and the module trains, its input is K + 1 equal parts of T tiles: the router decides for the
    first, and the others pass through expert 0, 1, ... alone.
    """

    original_module: Any  # of CLIP, SigLIP or a test, so only what is called is known

    def __init__(self, mlp: nn.Module, config: MoLEConfig) -> None:
        super().__init__()
        self.config = config
        self.original_module = mlp
        fc1, fc2 = self.original_module.fc1, self.original_module.fc2
        self.router = nn.Linear(fc1.in_features, config.experts, dtype=fc1.weight.dtype, device=fc1.weight.device)
        self.moe_down = StackedLoRA(fc1.in_features, fc1.out_features, config, like=fc1.weight)
        self.moe_up = StackedLoRA(fc2.in_features, fc2.out_features, config, like=fc2.weight)
        self.record: list[Routing] | None = None
        self.solos = 0

    def reset_parameters(self) -> None:
        """Draw router and experts anew; the MLP is left alone."""
        self.router.reset_parameters()
        self.moe_down.reset_parameters()
        self.moe_up.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(T, N, D) to (T, N, D)."""
        logits = self.router(x)
        probs = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        choice = probs.detach().argmax(-1)
        routed = len(x) // (1 + self.solos) if self.training else len(x)
        if self.training or self.record is not None:
            self.keep(probs[:routed], choice[:routed])
        gate = GATES[self.config.gate](probs[:routed], choice[:routed])
        if routed < len(x):
            expert = torch.arange(self.solos, device=x.device).repeat_interleave(routed)
            alone = F.one_hot(expert, self.config.experts).to(gate.dtype)
            gate = torch.cat([gate, alone[:, None].expand(-1, x.shape[1], -1)])
        hidden = self.moe_down(x, gate, self.original_module.fc1(x))
        hidden = self.original_module.activation_fn(hidden)
        return self.moe_up(hidden, gate, self.original_module.fc2(hidden))

    # Compiled along, it would give the forward pass another graph than what gradient checkpointing re-runs; so in
    # training it is called in both.
    @torch.compiler.disable
    def keep(self, probs: Tensor, choice: Tensor) -> None:
        if self.record is not None:
            self.record.append(Routing(probs, choice))


# Servers answer from several threads at once; a record belongs to one pass through the tower.
_RECORDING = threading.RLock()


@contextmanager
def record_routing(blocks: Iterable[nn.Module]) -> Iterator[list[Routing]]:
    """Collect the routing of every MoLE inside `blocks`, in the order in which they run.

    Open it around the tower's own forward only. What gradient checkpointing re-runs in backward finds it closed, so
    that nothing recomputed stays alive; gradients reach the routers all the same (with non-reentrant checkpointing).
    """
    experts = [module for block in blocks for module in block.modules() if isinstance(module, MoLE)]
    record: list[Routing] = []
    with _RECORDING if experts else nullcontext():
        before = [module.record for module in experts]
        for module in experts:
            module.record = record
        try:
            yield record
        finally:
            for module, previous in zip(experts, before, strict=True):
                module.record = previous
