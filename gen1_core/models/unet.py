"""The space-time U-Net: SD 1.x's network with temporal layers (paper, section 3 and figure 2).

Spatial parameters are named as in diffusers' UNet2DConditionModel. Inside, a clip is a batch of frames
"(b f) c h w"; ``frames`` is the number of them that the temporal layers join, 1 means that they are not run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ..tensors import Latents
from .attention import SpatialTransformer
from .layers import Downsample, Ops, ResBlock, TimeEmbedding, Upsample, sinusoids
from .temporal import TemporalTransformer

Maps = Float[Tensor, "n c h w"]
Tokens = Float[Tensor, "r k d"]
Embedding = Float[Tensor, "b e"]


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Sizes of the U-Net; the defaults are SD 1.5 with the paper's 12 input channels and clips of 8 frames.

    Input channels: 4 noisy latents, 4 of encoded depth, 4 of its blur level. ``attention`` says which levels
    have transformers, from the highest resolution down; the middle always has. ``num_attention_heads`` is one
    number or one per level. ``frames`` is the longest clip, the number of learned frame positions.
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
        for width, heads in zip(self.block_out_channels, self.heads, strict=True):
            if width % self.norm_num_groups or width % heads:
                raise ValueError(
                    f"a level of width {width} cannot be split into norm_num_groups={self.norm_num_groups} "
                    f"groups and {heads} heads, which must be equal; choose divisors of every width."
                )

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each level."""
        given = self.num_attention_heads
        return (given,) * len(self.block_out_channels) if isinstance(given, int) else given


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
        self.attentions = _spatial(len(widths_in) if attends else 0, level, config, ops=ops)
        self.temporal_attentions = _temporal(len(widths_in) if attends else 0, level, config, ops=ops)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(width, ops=ops)])

    def forward(self, x: Maps, embedding: Embedding, content: Tokens, frames: int) -> list[Tensor]:
        """The output of every layer: all are skip connections, the last one also goes on."""
        outputs = []
        for index, resnet in enumerate(self.resnets):
            x = resnet(x, embedding, frames)
            x = _transform(self, index, x, content, frames)
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
        self.attentions = _spatial(1, level, config, ops=ops)
        self.temporal_attentions = _temporal(1, level, config, ops=ops)

    def forward(self, x: Maps, embedding: Embedding, content: Tokens, frames: int) -> Maps:
        """Maps to maps."""
        x = self.resnets[0](x, embedding, frames)
        x = _transform(self, 0, x, content, frames)
        return self.resnets[1](x, embedding, frames)


class UpBlock(nn.Module):
    """One level on the way up: skip connections come in, and the size becomes that of the next skip."""

    def __init__(self, widths_in: Sequence[int], config: UNetConfig, level: int, *, ops: Ops = nn):
        super().__init__()
        width = config.block_out_channels[level]
        attends = config.attention[level]
        self.resnets = _resnets(widths_in, width, config, ops=ops)
        self.attentions = _spatial(len(widths_in) if attends else 0, level, config, ops=ops)
        self.temporal_attentions = _temporal(len(widths_in) if attends else 0, level, config, ops=ops)
        self.upsamplers = nn.ModuleList([Upsample(width, ops=ops)] if level else [])

    def forward(self, x: Tensor, skips: list[Tensor], embedding: Embedding, content: Tokens, frames: int) -> Tensor:
        """Takes its skip connections off the end of the list; what is left is for the blocks after it."""
        for index, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, skips.pop()], dim=1), embedding, frames)
            x = _transform(self, index, x, content, frames)
        for upsampler in self.upsamplers:
            x = upsampler(x, (skips[-1].shape[-2], skips[-1].shape[-1]))
        return x


