"""The module path under which MoVE-KD published its teachers, for code that imports it."""

from typing import Any

from torch import nn


def init_vision_teachers(config: Any) -> dict[str, nn.Module]:
    """The frozen teachers that `config.encoder_teachers` names, with the published settings, by name.

    Raises ValueError for an unknown teacher or weights that are missing. New code calls
    `move_kd.teachers.build_teachers`, which this is a thin form of.
    """
    # Imported here: a model that answers needs none of the teachers' code.
    from llava.model.multimodal_encoder.move_kd.teachers import build_teacher, parse_specs
    from llava.model.multimodal_encoder.move_kd.teachers.base import BuildContext

    specs = parse_specs(config.encoder_teachers, released=True)
    return {spec.name: build_teacher(spec, BuildContext()) for spec in specs}
