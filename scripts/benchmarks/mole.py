"""Time of an MLP with experts against the plain MLP and against a loop that gathers each token to its expert.

    python scripts/benchmarks/mole.py                  # CLIP-L sizes, this machine's CPU or accelerator
    python scripts/benchmarks/mole.py --tiles 8 --dtype bfloat16 --device cuda

Paired: every round times each variant once, in turn, and a ratio is the median over rounds of the round's own ratio, so
that what else the machine does falls on all of them alike. The order turns round every other time. All have equal
sizes and no dropout; masked experts and loop compute the same function.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from released import GatherLoopMLP
from timing import keep_memory, machine, median_ratio, others_load, table
from torch import Tensor, nn
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPMLP

from llava.model.multimodal_encoder.move_kd.config import MoLEConfig
from llava.model.multimodal_encoder.move_kd.mole import MoLE

Times = dict[str, list[float]]


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the device; on a CPU with one thread its CPU seconds, which others on the machine change little."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    read = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    start = read()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return read() - start


def compare(variants: Mapping[str, Callable[[], object]], device: torch.device, rounds: int) -> Times:
    for run in variants.values():
        run()
    times: Times = {name: [] for name in variants}
    for index in range(rounds):
        names = list(variants) if index % 2 == 0 else list(reversed(variants))
        for name in names:
            times[name].append(timed(variants[name], device))
    return times


def rows_of(title: str, times: Times) -> list[tuple[str, ...]]:
    plain = times["plain MLP"]
    rows = []
    for name, seconds in times.items():
        middle, low, high = median_ratio(seconds, plain)
        quartiles = statistics.quantiles([own / base for own, base in zip(seconds, plain, strict=True)] * 2, n=4)
        spread = f"{quartiles[0]:.2f} to {quartiles[2]:.2f}" if low < high else "-"
        rows.append((title, name, f"{1e3 * statistics.median(seconds):.2f}", f"{middle:.3f}", spread))
    return rows


def backward(layer: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> None:
        module.zero_grad()
        x.grad = None
        layer(x).float().square().mean().backward()

    return run


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=577)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--gate", default="top1", help="top1 as in the loop; top1_ste lets the router learn")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    keep_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    shape = CLIPVisionConfig(hidden_size=args.width, intermediate_size=4 * args.width, num_attention_heads=1)
    config = MoLEConfig(experts=args.experts, rank=args.rank, alpha=1, gate=args.gate, init_b="kaiming")
    modules: dict[str, nn.Module] = {
        "plain MLP": CLIPMLP(shape),
        "masked experts": MoLE(CLIPMLP(shape), config),
        "gather loop": GatherLoopMLP(CLIPMLP(shape), config),
    }
    for module in modules.values():
        module.to(device, dtype)
    x = torch.randn(args.tiles, args.tokens, args.width, device=device, dtype=dtype)
    with torch.no_grad():
        forward = compare({n: (lambda m=m: m(x)) for n, m in modules.items()}, device, args.rounds)
    x.requires_grad_()
    both = compare({name: backward(module, module, x) for name, module in modules.items()}, device, args.rounds)
    print(
        f"{machine(device)}; {args.threads} threads, {args.dtype}, x {tuple(x.shape)}, {args.experts} experts of rank "
        f"{args.rank}, {args.rounds} rounds; load {others_load():.1f}; torch {torch.__version__}\n"
    )
    rows = rows_of("forward", forward) + rows_of("forward + backward", both)
    print(table(("", "variant", "ms", "ratio to plain", "half of the rounds"), rows))


if __name__ == "__main__":
    main()
