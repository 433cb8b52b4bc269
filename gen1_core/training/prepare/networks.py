"""The networks that make training data of frames, named by files so that a worker elsewhere can load them.

The model's own, or public ones in their place: Stable Diffusion's autoencoder, a CLIP that transformers saved, any
depth network that the catalogue knows.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from ...checkpoints.files import load_module, read_file
from ...checkpoints.vae import autoencoder_from
from ...content.clip import EmbeddedClip, LoadedClip, load_transformers_clip
from ...content.describe import PriorDescriber
from ...content.encoder import ContentEncoder
from ...loading import load_depth_estimator, load_gen1
from ...models.autoencoder import Autoencoder
from ...presets import MODELS
from ...structure.estimator import DepthEstimator
from ..latents import fingerprint
from .files import hash_of

Part = TypeVar("Part")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class NetworkFiles:
    """Which networks: a model (a name or a folder), and files that take the place of its parts ("": the model's own).

    ``autoencoder`` is a file of Stable Diffusion's, ``clip`` a folder of transformers' CLIPModel. ``dtype`` is that of
    the autoencoder.
    """

    model: str = "tiny"
    autoencoder: str = ""
    clip: str = ""
    depth: str = ""
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} is no type to encode in; choose one of {', '.join(DTYPES)}.")


@dataclass(frozen=True, kw_only=True)
class Networks:
    """What a worker computes with, and hashes of it: samples of other weights must not be mixed."""

    autoencoder: Autoencoder
    encoder: ContentEncoder
    depth: DepthEstimator
    weights: dict[str, str]


def load_networks(files: NetworkFiles, *, device: torch.device) -> Networks:
    """All of them on one device.

    Raises ValueError where a file is missing or is another thing.
    """
    dtype = DTYPES[files.dtype]
    whole = None
    if not (files.autoencoder and files.clip and files.depth):
        whole = load_gen1(files.model, device=device)
    autoencoder = load_autoencoder(Path(files.autoencoder), device=device) if files.autoencoder else None
    encoder = load_transformers_clip(files.clip, device=device) if files.clip else None
    depth = load_depth_estimator(Path(files.depth), device=device) if files.depth else None
    if whole is not None:
        autoencoder = autoencoder or require(whole.autoencoder, Autoencoder)
        encoder = encoder or require(require(whole.describer, PriorDescriber).encoder, EmbeddedClip)
        depth = depth or whole.depth
    if autoencoder is None or encoder is None or depth is None:
        raise RuntimeError("unreachable: a part that no file names comes from the model")
    own_depth = MODELS.get(files.model, Path(files.model)) / "depth.safetensors"
    weights = {
        "autoencoder": fingerprint(autoencoder),
        "clip": fingerprint(encoder.module if isinstance(encoder, LoadedClip) else encoder.clip),
        "depth": hash_of(Path(files.depth)) if files.depth else hash_of_tensors(own_depth),
        "dtype": files.dtype,
    }
    # Hashed before it is rounded: weights are the same in any dtype, and that is a setting of its own.
    return Networks(autoencoder=autoencoder.to(dtype), encoder=encoder, depth=depth, weights=weights)


def load_autoencoder(path: Path, *, device: torch.device) -> Autoencoder:
    """Stable Diffusion's autoencoder, from a file of its own or from a whole checkpoint."""
    tensors, config = autoencoder_from(read_file(path).tensors, path)
    return load_module(lambda: Autoencoder(config), tensors, device=device, dtype=torch.float32, path=path)


def require(part: object, kind: type[Part]) -> Part:
    """A part of the kind that training knows."""
    if not isinstance(part, kind):
        raise ValueError(
            f"the model has a {type(part).__name__} where training needs {kind.__name__}; give another model."
        )
    return part


def hash_of_tensors(path: Path) -> str:
    """A hash of the tensors of a weights file: saved again it has other bytes, since its metadata have no order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(read_file(path).tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.float().numpy().tobytes())
    return digest.hexdigest()[:16]
