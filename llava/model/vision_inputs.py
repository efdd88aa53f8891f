"""What callers may pass for images, their sizes and their modalities, brought to one form each."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llava.anyres import Size

Images = Tensor | Sequence[Tensor]
Modalities = str | Sequence[str]
KNOWN_MODALITIES = ("image", "video", "text")


def tiles_of(images: Images) -> tuple[Tensor, list[int] | None]:
    """All tiles of a batch as (T, 3, S, S) in reading order, and how many each image has.

    images: a tensor (B, 3, S, S), of images that are one tile each and are not packed (then the counts are None); or
    a tensor (B, P, 3, S, S), or a list of (3, S, S) and (P, 3, S, S). Raises ValueError for other shapes.
    """
    if isinstance(images, Tensor):
        if images.ndim not in (4, 5):
            raise ValueError(f"images must be (B, 3, S, S), (B, P, 3, S, S) or a list, not a tensor {images.shape}")
        if images.ndim == 4:
            return images, None
    tiles = [image if image.ndim == 4 else image[None] for image in images]
    if not tiles or any(image.ndim != 4 for image in tiles):
        shapes = [tuple(image.shape) for image in images]
        raise ValueError(f"a list of images must hold tensors (3, S, S) or (P, 3, S, S), not {shapes}")
    return torch.cat(tiles), [len(image) for image in tiles]


def modalities_of(modalities: Modalities | None, num_images: int) -> list[str]:
    """One modality per image: a single word stands for all, and images beyond the list are plain images.

    Raises ValueError for a word that is not known.
    """
    given = [modalities] * num_images if isinstance(modalities, str) else list(modalities or [])
    if unknown := sorted(set(given) - set(KNOWN_MODALITIES)):
        raise ValueError(f"modalities {unknown} are not known; use {', '.join(KNOWN_MODALITIES)}")
    return (given + ["image"] * num_images)[:num_images]


def sizes_of(image_sizes: Sequence[Sequence[int]] | Tensor | None, num_images: int) -> list[Size | None]:
    """The original (width, height) of each image, None where it was not given."""
    given = [] if image_sizes is None else [(int(width), int(height)) for width, height in image_sizes]
    return [*given, *[None] * num_images][:num_images]


def is_modalities(value: object) -> bool:
    """Whether an argument holds modalities rather than image sizes: a word, or a list of words."""
    if isinstance(value, str):
        return True
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], str)
