"""Suite-wide settings: offline, single-threaded, seeded, and where the parity vectors are."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity-dir", default=None, help="folder of parity vectors to use instead of the bundled ones")


def pytest_configure(config: pytest.Config) -> None:
    if directory := config.getoption("--parity-dir"):
        os.environ["LLAVA_PARITY_DIR"] = directory
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
