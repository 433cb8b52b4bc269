"""The autoencoder's linear maps, fitted in one step: principal components of the bank's patches.

Of all linear encoders they lose least. Nothing here is trained; the decoder's network is, afterwards.
"""

from dataclasses import replace

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ..models.autoencoder import Autoencoder, AutoencoderConfig
from .bank import Bank
from .task import seeded

DEPTH_SHARE = 0.2
"""Of the patches, those of depth maps: both go through the same autoencoder."""


def principal_autoencoder(config: AutoencoderConfig, bank: Bank, *, frames: int, seed: int) -> Autoencoder:
    """An autoencoder of ``patch_encoder`` whose maps are the principal components of patches from random frames.

    A component of standard deviation s becomes a channel of standard deviation sqrt(s): between pixels' own measure,
    where noise would hide the fine components at once, and white latents, where they would weigh as much as the light.
    """
    mean, components, spread = principal_components(draw_patches(config, bank, frames=frames, seed=seed), config)
    scale = spread.rsqrt()
    inward, outward = rearrange(scale, "k -> k 1") * components, components / rearrange(scale, "k -> k 1")
    raw = replace(config, latent_scale=1.0, latent_mean=(0.0,) * config.latent_channels)
    model = seeded(lambda: Autoencoder(raw), seed)
    fitted = {
        "encoder.patches.weight": rearrange(inward, "k (c i j) -> k c i j", c=3, i=config.factor, j=config.factor),
        "encoder.patches.bias": -inward @ mean,
        "decoder.patches.weight": rearrange(outward, "k n -> n k 1 1"),
        "decoder.patches.bias": mean,
    }
    model.load_state_dict({**model.state_dict(), **fitted})
    return model


def draw_patches(config: AutoencoderConfig, bank: Bank, *, frames: int, seed: int) -> Float[Tensor, "m n"]:
    """All patches -1..1 of random frames and depth maps, their pixels as pixel_unshuffle orders them."""
    generator = torch.Generator().manual_seed(seed)
    clips, styles, length = bank.rgb.shape[:3]
    clip, style, frame = (torch.randint(0, most, (frames,), generator=generator) for most in (clips, styles, length))
    depths = round(DEPTH_SHARE * frames)
    maps = repeat(bank.depth[clip[:depths], frame[:depths]], "n 1 h w -> n c h w", c=3)
    pictures = torch.cat([maps, bank.rgb[clip[depths:], style[depths:], frame[depths:]]]).cpu().float() / 127.5 - 1
    return rearrange(functional.pixel_unshuffle(pictures, config.factor), "n d h w -> (n h w) d")


def principal_components(
    patches: Float[Tensor, "m n"], config: AutoencoderConfig
) -> tuple[Float[Tensor, " n"], Float[Tensor, "k n"], Float[Tensor, " k"]]:
    """Mean, the components of largest variance first, and their standard deviations; the largest weight is positive."""
    mean = patches.double().mean(dim=0)
    variances, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
    best = rearrange(vectors, "n k -> k n").flip(0)[: config.latent_channels]
    largest = best.gather(1, best.abs().argmax(dim=1, keepdim=True))
    spread = variances.flip(0)[: config.latent_channels].clamp(min=1e-12).sqrt()
    return mean.float(), (best * largest.sign()).float(), spread.float()
