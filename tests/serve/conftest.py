"""One tiny model for all tests of serving."""

from pathlib import Path

import pytest
import torch

from llava.inference import Chat
from tests.tiny import save_tiny_llava

MOE = {
    "moe_encoder": True,
    "moe_encoder_lora_rank": 2,
    "moe_encoder_lora_alpha": 4,
    "moe_encoder_num_experts": 3,
    "moe_encoder_dense": False,
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MoVE-KD student of a few thousand weights, with tokenizer."""
    torch.manual_seed(0)
    return save_tiny_llava(tmp_path_factory.mktemp("serve"), moe=MOE)


@pytest.fixture(scope="session")
def chat(checkpoint: Path) -> Chat:
    return Chat.load(str(checkpoint), device="cpu", torch_dtype="float32")
