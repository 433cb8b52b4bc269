"""The KL-f8 autoencoder of latent diffusion (Rombach et al. 2022), frozen and applied to each frame alone.

Architecture of SD 1.x; parameter names of diffusers' AutoencoderKL, so its files load as they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ..tensors import Images
from .attention import attend
from .layers import Downsample, Ops, Upsample, zeroed

FrameLatents = Float[Tensor, "n c h8 w8"]


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Sizes of the autoencoder, and the scale and mean that bring its latents to about unit variance.

    Latents are ``(mean of the posterior - latent_mean) * latent_scale``; SD has mean 0 and scale 0.18215. With
    ``patch_encoder`` a latent pixel is a linear map of its patch of ``factor`` x ``factor`` pixels, and the decoder's
    network adds to the linear map back: a shortcut as in DC-AE (arXiv 2410.10733, section 3.2). On principal components
    it is exact where a small network, trained for an hour, was 4 dB behind.
    """

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    latent_scale: float = 0.18215
    latent_mean: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    patch_encoder: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        if not self.block_out_channels or min(self.block_out_channels) < 1 or self.layers_per_block < 1:
            raise ValueError(
                f"block_out_channels={self.block_out_channels}, layers_per_block={self.layers_per_block} "
                "leave a level without layers; give one positive width per level and at least one layer."
            )
        uneven = [width for width in self.block_out_channels if width % self.norm_num_groups]
        if uneven:
            raise ValueError(
                f"block_out_channels has {uneven}, which norm_num_groups={self.norm_num_groups} does not "
                "divide, and a group norm needs equal groups; choose a common divisor of all widths."
            )
        if len(self.latent_mean) != self.latent_channels:
            raise ValueError(
                f"latent_mean={self.latent_mean} has {len(self.latent_mean)} numbers for "
                f"latent_channels={self.latent_channels}, but each channel has its own; give one per channel."
            )
        if not self.latent_scale > 0:
            raise ValueError(
                f"latent_scale={self.latent_scale} would flip or lose the latents; give a positive number."
            )

    @property
    def factor(self) -> int:
        """Pixels per latent pixel along one side: 8 with four levels."""
        return 2 ** (len(self.block_out_channels) - 1)


class ResBlock(nn.Module):
    """Two convolutions, added to the input."""

    def __init__(self, width_in: int, width: int, *, groups: int, ops: Ops = nn):
        super().__init__()
        self.norm1 = ops.GroupNorm(groups, width_in, eps=1e-6)
        self.conv1 = ops.Conv2d(width_in, width, 3, padding=1)
        self.norm2 = ops.GroupNorm(groups, width, eps=1e-6)
        self.conv2 = ops.Conv2d(width, width, 3, padding=1)
        if width_in != width:
            self.conv_shortcut = ops.Conv2d(width_in, width, 1)
        self.has_shortcut = width_in != width

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h w"]:
        """Maps to maps."""
        hidden = self.conv1(functional.silu(self.norm1(x)))
        hidden = self.conv2(functional.silu(self.norm2(hidden)))
        return (self.conv_shortcut(x) if self.has_shortcut else x) + hidden


