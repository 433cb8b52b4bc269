"""The space-time U-Net: SD's network with temporal layers (paper, section 3 and figure 2).

Spatial parameters are named as in diffusers' UNet2DConditionModel, motion modules as in its UNetMotionModel. What a
public model is told beside the noisy latents comes in here: tokens of pictures (IP-Adapter), an image embedding
(unCLIP), and what control networks add.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ..tensors import Latents
from .attention import Context
from .blocks import DownBlock, MiddleBlock, UNetConfig, UpBlock
from .layers import Ops, TimeEmbedding, sinusoids, zeroed


@runtime_checkable
class Pictures(Protocol):
    """Tokens of pictures for one IP-Adapter, and how much each cross-attention listens to them."""

    @property
    def tokens(self) -> Float[Tensor, "b g k d"]:
        """One frame for the whole clip, or one per frame."""
        ...

    @property
    def scales(self) -> tuple[float, ...]:
        """One number for all cross-attentions, or one for each: down, up, middle."""
        ...


@dataclass(frozen=True, kw_only=True)
class Residuals:
    """What control networks add to the U-Net's own maps, all "(b f) c h w"; empty is nothing.

    ``down`` has one for each skip connection and ``middle`` one for the middle (ControlNet, section 3.2); ``features``
    has one per level, added after its last layer and before the size is halved (T2I-Adapter, section 3.2).
    """

    down: tuple[Tensor, ...] = ()
    middle: Tensor | None = None
    features: tuple[Tensor, ...] = ()

    def per_level(self, levels: int) -> tuple[Tensor | None, ...]:
        """The feature of each level, or none."""
        if self.features and len(self.features) != levels:
            raise ValueError(
                f"{len(self.features)} adapter features came for a network of {levels} levels, and each level takes "
                "one; use a T2I adapter made for this base model."
            )
        return self.features or (None,) * levels

    def added(self, hidden: Tensor, skips: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The output of the middle and the skip connections, each with its residual."""
        if self.down and len(self.down) != len(skips):
            raise ValueError(
                f"{len(self.down)} residuals came for {len(skips)} skip connections, and each takes one; "
                "use a ControlNet made for this base model."
            )
        hidden = hidden if self.middle is None else hidden + self.middle
        return hidden, [skip + more for skip, more in zip(skips, self.down, strict=True)] if self.down else skips


NO_RESIDUALS = Residuals()
"""Without control networks."""


