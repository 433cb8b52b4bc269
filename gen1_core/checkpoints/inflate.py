"""An image U-Net of Stable Diffusion made into a Gen-1 U-Net to train from (paper, section 3.2).

What is new begins without effect, so the first step of training sees the image model: input channels for the structure
have zero weights, and the paper's temporal layers end in zeros.

Content begins where the text was. Cross-attention keeps its weights, which have read the states of a text encoder, and
its width: 768 in SD 1.x, the width of ViT-L/14's image embedding, and 1024 in SD 2.x, that of ViT-H/14's. So a start
from SD 1.x goes with ViT-L/14, one from SD 2.x with ViT-H/14, and no layer of it is new. The embedding is one token:
attention over a single token gives it all the weight, so only ``to_v`` and ``to_out`` count, and what they make of an
embedding they never saw is what training has to mend. Hence equality with the image model holds for the same tokens,
and training begins on images (section 3.5).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.layers import TemporalConv
from ..models.motion import MotionConfig
from ..models.temporal import TemporalTransformer
from ..models.unet import SpaceTimeUNet, UNetConfig
from .files import read_file, save_file
from .ldm import unet_from
from .motion import motion_from, with_motion

IN_CHANNELS = 12
"""Noisy latents 4, encoded depth 4, its blur level 4."""


class Motion(NamedTuple):
    """A motion module under our names, its config, and the file it is from, which is only named in errors."""

    tensors: Mapping[str, Tensor]
    config: MotionConfig
    path: Path


def inflate_file(
    checkpoint: Path,
    output: Path,
    *,
    motion: Path | None,
    frames: int,
    seed: int,
    metadata: Mapping[str, str],
) -> UNetConfig:
    """Inflate the U-Net of a checkpoint (single file or U-Net alone) and write it as a Gen-1 file of kind "unet".

    ``motion`` is the file of a motion module, or None for the paper's own temporal layers, whose first weights follow
    from ``seed``. ``metadata`` goes into the file as it is. Returns the config of what was written.

    Raises ValueError where a file cannot be read, holds something else, or would be written over.
    """
    for source in (checkpoint, motion):
        if source is not None and output.resolve() == source.resolve():
            raise ValueError(
                f"{output} is {source} itself, which would be lost by writing over it; give the output another name."
            )
    tensors, config = unet_from(read_file(checkpoint).tensors, checkpoint)
    module = None if motion is None else Motion(*motion_from(read_file(motion).tensors, motion), motion)
    inflated, config = inflate(tensors, config, frames=frames, seed=seed, motion=module)
    save_file(output, inflated, kind="unet", config=config, metadata=metadata)
    return config


def inflate(
    tensors: Mapping[str, Tensor], config: UNetConfig, *, frames: int, seed: int, motion: Motion | None = None
) -> tuple[dict[str, Tensor], UNetConfig]:
    """The weights and config of a Gen-1 U-Net from those of an image U-Net, under our names and in its dtype.

    With a ``motion`` module its layers are taken, which do have an effect on clips (not on images); else the paper's
    own are new, and clips begin as images too. Nothing that was there is copied or changed.

    Raises ValueError for a U-Net that is no plain text-to-image one, and for a motion module that does not fit.
    """
    if config.in_channels != 4 or config.class_embedding_width or config.temporal or config.motion:
        raise ValueError(
            f"a U-Net of {config.in_channels} input channels, class_embedding_width={config.class_embedding_width}, "
            f"temporal={config.temporal}, motion={config.motion} is no plain image model, and the rest would be in the "
            "way; start from a text-to-image checkpoint such as SD 1.5."
        )
    weight = tensors["conv_in.weight"]
    new = weight.new_zeros(len(weight), IN_CHANNELS - config.in_channels, *weight.shape[2:])
    widened = {**tensors, "conv_in.weight": torch.cat([weight, new], dim=1)}
    if motion is None:
        config = replace(config, in_channels=IN_CHANNELS, temporal=True, frames=frames)
        layers = {name: tensor.to(weight.dtype) for name, tensor in _new_layers(config, seed).items()}
        return {**widened, **layers}, config
    if frames > motion.config.frames:
        raise ValueError(
            f"frames={frames}, but {motion.path} has positions for {motion.config.frames} only; "
            "lower frames, or take a motion module for longer clips."
        )
    config = with_motion(config, motion.tensors, motion.config, path=motion.path)
    return {**widened, **motion.tensors}, replace(config, in_channels=IN_CHANNELS, frames=frames)


def _new_layers(config: UNetConfig, seed: int) -> dict[str, Tensor]:
    """First weights of the paper's temporal layers alone: the spatial ones would take memory for nothing."""
    with torch.device("meta"):
        whole = SpaceTimeUNet(config)
    layers: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in whole.named_modules():
            if not isinstance(module, (TemporalConv, TemporalTransformer)):
                continue
            width = next(module.parameters()).shape[0]
            # One head, because the number of heads is not in the weights.
            fresh = (
                TemporalConv(width)
                if isinstance(module, TemporalConv)
                else TemporalTransformer(width, heads=1, groups=config.norm_num_groups, frames=config.frames)
            )
            layers.update({f"{name}.{key}": value for key, value in fresh.state_dict().items()})
    return layers
