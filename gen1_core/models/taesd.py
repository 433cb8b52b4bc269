"""TAESD: a tiny autoencoder that was distilled from Stable Diffusion's, for previews and quick drafts.

After madebyollin/taesd (taesd.py); parameter names of diffusers' AutoencoderTiny.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..tensors import Images
from .autoencoder import FrameLatents
from .layers import Ops

CLAMP = 3.0
"""Latents beyond this many standard deviations are squeezed before decoding."""


@dataclass(frozen=True, kw_only=True)
class TinyAutoencoderConfig:
    """Sizes of TAESD; the defaults are the public ones.

    One number of residual blocks per resolution: for encoding from the highest down, for decoding from the lowest up.
    """

    width: int = 64
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_channels: int = 4

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        if min(self.width, self.latent_channels, *self.encoder_blocks, *self.decoder_blocks) < 1:
            raise ValueError(
                f"width={self.width}, latent_channels={self.latent_channels}, encoder_blocks={self.encoder_blocks}, "
                f"decoder_blocks={self.decoder_blocks} leave a part without layers; give positive numbers."
            )
        if not self.encoder_blocks or len(self.encoder_blocks) != len(self.decoder_blocks):
            raise ValueError(
                f"encoder_blocks={self.encoder_blocks} and decoder_blocks={self.decoder_blocks} differ in length, so "
                "pictures would come back in another size; give one number per resolution, the same number for both."
            )

    @property
    def factor(self) -> int:
        """Pixels per latent pixel along one side: 8 with four resolutions."""
        return 2 ** (len(self.encoder_blocks) - 1)


class TinyBlock(nn.Module):
    """Three convolutions with rectifiers, added to the input and rectified."""

    def __init__(self, width: int, *, ops: Ops = nn):
        super().__init__()
        first, second, third = (ops.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.conv = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Maps to maps."""
        return torch.relu(self.conv(x) + x)


class TinyEncoder(nn.Module):
    """Images to latents."""

    def __init__(self, config: TinyAutoencoderConfig, *, ops: Ops = nn):
        super().__init__()
        width = config.width
        layers = [ops.Conv2d(3, width, 3, padding=1)]
        for level, blocks in enumerate(config.encoder_blocks):
            if level:
                layers.append(ops.Conv2d(width, width, 3, stride=2, padding=1, bias=False))
            layers += [TinyBlock(width, ops=ops) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers, ops.Conv2d(width, config.latent_channels, 3, padding=1))

    def forward(self, images: Images) -> FrameLatents:
        """Images 0..1 to latents."""
        return self.layers(images)


class TinyDecoder(nn.Module):
    """Latents to images."""

    def __init__(self, config: TinyAutoencoderConfig, *, ops: Ops = nn):
        super().__init__()
        width = config.width
        layers = [ops.Conv2d(config.latent_channels, width, 3, padding=1), nn.ReLU()]
        for level, blocks in enumerate(config.decoder_blocks):
            if level:
                layers += [nn.Upsample(scale_factor=2), ops.Conv2d(width, width, 3, padding=1, bias=False)]
            layers += [TinyBlock(width, ops=ops) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers, ops.Conv2d(width, 3, 3, padding=1))

    def forward(self, latents: FrameLatents) -> Images:
        """Latents to images about 0..1."""
        return self.layers(CLAMP * torch.tanh(latents / CLAMP))


class TinyAutoencoder(nn.Module):
    """Images -1..1 to latents and back, in place of an Autoencoder.

    Its latents are those of Stable Diffusion after scaling, so there is no scale of its own.
    """

    def __init__(self, config: TinyAutoencoderConfig, *, ops: Ops = nn):
        super().__init__()
        self.config = config
        self.encoder = TinyEncoder(config, ops=ops)
        self.decoder = TinyDecoder(config, ops=ops)

    def encode(self, images: Images) -> FrameLatents:
        """Images -1..1, whose sides must be multiples of ``config.factor``, to latents of about unit variance."""
        height, width = images.shape[-2:]
        factor = self.config.factor
        if height % factor or width % factor:
            raise ValueError(
                f"images of {width} x {height} pixels do not divide into latent pixels of {factor} x "
                f"{factor}; pad or resize both sides to a multiple of {factor}."
            )
        return self.encoder((images + 1) / 2)

    def decode(self, latents: FrameLatents) -> Images:
        """Latents to images about -1..1, not clamped."""
        return self.decoder(latents) * 2 - 1
