"""One structure for every kind of model: pictures for control networks, or a channel for SD2-depth.

The paper's own way, encoded depth beside the noisy latents, is in blur.py. All of them see the same blurred depth,
with one range for the whole clip.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ..diffusion.condition import Hint
from ..tensors import Depth
from .blur import blur, weakened
from .estimator import Structure

PIXELS_PER_LATENT = 8
"""Along one side, for every autoencoder of Stable Diffusion."""

_FRAMES_AT_ONCE = 16  # so that no second copy of a long clip at full size is blurred


def hint_of(structure: Structure) -> Hint:
    """The blurred depth as a picture for a control network, near bright, as the public depth networks were trained.

    The strength is left to the network, whose answer it scales: a control network at strength 0 does no work, while a
    flat picture would still say that the scene is flat.
    """
    parts = [blur(part, structure.blur_level) for part in structure.depth.split(_FRAMES_AT_ONCE, dim=2)]
    return Hint(image=torch.cat(parts, dim=2), strength=structure.strength)


def depth_channel(structure: Structure) -> Float[Tensor, "b 1 f h8 w8"]:
    """The weakened, blurred depth at latent size in -1..1, the fifth channel of SD2-depth.

    As StableDiffusionDepth2ImgPipeline.prepare_depth_map of diffusers, but each frame is not stretched to -1..1 by
    itself, which flickers: the depth already has one range for the clip.
    """
    parts = [
        _at_latent_size(blur(part, structure.blur_level))
        for part in weakened(structure.depth, structure.strength, chunk=_FRAMES_AT_ONCE)
    ]
    # Bicubic overshoots at edges, by a few percent, to where the network has never been.
    return (2 * torch.cat(parts, dim=2) - 1).clamp(-1, 1)


def _at_latent_size(depth: Depth) -> Float[Tensor, "b 1 f h8 w8"]:
    frames, height, width = depth.shape[2:]
    size = (height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    pictures = rearrange(depth, "b 1 f h w -> (b f) 1 h w")
    small = F.interpolate(pictures, size=size, mode="bicubic", align_corners=False)
    return rearrange(small, "(b f) 1 h w -> b 1 f h w", f=frames)
