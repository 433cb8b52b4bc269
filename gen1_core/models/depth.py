"""The small depth network of the embedded model: one image to relative inverse depth.

The paper takes MiDaS DPT-Large (section 3.3); this network stands in the same place where 1.3 GB of weights
are too much. A convolutional U-Net from half resolution down, for inverse depth up to scale as in MiDaS.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..tensors import Images


@dataclass(frozen=True, kw_only=True)
class DepthNetConfig:
    """Sizes of a DepthNet; the defaults make 1.3 M parameters.

    ``train_size`` is the short side in pixels it was trained at, or the middle of several: estimators bring images near
    it.
    """

    channels: tuple[int, ...] = (16, 32, 64, 96, 128)
    norm_num_groups: int = 8
    train_size: int = 128

    def __post_init__(self) -> None:
        if len(self.channels) < 2:
            raise ValueError(f"channels={self.channels} has no level to go down to; give at least two widths.")
        if any(width < 1 or width % self.norm_num_groups for width in self.channels):
            raise ValueError(
                f"channels={self.channels} cannot be normalised in {self.norm_num_groups} groups; "
                "make every width a multiple of norm_num_groups."
            )
        if self.train_size < self.multiple or self.train_size % self.multiple:
            raise ValueError(
                f"train_size={self.train_size} does not halve {len(self.channels)} times; "
                f"choose a multiple of {self.multiple}."
            )

    @property
    def multiple(self) -> int:
        """Height and width of the input must be multiples of this."""
        return 2 ** len(self.channels)


class ResidualBlock(nn.Module):
    """Pre-activation residual block: GroupNorm, SiLU, convolution, twice."""

    def __init__(self, in_channels: int, out_channels: int, *, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        """Same height and width, new channels."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(hidden)))


class DepthNet(nn.Module):
    """Images to relative inverse depth, near larger, about 0..1 on what it was trained on."""

    def __init__(self, config: DepthNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, groups = config.channels, config.norm_num_groups
        self.stem = nn.Conv2d(3, widths[0], 3, stride=2, padding=1)
        self.down = nn.ModuleList(ResidualBlock(a, b, groups=groups) for a, b in pairwise(widths))
        self.middle = ResidualBlock(widths[-1], widths[-1], groups=groups)
        self.overall = nn.Linear(widths[-1], widths[-1])
        self.up = nn.ModuleList(ResidualBlock(a + b, b, groups=groups) for a, b in pairwise(reversed(widths)))
        self.head = nn.Conv2d(widths[0] + 3, widths[0], 3, padding=1)
        self.out = nn.Conv2d(widths[0], 1, 3, padding=1)

    def forward(self, images: Images) -> Float[Tensor, "n 1 h w"]:
        """Images 0..1, height and width multiples of ``config.multiple``."""
        _check_size(images, self.config.multiple)
        pixels = images * 2 - 1
        x = self.stem(pixels)
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(F.avg_pool2d(x, 2))
        x = self.middle(x)
        # The picture as a whole decides where the ground is; 3x3 convolutions do not see that far.
        x = x + rearrange(self.overall(F.silu(reduce(x, "n c h w -> n c", "mean"))), "n c -> n c 1 1")
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = block(torch.cat([_enlarge(x), skip], dim=1))
        return self.out(F.silu(self.head(torch.cat([_enlarge(x), pixels], dim=1))))


def _enlarge(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def _check_size(images: Images, multiple: int) -> None:
    height, width = images.shape[-2:]
    if height % multiple or width % multiple:
        raise ValueError(f"an image of {width}x{height} does not halve evenly; resize it to multiples of {multiple}.")
