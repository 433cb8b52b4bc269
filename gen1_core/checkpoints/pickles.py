"""Weights in pickles (.ckpt, .pt, .pth, .bin), of which nothing but tensors is read and nothing is run."""

import logging
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

WRAPS = ("state_dict", "model", "controlnet", "model_state_dict", "module", "params")
"""Names under which training programs like to keep a state dict."""

HALVES = ("image_proj", "ip_adapter", "adapter_modules")
"""The state dicts that IP-Adapter's .bin files hold one beside the other."""

INERT = (
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
    ("lightning.pytorch.callbacks.model_checkpoint", "ModelCheckpoint"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "dtype"),
)
"""What training checkpoints carry beside their weights: the notes of Lightning's callback, and numpy's numbers."""


def read_pickle(path: Path, *, mapped: bool) -> dict[str, Tensor]:
    """The named tensors of a PyTorch file, without the names it wraps them in.

    ``mapped`` (zip archives only) leaves the data on disk until it is used.

    Raises ValueError where the file holds code or no named tensors, or cannot be read.
    """
    try:
        with warnings.catch_warnings(), _inert_classes():
            warnings.simplefilter("ignore")  # of old pickle protocols: what cannot be read is an error below
            content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path} is a pickle or zip archive that holds code, or more than tensors, or is cut short "
            f"({_first_line(error)}), and code in a file is never run; "
            "convert to safetensors with the program that made it, where you trust it."
        ) from error
    tensors = _unwrapped(content)
    if not tensors:
        raise ValueError(f"{path} holds no named tensors; give the file with the weights, or convert to safetensors.")
    return tensors


class _Inert:
    """Takes the place of a class that a pickle names: whatever it is given, it keeps nothing and does nothing."""

    def __new__(cls, *_: Any) -> "_Inert":
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


@contextmanager
def _inert_classes() -> Iterator[None]:
    """Lets PyTorch's safe unpickler meet the names of INERT, each as a class that does nothing, for one file."""
    before = torch.serialization.get_safe_globals()
    stand_ins: list[Any] = [type(name, (_Inert,), {"__module__": module}) for module, name in INERT]
    torch.serialization.add_safe_globals(stand_ins)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _unwrapped(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    for name in WRAPS:
        if isinstance(content.get(name), Mapping):
            content = content[name]
            break
    found = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    for half in HALVES:
        if isinstance(content.get(half), Mapping):
            parts = content[half].items()
            found |= {f"{half}.{name}": value for name, value in parts if isinstance(value, Tensor)}
    if skipped := [str(name) for name in content if name not in found and name not in HALVES]:
        logger.info("skipped what is not a tensor: %s", ", ".join(skipped[:4]) + (", ..." if skipped[4:] else ""))
    return {str(name): value for name, value in found.items()}
