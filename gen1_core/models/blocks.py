"""What the U-Net is built from: one level down, the middle, one level up; and the config that sizes them.

Spatial parameters are named as in diffusers' UNet2DConditionModel. Inside, a clip is a batch of frames
"(b f) c h w"; ``frames`` is the number of them that the temporal layers join, 1 means that they are not run.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .attention import Context, SpatialTransformer
from .layers import Downsample, Ops, ResBlock, Upsample
from .motion import MotionConfig, MotionModule
from .temporal import TemporalTransformer

Maps = Float[Tensor, "n c h w"]
Embedding = Float[Tensor, "b e"]
Feature = Float[Tensor, "n c2 h2 w2"]


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Sizes of the U-Net; the defaults are SD 1.5 with the paper's 12 input channels and clips of 8 frames.

    Input channels: 4 noisy latents, 4 of encoded depth, 4 of its blur level. ``attention`` says which levels
    have transformers, from the highest resolution down; the middle always has. ``num_attention_heads`` is one
    number or one per level. ``use_linear_projection`` is how SD 2.x writes its transformers.

    ``temporal`` has the paper's own temporal layers, with learned positions for ``frames`` frames; ``motion`` has
    AnimateDiff's motion modules, of so many frames as they say. ``class_embedding_width`` is that of the image
    embedding that joins the time embedding (unCLIP; 0: none), ``picture_adapters`` the number of IP-Adapters. With
    ``content_embedding`` the mean of the content's tokens joins it too, which brings the content to every residual
    block: cross-attention on one token only adds a constant, and only where there is attention. With ``scale_shift``
    that embedding scales what it otherwise only shifts (diffusers' ``resnet_time_scale_shift``).
    """

    in_channels: int = 12
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    attention: tuple[bool, ...] = (True, True, True, False)
    num_attention_heads: int | tuple[int, ...] = 8
    cross_attention_dim: int = 768
    norm_num_groups: int = 32
    frames: int = 8
    temporal: bool = True
    use_linear_projection: bool = False
    class_embedding_width: int = 0
    motion: MotionConfig | None = None
    picture_adapters: int = 0
    content_embedding: bool = False
    scale_shift: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        levels = len(self.block_out_channels)
        if not levels or min(self.block_out_channels) < 2 or self.layers_per_block < 1 or self.frames < 1:
            raise ValueError(
                f"block_out_channels={self.block_out_channels}, layers_per_block={self.layers_per_block}, "
                f"frames={self.frames} leave nothing to build; give one width per level, and at least one "
                "layer and one frame."
            )
        if len(self.attention) != levels or len(self.heads) != levels:
            raise ValueError(
                f"attention={self.attention} and num_attention_heads={self.num_attention_heads} do not match "
                f"the {levels} levels of block_out_channels; give one entry per level."
            )
        if min(self.class_embedding_width, self.picture_adapters) < 0:
            raise ValueError(
                f"class_embedding_width={self.class_embedding_width} and picture_adapters={self.picture_adapters} "
                "count something, so they cannot be negative; 0 is none."
            )
        for width, heads in zip(self.block_out_channels, self.heads, strict=True):
            if width % self.norm_num_groups or width % heads:
                raise ValueError(
                    f"a level of width {width} cannot be split into norm_num_groups={self.norm_num_groups} "
                    f"groups and {heads} heads, which must be equal; choose divisors of every width."
                )
            if self.motion and (width % self.motion.norm_num_groups or width % self.motion.heads or width % 2):
                raise ValueError(
                    f"a motion module of width {width} cannot be split into {self.motion.norm_num_groups} groups, "
                    f"{self.motion.heads} heads and pairs of sine and cosine; choose divisors of every width."
                )

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each level."""
        given = self.num_attention_heads
        return (given,) * len(self.block_out_channels) if isinstance(given, int) else given

    @property
    def longest(self) -> int:
        """The longest clip whose frames it can join; without temporal layers there is no limit."""
        limits = [self.frames] if self.temporal else []
        return min(limits + [self.motion.frames] if self.motion else limits, default=sys.maxsize)

    @property
    def cross_attentions(self) -> tuple[int, ...]:
        """How many cross-attentions each block has: the levels down, the levels up, the middle.

        Their numbers in this order are those of IP-Adapter files.
        """
        down = [self.layers_per_block * attends for attends in self.attention]
        up = [(self.layers_per_block + 1) * attends for attends in reversed(self.attention)]
        return (*down, *up, 1)


class DownBlock(nn.Module):
    """One level on the way down: residual blocks, each followed by two transformers, then half the size."""

    def __init__(self, config: UNetConfig, level: int, *, ops: Ops = nn):
        super().__init__()
        width = config.block_out_channels[level]
        before = config.block_out_channels[max(level - 1, 0)]
        last = level == len(config.block_out_channels) - 1
        widths_in = [before] + [width] * (config.layers_per_block - 1)
        attends = config.attention[level]
        self.resnets = _resnets(widths_in, width, config, ops=ops)
        self.attentions = _spatial(
            len(widths_in) if attends else 0, level, config, sum(config.cross_attentions[:level]), ops=ops
        )
        self.temporal_attentions = _temporal(len(widths_in) if attends else 0, level, config, ops=ops)
        self.motion_modules = _motion(len(widths_in), width, config, ops=ops)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(width, ops=ops)])

    def forward(
        self, x: Maps, embedding: Embedding, context: Context, frames: int, feature: Feature | None = None
    ) -> list[Tensor]:
        """The output of every layer: all are skip connections, the last one also goes on.

        ``feature``, where there is one, is added after the last layer, before the size is halved (T2I-Adapter).
        """
        outputs = []
        for index, resnet in enumerate(self.resnets):
            x = resnet(x, embedding, frames)
            x = _transform(self, index, x, context, frames)
            if feature is not None and index == len(self.resnets) - 1:
                x = x + feature
            outputs.append(x)
        outputs.extend(downsampler(x) for downsampler in self.downsamplers)
        return outputs


class MiddleBlock(nn.Module):
    """Residual block, transformers, residual block at the lowest resolution."""

    def __init__(self, config: UNetConfig, *, ops: Ops = nn):
        super().__init__()
        level = len(config.block_out_channels) - 1
        width = config.block_out_channels[level]
        self.resnets = _resnets([width, width], width, config, ops=ops)
        self.attentions = _spatial(1, level, config, sum(config.cross_attentions[:-1]), ops=ops)
        self.temporal_attentions = _temporal(1, level, config, ops=ops)
        self.motion_modules = _motion(int(config.motion is not None and config.motion.middle), width, config, ops=ops)

    def forward(self, x: Maps, embedding: Embedding, context: Context, frames: int) -> Maps:
        """Maps to maps."""
        x = self.resnets[0](x, embedding, frames)
        x = _transform(self, 0, x, context, frames)
        return self.resnets[1](x, embedding, frames)


class UpBlock(nn.Module):
    """One level on the way up: skip connections come in, and the size becomes that of the next skip."""

    def __init__(self, widths_in: Sequence[int], config: UNetConfig, level: int, *, ops: Ops = nn):
        super().__init__()
        width = config.block_out_channels[level]
        attends = config.attention[level]
        levels = len(config.block_out_channels)
        before = config.cross_attentions[: 2 * levels - 1 - level]
        self.resnets = _resnets(widths_in, width, config, ops=ops)
        self.attentions = _spatial(len(widths_in) if attends else 0, level, config, sum(before), ops=ops)
        self.temporal_attentions = _temporal(len(widths_in) if attends else 0, level, config, ops=ops)
        self.motion_modules = _motion(len(widths_in), width, config, ops=ops)
        self.upsamplers = nn.ModuleList([Upsample(width, ops=ops)] if level else [])

    def forward(self, x: Tensor, skips: list[Tensor], embedding: Embedding, context: Context, frames: int) -> Tensor:
        """Takes its skip connections off the end of the list; what is left is for the blocks after it."""
        for index, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, skips.pop()], dim=1), embedding, frames)
            x = _transform(self, index, x, context, frames)
        for upsampler in self.upsamplers:
            x = upsampler(x, (skips[-1].shape[-2], skips[-1].shape[-1]))
        return x


def _resnets(widths_in: Sequence[int], width: int, config: UNetConfig, *, ops: Ops) -> nn.ModuleList:
    return nn.ModuleList(
        ResBlock(
            width_in,
            width,
            embedding_width=4 * config.block_out_channels[0],
            groups=config.norm_num_groups,
            temporal=config.temporal,
            scale_shift=config.scale_shift,
            ops=ops,
        )
        for width_in in widths_in
    )


def _spatial(count: int, level: int, config: UNetConfig, first: int, *, ops: Ops) -> nn.ModuleList:
    return nn.ModuleList(
        SpatialTransformer(
            config.block_out_channels[level],
            config.cross_attention_dim,
            heads=config.heads[level],
            groups=config.norm_num_groups,
            linear=config.use_linear_projection,
            pictures=config.picture_adapters,
            number=first + index,
            ops=ops,
        )
        for index in range(count)
    )


def _temporal(count: int, level: int, config: UNetConfig, *, ops: Ops) -> nn.ModuleList:
    return nn.ModuleList(
        TemporalTransformer(
            config.block_out_channels[level],
            heads=config.heads[level],
            groups=config.norm_num_groups,
            frames=config.frames,
            ops=ops,
        )
        for _ in range(count if config.temporal else 0)
    )


def _motion(count: int, width: int, config: UNetConfig, *, ops: Ops) -> nn.ModuleList:
    return nn.ModuleList(MotionModule(width, config.motion, ops=ops) for _ in range(count) if config.motion)


def _transform(
    block: DownBlock | MiddleBlock | UpBlock, index: int, x: Tensor, context: Context, frames: int
) -> Tensor:
    """The spatial transformer, where the level has one; then the temporal layers there are, where frames are joined."""
    if len(block.attentions):
        x = block.attentions[index](x, context)
    if len(block.temporal_attentions) and frames > 1:
        x = block.temporal_attentions[index](x, frames)
    if len(block.motion_modules) and frames > 1:
        x = block.motion_modules[index](x, frames)
    return x
