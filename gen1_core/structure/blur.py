"""The information-destroying process of section 3.3: depth loses detail in t_s steps of blur and halving.

Kernel, factor and form of the t_s embedding are not known from the paper. Here a step is a binomial 5x5 blur and half
the size (448x256 ends as 3x2 pixels); the level becomes sine and cosine at two frequencies.
"""

import math
from collections.abc import Iterator

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from kornia.filters import filter2d
from kornia.filters.kernels import get_pascal_kernel_2d
from torch import Tensor
from torch.nn import functional as F

from ..models.autoencoder import FrameCodec, encode_clip
from ..tensors import Depth, Latents, OnStep, ignore_progress
from .estimator import MAX_BLUR_LEVEL, Structure

NO_STRUCTURE_DEPTH = 0.5
"""A flat map half way: with the highest level it says nothing about the scene."""

# Turns per level: the slow one tells all eight levels apart, the fast one tells neighbours apart.
_TURNS = (1 / 16, 1 / 4)

LEVEL_CHANNELS = 2 * len(_TURNS)

Encoded = Float[Tensor, "b c f h8 w8"]
"""Structure as the network gets it: the channels of encoded depth (SD: four), then those of the blur level."""


def blur(depth: Depth, level: int) -> Depth:
    """Depth at level t_s: so many blurs and halvings, then back to its size; level 0 is the depth."""
    if not 0 <= level <= MAX_BLUR_LEVEL:
        raise ValueError(f"level={level} is outside the steps of t_s; give a whole number from 0 to {MAX_BLUR_LEVEL}.")
    if level == 0:
        return depth
    frames, height, width = depth.shape[2:]
    small = rearrange(depth, "b 1 f h w -> (b f) 1 h w")
    for _ in range(level):
        small = _half(small)
    back = F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)
    return rearrange(back, "(b f) 1 h w -> b 1 f h w", f=frames)


def weakened(depth: Depth, strength: float, *, chunk: int) -> Iterator[Depth]:
    """Some frames at a time, mixed with the mean of the whole clip: strength 1 is the depth itself, 0 a flat map."""
    parts = depth.split(chunk, dim=2)
    if strength == 1:
        yield from parts
        return
    mean = depth.mean(dim=(1, 2, 3, 4), keepdim=True)
    for part in parts:
        yield torch.lerp(mean.expand_as(part), part, strength)


def level_channels(blur_level: int | Int[Tensor, " b"], like: Latents) -> Float[Tensor, "b 4 f h w"]:
    """Sine and cosine of t_s at two frequencies, for the clip's batch, frames and size in ``like``.

    One level for all, or one for each clip of the batch.
    """
    levels = torch.as_tensor(blur_level, dtype=torch.float32, device=like.device).expand(len(like))
    angles = levels[:, None] * (2 * math.pi * torch.tensor(_TURNS, device=like.device))
    waves = torch.cat([angles.sin(), angles.cos()], dim=1).to(like.dtype)
    frames, height, width = like.shape[2:]
    return repeat(waves, "b c -> b c f h w", f=frames, h=height, w=width)


def encode_depth(
    autoencoder: FrameCodec,
    depth: Depth,
    blur_level: int,
    chunk: int,
    *,
    strength: float = 1.0,
    on_step: OnStep = ignore_progress,
) -> Encoded:
    """Weakened, blurred depth through the autoencoder, and its level beside it.

    ``chunk`` frames at a time, so that no copy of the whole clip at full size is made.
    """
    device = next(autoencoder.parameters()).device
    parts, done, frames = [], 0, depth.shape[2]
    for part in weakened(depth, strength, chunk=chunk):
        pictures = repeat(blur(part.to(device), blur_level), "b 1 f h w -> (b f) c h w", c=3)
        latents = encode_clip(autoencoder, pictures, chunk=chunk)
        parts.append(rearrange(latents, "(b f) c h w -> b c f h w", b=len(depth)))
        done += part.shape[2]
        on_step("structure", done, frames)
    encoded = torch.cat(parts, dim=2)
    return torch.cat([encoded, level_channels(blur_level, encoded)], dim=1)


def encode_structure(
    autoencoder: FrameCodec, structure: Structure, chunk: int, *, on_step: OnStep = ignore_progress
) -> Encoded:
    """A clip's structure as the network gets it: weakened, blurred, encoded (section 3.3)."""
    return encode_depth(
        autoencoder, structure.depth, structure.blur_level, chunk, strength=structure.strength, on_step=on_step
    )


def flat_structure(autoencoder: FrameCodec, *, like: Encoded) -> Encoded:
    """What stands for "no structure": a flat map at the highest blur level, of the same shape as ``like``."""
    batch, _, frames, height, width = like.shape
    pixels = torch.full((1, 1, 1, height * 8, width * 8), NO_STRUCTURE_DEPTH, device=like.device)
    flat = encode_depth(autoencoder, pixels, MAX_BLUR_LEVEL, 1).to(like)
    return repeat(flat, "1 c 1 h w -> b c f h w", b=batch, f=frames)


def _half(maps: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h2 w2"]:
    kernel = get_pascal_kernel_2d(5, device=maps.device, dtype=maps.dtype)
    # Replicated borders: reflected ones need more pixels than the smallest levels have.
    soft = filter2d(maps, kernel[None], border_type="replicate")
    height, width = (max(1, side // 2) for side in maps.shape[-2:])
    return F.interpolate(soft, size=(height, width), mode="bilinear", align_corners=False)
