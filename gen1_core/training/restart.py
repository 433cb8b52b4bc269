"""A warm restart: averaged weights of a finished part as first weights of a new run, with a fresh optimiser."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ..loading import PARTS as WEIGHTS
from ..models.unet import SpaceTimeUNet
from ..whole import whole

POSITIONS = ".position.weight"
"""How the names of learned frame positions end."""

SILENT = "content_embedding."
"""How the names of layers begin whose output is zero until they are trained."""


def with_frames(tensors: Mapping[str, Tensor], frames: int) -> dict[str, Tensor]:
    """A U-Net's weights for clips of another length: learned frame positions are interpolated, the ends stay."""
    return {name: _stretched(value, frames) if name.endswith(POSITIONS) else value for name, value in tensors.items()}


def _stretched(positions: Float[Tensor, "f d"], frames: int) -> Float[Tensor, "g d"]:
    if len(positions) == frames:
        return positions
    rows = rearrange(positions.float(), "f d -> 1 d f")
    longer = functional.interpolate(rows, size=frames, mode="linear", align_corners=True)
    return rearrange(longer, "1 d g -> g d").to(positions.dtype)


def start_from(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Averaged weights of a finished part as first weights of a new run: a warm restart, with a fresh optimiser.

    Raises ValueError where they are of another network; a U-Net may have learnt clips of another length, and may lack
    the layers of ``content_embedding``, which change nothing until they are trained.
    """
    frames = getattr(getattr(model, "config", None), "frames", 0)
    told = with_frames(tensors, frames) if isinstance(model, SpaceTimeUNet) else dict(tensors)
    begun = {name: value for name, value in model.state_dict().items() if name.startswith(SILENT)}
    try:
        model.load_state_dict({**begun, **told})
    except RuntimeError as error:
        raise ValueError(
            f"{path} holds weights of another network ({error}); start from weights of the same configuration."
        ) from error


def adopt(start: Path, weights: Path, parts: Sequence[str]) -> None:
    """Copies the finished ``parts`` that are in ``start`` and not yet in ``weights``: what is trained needs them.

    Raises ValueError where there is no such folder, or none of a model's parts in it, and where the disk is full.
    """
    if not any((start / f"{part}.safetensors").is_file() for part in WEIGHTS):
        raise ValueError(f"{start} is no folder of finished parts; give the `weights` folder of a training.")
    weights.mkdir(parents=True, exist_ok=True)
    for name in parts:
        source, target = start / f"{name}.safetensors", weights / f"{name}.safetensors"
        if source.exists() and not target.exists():
            with whole(target) as part:
                shutil.copyfile(source, part)