class PixelAttention(nn.Module):
    """Self-attention of one head over the pixels of a frame, after a group norm, added to the input."""

    def __init__(self, width: int, *, groups: int, ops: Ops = nn):
        super().__init__()
        self.group_norm = ops.GroupNorm(groups, width, eps=1e-6)
        self.to_q = ops.Linear(width, width)
        self.to_k = ops.Linear(width, width)
        self.to_v = ops.Linear(width, width)
        self.to_out = nn.ModuleList([ops.Linear(width, width)])

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Maps to maps."""
        tokens = rearrange(self.group_norm(x), "n c h w -> n (h w) c")
        mixed = attend(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens), heads=1)
        return x + rearrange(self.to_out[0](mixed), "n (h w) c -> n c h w", h=x.shape[2])


class MiddleBlock(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, width: int, *, groups: int, ops: Ops = nn):
        super().__init__()
        self.resnets = nn.ModuleList([ResBlock(width, width, groups=groups, ops=ops) for _ in range(2)])
        self.attentions = nn.ModuleList([PixelAttention(width, groups=groups, ops=ops)])

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Maps to maps."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class DownBlock(nn.Module):
    """Residual blocks at one resolution, then half of it."""

    def __init__(self, widths: Sequence[int], *, down: bool, groups: int, ops: Ops = nn):
        super().__init__()
        self.resnets = _chain(widths, groups=groups, ops=ops)
        self.downsamplers = nn.ModuleList([Downsample(widths[-1], padding=0, ops=ops)] if down else [])

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """Maps to maps."""
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nn.Module):
    """Residual blocks at one resolution, then double of it."""

    def __init__(self, widths: Sequence[int], *, up: bool, groups: int, ops: Ops = nn):
        super().__init__()
        self.resnets = _chain(widths, groups=groups, ops=ops)
        self.upsamplers = nn.ModuleList([Upsample(widths[-1], ops=ops)] if up else [])

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """Maps to maps."""
        for resnet in self.resnets:
            x = resnet(x)
        for upsampler in self.upsamplers:
            x = upsampler(x, (2 * x.shape[2], 2 * x.shape[3]))
        return x


class Encoder(nn.Module):
    """Images to the mean and log variance of each latent pixel."""

    def __init__(self, config: AutoencoderConfig, *, ops: Ops = nn):
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = ops.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(
                [widths[max(i - 1, 0)], *[width] * config.layers_per_block],
                down=i < len(widths) - 1,
                groups=groups,
                ops=ops,
            )
            for i, width in enumerate(widths)
        )
        self.mid_block = MiddleBlock(widths[-1], groups=groups, ops=ops)
        self.conv_norm_out = ops.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = ops.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, images: Images) -> FrameLatents:
        """Both moments along the channels."""
        x = self.conv_in(images)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(functional.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents to images."""

    def __init__(self, config: AutoencoderConfig, *, ops: Ops = nn):
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = ops.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MiddleBlock(widths[0], groups=groups, ops=ops)
        self.up_blocks = nn.ModuleList(
            UpBlock(
                [widths[max(i - 1, 0)], *[width] * (config.layers_per_block + 1)],
                up=i < len(widths) - 1,
                groups=groups,
                ops=ops,
            )
            for i, width in enumerate(widths)
        )
        self.conv_norm_out = ops.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = ops.Conv2d(widths[-1], 3, 3, padding=1)
        self.factor = config.factor
        self.has_patches = config.patch_encoder
        if config.patch_encoder:
            self.patches = ops.Conv2d(config.latent_channels, 3 * config.factor**2, 1)
            zeroed(self.conv_out)

    def forward(self, latents: FrameLatents) -> Images:
        """Images -1..1, not clamped."""
        x = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            x = block(x)
        images = self.conv_out(functional.silu(self.conv_norm_out(x)))
        return images + functional.pixel_shuffle(self.patches(latents), self.factor) if self.has_patches else images


class PatchEncoder(nn.Module):
    """Images to latents, every patch by one linear map."""

    def __init__(self, config: AutoencoderConfig, *, ops: Ops = nn):
        super().__init__()
        self.patches = ops.Conv2d(3, config.latent_channels, config.factor, stride=config.factor)

    def forward(self, images: Images) -> FrameLatents:
        """Latents before scale and mean of the config."""
        return self.patches(images)


