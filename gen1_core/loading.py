"""Files to a working model: ``load_gen1("tiny")`` or a folder of weights."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from .checkpoints.catalogue.row import LABELS
from .checkpoints.depth import load_depth_network
from .checkpoints.files import Weights, config_from_plain, load_module, read_file
from .checkpoints.formats import folder_parts, identify_path, weights_in
from .checkpoints.header import read_header
from .checkpoints.inflate import inflate_file
from .checkpoints.lora import load_lora, merge
from .content.clip import EmbeddedClip
from .content.describe import PriorDescriber
from .content.tokenizer import Tokenizer
from .diffusion.prediction import Prediction
from .diffusion.schedule import Schedule
from .gen1 import Diffusion, EditOptions, Gen1, reads_encoded_depth
from .models.autoencoder import Autoencoder, AutoencoderConfig
from .models.clip import CLIP, CLIPConfig
from .models.depth import DepthNet, DepthNetConfig
from .models.prior import Prior, PriorConfig
from .models.unet import SpaceTimeUNet, UNetConfig
from .presets import MODELS
from .structure.dpt import dpt_estimator
from .structure.estimator import DepthEstimator, network_estimator

PARTS = ("unet", "autoencoder", "depth", "clip", "prior")
"""File stems of a model folder; each is a safetensors file whose metadata names its kind and holds its config."""


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
    check_together(unet.config, autoencoder.config, clip.config, prior.config, folder)
    words = frozenset(files["clip"].metadata.get("words", "").split())
    return Gen1(
        unet=unet,
        autoencoder=autoencoder,
        depth=network_estimator(depth),
        describer=PriorDescriber(
            encoder=EmbeddedClip(clip, Tokenizer.embedded(clip.config.context_length), words=words), prior=prior
        ),
        diffusion=config_from_plain(Diffusion, json.loads(files["unet"].metadata.get("diffusion", "{}"))),
        defaults=config_from_plain(EditOptions, json.loads(files["unet"].metadata.get("defaults", "{}"))),
    )


def with_lora(gen1: Gen1, path: Path, *, weight: float = 1.0) -> Gen1:
    """The model with a LoRA added ``weight`` times to its U-Net; the one that was given stays as it is.

    Computed in float32, then back in the dtype of the U-Net; 0 changes nothing. Raises ValueError for a file that is no
    LoRA, and for one of another network.
    """
    lora = load_lora(path)
    if not lora.unet:
        raise ValueError(f"{path} has nothing for a U-Net, only for a text encoder; give a LoRA of this model.")
    merged = merge(gen1.unet.state_dict(), lora, weight=weight, part="unet")
    config = gen1.unet.config
    unet = load_module(lambda: SpaceTimeUNet(config), merged, device=gen1.device, dtype=gen1.dtype, path=path)
    return replace(gen1, unet=unet)


def check_together(
    unet: UNetConfig, autoencoder: AutoencoderConfig, clip: CLIPConfig, prior: PriorConfig, folder: Path
) -> None:
    """Refuses parts of different models: each may be whole, and together they would fail in the middle of an edit."""
    widths = {"unet": unet.cross_attention_dim, "clip": clip.embed_dim, "prior": prior.dim}
    channels = {"unet": unet.out_channels, "autoencoder": autoencoder.latent_channels}
    if len(set(widths.values())) > 1 or len(set(channels.values())) > 1 or not reads_encoded_depth(unet):
        raise ValueError(
            f"the parts in {folder} have contents of width {widths}, latents of {channels} channels and a U-Net of "
            f"{unet.in_channels} input channels, but need one width, one number of channels, and a U-Net that takes "
            "latents, encoded depth and its level; take all five files from one model."
        )


def load_depth_estimator(
    path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> DepthEstimator:
    """A depth network: MiDaS (DPT-Large is the paper's choice) or Depth Anything V2, a file or transformers' folder.

    Put it into a model with ``dataclasses.replace(gen1, depth=...)``. Raises ValueError for any other file.
    """
    identify_path(path).require(path, "depth")
    return dpt_estimator(load_depth_network(path, device=torch.device(device), dtype=dtype))


def is_depth_map(path: Path) -> bool:
    """Whether a file is what save_depth wrote, the depth of a clip, and not a network.

    Raises ValueError where it is no weights file at all.
    """
    return identify_path(path).kind == "depth map"


def inflate_checkpoint(
    checkpoint: Path,
    output: Path,
    motion: Path | None,
    *,
    frames: int,
    prediction: Prediction,
    seed: int = 0,
) -> UNetConfig:
    """A Stable Diffusion U-Net as a Gen-1 U-Net to train from (checkpoints/inflate.py), which says how to train it.

    ``checkpoint`` is a file or a folder of diffusers. With a motion module the noise schedule is the one that it was
    trained with. Raises ValueError where a file is another thing, or is the output itself.
    """
    identify_path(checkpoint).require(checkpoint, "checkpoint", "unet")
    if motion is not None:
        identify_path(motion).require(motion, "motion")
    weights, motion = checkpoint, None if motion is None else weights_in(motion) or motion
    if checkpoint.is_dir():
        weights = weights_in(checkpoint) or folder_parts(checkpoint)["unet"]
    schedule = Schedule(betas="linear" if motion is not None else "scaled_linear")
    metadata = as_metadata(Diffusion(working_size=512, prediction=prediction, schedule=schedule), EditOptions())
    return inflate_file(weights, output, motion=motion, frames=frames, seed=seed, metadata=metadata)


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


def describe_file(path: Path) -> list[str]:
    """What a weights file (or a folder of diffusers) is, from its content: lines for a person to read."""
    found = identify_path(path)
    weights = path if path.is_file() else weights_in(path)
    lines = [f"{path}: {LABELS[found.kind]}, {found.name}"]
    if weights is not None:
        header = read_header(weights)
        size = f"{header.bytes / 1e6:.1f} MB"
        lines[0] += f"; {len(header.shapes)} tensors, {header.parameters:,} parameters, {size}"
    facts = {"base": found.base, "names of": found.layout, "prefix": found.prefix, **found.details}
    lines += [f"  {name}: {value}" for name, value in facts.items() if value not in ("", 0, False)]
    if found.kind == "gen1" and weights is not None:
        file = read_file(weights)
        own = {key: value for key, value in file.metadata.items() if key not in ("kind", "config", "words", "format")}
        lines += [f"  {name}: {value}" for name, value in {**file.metadata["config"], **own}.items()]
    if not found.supported:
        lines.append(f"  cannot be used: {found.reason}")
    return lines


def as_metadata(diffusion: Diffusion, defaults: EditOptions) -> dict[str, str]:
    """What the U-Net's file says of its training and its use, for ``save_file``."""
    return {"diffusion": json.dumps(asdict(diffusion)), "defaults": json.dumps(asdict(defaults))}
