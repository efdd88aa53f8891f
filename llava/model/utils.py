"""Config files of the first LLaVA releases."""

import os
from pathlib import Path

from transformers.utils import logging

from llava.model.checkpoint_config import model_class_of, original_type, read_config
from llava.model.checkpoint_io import write_json

logger = logging.get_logger(__name__)


def auto_upgrade(config: str | os.PathLike[str]) -> bool:
    """Rewrite config.json of directory `config` if it says `llama` for a model that sees; True if it was rewritten.

    The loader reads such a config as it is; this is for other programs, which go by `model_type`.
    """
    raw = read_config(config)
    model_type = original_type(raw)
    if model_type is None or "llava" in str(raw.get("model_type")):
        return False
    raw |= {"model_type": model_type, "architectures": [model_class_of(model_type).__name__]}
    write_json(raw, Path(config) / "config.json")
    logger.warning(f"{config}/config.json now says model_type {model_type}")
    return True
