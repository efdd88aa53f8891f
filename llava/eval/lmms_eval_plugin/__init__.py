"""Registers the model `move_kd` with lmms-eval, through the entry point group `lmms_eval.models`.

lmms-eval loads this module by itself; nothing here imports it or torch before it asks. Install it with
`bash scripts/install_lmms_eval.sh`.
"""

from pathlib import Path
from typing import Any

TASKS = Path(__file__).parent / "tasks"


def manifest() -> Any:
    """What the entry point gives to lmms-eval."""
    try:
        from lmms_eval.models.registry_v2 import ModelManifest
    except ImportError as error:
        raise ImportError("lmms-eval is not installed: bash scripts/install_lmms_eval.sh") from error
    package = __name__
    return ModelManifest(
        model_id="move_kd",
        simple_class_path=f"{package}.simple.SimpleMoveKD",
        chat_class_path=f"{package}.chat.ChatMoveKD",
    )
