"""What a teacher is: a frozen network outside the student's module tree that answers prepared pictures with features.

A new teacher is one file beside this one: a subclass of `FrozenTeacher` with `defaults`, `load` and `encode`,
and `TEACHER = ThatClass`. The student, the losses and the trainer know nothing but the `Teacher` protocol.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava.model.multimodal_encoder.move_kd.teachers._spec import PRESETS, TeacherSpec, Triple
from llava.model.multimodal_encoder.move_kd.teachers._stem import read_bytes
from llava.model.multimodal_encoder.move_kd.teachers._weights import weights_digest
from llava.model.multimodal_encoder.move_kd.types import Fit, ImageSpec, Source, TeacherFeatures, split

CLIP_MEAN, CLIP_STD = PRESETS["clip"]
IMAGENET_MEAN, IMAGENET_STD = PRESETS["imagenet"]
HALF_MEAN, HALF_STD = PRESETS["half"]


@runtime_checkable
class Teacher(Protocol):
    """Live or cached alike. source: what the data workers prepare. grid: (H, W) of the tokens. width: D."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> Source: ...
    @property
    def grid(self) -> tuple[int, int]: ...
    @property
    def width(self) -> int: ...
    @property
    def digest(self) -> str: ...

    def __call__(self, prepared: Any) -> TeacherFeatures: ...


@dataclass(frozen=True)
class Defaults:
    """What a teacher uses where its spec says nothing.

    paths: tried in order; the first that exists on disk, else the last (a Hub id). size: None takes the
    checkpoint's own. released: what the published recipe set, as option text by key.
    """

    paths: tuple[str, ...]
    size: int | None
    mean: Triple
    std: Triple
    licence: str
    fit: Fit | None = None
    released: Mapping[str, str] = field(default_factory=dict)

    def path(self) -> str:
        return next((path for path in self.paths if Path(path).exists()), self.paths[-1])


@dataclass(frozen=True)
class BuildContext:
    """Where teachers are built: their dtype and device, and the student's tower (None when there is none).

    shared_dtype: what the student's base tower is in during training, if it stays frozen, so that a teacher with equal
    weights may use its tensors; None if it may not.
    """

    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    student_tower: nn.Module | None = None
    shared_dtype: torch.dtype | None = None


