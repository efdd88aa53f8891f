"""What single differences between the release and our recipe do to a step, measured on random tensors and modules.

    python scripts/benchmarks/effects.py

Each row isolates one mechanism at the sizes of the full model where that is cheap. That a mechanism is real says
nothing about how many points it costs a trained model; docs/method.md quotes these numbers in its ledger.
"""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from data import Photographs
from released import prepare
from sizes import SIZES, processor
from timing import table
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPMLP, CLIPEncoderLayer

from llava.model.multimodal_encoder.move_kd.adapters import Shape, StudentHead, TeacherAdapter
from llava.model.multimodal_encoder.move_kd.attention import cls_attention_row
from llava.model.multimodal_encoder.move_kd.config import DistillConfig, MoLEConfig
from llava.model.multimodal_encoder.move_kd.distiller import Distiller
from llava.model.multimodal_encoder.move_kd.mole import MoLE
from llava.model.multimodal_encoder.move_kd.objectives.base import weighted_mean
from llava.model.multimodal_encoder.move_kd.objectives.router_balance import per_layer, pooled
from llava.model.multimodal_encoder.move_kd.teachers.clip import Clip
from llava.model.multimodal_encoder.move_kd.teachers.convnext import ConvNext
from llava.model.multimodal_encoder.move_kd.teachers.eva02 import Eva02
from llava.model.multimodal_encoder.move_kd.teachers.sam import Sam, upstream_layout
from llava.model.multimodal_encoder.move_kd.types import ImageSpec, Routing, TeacherFeatures
from llava.model.multimodal_encoder.move_kd.weights import TEACHER_RULES, TOKEN_RULES

FULL = SIZES["full"]
Row = tuple[str, str, str, str]  # number of the defect, what is measured, as released, ours


def experts(recipe: str, width: int = 256) -> MoLE:
    mlp = CLIPMLP(CLIPVisionConfig(hidden_size=width, intermediate_size=4 * width, num_attention_heads=1))
    return MoLE(mlp, MoLEConfig.from_recipe(recipe)).eval()


def router_gradient() -> Row:
    norms = []
    for gate in ("top1", "top1_ste"):
        mole = MoLE(experts("release").original_module, MoLEConfig(gate=gate, init_b="kaiming"))
        mole(torch.randn(2, 50, 256)).square().mean().backward()
        gradient = mole.router.weight.grad
        norms.append("none" if gradient is None else f"{gradient.norm().item():.2g}")
    return "21", "norm of the router's gradient from a loss on the features", norms[0], norms[1]


def balance() -> Row:
    layers = []
    for expert in range(3):
        probs = torch.zeros(1, 10, 3)
        probs[..., expert] = 1.0
        layers.append(Routing(probs, probs.argmax(-1)))
    least = [Routing(torch.full((1, 9, 3), 1 / 3), torch.arange(9).remainder(3)[None])]
    weight = torch.ones(1)
    values = [f"{term(layers, weight):.2f} ({term(least, weight):.2f})" for term in (pooled, per_layer)]
    return "22", "balance of three layers collapsed on an expert each (of even ones)", values[0], values[1]


@torch.no_grad()
def change_at_start() -> Row:
    x = torch.randn(2, 50, 1024)
    cells = []
    for recipe in ("release", "ours"):
        mole = experts(recipe, 1024)
        plain = mole.original_module(x)
        cells.append(f"{(mole(x) - plain).norm() / plain.norm():.2%}")
    return "23", "change of an MLP's output by its experts at step 0", cells[0], cells[1]


def detached_weights() -> Row:
    """By how much the adapters' gradient changes when the teachers' weights pass none."""
    config = DistillConfig.from_recipe("release")
    student, teacher = Shape((4, 4), 32), Shape((8, 8), 48)
    adapters = [TeacherAdapter(teacher, student, config) for _ in range(2)]
    patches, class_token = torch.randn(8, 16, 32), torch.randn(8, 32)
    features = [TeacherFeatures(torch.randn(8, 64, 48) * 3 + 1, (8, 8)) for _ in adapters]

    def gradient(is_detached: bool) -> Tensor:
        pairs = [adapter(patches, each) for adapter, each in zip(adapters, features, strict=True)]
        dots = torch.stack([(pair.target.mean(1) * class_token).sum(-1) for pair in pairs], -1)
        shares = (dots.detach() if is_detached else dots).softmax(-1)
        errors = torch.stack([(pair.prediction - pair.target).square().mean((1, 2)) for pair in pairs], -1)
        loss = (shares * errors).sum(-1).mean()
        weights = [adapter.channels.weight for adapter in adapters]
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights)])

    through, without = gradient(False), gradient(True)
    share = f"{(through - without).norm() / through.norm():.0%}"
    return "24", "share of the adapters' gradient that comes through the teachers' weights", share, "0 (detached)"


