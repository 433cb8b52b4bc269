"""The convolutional front of DPT-Hybrid: the first three stages of a ResNet-50 with standardised weights.

After BiT (Kolesnikov et al. 2020), as the ViT paper puts it before a transformer (Dosovitskiy et al. 2021, R50+ViT-B),
with the names of timm's ``vit_base_r50_s16_384``.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Maps = Float[Tensor, "n c h w"]
Smaller = Float[Tensor, "n d h2 w2"]
Pyramid = list[Float[Tensor, "n _ _ _"]]
"""Maps of several resolutions and widths, the finest first."""

GROUPS = 32
_EPS = 1e-8  # of the standardised weights, in timm and in transformers


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Sizes of the front, one entry per stage: its blocks, its channels, and those of the 3x3 convolution within."""

    stem: int = 64
    blocks: tuple[int, ...] = (3, 4, 9)
    widths: tuple[int, ...] = (256, 512, 1024)
    inner_widths: tuple[int, ...] = (64, 128, 256)

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        if not self.blocks or not len(self.blocks) == len(self.widths) == len(self.inner_widths):
            raise ValueError(
                f"blocks={self.blocks}, widths={self.widths} and inner_widths={self.inner_widths} do not describe the "
                "same stages; give each one number per stage."
            )
        if any(width < 1 or width % GROUPS for width in (self.stem, *self.widths, *self.inner_widths)):
            raise ValueError(
                f"stem={self.stem}, widths={self.widths}, inner_widths={self.inner_widths} cannot all be normalised "
                f"in {GROUPS} groups; make them multiples of {GROUPS}."
            )


class StandardConv2d(nn.Module):
    """A convolution whose filters have mean 0 and variance 1 (Qiao et al. 2019), padded to ceil(size / stride)."""

    def __init__(self, width_in: int, width: int, kernel: int, *, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.randn(width, width_in, kernel, kernel) * (width_in * kernel**2) ** -0.5)

    def forward(self, x: Maps) -> Smaller:
        """Maps, smaller by ``stride``."""
        # In half precision the epsilon would be nothing.
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        centred = weight - reduce(weight, "o i a b -> o 1 1 1", "mean")
        spread = (reduce(centred.square(), "o i a b -> o 1 1 1", "mean") + _EPS).sqrt()
        padded = pad_evenly(x, kernel=weight.shape[-1], stride=self.stride)
        return F.conv2d(padded, (centred / spread).to(x), stride=self.stride)


class Shortcut(nn.Module):
    """The input of a stage's first block, brought to its size and width."""

    def __init__(self, width_in: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv = StandardConv2d(width_in, width, 1, stride=stride)
        self.norm = nn.GroupNorm(GROUPS, width)

    def forward(self, x: Maps) -> Smaller:
        """Maps, smaller by the stride."""
        return self.norm(self.conv(x))


class Bottleneck(nn.Module):
    """Three convolutions, narrow in the middle, beside a shortcut."""

    def __init__(self, width_in: int, width: int, *, inner: int, stride: int, first: bool) -> None:
        super().__init__()
        self.downsample = Shortcut(width_in, width, stride=stride) if first else nn.Identity()
        self.conv1 = StandardConv2d(width_in, inner, 1)
        self.norm1 = nn.GroupNorm(GROUPS, inner)
        self.conv2 = StandardConv2d(inner, inner, 3, stride=stride)
        self.norm2 = nn.GroupNorm(GROUPS, inner)
        self.conv3 = StandardConv2d(inner, width, 1)
        self.norm3 = nn.GroupNorm(GROUPS, width)

    def forward(self, x: Maps) -> Smaller:
        """Maps, smaller by the stride."""
        hidden = F.relu(self.norm1(self.conv1(x)))
        hidden = F.relu(self.norm2(self.conv2(hidden)))
        return F.relu(self.norm3(self.conv3(hidden)) + self.downsample(x))


class Stem(nn.Module):
    """Pixels to maps of a quarter of the size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = StandardConv2d(3, width, 7, stride=2)
        self.norm = nn.GroupNorm(GROUPS, width)

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Smaller:
        """Maps of ceil(size / 4)."""
        x = F.relu(self.norm(self.conv(pixels)))
        # After the rectifier nothing is below the padding's zero.
        return F.max_pool2d(pad_evenly(x, kernel=3, stride=2), 3, stride=2)


class Stage(nn.Module):
    """Blocks at one resolution, the first of which halves it (not in the first stage)."""

    def __init__(self, width_in: int, width: int, *, inner: int, blocks: int, stride: int) -> None:
        super().__init__()
        rest = (Bottleneck(width, width, inner=inner, stride=1, first=False) for _ in range(blocks - 1))
        self.blocks = nn.Sequential(Bottleneck(width_in, width, inner=inner, stride=stride, first=True), *rest)

    def forward(self, x: Maps) -> Smaller:
        """Maps, smaller by the stride."""
        return self.blocks(x)


class ResNet(nn.Module):
    """Pixels to one feature map per stage, at 1/4, 1/8, 1/16 of the size."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.stem = Stem(config.stem)
        steps = pairwise((config.stem, *config.widths))
        self.stages = nn.ModuleList(
            Stage(width_in, width, inner=inner, blocks=blocks, stride=2 if number else 1)
            for number, ((width_in, width), inner, blocks) in enumerate(
                zip(steps, config.inner_widths, config.blocks, strict=True)
            )
        )

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Pyramid:
        """One map per stage."""
        x, found = self.stem(pixels), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


def pad_evenly(x: Maps, *, kernel: int, stride: int) -> Smaller:
    """Zeros around, so that a window of this size and stride gives ceil(size / stride); an odd one goes to the end.

    TensorFlow's "same", which the weights were trained with: torch's symmetric padding shifts the picture.
    """
    height, width = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:])
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
