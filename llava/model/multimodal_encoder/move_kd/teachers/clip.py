"""CLIP ViT: patch tokens of the student's selected layer, its class token, and the attention row between the two.

By default it is a second, frozen copy of the student's own tower. Where the student's stays frozen as well and the
weights are equal, the two share their tensors.
"""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel

from llava.model.multimodal_encoder.move_kd.attention import cls_attention_row
from llava.model.multimodal_encoder.move_kd.student import num_used_layers
from llava.model.multimodal_encoder.move_kd.teachers._weights import load_pretrained
from llava.model.multimodal_encoder.move_kd.teachers.base import (
    CLIP_MEAN,
    CLIP_STD,
    BuildContext,
    Defaults,
    FrozenTeacher,
    square_grid,
)
from llava.model.multimodal_encoder.move_kd.types import TeacherFeatures

logger = logging.getLogger(__name__)
OTHER_PARTS = (r"text_model\.", r"text_projection", r"visual_projection", r"logit_scale$", r".*position_ids$")


class Clip(FrozenTeacher):
    defaults = Defaults(
        paths=("openai/clip-vit-large-patch14-336",),
        size=None,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        licence="MIT",
    )
    options: ClassVar = {"layer": ""}
    net: CLIPVisionModel

    def default_path(self, context: BuildContext) -> str:
        tower = _clip_tower(context.student_tower)
        return self.defaults.path() if tower is None else tower.vision_tower_name

    def load(self, context: BuildContext) -> CLIPVisionModel:
        net = load_pretrained(
            CLIPVisionModel,
            self.path,
            model_types=("clip", "clip_vision_model"),
            owner=f"teacher {self.name!r}",
            ignore=OTHER_PARTS,
        )
        self.native_size = net.config.image_size
        used = num_used_layers(net.config.num_hidden_layers, self._layer(context))
        if used == 0:
            raise self.refuse("layer 0 is the input of the first block: it has no class attention; choose another")
        # Recorded in the signature, so that a cache of another layer is refused.
        self.choices["layer"] = str(used)
        net.encoder.layers = net.encoder.layers[:used]
        net.post_layernorm = nn.Identity()  # type: ignore[assignment]
        if context.shared_dtype == self.dtype and context.student_tower is not None:
            self.shares_student = self._share(net, context.student_tower)
        return net

    def adopt(self, there: Mapping[str, Any]) -> None:
        super().adopt(there)
        if not self.choices["layer"].isdecimal():  # from the end, or the student's; the digest stands for it
            self.choices["layer"] = there["options"]["layer"]

    def _layer(self, context: BuildContext) -> int:
        text = self.choices["layer"]
        if text:
            if not text.lstrip("-").isdecimal():
                raise self.refuse(f"layer must be a whole number such as -2, not {text!r}")
            return int(text)
        tower = _clip_tower(context.student_tower)
        return -2 if tower is None else tower.select_layer

    def _share(self, net: CLIPVisionModel, tower: nn.Module) -> bool:
        """Replace the network's parameters by the student's if every one is equal in value and dtype."""
        theirs = {_base_name(key): parameter for key, parameter in tower.named_parameters()}
        for key, parameter in net.named_parameters():
            other = theirs.get(key)
            if other is None or other.dtype != self.dtype or other.shape != parameter.shape:
                logger.info("teacher %s does not share the student's weights: %s differs", self.name, key)
                return False
            if not torch.equal(parameter.to(self.dtype), other.detach().cpu()):
                logger.info("teacher %s does not share the student's weights: %s has other values", self.name, key)
                return False
        for key, _ in list(net.named_parameters()):
            owner, _, attribute = key.rpartition(".")
            setattr(net.get_submodule(owner), attribute, theirs[key])
        return True

    def layout(self) -> tuple[tuple[int, int], int]:
        return square_grid(self.size, self.net.config.patch_size, self), self.net.config.hidden_size

    def encode(self, pixels: Tensor) -> TeacherFeatures:
        net = self.net
        if self.shares_student and any(parameter.requires_grad for parameter in net.parameters()):
            raise RuntimeError("the student's tower is trained, but teacher 'clip' was told it would stay frozen")
        hidden = net.embeddings(pixels, interpolate_pos_encoding=self.size != self.native_size)
        hidden = net.pre_layrnorm(hidden)
        *earlier, last = net.encoder.layers
        for block in earlier:
            hidden = block(hidden, None)
        # One row alone takes another kernel than several, which rounds differently; features must not depend on that.
        twice = hidden.expand(2, -1, -1) if len(hidden) == 1 else hidden
        attention = cls_attention_row(last, twice)[: len(hidden)]  # type: ignore[arg-type]
        hidden = last(hidden, None)
        return TeacherFeatures(hidden[:, 1:], self.grid, hidden[:, 0], attention)


def _clip_tower(tower: nn.Module | None):
    """The student's tower if it is CLIP's, at one scale or at several, else None."""
    if tower is None:
        return None
    from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower

    return tower if isinstance(tower, CLIPVisionTower) else None


def _base_name(key: str) -> str:
    """A parameter's name in CLIPVisionModel: without the tower's prefix and without the level that experts add."""
    return key.rpartition("vision_model.")[2].replace(".original_module.", ".")


TEACHER = Clip