def similarity_scale() -> Row:
    """Two teachers whose tokens have a mean as large as their spread, at the full width."""
    class_token, means = torch.randn(1000, 1024), torch.randn(1000, 2, 1024)
    dots = (means * class_token.unsqueeze(1)).sum(-1)
    cells = [f"{scaled.softmax(-1).max(-1).values.mean():.2f}" for scaled in (dots, dots / 1024**0.5)]
    return "25", "larger one of two teachers' shares, on average (0.50 is even)", cells[0], f"{cells[1]} (recipe paper)"


def neighbors() -> Row:
    """The larger share of one picture's teachers: in a batch of pictures that weigh them evenly, and of its like."""
    picture = torch.tensor([[4.0, 0.0]])
    batches = torch.cat((picture, torch.zeros(7, 2))), picture.expand(8, 2)
    cells = [
        ", ".join(f"{TEACHER_RULES[rule].share(batch, torch.ones(8))[0].max():.2f}" for batch in batches)
        for rule in ("release", "uniform")
    ]
    return "26", "a picture's larger share among even pictures, among its like", cells[0], cells[1]


def position_weights() -> Row:
    """For a teacher of 64 x 64 tokens as wide as SAM's."""
    teacher, student = Shape((64, 64), 256), Shape((24, 24), 1024)
    with torch.device("meta"):
        released = TeacherAdapter(teacher, student, DistillConfig.from_recipe("release"))
        ours = StudentHead(teacher, student, DistillConfig.from_recipe("ours"))
    counts = [sum(value.numel() for value in module.parameters()) for module in (released, released.tokens, ours)]
    whole, positions, own = (f"{count / 1e6:.1f} M" for count in counts)
    return "29", "SAM's adapter: parameters, of them tied to one resolution", f"{whole}, {positions}", f"{own}, 0"


def step_of_experts() -> Row:
    """By how much the first step of AdamW at 2e-5 changes what an MLP gives."""
    x = torch.randn(1, 577, 1024)
    cells = []
    for recipe in ("release", "ours"):
        mole = experts(recipe, 1024)
        mole.original_module.requires_grad_(False)
        optimizer = torch.optim.AdamW([value for value in mole.parameters() if value.requires_grad], lr=2e-5)
        before = mole(x)
        (before * torch.randn_like(before)).sum().backward()
        optimizer.step()
        cells.append(f"{(mole(x) - before).norm() / before.norm():.1e}")
    return "", "change of an MLP's output by its experts' first step, rate 2e-5", cells[0], cells[1]


def eva_pixels() -> Row:
    """EVA shown CLIP's mean and deviation in place of its own."""
    pixels = torch.rand(3, 100_000)
    mean, std, clip_mean, clip_std = (
        torch.tensor(values)[:, None]
        for values in (Eva02.defaults.mean, Eva02.defaults.std, Clip.defaults.mean, Clip.defaults.std)
    )
    off = ((pixels - mean) / std - (pixels - clip_mean) / clip_std).abs().mean()
    return "", "standardized values of EVA's pictures are off by, on average", f"{off:.2f}", "0"