class SpaceTimeUNet(nn.Module):
    """mu of the paper in video mode; mu^pi of Eq. 8 in image mode, where every frame is seen alone."""

    def __init__(self, config: UNetConfig, *, ops: Ops = nn):
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        levels = range(len(widths))
        self.conv_in = ops.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], 4 * widths[0], ops=ops)
        if config.class_embedding_width:
            self.class_embedding = TimeEmbedding(config.class_embedding_width, 4 * widths[0], ops=ops)
        if config.content_embedding:
            self.content_embedding = TimeEmbedding(config.cross_attention_dim, 4 * widths[0], ops=ops)
            zeroed(self.content_embedding.linear_2)
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
        pictures: Sequence[Pictures] = (),
        embedding: Float[Tensor, "b _ e"] | None = None,
        residuals: Residuals = NO_RESIDUALS,
    ) -> Float[Tensor, "b c2 f h w"]:
        """What the network predicts for noisy latents and structure, stacked along the channels of ``x``.

        ``content``, each of the ``pictures`` and the ``embedding`` have one frame for the whole clip, or one per
        frame; one is projected only once. With ``image``, or one frame, no temporal layer is run.

        Raises ValueError for a clip longer than the temporal layers can join, and for what does not fit clip or config.
        """
        clip = x.shape[2]
        frames = clip if not image else 1
        self._refuse(clip, frames, content, pictures, embedding)
        context = Context(
            tokens=rearrange(content, "b g n d -> (b g) n d"),
            pictures=tuple(rearrange(picture.tokens, "b g n d -> (b g) n d") for picture in pictures),
            scales=tuple(picture.scales for picture in pictures),
        )
        embedded = self._embedded(timestep, content, embedding, x.dtype)
        hidden = self.conv_in(rearrange(x, "b c f h w -> (b f) c h w"))
        skips = [hidden]
        for block, feature in zip(self.down_blocks, residuals.per_level(len(self.down_blocks)), strict=True):
            skips += block(skips[-1], embedded, context, frames, feature)
        hidden = self.mid_block(skips[-1], embedded, context, frames)
        hidden, skips = residuals.added(hidden, skips)
        for block in self.up_blocks:
            hidden = block(hidden, skips, embedded, context, frames)
        out = self.conv_out(functional.silu(self.conv_norm_out(hidden)))
        return rearrange(out, "(b f) c h w -> b c f h w", f=clip)

    def _embedded(
        self,
        timestep: Float[Tensor, " b"],
        content: Float[Tensor, "b g n d"],
        embedding: Float[Tensor, "b _ e"] | None,
        dtype: torch.dtype,
    ) -> Float[Tensor, "rows e2"]:
        """The time embedding with what joins it added: one row per clip, or one per frame."""
        time = self.time_embedding(sinusoids(timestep, self.config.block_out_channels[0]).to(dtype))
        embedded = rearrange(time, "b d -> b 1 d")
        if embedding is not None:
            embedded = self.class_embedding(embedding) + embedded
        if self.config.content_embedding:
            embedded = self.content_embedding(reduce(content, "b g n d -> b g d", "mean")) + embedded
        return rearrange(embedded, "b g d -> (b g) d")

    def _refuse(
        self, clip: int, frames: int, content: Tensor, pictures: Sequence[Pictures], embedding: Tensor | None
    ) -> None:
        """Whatever does not fit this network, before any work."""
        if frames > self.config.longest:
            raise ValueError(
                f"a clip of {frames} frames is longer than the frames={self.config.longest} that this model "
                "has positions for; go through windows of at most that length, or use image mode."
            )
        if content.shape[1] not in (1, clip):
            raise ValueError(
                f"content has {content.shape[1]} frames and the latents have {clip}, so they cannot be "
                "paired; give one frame of content, or one for each frame."
            )
        if len(pictures) != self.config.picture_adapters:
            raise ValueError(
                f"{len(pictures)} sets of picture tokens came for {self.config.picture_adapters} IP-Adapters, "
                "and each adapter reads its own; give one for each, of scale 0 where it is to be silent."
            )
        for picture in pictures:
            _refuse_picture(picture, clip, self.config)
        if (embedding is not None) != bool(self.config.class_embedding_width):
            raise ValueError(
                f"an image embedding was {'not given' if embedding is None else 'given'} to a network with "
                f"class_embedding_width={self.config.class_embedding_width}, which alone says whether it reads one; "
                "give one to unCLIP models (zeros for none), and to no other."
            )
        if embedding is not None and embedding.shape[1] not in (1, clip):
            raise ValueError(
                f"the image embedding has {embedding.shape[1]} frames and the latents have {clip}, so they cannot "
                "be paired; give one frame of it, or one for each frame."
            )


def _refuse_picture(picture: Pictures, clip: int, config: UNetConfig) -> None:
    frames, width, layers = picture.tokens.shape[1], picture.tokens.shape[3], sum(config.cross_attentions)
    if frames not in (1, clip) or width != config.cross_attention_dim:
        raise ValueError(
            f"picture tokens of {frames} frames and width {width} came for a clip of {clip} frames and a "
            f"cross-attention of width {config.cross_attention_dim}, so they cannot be paired; give one frame of "
            "them or one for each frame, from an IP-Adapter made for this base model."
        )
    if len(picture.scales) not in (1, layers):
        raise ValueError(
            f"{len(picture.scales)} scales came for the {layers} cross-attentions of this network, and which "
            f"belongs to which cannot be told; give one for all, or {layers}."
        )


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
