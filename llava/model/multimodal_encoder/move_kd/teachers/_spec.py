"""What a user writes for one teacher, `sam:path=/x,size=1024,dtype=bf16`, as a checked value."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch

from llava.model.multimodal_encoder.move_kd.types import Fit

Triple = tuple[float, float, float]

PRESETS: dict[str, tuple[Triple, Triple]] = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}
GENERAL_KEYS = ("path", "name", "size", "dtype", "mean", "std", "fit", "chunk", "digest")
ALIASES = {"eva": "eva02"}  # the released flag's word for the file's


@dataclass(frozen=True)
class TeacherSpec:
    """One teacher as asked for; None stands for the teacher's own default.

    kind: the file under teachers/. name: the key under which features, heads and log entries appear.
    fit: None follows the student's way of making the picture square. chunk: images per forward pass; bounds the
    memory, and with 1 the features do not depend on what else is in the batch. digest: expected start of the
    weights' sha256. options: keys that only this teacher knows, as text.
    """

    kind: str
    name: str
    path: str | None = None
    size: int | None = None
    dtype: torch.dtype | None = None
    mean: Triple | None = None
    std: Triple | None = None
    fit: Fit | None = None
    chunk: int | None = None
    digest: str | None = None
    options: tuple[tuple[str, str], ...] = ()


def parse_spec(text: str, defaults: Mapping[str, str] | None = None) -> TeacherSpec:
    """`kind`, `kind:path`, `kind:key=value,...` or `hf:<id or folder>,key=value,...`; `defaults` where it is silent.

    mean and std take three numbers joined by "/", or a preset (clip, imagenet, half, none); a preset given for mean
    alone sets std as well. Raises ValueError naming the item at fault and what is accepted.
    """
    kind, _, rest = text.strip().partition(":")
    items = [item.strip() for item in rest.split(",") if item.strip()]
    values: dict[str, str] = {}
    for position, item in enumerate(items):
        match = re.match(r"([a-z_]+)=(.*)", item, flags=re.DOTALL)
        key, value = match.groups() if match else ("path", item)
        if not match and position > 0:
            raise ValueError(f"teacher {text!r}: {item!r} is not key=value; only the first item may be a bare path")
        if key in values:
            raise ValueError(f"teacher {text!r}: {key} is given twice")
        if not value:
            raise ValueError(f"teacher {text!r}: {key} is empty")
        values[key] = value
    try:
        return _spec_of(kind, {**(defaults or {}), **values})
    except ValueError as error:
        raise ValueError(f"teacher {text!r}: {error}") from None


def _spec_of(kind: str, values: Mapping[str, str]) -> TeacherSpec:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", kind):
        raise ValueError(f"{kind!r} is no name of a teacher")
    if kind == "hf" and "path" not in values:
        raise ValueError("hf needs a Hub id or a folder: hf:facebook/dinov2-base")
    name = values.get("name") or (_name_of_path(values["path"]) if kind == "hf" else kind)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"name {name!r} may hold letters, digits, '_' and '-' only")
    mean, std = values.get("mean"), values.get("std")
    if std is None and mean in PRESETS:
        std = mean
    return TeacherSpec(
        kind=ALIASES.get(kind, kind),
        name=name,
        path=values.get("path"),
        size=_positive("size", values),
        dtype=parse_dtype(values["dtype"]) if "dtype" in values else None,
        mean=_triple("mean", mean, 0),
        std=_triple("std", std, 1),
        fit=_fit(values),
        chunk=_positive("chunk", values),
        digest=_digest(values),
        options=tuple(sorted((key, value) for key, value in values.items() if key not in GENERAL_KEYS)),
    )


def parse_dtype(text: str) -> torch.dtype:
    """fp32, bf16 or fp16 (or torch's own words) as a dtype."""
    if text not in DTYPES:
        raise ValueError(f"dtype {text!r} is unknown; use one of {', '.join(DTYPES)}")
    return DTYPES[text]


def _name_of_path(path: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", path.rstrip("/").rpartition("/")[2]).strip("-") or "hf"


def _positive(key: str, values: Mapping[str, str]) -> int | None:
    if key not in values:
        return None
    if not values[key].isdecimal() or int(values[key]) < 1:
        raise ValueError(f"{key} must be a positive whole number, not {values[key]!r}")
    return int(values[key])


def _triple(key: str, text: str | None, position: int) -> Triple | None:
    if text is None:
        return None
    if text in PRESETS:
        return PRESETS[text][position]
    parts = text.split("/")
    try:
        red, green, blue = (float(part) for part in parts)
    except ValueError:
        accepted = f"three numbers joined by '/', or one of {', '.join(PRESETS)}"
        raise ValueError(f"{key} {text!r} is not understood; give {accepted}") from None
    if key == "std" and min(red, green, blue) <= 0:
        raise ValueError(f"std {text!r} must be positive")
    return red, green, blue


def _fit(values: Mapping[str, str]) -> Fit | None:
    fit = values.get("fit")
    if fit is not None and fit not in get_args(Fit):
        raise ValueError(f"fit {fit!r} is unknown; use one of {', '.join(get_args(Fit))}")
    return fit  # type: ignore[return-value]


def _digest(values: Mapping[str, str]) -> str | None:
    digest = values.get("digest")
    if digest is not None and not re.fullmatch(r"[0-9a-f]{8,64}", digest):
        raise ValueError(f"digest {digest!r} must be 8 to 64 hexadecimal digits, as check_teachers prints them")
    return digest