def kept_for_backward() -> Row:
    """What the 23 used layers of the student keep for a picture, in bfloat16, with experts."""
    config = CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_attention_heads=16)
    config._attn_implementation = "sdpa"
    cells = []
    for is_checkpointed in (False, True):
        layer = CLIPEncoderLayer(config)
        layer.mlp = MoLE(layer.mlp, MoLEConfig.from_recipe("ours"))
        layer = layer.to(torch.bfloat16)
        kept: list[Tensor] = []

        def keep(tensor: Tensor, kept: list[Tensor] = kept) -> Tensor:
            kept.append(tensor)
            return tensor

        x = torch.randn(1, 577, 1024, dtype=torch.bfloat16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            checkpoint(layer, x, None, use_reentrant=False) if is_checkpointed else layer(x, None)
        sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
        weights = {value.untyped_storage().data_ptr() for value in layer.parameters()}
        held = sum(size for place, size in sizes.items() if place not in weights)
        cells.append(f"{23 * held / 2**20:.0f} MiB")
    return "34", "kept for backward in the student's layers, an image: all, and with checkpointing", cells[0], cells[1]


def token_shares() -> Row:
    attention = torch.tensor([[0.5] + [0.5 / 575] * 575])
    shares = [TOKEN_RULES[rule].weigh(attention)[0] for rule in ("release", "attention_half")]
    cells = [f"{share[0] / share.sum():.2%}" for share in shares]
    return "27", "weight of a token with half of all attention, of 576 (0.17% is even)", cells[0], cells[1]


def blanks() -> Row:
    """In a batch of a picture and a text."""
    shares = []
    for recipe in ("release", "ours"):
        run = SimpleNamespace(distill_config=DistillConfig.from_recipe(recipe))
        errors = torch.ones(2, requires_grad=True)
        weighted_mean(errors, Distiller.soften(run, torch.tensor([1.0, 0.0]))).backward()  # type: ignore[arg-type]
        assert errors.grad is not None
        shares.append(f"{errors.grad[1] / errors.grad.sum():.0%}")
    return "30", "share of the distillation that a text's blank has beside one picture", shares[0], shares[1]


def blank_pixels() -> Row:
    released = processor(FULL.image).preprocess(torch.zeros(3, FULL.image, FULL.image), return_tensors="pt")
    return "30", "mean value of a text's blank, as the tower sees it", f"{released['pixel_values'].mean():.2f}", "0"


@torch.no_grad()
def other_block() -> Row:
    """Weights drawn from the map of a block and from that of the next one: what their tokens have in common."""
    config = CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_attention_heads=16)
    config._attn_implementation = "sdpa"
    block, following = CLIPEncoderLayer(config), CLIPEncoderLayer(config)
    x = torch.randn(8, 577, 1024)
    own, other = cls_attention_row(block, x), cls_attention_row(following, block(x, None))
    alike = torch.stack([torch.corrcoef(torch.stack(maps))[0, 1] for maps in zip(own, other, strict=True)]).mean()
    return "31", "correlation of a positive layer's token weights with its own block's", f"{abs(alike):.2f}", "1.00"


def sam_order() -> Row:
    channels = torch.arange(256.0).view(1, 256, 1, 1).expand(1, 256, 64, 64)
    counts = [len(tokens[0, :, 0, 0].unique()) for tokens in (upstream_layout(channels.clone()), channels)]
    return "12", "of SAM's 256 channels, how many one token holds", str(counts[0]), str(counts[1])


def milliseconds(run: Callable[[], Any]) -> float:
    run()
    taken = []
    for _ in range(5):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return 1e3 * sorted(taken)[2]


def preparation() -> Row:
    """CPU time for one picture of 640 x 480: student, CLIP, EVA, ConvNeXt and SAM."""
    picture = Photographs(1, 100).picture(0)
    sides = {"student": 336, "clip": 336, "eva": 1024, "convnext": 1024, "sam": 1024}
    processors = {name: processor(side) for name, side in sides.items()}
    kinds = {"clip": Clip, "eva": Eva02, "convnext": ConvNext, "sam": Sam}
    specs = [ImageSpec(sides[name], kind.defaults.mean, kind.defaults.std) for name, kind in kinds.items()]
    sources = {spec.key: spec for spec in specs}
    view = SimpleNamespace(image=picture, fit="pad")

    def ours() -> None:
        prepare([picture], {"student": processors["student"]})
        for source in sources.values():
            source.prepare(view)  # type: ignore[arg-type]

    old, new = milliseconds(lambda: prepare([picture], processors)), milliseconds(ours)
    return (
        "32",
        "CPU time to prepare a picture for student and 4 teachers",
        f"{old:.0f} ms, in the step",
        (f"{new:.0f} ms, in the workers"),
    )


def attention_maps() -> Row:
    heads, tokens = FULL.width // 64, (FULL.image // FULL.patch) ** 2 + 1
    maps, row = FULL.layers * heads * tokens**2 * 2, heads * tokens * 4
    return "33", "attention kept for an image and tower, bfloat16", f"{maps / 2**20:.0f} MiB", f"{row / 2**10:.0f} KiB"


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    measures = (
        sam_order, router_gradient, balance, change_at_start, detached_weights, similarity_scale, neighbors,
        token_shares, position_weights, step_of_experts, eva_pixels, preparation, attention_maps, kept_for_backward,
        blanks, blank_pixels, other_block,
    )  # fmt: skip
    print(table(("defect", "measured", "as released", "ours"), [measure() for measure in measures]))


if __name__ == "__main__":
    main()
