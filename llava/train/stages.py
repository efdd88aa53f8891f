"""What trains, as data: a stage names parts, a part is a set of parameters that the model itself declares.

Freezing, optimizer groups and what is written all read the stage. Nothing here knows a model class or a flag parser.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch.nn import Parameter

PARTS = ("projector", "mole", "vision_tower", "language_model", "adapters")

# What `--mm_tunable_parts` calls the parts.
TUNABLE_PARTS = {
    "mm_mlp_adapter": "projector",
    "mm_vision_resampler": "projector",
    "mm_vision_tower": "vision_tower",
    "mm_language_model": "language_model",
}

Parts = Mapping[str, Mapping[str, Parameter]]


@dataclass(frozen=True)
class Stage:
    """trainable: names of parts. lora: of the language model only its LoRA matrices (and `lora_bias` biases) train.
    embeddings: the input embeddings train with the projector, because new tokens wrap the images."""

    name: str
    trainable: frozenset[str]
    lora: bool = False
    lora_bias: str = "none"
    embeddings: bool = False

    @property
    def is_light(self) -> bool:
        """Whether the trained parts are small enough to be written alone, without the whole student."""
        return not self.trainable & {"vision_tower", "language_model"}


PRETRAIN = Stage("pretrain", frozenset({"mole", "adapters", "projector"}))
FINETUNE = Stage("finetune", frozenset(PARTS))


@dataclass(frozen=True)
class StageFlags:
    """The published switches that decide what trains; None means that the flag was not given."""

    mm_tunable_parts: str | None = None
    tune_mm_mlp_adapter: bool = False
    freeze_mm_mlp_adapter: bool = False
    freeze_backbone: bool = False
    tune_mm_vision_resampler: bool = False
    unfreeze_mm_vision_tower: bool = False
    unfreeze_language_model: bool = False
    tune_encoder: bool | None = None
    tune_encoder_adapter: bool | None = None
    tune_all: bool = False
    mm_use_im_start_end: bool = False
    vision_tower: str | None = ""
    lora_enable: bool = False
    lora_bias: str = "none"


def select_stage(flags: StageFlags) -> Stage:
    """The stage that the flags ask for. The rules, in order (a later one wins):

    1. `mm_tunable_parts` names the parts, and the older switches for those parts are ignored;
    2. else `tune_mm_mlp_adapter` (or `tune_mm_vision_resampler`) trains the projector alone,
       and without it projector and language model train;
    3. `unfreeze_mm_vision_tower` and `unfreeze_language_model` add their part, `freeze_backbone` takes the
       language model away, head included;
    4. `tune_encoder` adds the experts; adapters train unless `tune_encoder_adapter` is given as False;
    5. `tune_all` trains everything;
    6. `freeze_mm_mlp_adapter` keeps the projector as it is, unless `mm_tunable_parts` is given;
    7. without a `vision_tower` there is only a language model.

    Raises ValueError for an unknown part, and where nothing would train.
    """
    trainable = _tunable(flags.mm_tunable_parts) if flags.mm_tunable_parts else _older_switches(flags)
    if flags.tune_encoder:
        trainable.add("mole")
    if flags.tune_encoder_adapter is not False:
        trainable.add("adapters")
    if flags.tune_all:
        trainable = set(PARTS)
    if flags.freeze_mm_mlp_adapter and not flags.mm_tunable_parts:
        trainable.discard("projector")
    if flags.lora_enable and not flags.tune_mm_mlp_adapter:
        trainable.add("language_model")
    if flags.vision_tower is None:
        trainable &= {"language_model"}
    if trainable <= {"adapters"}:
        raise ValueError("these flags freeze the whole student; train at least one part, e.g. --tune_mm_mlp_adapter")
    name = "finetune" if "language_model" in trainable else "pretrain"
    lora = flags.lora_enable and "language_model" in trainable
    embeddings = flags.mm_use_im_start_end and "projector" in trainable and name == "pretrain"
    return Stage(name, frozenset(trainable), lora=lora, lora_bias=flags.lora_bias, embeddings=embeddings)


def _tunable(listed: str) -> set[str]:
    names = [name.strip() for name in listed.split(",") if name.strip()]
    unknown = [name for name in names if name not in TUNABLE_PARTS]
    if unknown or not names:
        raise ValueError(f"--mm_tunable_parts {listed!r}: unknown {unknown}; there are {', '.join(TUNABLE_PARTS)}")
    return {TUNABLE_PARTS[name] for name in names}


def _older_switches(flags: StageFlags) -> set[str]:
    projector_only = flags.tune_mm_mlp_adapter or flags.tune_mm_vision_resampler
    trainable = {"projector"} if projector_only else {"projector", "language_model"}
    if flags.unfreeze_mm_vision_tower:
        trainable.add("vision_tower")
    if flags.unfreeze_language_model:
        trainable.add("language_model")
    if flags.freeze_backbone:
        trainable.discard("language_model")
    return trainable


def apply_stage(parts: Parts, stage: Stage, unused: frozenset[str] = frozenset()) -> None:
    """Set `requires_grad` of every parameter: True where `stage` trains it, False elsewhere.

    unused: names that no forward pass reaches (layers after the selected one); they stay frozen, so that
    every trainable parameter gets a gradient in every step. Raises ValueError for a quantized part that would train.
    """
    for part, parameters in parts.items():
        for name, parameter in parameters.items():
            train = name not in unused and trains_in_stage(part, name, stage)
            if train and not parameter.is_floating_point():
                raise ValueError(f"{name} is stored in {parameter.dtype} and cannot train; use --lora_enable True")
            parameter.requires_grad_(train)


def trains_in_stage(part: str, name: str, stage: Stage) -> bool:
    """A parameter of a trained part, or under LoRA the adapter matrices and the biases asked for."""
    if stage.embeddings and name.endswith("model.embed_tokens.weight"):
        return True
    if part not in stage.trainable:
        return False
    if part != "language_model" or not stage.lora or ".lora_" in name:
        return True
    if stage.lora_bias == "all":
        return name.endswith(".bias")
    return stage.lora_bias == "lora_only" and name.endswith(".base_layer.bias")


def trained_parts(parts: Parts) -> dict[str, dict[str, Parameter]]:
    """Only the parameters that require a gradient, by part; parts without any are left out."""
    trained = {part: {n: p for n, p in named.items() if p.requires_grad} for part, named in parts.items()}
    return {part: named for part, named in trained.items() if named}


def count_parameters(parameter: Parameter) -> int:
    """Elements of the whole tensor, also where ZeRO-3 left only a placeholder here."""
    return int(parameter.__dict__.get("ds_numel", parameter.numel()))


def trainable_report(parts: Parts, learning_rates: Mapping[str, float]) -> list[str]:
    """One line per part: trainable and all parameters, tensors and learning rate; for the log at start."""
    lines = [f"{'part':<15}{'trainable':>15}{'of':>15}{'tensors':>9}  learning rate"]
    totals = [0, 0, 0]
    for part, (trainable, total, tensors) in _counts(parts):
        totals = [totals[0] + trainable, totals[1] + total, totals[2] + tensors]
        rate = f"{learning_rates[part]:g}" if trainable else "frozen"
        lines.append(f"{part:<15}{trainable:>15,}{total:>15,}{tensors:>9}  {rate}")
    lines.append(f"{'total':<15}{totals[0]:>15,}{totals[1]:>15,}{totals[2]:>9}")
    return lines


def _counts(parts: Parts) -> Iterator[tuple[str, tuple[int, int, int]]]:
    for part, named in parts.items():
        trained = [parameter for parameter in named.values() if parameter.requires_grad]
        total = sum(count_parameters(parameter) for parameter in named.values())
        yield part, (sum(count_parameters(parameter) for parameter in trained), total, len(trained))
