"""Files to a working model: ``load_gen1("tiny")`` or a folder of weights."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .checkpoints.files import Weights, config_from_plain, load_module, read_file
from .content.clip import EmbeddedClip
from .content.tokenizer import Tokenizer
from .models.autoencoder import Autoencoder, AutoencoderConfig
from .models.clip import CLIP, CLIPConfig
from .models.depth import DepthNet, DepthNetConfig
from .models.prior import Prior, PriorConfig
from .models.unet import SpaceTimeUNet, UNetConfig
from .pipeline import Diffusion, EditOptions, Gen1
from .presets import MODELS
from .structure.estimator import DepthEstimator, network_estimator
from .structure.midas import DPTConfig, build_dpt, dpt_estimator, from_midas, load_dpt_transformers

PARTS = ("unet", "autoencoder", "depth", "clip", "prior")
"""File stems of a model folder; each is a safetensors file whose metadata names its kind and holds its config."""


IN_CHANNELS = 12
"""Noisy latents 4, encoded depth 4, its blur level 4."""


def load_gen1(
    source: str | Path = "tiny", *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Gen1:
    """The embedded model by name, or a folder with the five files of ``PARTS``.

    The U-Net and the autoencoder take ``dtype``; the small networks beside them stay in float32, where they cost
    nothing and lose nothing. Raises ValueError where a file is missing, of another kind, or does not fit.
    """
    folder = MODELS.get(str(source), Path(source))
    files = {part: read_part(folder, part) for part in PARTS}
    place = torch.device(device)

    def module(part: str, build: Any, config: Any, as_dtype: torch.dtype = torch.float32) -> Any:
        path = folder / f"{part}.safetensors"
        return load_module(lambda: build(config), files[part].tensors, device=place, dtype=as_dtype, path=path)

    unet = module("unet", SpaceTimeUNet, config_of(UNetConfig, files["unet"]), dtype)
    autoencoder = module("autoencoder", Autoencoder, config_of(AutoencoderConfig, files["autoencoder"]), dtype)
    depth = module("depth", DepthNet, config_of(DepthNetConfig, files["depth"]))
    clip = module("clip", CLIP, config_of(CLIPConfig, files["clip"]))
    prior = module("prior", Prior, config_of(PriorConfig, files["prior"]))
    check_together(unet.config, clip.config, prior.config, folder)
    words = frozenset(files["clip"].metadata.get("words", "").split())
    return Gen1(
        unet=unet,
        autoencoder=autoencoder,
        depth=network_estimator(depth),
        encoder=EmbeddedClip(clip, Tokenizer.embedded(clip.config.context_length), words=words),
        prior=prior,
        diffusion=config_from_plain(Diffusion, json.loads(files["unet"].metadata.get("diffusion", "{}"))),
        defaults=config_from_plain(EditOptions, json.loads(files["unet"].metadata.get("defaults", "{}"))),
    )


def check_together(unet: UNetConfig, clip: CLIPConfig, prior: PriorConfig, folder: Path) -> None:
    """Refuses parts of different models: each may be whole, and together they would fail in the middle of an edit."""
    widths = {"unet": unet.cross_attention_dim, "clip": clip.embed_dim, "prior": prior.dim}
    if len(set(widths.values())) > 1 or unet.in_channels != IN_CHANNELS:
        raise ValueError(
            f"the parts in {folder} have contents of width {widths} and a U-Net of {unet.in_channels} input channels, "
            f"but need one width and {IN_CHANNELS} channels; take all five files from one model."
        )


def load_depth_estimator(
    path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> DepthEstimator:
    """MiDaS DPT-Large, the paper's choice: a transformers folder, or the original ``dpt_large_384.pt``.

    Put it into a model with ``dataclasses.replace(gen1, depth=...)``. Raises ValueError for any other file.
    """
    place = torch.device(device)
    if path.is_dir():
        return load_dpt_transformers(path, device=place, dtype=dtype)
    tensors = from_midas(read_file(path).tensors)
    return dpt_estimator(load_module(lambda: build_dpt(DPTConfig()), tensors, device=place, dtype=dtype, path=path))


def config_of(cls: type, file: Weights) -> Any:
    """The config in a file's metadata."""
    return config_from_plain(cls, file.metadata["config"])


def read_part(folder: Path, part: str) -> Weights:
    """One file of a model folder, checked for its kind.

    Raises ValueError where it is missing (says what the folder holds) or is another part.
    """
    path = folder / f"{part}.safetensors"
    if not path.is_file():
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else "no such folder"
        raise ValueError(
            f"{path} is missing (found: {found or 'nothing'}), but a Gen-1 model needs "
            f"{', '.join(PARTS)} as .safetensors; name one of {', '.join(MODELS)} or a folder that holds them."
        )
    file = read_file(path)
    if file.kind != part:
        raise ValueError(
            f"{path} holds {file.kind or 'weights of another program'}, not the {part} its name says; "
            "put the right file there (`gen1 info FILE` tells what a file is)."
        )
    return file


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """What ``gen1 info`` prints."""

    path: Path
    kind: str
    tensors: int
    parameters: int
    megabytes: float
    config: dict[str, Any]
    recipe: dict[str, str]


def describe_file(path: Path) -> FileInfo:
    """Kind, size and config of a weights file, from its content."""
    file = read_file(path)
    recipe = {key: value for key, value in file.metadata.items() if key not in ("kind", "config", "words", "format")}
    return FileInfo(
        path=path,
        kind=file.kind or "unknown (no Gen-1 metadata)",
        tensors=len(file.tensors),
        parameters=sum(tensor.numel() for tensor in file.tensors.values()),
        megabytes=path.stat().st_size / 1e6,
        config=dict(file.metadata["config"]),
        recipe=recipe,
    )


def as_metadata(diffusion: Diffusion, defaults: EditOptions) -> dict[str, str]:
    """What the U-Net's file says of its training and its use, for ``save_file``."""
    return {"diffusion": json.dumps(asdict(diffusion)), "defaults": json.dumps(asdict(defaults))}
