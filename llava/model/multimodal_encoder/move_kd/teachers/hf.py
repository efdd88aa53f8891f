"""Any transformers vision backbone as a teacher: `hf:<Hub id or folder>`, features of its last (or a chosen) layer.

Size and statistics come from the checkpoint's preprocessor_config.json unless the spec gives them. How many tokens
stand before the patches is found by running one picture twice; a network whose answer is no grid of patches is refused.
"""

import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.utils import cached_file

from llava.model.multimodal_encoder.move_kd.teachers._weights import BROKEN, check_model_type, load_pretrained
from llava.model.multimodal_encoder.move_kd.teachers.base import BuildContext, Defaults, FrozenTeacher
from llava.model.multimodal_encoder.move_kd.types import TeacherFeatures

# Heads and other modalities of whole models; what is left out is not needed for patch features.
OTHER_PARTS = (r"(.*\.)?(classifier|head|lm_head|decode_head|decoder|text_model|mask_decoder|prompt_encoder)\.",)


class HuggingFace(FrozenTeacher):
    defaults = Defaults(paths=("",), size=None, mean=(0, 0, 0), std=(1, 1, 1), licence="see the checkpoint's own")
    options: ClassVar = {"layer": ""}
    net: nn.Module

    def load(self, context: BuildContext) -> nn.Module:
        owner = f"teacher {self.name!r}"
        self.choices["model_type"] = check_model_type(self.path, (), owner)
        net = load_pretrained(AutoModel, self.path, model_types=(), owner=owner, ignore=OTHER_PARTS)
        net = _vision_part(net)
        self._read_preprocessing(net)
        parameters = inspect.signature(net.forward).parameters
        self.interpolates = "interpolate_pos_encoding" in parameters
        if "pixel_values" not in parameters:
            raise self.refuse(f"{self.path} is a {type(net).__name__}, which takes no pixel_values; it cannot teach")
        return net

    def adopt(self, there: Mapping[str, Any]) -> None:
        super().adopt(there)
        self.choices["model_type"] = there["options"]["model_type"]
        self.mean, self.std = self.spec.mean or tuple(there["mean"]), self.spec.std or tuple(there["std"])

    def layout(self) -> tuple[tuple[int, int], int]:
        """Found by one forward pass over a picture and its copy, as the run will do it."""
        hidden = self._probe()
        if hidden.ndim == 4:  # a convolutional map
            self.prefix = 0
            return (hidden.shape[2], hidden.shape[3]), hidden.shape[1]
        self.prefix, side = self._find_prefix(hidden.shape[1])
        return (side, side), hidden.shape[2]

    def _probe(self) -> Tensor:
        """(2, N, D) or (2, D, H, W), both of one picture in which no two patches are equal."""
        if getattr(self.net.config, "is_encoder_decoder", False):
            raise self.refuse(f"{self.path} has a decoder, whose queries are no grid of patches")
        picture = torch.linspace(-1, 1, 3 * self.size**2).view(1, 3, self.size, self.size).expand(2, -1, -1, -1)
        try:
            with torch.no_grad():
                hidden = self._hidden(self.net, picture.to(self.pixel_mean.device, self.dtype))
        except (*BROKEN, AttributeError, TypeError) as error:
            hint = "" if self.dtype == torch.float32 else "; add dtype=fp32 if it cannot run in half precision"
            problem = f"{self.path} cannot encode pictures of {self.size} px as {self.dtype}: {error}{hint}"
            raise self.refuse(problem) from error
        if len(hidden) != 2 or (hidden[0] - hidden[1]).float().norm() > 0.01 * hidden[0].float().norm():
            raise self.refuse(f"{self.path} does not answer each picture alone, or drops or shuffles patches at random")
        return hidden

    def encode(self, pixels: Tensor) -> TeacherFeatures:
        hidden = self._hidden(self.net, pixels)
        if hidden.ndim == 4:
            return TeacherFeatures(hidden.flatten(2).transpose(1, 2), self.grid)
        cls = hidden[:, 0] if self.prefix else None
        return TeacherFeatures(hidden[:, self.prefix :], self.grid, cls)

    def _hidden(self, net: nn.Module, pixels: Tensor) -> Tensor:
        options: dict[str, Any] = {"pixel_values": pixels}
        if self.interpolates and self.size != self.native_size:
            options["interpolate_pos_encoding"] = True
        if not self.choices["layer"]:
            return net(**options).last_hidden_state
        states = net(**options, output_hidden_states=True).hidden_states
        layer = self._layer(len(states))
        return states[layer]

    def _layer(self, available: int) -> int:
        text = self.choices["layer"]
        if not text.lstrip("-").isdecimal() or not -available <= int(text) < available:
            raise self.refuse(f"layer must be a whole number from {-available} to {available - 1}, not {text!r}")
        return int(text)

    def _find_prefix(self, tokens: int) -> tuple[int, int]:
        """(tokens before the patches, side of the patch grid): as the patch size says; of a network that has none, or
        that merges patches from stage to stage, the nearest square."""
        config = self.net.config
        patch = getattr(config, "patch_size", None)
        if isinstance(patch, int) and 0 <= tokens - (self.size // patch) ** 2 <= 64:
            return tokens - (self.size // patch) ** 2, self.size // patch
        side = math.isqrt(tokens)
        if (isinstance(patch, int) and not hasattr(config, "depths")) or tokens - side**2 > 1:
            size = f"{self.size} px" + (f" and patches of {patch} px" if isinstance(patch, int) else "")
            raise self.refuse(f"{self.path} gives {tokens} tokens at {size}, which form no square grid")
        return tokens - side**2, side

    def _read_preprocessing(self, net: nn.Module) -> None:
        self.native_size = _side(AutoConfig.from_pretrained(self.path)) or _side(net.config)
        found = _preprocessor_config(self.path)
        if not (self.spec.mean and self.spec.std) and not ("image_mean" in found and "image_std" in found):
            raise self.refuse(f"{self.path} has no preprocessor_config.json with its statistics; add mean=...")
        if self.spec.mean is None:
            self.mean = tuple(found["image_mean"])
        if self.spec.std is None:
            self.std = tuple(found["image_std"])
        crop = found.get("crop_size") or found.get("size") or {}
        if self.native_size is None and isinstance(crop, dict):
            self.native_size = crop.get("height") or crop.get("shortest_edge")


def _vision_part(net: nn.Module) -> nn.Module:
    """The image encoder of a model that also has a text side; any other model as it is."""
    parts = dict(net.named_children())
    return parts.get("vision_model", net) if "text_model" in parts else net


def _side(config: Any) -> int | None:
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    return size if isinstance(size, int) else None


def _preprocessor_config(location: str) -> dict[str, Any]:
    local = Path(location) / "preprocessor_config.json"
    try:
        path = local if local.is_file() else cached_file(location, "preprocessor_config.json")
        return json.loads(Path(str(path)).read_text())
    except BROKEN:
        return {}


TEACHER = HuggingFace