class SpaceTimeUNet(nn.Module):
    """mu of the paper in video mode; mu^pi of Eq. 8 in image mode, where every frame is seen alone."""

    def __init__(self, config: UNetConfig, *, ops: Ops = nn):
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        levels = range(len(widths))
        self.conv_in = ops.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], 4 * widths[0], ops=ops)
        self.down_blocks = nn.ModuleList(DownBlock(config, level, ops=ops) for level in levels)
        self.mid_block = MiddleBlock(config, ops=ops)
        self.up_blocks = nn.ModuleList(
            UpBlock(widths_in, config, level, ops=ops)
            for widths_in, level in zip(_widths_up(config), reversed(levels), strict=True)
        )
        self.conv_norm_out = ops.GroupNorm(config.norm_num_groups, widths[0], eps=1e-5)
        self.conv_out = ops.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        x: Latents,
        timestep: Float[Tensor, " b"],
        content: Float[Tensor, "b g n d"],
        *,
        image: bool = False,
    ) -> Float[Tensor, "b c2 f h w"]:
        """What the network predicts for noisy latents and structure, stacked along the channels of ``x``.

        ``content`` has one frame for the whole clip, or one per frame; one is projected only once.
        """
        clip = x.shape[2]
        frames = clip if self.config.temporal and not image else 1
        if frames > self.config.frames:
            raise ValueError(
                f"a clip of {frames} frames is longer than the frames={self.config.frames} that this model "
                "has learned positions for; go through windows of at most that length, or use image mode."
            )
        if content.shape[1] not in (1, clip):
            raise ValueError(
                f"content has {content.shape[1]} frames and the latents have {clip}, so they cannot be "
                "paired; give one frame of content, or one for each frame."
            )
        embedding = self.time_embedding(sinusoids(timestep, self.config.block_out_channels[0]).to(x.dtype))
        tokens = rearrange(content, "b g n d -> (b g) n d")
        hidden = self.conv_in(rearrange(x, "b c f h w -> (b f) c h w"))
        skips = [hidden]
        for block in self.down_blocks:
            skips += block(skips[-1], embedding, tokens, frames)
        hidden = self.mid_block(skips[-1], embedding, tokens, frames)
        for block in self.up_blocks:
            hidden = block(hidden, skips, embedding, tokens, frames)
        out = self.conv_out(functional.silu(self.conv_norm_out(hidden)))
        return rearrange(out, "(b f) c h w -> b c f h w", f=clip)


def _widths_up(config: UNetConfig) -> list[list[int]]:
    """Input widths of the residual blocks on the way up: what comes from below plus the skip connection."""
    widths, layers = config.block_out_channels, config.layers_per_block
    skips = [widths[0]]
    for level, width in enumerate(widths):
        skips += [width] * (layers if level == len(widths) - 1 else layers + 1)
    below, blocks = widths[-1], []
    for width in reversed(widths):
        from_below = [below] + [width] * layers
        blocks.append([lower + skips.pop() for lower in from_below])
        below = width
    return blocks


def _resnets(widths_in: Sequence[int], width: int, config: UNetConfig, *, ops: Ops) -> nn.ModuleList:
    return nn.ModuleList(
        ResBlock(
            width_in,
            width,
            embedding_width=4 * config.block_out_channels[0],
            groups=config.norm_num_groups,
            temporal=config.temporal,
            ops=ops,
        )
        for width_in in widths_in
    )


def _spatial(count: int, level: int, config: UNetConfig, *, ops: Ops) -> nn.ModuleList:
    return nn.ModuleList(
        SpatialTransformer(
            config.block_out_channels[level],
            config.cross_attention_dim,
            heads=config.heads[level],
            groups=config.norm_num_groups,
            ops=ops,
        )
        for _ in range(count)
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


def _transform(block: DownBlock | MiddleBlock | UpBlock, index: int, x: Tensor, content: Tensor, frames: int) -> Tensor:
    """The spatial transformer, where the level has one, then the temporal one, where frames are joined."""
    if len(block.attentions):
        x = block.attentions[index](x, content)
    if len(block.temporal_attentions) and frames > 1:
        x = block.temporal_attentions[index](x, frames)
    return x
