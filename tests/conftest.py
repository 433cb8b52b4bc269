"""What all tests share: the repository's root, where ComfyUI is, and which tests this machine can run."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("gen1", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("gen1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs an accelerator where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no GPU that PyTorch can use"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository, which is also the root of the node pack."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """A ComfyUI checkout; mark tests that use it ``comfy``."""
    path = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    if not (path / "nodes.py").is_file():
        pytest.skip(f"no ComfyUI at {path}; clone it there or set COMFYUI_PATH")
    return path
