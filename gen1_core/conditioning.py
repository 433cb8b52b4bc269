"""Structure and content as one model's network reads them, and the network as the denoiser wants it."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .content.encoder import Content
from .diffusion.condition import Condition, Denoiser, Hint
from .diffusion.guidance import structure_between
from .diffusion.prediction import Network
from .gen1 import DEPTH_CHANNELS, Gen1, beside_channels, compute_dtype, reads_encoded_depth
from .models.control import ControlNet, T2IAdapter, control_residuals
from .models.unet import SpaceTimeUNet
from .structure.blur import encode_structure, flat_structure
from .structure.estimator import Structure
from .structure.feeds import depth_channel, hint_of
from .tensors import Latents, OnStep, ignore_progress


def network(unet: SpaceTimeUNet, controls: Sequence[ControlNet | T2IAdapter] = ()) -> Network:
    """The U-Net as the denoiser wants it: structure beside the noisy latents, or what the control networks add."""
    dtype = compute_dtype(unet)

    def call(x: Latents, timestep: Tensor, condition: Condition) -> Latents:
        told, noisy = condition.to(dtype), x.to(dtype)
        residuals = control_residuals(controls, noisy, timestep, told.content, told.hints)
        out = unet(
            torch.cat([noisy, told.structure], dim=1),
            timestep,
            told.content,
            image=told.image,
            pictures=told.pictures,
            embedding=told.embedding,
            residuals=residuals,
        )
        return out.to(x.dtype)

    return call


def condition_of(
    gen1: Gen1,
    structure: Structure,
    content: Content,
    hints: Sequence[Structure],
    *,
    chunk: int,
    on_step: OnStep = ignore_progress,
) -> Condition:
    """Structure and content as this model's network reads them, on its device."""
    device = gen1.device
    # One hint for all that look at the same thing, not a copy each: it has the size of the frames.
    shared = (hint_of(on(device, structure)),) * len(gen1.controls) if gen1.controls and not hints else ()
    return Condition(
        structure=beside_latents(gen1, on(device, structure), chunk=chunk, on_step=on_step),
        hints=tuple(hint_of(on(device, each)) for each in hints) or shared,
        content=content.tokens,
        null=content.null,
        pictures=content.pictures,
        embedding=content.embedding,
        embedding_null=content.embedding_null,
    ).to(device)


def beside_latents(gen1: Gen1, structure: Structure, *, chunk: int, on_step: OnStep = ignore_progress) -> Tensor:
    """The channels that the U-Net takes beside the noisy latents: the paper's, SD2-depth's one, or none."""
    config = gen1.unet.config
    if reads_encoded_depth(config):
        return encode_structure(gen1.autoencoder, structure, chunk, on_step=on_step).float()
    depth = depth_channel(structure)
    return depth if beside_channels(config) == DEPTH_CHANNELS else depth[:, :0]


def without_structure(gen1: Gen1, condition: Condition, hints: Sequence[Structure]) -> Callable[[Condition], Condition]:
    """What takes the structure out of a condition: a flat map, which says nothing, and silent control networks.

    Control networks with hints of their own keep them.
    """

    encoded = condition.structure
    paper = reads_encoded_depth(gen1.unet.config)
    flat = flat_structure(gen1.autoencoder, like=encoded) if paper else torch.zeros_like(encoded)

    def without(full: Condition) -> Condition:
        same = replace(full, structure=flat)
        silent = range(0 if hints else len(full.hints))
        for index in silent:
            same = muted(same, index=index)
        return same

    return without


def muted(condition: Condition, *, index: int) -> Condition:
    """The condition with one control network silent: a pixel of each frame stands for a hint that nobody looks at."""

    def silent(hint: Hint) -> Hint:
        return replace(hint, strength=0.0, image=hint.image[..., :1, :1])

    return replace(
        condition, hints=tuple(silent(hint) if i == index else hint for i, hint in enumerate(condition.hints))
    )


def during(
    denoise: Denoiser, structure: Structure, sigmas: Sequence[float], *, without: Callable[[Condition], Condition]
) -> Denoiser:
    """The structure only between its start and end, given as fractions of the sampling steps."""
    if (structure.start, structure.end) == (0.0, 1.0):
        return denoise
    steps = len(sigmas) - 1
    first = min(round(structure.start * steps), steps - 1)
    after = max(round(structure.end * steps), first + 1)
    return structure_between(denoise, without, sigma_start=sigmas[first], sigma_end=sigmas[after])


def on(device: torch.device, structure: Structure) -> Structure:
    """The structure with its depth on a device."""
    return replace(structure, depth=structure.depth.to(device))
