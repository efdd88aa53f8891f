"""LLaVA-NeXT's resampler slot between tower and projector. Only the empty one exists here."""

from typing import Any

from llava.model.multimodal_projector.builder import IdentityMap


def build_vision_resampler(model_args: Any, delay_load: bool = False, **kwargs: Any) -> IdentityMap:
    """The identity. Raises ValueError where `model_args.mm_resampler_type` names a real resampler.

    `delay_load` and `kwargs` are part of the published signature; the identity has nothing to load.
    """
    name = getattr(model_args, "mm_resampler_type", None)
    if name is not None:
        raise ValueError(f"mm_resampler_type {name!r} is not supported: resamplers other than null (none) do not exist")
    return IdentityMap()