class FrozenTeacher(nn.Module):
    """Base of live teachers: frozen, always in eval mode, called without gradients and outside autocast.

    Subclasses give `defaults` and, where they take more keys, `options` (key -> default as text); `load` returns the
    network in float32 with every tensor read from the checkpoint and may set `native_size`; `layout` returns grid
    and width for `self.size`; `encode` turns standardized pixels into features. One whose `load` sets more of the
    signature than `native_size` says in `adopt` what a cache knows instead.
    `version` is raised when the features of an unchanged file change: caches written before are then refused.
    `stem` names the layer of the network that cuts pixels into patches, if `encode` does nothing to them before: that
    layer gets them as the bytes they are, which saves passes over the picture.
    """

    defaults: ClassVar[Defaults]
    options: ClassVar[Mapping[str, str]] = {}
    version: ClassVar[int] = 2
    stem: ClassVar[str | None] = None
    shares_student = False
    pixel_mean: Tensor
    pixel_variance: Tensor

    def __init__(self, spec: TeacherSpec, context: BuildContext | None = None) -> None:
        """Raises ValueError for keys this teacher does not take and for weights that are not exactly right."""
        super().__init__()
        context = context or BuildContext()
        self._read_spec(spec, context)
        self.net = self.load(context)
        self.size = self._find_size()
        self.source = self.make_source()
        self.register_buffer("pixel_mean", 255.0 * torch.tensor(self.mean), persistent=False)
        self.register_buffer("pixel_variance", (255.0 * torch.tensor(self.std)).square(), persistent=False)
        self._freeze(context)
        if self.stem is not None:
            read_bytes(self.net, self.stem, self.mean, self.std)
        self.grid, self.width = self.layout()
        self._digest: str | None = None
        self._check_digest()

    def _read_spec(self, spec: TeacherSpec, context: BuildContext) -> None:
        self.spec = spec
        self.name = spec.name
        self.choices = self._choices(spec)
        self.path = spec.path or self.default_path(context)
        self.dtype = spec.dtype or context.dtype
        self.native_size: Any = None  # an int once `load` has set it
        self.mean, self.std = spec.mean or self.defaults.mean, spec.std or self.defaults.std

    def load(self, context: BuildContext) -> nn.Module:
        raise NotImplementedError

    def layout(self) -> tuple[tuple[int, int], int]:
        """((H, W), D) of the tokens that `encode` gives for a picture of side `self.size`."""
        raise NotImplementedError

    def encode(self, pixels: Tensor) -> TeacherFeatures:
        """(M, 3, S, S) in the teacher's dtype, standardized; with a `stem` also uint8 as they came."""
        raise NotImplementedError

    def default_path(self, context: BuildContext) -> str:
        return self.defaults.path()

    def make_source(self) -> Source:
        return ImageSpec(self.size, self.mean, self.std, self.spec.fit or self.defaults.fit)

    def normalize(self, pixels: Any) -> Any:
        """(M, 3, S, S) uint8 to standardized values in the teacher's dtype; no constant travels to the device. A
        teacher whose source gives something else says here what `encode` gets of it."""
        # One pass, in float32 inside; every dtype holds 0 to 255 exactly.
        return F.batch_norm(pixels.to(self.dtype), self.pixel_mean, self.pixel_variance, eps=0.0)

    @torch.no_grad()  # not inference_mode: the adapters must save these tensors for backward
    def forward(self, prepared: Any) -> TeacherFeatures:
        """M pictures as `source.prepare` made them, collated ((M, 3, S, S) uint8, or what a source of the teacher's own
        gives), to their features."""
        with torch.autocast(self.pixel_mean.device.type, enabled=False):
            chunks = split(prepared, self.spec.chunk)
            parts = [self.encode(chunk if self.stem else self.normalize(chunk)) for chunk in chunks]
        return parts[0] if len(parts) == 1 else _join(parts)

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """A teacher stays in eval mode whatever it is told."""
        return super().train(False)

    @property
    def digest(self) -> str:
        """sha256 over names, shapes and bytes of the weights in use (so it depends on the dtype as well)."""
        if self._digest is None:
            self._digest = weights_digest(self.net)
        return self._digest

    def signature(self) -> dict[str, Any]:
        """Everything that decides the features besides the weights; JSON-ready."""
        return {
            "kind": self.spec.kind,
            "version": self.version,
            "source": self.source.key,
            "mean": list(self.mean),
            "std": list(self.std),
            "dtype": str(self.dtype).removeprefix("torch."),
            "options": dict(sorted(self.choices.items())),
        }

    @classmethod
    def vouched(cls, spec: TeacherSpec, context: BuildContext, there: Mapping[str, Any]) -> dict[str, Any]:
        """The signature that this teacher would have, without its weights: what they alone decide is as `there`, the
        signature of a cache, has it. Raises ValueError for a spec that is wrong, or silent on a size nobody knows."""
        teacher = cls.__new__(cls)
        nn.Module.__init__(teacher)
        teacher._read_spec(spec, context)
        teacher.adopt(there)
        teacher.size = teacher._find_size()
        teacher.source = teacher.make_source()
        return teacher.signature()

    def adopt(self, there: Mapping[str, Any]) -> None:
        """Stand in for `load`, which finds the values that neither spec nor defaults give."""
        side = re.match(r"(\d+)px_", there["source"])
        self.native_size = int(side[1]) if side else None

    def refuse(self, problem: str) -> ValueError:
        return ValueError(f"teacher {self.name!r}: {problem}")

    def _choices(self, spec: TeacherSpec) -> dict[str, str]:
        unknown = [key for key, _ in spec.options if key not in self.options]
        if unknown:
            accepted = ["path", "name", "size", "dtype", "mean", "std", "fit", "chunk", "digest", *self.options]
            raise self.refuse(f"{spec.kind} takes no {', '.join(unknown)}; accepted: {', '.join(accepted)}")
        return {**self.options, **dict(spec.options)}

    def _find_size(self) -> int:
        size = self.spec.size or self.defaults.size or self.native_size
        if size is None:
            raise self.refuse(f"{self.path} does not say its image size; add size=...")
        return size

    def _freeze(self, context: BuildContext) -> None:
        """Parameters to the teacher's dtype; buffers (rotary frequencies, constants) keep float32."""
        for parameter in self.net.parameters():
            parameter.requires_grad_(False)
            if not self.shares_student:
                parameter.data = parameter.data.to(self.dtype)
        self._place(context.device)
        self.eval()

    def _place(self, device: torch.device) -> None:
        """Tensors shared with the student move with the student; only what is the teacher's own goes to `device`."""
        if not self.shares_student:
            self.to(device)
            return
        for module in self.modules():
            for key, buffer in module.named_buffers(recurse=False):
                setattr(module, key, buffer.to(device))

    def _check_digest(self) -> None:
        wanted = self.spec.digest
        if wanted is not None and not self.digest.startswith(wanted):
            raise self.refuse(f"the weights at {self.path} have digest {self.digest[:16]}, the spec asks for {wanted}")


def _join(parts: list[TeacherFeatures]) -> TeacherFeatures:
    columns = zip(*((part.patches, part.cls, part.cls_attention) for part in parts), strict=True)
    patches, cls, attention = (None if column[0] is None else torch.cat(column) for column in columns)
    assert patches is not None
    return TeacherFeatures(patches, parts[0].grid, cls, attention)


def square_grid(size: int, stride: Any, owner: FrozenTeacher) -> tuple[int, int]:
    """(size / stride) twice. Raises ValueError if `size` is no multiple of `stride`."""
    if size % stride:
        raise owner.refuse(f"size {size} is no multiple of its patch or stride {stride}")
    return size // stride, size // stride
