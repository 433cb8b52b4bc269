"""Dense prediction transformers for depth: MiDaS DPT-Large and DPT-Hybrid, and Depth Anything V2.

After Ranftl et al. 2021 (arXiv 2103.13413, the depth of section 3.3 of the paper) and Yang et al. 2024 (Depth Anything
V2, arXiv 2406.09414). One network: tokens after four blocks become four feature maps, which are fused from coarse to
fine. They differ in the transformer, in the readout of the whole-image token, and in what is normalised.
"""

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .resnet import Maps, Pyramid
from .vit import Tokens, VisionTransformer, ViTConfig

LEVELS = 4
"""Feature maps at 1/4, 1/8, 1/16 and 1/32 of the image (for patches of 16 pixels)."""

Larger = Float[Tensor, "n c h2 w2"]


@dataclass(frozen=True, kw_only=True)
class DPTConfig:
    """Sizes of a depth network, by default DPT-Large.

    Tokens are read after the blocks in ``hooks``: four, or two where a ResNet brings the two finest maps. They become
    maps of ``reassembled`` channels, and ``features`` channels where they are fused.
    """

    vit: ViTConfig = ViTConfig()
    hooks: tuple[int, ...] = (5, 11, 17, 23)
    reassembled: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    features: int = 256
    head_width: int = 128

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        hooks, depth, count = self.hooks, self.vit.depth, LEVELS - self.resnet_levels
        if len(hooks) != count or list(hooks) != sorted(set(hooks)) or hooks[0] < 0 or hooks[-1] >= depth:
            raise ValueError(
                f"hooks={hooks} are not {count} blocks in order of a transformer with depth={depth}; "
                f"give {count} rising numbers from 0 to {depth - 1}."
            )
        if self.vit.resnet is not None and self.reassembled[:2] != self.vit.resnet.widths[:2]:
            raise ValueError(
                f"reassembled={self.reassembled} starts with other channels than the ResNet's first two maps, which "
                f"are used as they are; start it with {self.vit.resnet.widths[:2]}."
            )

    @property
    def resnet_levels(self) -> int:
        """How many of the four maps come from a ResNet."""
        return 0 if self.vit.resnet is None else 2

    @property
    def multiple(self) -> int:
        """Height and width of the input must be multiples of this.

        MiDaS keeps the coarsest map exact, at half the patches; Depth Anything takes any number of patches.
        """
        return self.vit.patch_size if self.vit.dino else 2 * self.vit.patch_size


class Reassemble(nn.Module):
    """Tokens of one block to a feature map of another resolution."""

    def __init__(self, config: DPTConfig, level: int) -> None:
        super().__init__()
        width, channels = config.vit.width, config.reassembled[level]
        # "project" of the DPT paper; Depth Anything leaves the whole-image token out.
        self.readout = nn.Identity() if config.vit.dino else nn.Linear(2 * width, width)
        self.reads_whole = not config.vit.dino
        self.project = nn.Conv2d(width, channels, 1)
        self.resize = _resize(level, channels)

    def forward(self, tokens: Tokens, rows: int) -> Larger:
        """``rows`` is the height of the grid of patches."""
        patches = tokens[:, 1:]
        if self.reads_whole:
            whole = repeat(tokens[:, 0], "n d -> n t d", t=patches.shape[1])
            patches = F.gelu(self.readout(torch.cat([patches, whole], dim=-1)))
        return self.resize(self.project(rearrange(patches, "n (h w) d -> n d h w", h=rows)))


class ResidualUnit(nn.Module):
    """Two ReLU and 3x3 convolution, with a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Maps) -> Maps:
        """Same shape."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Fusion(nn.Module):
    """A finer feature map joins the coarser ones, and the result grows to the next size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The coarsest level has nothing to join, yet the published weights hold this unit for it too.
        self.branch = ResidualUnit(channels)
        self.merged = ResidualUnit(channels)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, coarse: Maps, fine: Maps | None, *, size: tuple[int, int]) -> Larger:
        """``fine`` has the size of ``coarse``; the result has ``size``, height first."""
        x = self.merged(coarse if fine is None else coarse + self.branch(fine))
        return self.project(F.interpolate(x, size=size, mode="bilinear", align_corners=True))


class Head(nn.Module):
    """Feature maps to depth at the size of the input."""

    def __init__(self, config: DPTConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(config.features, config.head_width, 3, padding=1)
        self.conv2 = nn.Conv2d(config.head_width, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 1, 1)

    def forward(self, x: Maps, *, size: tuple[int, int]) -> Float[Tensor, "n 1 h2 w2"]:
        """Inverse depth, nothing below zero."""
        x = F.interpolate(self.conv1(x), size=size, mode="bilinear", align_corners=True)
        return F.relu(self.conv3(F.relu(self.conv2(x))))


class DPT(nn.Module):
    """An image to inverse depth up to scale and shift, near larger."""

    def __init__(self, config: DPTConfig) -> None:
        super().__init__()
        self.config = config
        levels = range(config.resnet_levels, LEVELS)
        self.backbone = VisionTransformer(config.vit)
        self.reassemble = nn.ModuleDict({str(level): Reassemble(config, level) for level in levels})
        self.narrow = nn.ModuleList(
            nn.Conv2d(channels, config.features, 3, padding=1, bias=False) for channels in config.reassembled
        )
        self.fuse = nn.ModuleList(Fusion(config.features) for _ in range(LEVELS))
        self.head = Head(config)

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 h w"]:
        """Normalised pixels (see structure/dpt.py), height and width multiples of ``config.multiple``."""
        height, width = pixels.shape[-2:]
        levels = [narrow(level) for narrow, level in zip(self.narrow, self.levels(pixels), strict=True)]
        sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        sizes = [(2 * sizes[0][0], 2 * sizes[0][1]), *sizes]
        x = self.fuse[3](levels[3], None, size=sizes[3])
        for level in (2, 1, 0):
            x = self.fuse[level](x, levels[level], size=sizes[level])
        return self.head(x, size=(height, width))

    def levels(self, pixels: Float[Tensor, "n 3 h w"]) -> Pyramid:
        """The four feature maps."""
        tokens, maps = self.backbone(pixels, self.config.hooks)
        if self.config.vit.dino:
            tokens = [self.backbone.norm(x) for x in tokens]
        rows = pixels.shape[-2] // self.config.vit.patch_size
        reassembled = [part(x, rows) for part, x in zip(self.reassemble.values(), tokens, strict=True)]
        return [*maps[: self.config.resnet_levels], *reassembled]


def _resize(level: int, channels: int) -> nn.Module:
    if level == 2:
        return nn.Identity()
    if level == 3:
        return nn.Conv2d(channels, channels, 3, stride=2, padding=1)
    factor = 4 if level == 0 else 2
    return nn.ConvTranspose2d(channels, channels, factor, stride=factor)
