"""MiDaS and Depth Anything as depth estimators: what their pictures must look like, and back to the frames' size.

MiDaS DPT-Large is the depth of the paper (section 3.3, Ranftl et al. 2021); Depth Anything V2 (Yang et al. 2024) is
sharper, and its small model a fourteenth of the size. Weights come from checkpoints/depth.py.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..models.dpt import DPT, DPTConfig
from ..tensors import Images
from ..video.geometry import resize
from .estimator import DepthEstimator, RawDepth, near_size, resize_raw

Colour = tuple[float, float, float]

MIDAS_MEAN, MIDAS_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def dpt_estimator(model: DPT) -> DepthEstimator:
    """Images of any size through a depth network, each by itself: the short side near its training size, aspect kept.

    That is 384 pixels and multiples of 32 for MiDaS (the original squeezes nothing either; transformers' own processor
    for DPT-Large makes squares of 384x384), 518 and multiples of 14 for Depth Anything.
    """
    weight = next(model.head.parameters())
    config = model.config

    def estimate(images: Images) -> RawDepth:
        height, width = images.shape[-2:]
        inner = near_size(height, width, short_side=config.vit.image_size, multiple=config.multiple)
        pixels = resize(images.to(weight.device, torch.float32), height=inner[0], width=inner[1])
        with torch.no_grad():
            raw = model(normalised(pixels, config).to(weight.dtype))
        return resize_raw(raw, height=height, width=width)

    return estimate


def normalised(images: Images, config: DPTConfig) -> Float[Tensor, "n 3 h w"]:
    """Images 0..1 with the mean and spread that a network was trained with."""
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if config.vit.dino else (MIDAS_MEAN, MIDAS_STD)
    centre, spread = (rearrange(images.new_tensor(colour), "c -> 1 c 1 1") for colour in (mean, std))
    return (images - centre) / spread
