"""Time of an MLP with experts against the plain MLP and against a loop that gathers each token to its expert.

    python scripts/benchmarks/mole.py                  # CLIP-L sizes, this machine's CPU or accelerator
    python scripts/benchmarks/mole.py --tiles 8 --dtype bfloat16 --device cuda

Paired: every round times each variant once, in turn, and a ratio is the median over rounds of the round's own ratio,
so that what else the machine does falls on all of them alike.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPMLP

from llava.model.multimodal_encoder.move_kd.config import MoLEConfig
from llava.model.multimodal_encoder.move_kd.mole import MoLE, StackedLoRA


def gather_branch(bank: StackedLoRA, x: Tensor, base: Tensor, choice: Tensor) -> Tensor:
    """x (K, D), base (K, O), choice (K,): every expert called on the tokens that chose it."""
    for expert in range(bank.config.experts):
        rows = torch.where(choice == expert)[0]
        reduced = F.linear(x[rows], bank.reduce_weight[expert], bank.reduce_bias[expert])
        added = bank.config.scale * (reduced @ bank.expand_weight[expert] + bank.expand_bias[expert])
        base = base.index_add(0, rows, added)
    return base


def gather_loop(mole: MoLE, x: Tensor) -> Tensor:
    x = x.flatten(0, 1)
    choice = mole.router(x).softmax(-1, dtype=torch.float32).argmax(-1)
    mlp = mole.original_module
    hidden = mlp.activation_fn(gather_branch(mole.moe_down, x, mlp.fc1(x), choice))
    return gather_branch(mole.moe_up, hidden, mlp.fc2(hidden), choice)


def timed(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(variants: dict[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, list[float]]:
    for run in variants.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            times[name].append(timed(run, device))
    return times


def report(title: str, times: dict[str, list[float]]) -> None:
    plain = times["plain MLP"]
    for name, seconds in times.items():
        ratio = statistics.median(own / base for own, base in zip(seconds, plain, strict=True))
        print(f"| {title} | {name} | {1e3 * statistics.median(seconds):.2f} | {ratio:.3f} |")


def backward(layer: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> None:
        module.zero_grad()
        layer(x).float().square().mean().backward()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=577)
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    mlp = CLIPMLP(CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_attention_heads=16))
    config = MoLEConfig(experts=args.experts, rank=args.rank, alpha=1, gate="top1", init_b="kaiming")
    mole = MoLE(mlp, config).to(device, dtype)
    x = torch.randn(args.tiles, args.tokens, 1024, device=device, dtype=dtype)
    plain = mole.original_module
    name = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.processor() or platform.machine()} CPU"
    )
    print(f"{name}, {args.threads} thread(s), {args.dtype}, x {tuple(x.shape)}, E {args.experts}, R {args.rank}\n")
    print("| | variant | ms | ratio to plain |\n|---|---|---|---|")
    layers = {"plain MLP": plain, "masked experts": mole, "gather loop": lambda z: gather_loop(mole, z)}
    with torch.no_grad():
        forward = {name: (lambda layer=layer: layer(x)) for name, layer in layers.items()}
        report("forward", compare(forward, device, args.rounds))
    x.requires_grad_()
    both = {name: backward(layer, mole, x) for name, layer in layers.items()}
    report("forward + backward", compare(both, device, args.rounds))


if __name__ == "__main__":
    main()