class Autoencoder(nn.Module):
    """Images -1..1 to latents of about unit variance and back."""

    def __init__(self, config: AutoencoderConfig, *, ops: Ops = nn):
        super().__init__()
        self.config = config
        self.encoder = PatchEncoder(config, ops=ops) if config.patch_encoder else Encoder(config, ops=ops)
        self.decoder = Decoder(config, ops=ops)
        if not config.patch_encoder:
            self.quant_conv = ops.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
            self.post_quant_conv = ops.Conv2d(config.latent_channels, config.latent_channels, 1)

    def moments(self, images: Images) -> tuple[FrameLatents, FrameLatents]:
        """Mean and log variance of the posterior, before scale and mean of the config; patches have no variance."""
        height, width = images.shape[-2:]
        factor = self.config.factor
        if height % factor or width % factor:
            raise ValueError(
                f"images of {width} x {height} pixels do not divide into latent pixels of {factor} x "
                f"{factor}; pad or resize both sides to a multiple of {factor}."
            )
        if self.config.patch_encoder:
            mean = self.encoder(images)
            return mean, torch.full_like(mean, -torch.inf)
        mean, logvar = self.quant_conv(self.encoder(images)).chunk(2, dim=1)
        return mean, logvar

    def encode(self, images: Images) -> FrameLatents:
        """The mean of the posterior as latents: encoding draws no random numbers."""
        return self.normalised(self.moments(images)[0])

    def decode(self, latents: FrameLatents) -> Images:
        """Images about -1..1, not clamped."""
        return self.decode_raw(self.denormalised(latents))

    def decode_raw(self, raw: FrameLatents) -> Images:
        """Images of latents in the network's own scale, which is that of other programs' files."""
        return self.decoder(raw if self.config.patch_encoder else self.post_quant_conv(raw))

    def normalised(self, raw: FrameLatents) -> FrameLatents:
        """A sample or mean of the posterior as latents of about unit variance."""
        return (raw - raw.new_tensor(self.config.latent_mean)[:, None, None]) * self.config.latent_scale

    def denormalised(self, latents: FrameLatents) -> FrameLatents:
        """The inverse of normalised."""
        mean = latents.new_tensor(self.config.latent_mean)[:, None, None]
        return latents / self.config.latent_scale + mean

    def forward(
        self, images: Images, noise: FrameLatents, level: Float[Tensor, " n"] | None = None
    ) -> tuple[Images, FrameLatents, FrameLatents]:
        """Reconstruction from a posterior sample, its mean and log variance: one call of training.

        ``level`` is how much of the noise is added to the sample once more, in latents of unit variance.
        """
        mean, logvar = self.moments(images)
        latents = self.normalised(mean + torch.exp(0.5 * logvar.clamp(-30, 20)) * noise)
        if level is not None:
            latents = latents + level[:, None, None, None] * noise
        return self.decode(latents), mean, logvar


@runtime_checkable
class FrameCodec(Protocol):
    """What the pipeline asks of an autoencoder: frames -1..1 to latents of an eighth of the size, and back."""

    def encode(self, images: Images) -> FrameLatents:
        """Images -1..1, sides multiples of 8, to latents of about unit variance."""
        ...

    def decode(self, latents: FrameLatents) -> Images:
        """Latents to images about -1..1, not clamped."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Its weights, of which the first tells device and dtype."""
        ...


def encode_clip(autoencoder: FrameCodec, images: Images, *, chunk: int) -> FrameLatents:
    """Frames 0..1 to latents in the weights' dtype, ``chunk`` frames at a time, so memory does not grow with them."""
    dtype = next(autoencoder.parameters()).dtype
    # Scaled in float32: bfloat16 is coarse at 0.5 and fine at 0, where the scale puts the middle greys.
    return torch.cat([autoencoder.encode((part.float() * 2 - 1).to(dtype)) for part in images.split(chunk)])


def decode_clip(autoencoder: FrameCodec, latents: FrameLatents, *, chunk: int) -> Images:
    """Latents to float32 frames clipped to 0..1, ``chunk`` frames at a time."""
    # Scaled in float32: in bfloat16, frames + 1 has steps of 1/128, which leaves bands in the picture.
    parts = [((autoencoder.decode(part).float() + 1) / 2).clamp(0, 1) for part in latents.split(chunk)]
    return torch.cat(parts)


def _chain(widths: Sequence[int], *, groups: int, ops: Ops) -> nn.ModuleList:
    pairs = pairwise(widths)
    return nn.ModuleList(ResBlock(first, second, groups=groups, ops=ops) for first, second in pairs)
