"""Residual block, temporal convolution, down, up, time embedding and zero start, named as in diffusers."""

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


@runtime_checkable
class Ops(Protocol):
    """The namespace that layers are made from: ``torch.nn``, or one that casts and streams the weights."""

    @property
    def Linear(self) -> Callable[..., nn.Module]:
        """As torch.nn.Linear."""
        ...

    @property
    def Conv2d(self) -> Callable[..., nn.Module]:
        """As torch.nn.Conv2d."""
        ...

    @property
    def GroupNorm(self) -> Callable[..., nn.Module]:
        """As torch.nn.GroupNorm."""
        ...

    @property
    def LayerNorm(self) -> Callable[..., nn.Module]:
        """As torch.nn.LayerNorm."""
        ...

    @property
    def Embedding(self) -> Callable[..., nn.Module]:
        """As torch.nn.Embedding."""
        ...


def zeroed(module: nn.Module) -> nn.Module:
    """The module with every parameter set to zero: a residual block that ends in it starts as identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def sinusoids(timestep: Float[Tensor, " b"], width: int) -> Float[Tensor, "b width"]:
    """Cosines, then sines of the timestep at ``width / 2`` frequencies from 1 to 1/10000, in float32.

    diffusers calls it ``flip_sin_to_cos=True, downscale_freq_shift=0``, the variant of SD. Always float32: in
    bfloat16 neighbouring timesteps near 1000 would be the same number.
    """
    half = width // 2
    powers = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angles = timestep.to(torch.float32)[:, None] * torch.exp(-math.log(10000.0) * powers)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """The two-layer network on the sinusoids of the timestep."""

    def __init__(self, width: int, embedding_width: int, *, ops: Ops = nn):
        super().__init__()
        self.linear_1 = ops.Linear(width, embedding_width)
        self.linear_2 = ops.Linear(embedding_width, embedding_width)

    def forward(self, sines: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows e"]:
        """Sinusoids, or another embedding, in; embedding out."""
        return self.linear_2(functional.silu(self.linear_1(sines)))


class TemporalConv(nn.Module):
    """The paper's 1D convolution along frames after each 2D convolution, with three taps, added to its input.

    The paper states neither taps nor start; zero weights make it the identity, which is Make-A-Video's start.
    As a 2D convolution with a kernel of 3 x 1 over frames x pixels it is the same sum with a batch of ``b``
    instead of ``b h w``, which was 1.4 to 2.2 times as fast on a CPU.
    """

    def __init__(self, width: int, *, ops: Ops = nn):
        super().__init__()
        self.conv = zeroed(ops.Conv2d(width, width, (3, 1), padding=(1, 0)))

    def forward(self, x: Float[Tensor, "n c h w"], frames: int) -> Float[Tensor, "n c h w"]:
        """Frames of one clip are neighbours in the batch: n = b * frames."""
        height = x.shape[2]
        clip = rearrange(x, "(b f) c h w -> b c f (h w)", f=frames).contiguous()
        return x + rearrange(self.conv(clip), "b c f (h w) -> (b f) c h w", h=height)


class ResBlock(nn.Module):
    """The space-time residual block: a temporal convolution after each of the two 2D convolutions.

    The embedding shifts the maps before the second norm; with ``scale_shift`` it scales and shifts them after it
    (diffusers' ``resnet_time_scale_shift="scale_shift"``; adaptive group norm of Dhariwal and Nichol, 2021).
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        *,
        embedding_width: int,
        groups: int,
        temporal: bool,
        scale_shift: bool = False,
        ops: Ops = nn,
    ):
        super().__init__()
        self.norm1 = ops.GroupNorm(groups, width_in, eps=1e-5)
        self.conv1 = ops.Conv2d(width_in, width, 3, padding=1)
        self.time_emb_proj = ops.Linear(embedding_width, 2 * width if scale_shift else width)
        self.norm2 = ops.GroupNorm(groups, width, eps=1e-5)
        self.conv2 = ops.Conv2d(width, width, 3, padding=1)
        if width_in != width:
            self.conv_shortcut = ops.Conv2d(width_in, width, 1)
        if temporal:
            self.temporal_conv1 = TemporalConv(width, ops=ops)
            self.temporal_conv2 = TemporalConv(width, ops=ops)
        self.has_shortcut = width_in != width
        self.temporal = temporal
        self.scale_shift = scale_shift

    def forward(
        self, x: Float[Tensor, "n c h w"], embedding: Float[Tensor, "b e"], frames: int
    ) -> Float[Tensor, "n c2 h w"]:
        """With ``frames`` 1 the temporal convolutions are not run: every row of the batch is an image."""
        video = self.temporal and frames > 1
        hidden = self.conv1(functional.silu(self.norm1(x)))
        if video:
            hidden = self.temporal_conv1(hidden, frames)
        told = self.time_emb_proj(functional.silu(embedding))
        told = repeat(told, "b c -> (b f) c 1 1", f=x.shape[0] // told.shape[0])
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            hidden = self.norm2(hidden) * (1 + scale) + shift
        else:
            hidden = self.norm2(hidden + told)
        hidden = self.conv2(functional.silu(hidden))
        if video:
            hidden = self.temporal_conv2(hidden, frames)
        return (self.conv_shortcut(x) if self.has_shortcut else x) + hidden


class Downsample(nn.Module):
    """Half the height and width, rounded up, by a convolution of stride 2.

    ``padding`` 1 pads all four sides (the U-Net); 0 pads right and bottom only (the autoencoder).
    """

    def __init__(self, width: int, *, padding: int = 1, ops: Ops = nn):
        super().__init__()
        self.conv = ops.Conv2d(width, width, 3, stride=2, padding=padding)
        self.padding = padding

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
        """Smaller maps."""
        return self.conv(x if self.padding else functional.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour enlargement to a given size, then a convolution."""

    def __init__(self, width: int, *, ops: Ops = nn):
        super().__init__()
        self.conv = ops.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "n c h2 w2"]:
        """``size`` is (height, width): that of the skip connection, which need not be exactly double."""
        return self.conv(functional.interpolate(x, size=size, mode="nearest"))
