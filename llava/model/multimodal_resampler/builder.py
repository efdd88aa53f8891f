"""LLaVA-NeXT's resampler slot between tower and projector. Only the empty one exists here."""

from typing import Any

from llava.model.multimodal_projector.builder import IdentityMap

RESAMPLERS_BUILT = (None, "identity")


def build_vision_resampler(model_args: Any, delay_load: bool = False, **kwargs: Any) -> IdentityMap:
    """The identity. Raises ValueError where `model_args.mm_resampler_type` names another.

    `delay_load` and `kwargs` are part of the published signature; the identity has nothing to load.
    """
    name = getattr(model_args, "mm_resampler_type", None)
    if name not in RESAMPLERS_BUILT:
        raise ValueError(f"mm_resampler_type {name!r} is not supported: no resampler is built; leave it out")
    return IdentityMap()
