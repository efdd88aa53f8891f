"""From the name of a vision tower to the tower."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower, CLIPVisionTowerS2
from llava.model.multimodal_encoder.siglip_encoder import SigLipVisionTower
from llava.model.multimodal_encoder.vision_tower import VisionTower

SIGLIP_TYPES = ("siglip", "siglip_vision_model")
CLIP_MARKS = ("openai", "laion", "ShareGPT4V", "clip")


def build_vision_tower(vision_tower_cfg: Any, **kwargs: Any) -> VisionTower:
    """The tower that `mm_vision_tower` (else `vision_tower`) of a config or of training arguments names.

    A folder is judged by its config.json, a hub name by the word in it. `delay_load=True` builds it without weights.
    Raises ValueError for a name that is no folder and no known kind.
    """
    name = getattr(vision_tower_cfg, "mm_vision_tower", None) or getattr(vision_tower_cfg, "vision_tower", None)
    if not name:
        raise ValueError("the configuration names no vision tower; set mm_vision_tower to a folder or a hub name")
    if _is_siglip(name):
        return SigLipVisionTower(name, args=vision_tower_cfg, **kwargs)
    if getattr(vision_tower_cfg, "s2", False):
        return CLIPVisionTowerS2(name, args=vision_tower_cfg, **kwargs)
    return CLIPVisionTower(name, args=vision_tower_cfg, **kwargs)


def _is_siglip(name: str) -> bool:
    if Path(name).is_dir():
        settings, _ = PreTrainedConfig.get_config_dict(name)
        vision = settings.get("vision_config", {})  # of a whole model in transformers' format
        return settings.get("model_type") in SIGLIP_TYPES or vision.get("model_type") in SIGLIP_TYPES
    if "siglip" in name.lower():
        return True
    if any(mark in name for mark in CLIP_MARKS):
        return False
    raise ValueError(
        f"vision tower {name!r} is neither a folder here (from {Path.cwd()}) nor a hub name with "
        f"{', '.join(CLIP_MARKS)} or siglip in it"
    )
