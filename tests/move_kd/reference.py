"""The slow way to run experts: each token is gathered to its expert. What the masked form must equal."""

import torch
from torch import Tensor
from torch.nn import functional as F

from llava.model.multimodal_encoder.move_kd.mole import MoLE, StackedLoRA


def branch(bank: StackedLoRA, expert: int, x: Tensor) -> Tensor:
    reduced = F.linear(x, bank.reduce_weight[expert], bank.reduce_bias[expert])
    return bank.config.scale * (reduced @ bank.expand_weight[expert] + bank.expand_bias[expert])


def gathered(bank: StackedLoRA, x: Tensor, base: Tensor, choice: Tensor, factor: Tensor) -> Tensor:
    """Add to each token its own expert's branch times `factor` (T, N), expert by expert."""
    total = base
    for expert in range(bank.config.experts):
        tiles, tokens = torch.where(choice == expert)
        added = factor[tiles, tokens].unsqueeze(-1) * branch(bank, expert, x[tiles, tokens])
        total = total.index_put((tiles, tokens), added, accumulate=True)
    return total


def mixed(bank: StackedLoRA, x: Tensor, base: Tensor, probs: Tensor) -> Tensor:
    return base + sum(probs[..., expert, None] * branch(bank, expert, x) for expert in range(bank.config.experts))


def gather_loop(mole: MoLE, x: Tensor) -> Tensor:
    """The whole layer for every gate, straight from its definition; x (T, N, D)."""
    mlp, gate = mole.original_module, mole.config.gate
    probs = F.linear(x, mole.router.weight, mole.router.bias).softmax(-1)
    chosen, choice = probs.max(-1)
    factor = {"top1": torch.ones_like(chosen), "top1_prob": chosen}.get(gate, chosen)

    def add(bank: StackedLoRA, z: Tensor, base: Tensor) -> Tensor:
        if gate in ("soft", "dense"):
            return mixed(bank, z, base, probs)
        if gate != "top1_ste":
            return gathered(bank, z, base, choice, factor)
        # The value of the chosen expert, the gradient of the mixture as far as probabilities go.
        fixed = [branch(bank, expert, z) for expert in range(bank.config.experts)]
        learned = sum((probs - probs.detach())[..., e, None] * value for e, value in enumerate(fixed))
        return gathered(bank, z, base, choice, torch.ones_like(chosen)) + learned

    hidden = mlp.activation_fn(add(mole.moe_down, x, mlp.fc1(x)))
    return add(mole.moe_up, hidden, mlp.fc2(hidden))
