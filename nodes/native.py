"""A model of ``gen1_core`` at home in ComfyUI: MODEL, CONDITIONING and GUIDER for its samplers.

model_of       Gen1                              -> MODEL, which stock samplers sample
conditioning   Gen1, structure, content          -> positive, negative, empty LATENT
guider         MODEL, positive, negative, scales -> GUIDER: Eq. 8
with_lora      MODEL, file                       -> MODEL; takes names that the core's loaders do not know
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..gen1_core.checkpoints.lora import load_lora, lora_tensors
from ..gen1_core.content.encoder import Content
from ..gen1_core.gen1 import Gen1
from ..gen1_core.pipeline import check_fit
from ..gen1_core.structure.estimator import Structure
from ..gen1_core.tensors import OnStep, ignore_progress
from .host_model import patcher_of, with_lora_tensors
from .host_sampling import Gen1Guider
from .told import dropped, told_of

Conditioning = list[list[Any]]
"""CONDITIONING: tokens ``[1 or frames, n, d]`` and what else is said."""


def model_of(gen1: Gen1) -> Any:
    """A MODEL around a Gen1: it shares the U-Net's weights and carries the rest (``host.gen1_of``).

    Autoencoder, depth, describer and controls should be on the CPU, or the values of their wires.
    """
    return patcher_of(gen1)


def conditioning(
    gen1: Gen1,
    structure: Structure,
    content: Content,
    *,
    window: int = 0,
    overlap: int = 0,
    on_step: OnStep = ignore_progress,
) -> tuple[Conditioning, Conditioning, dict[str, torch.Tensor]]:
    """Structure with content, structure without, and the empty LATENT of the clip.

    The tokens are the CONDITIONING's own, so the core's nodes can change, average and combine them. ``window`` frames
    are denoised together and share ``overlap`` (0: as the model prefers). Raises ValueError where the content is of
    another model or another number of frames.
    """
    check_fit(gen1, content, structure.depth.shape[2])
    with torch.inference_mode():
        told = told_of(gen1, structure, content, on_step=on_step).to(torch.device("cpu"))
    told = replace(told, window=window, overlap=overlap)
    positive = [[content.tokens[0].cpu(), {"gen1": told}]]
    negative = [[content.null[0].cpu(), {"gen1": dropped(told)}]]
    frames, height, width = told.size
    return positive, negative, {"samples": torch.zeros(frames, gen1.unet.config.out_channels, height, width)}


def guider(
    model: Any,
    positive: Conditioning,
    negative: Conditioning,
    *,
    content_scale: float,
    temporal_scale: float = 1.0,
    structure_scale: float = 1.0,
) -> Any:
    """Eq. 8 for SamplerCustomAdvanced; with the temporal and the structure scale at 1 it is the core's CFGGuider."""
    guiding = Gen1Guider(
        model, content_scale=content_scale, temporal_scale=temporal_scale, structure_scale=structure_scale
    )
    guiding.set_conds(positive, negative)
    return guiding


def with_lora(model: Any, path: Path, *, strength: float) -> Any:
    """The MODEL with a LoRA of any names: kohya's, diffusers' old and new, peft's, AnimateDiff's motion LoRAs.

    The core's loaders know the first two. Raises ValueError as ``load_lora`` does.
    """
    # Attention processors of diffusers hide that to_out is a list, and the core asks for its first layer.
    lora = replace(load_lora(path), text={})  # a MODEL has no text encoder
    named = {re.sub(r"_to_out(?=\.|$)", "_to_out_0", name): each for name, each in lora_tensors(lora).items()}
    return with_lora_tensors(model, named, strength)
