"""The vision transformers under depth networks: plain ViT and R50+ViT (MiDaS), DINOv2 (Depth Anything).

After Dosovitskiy et al. 2021 and Oquab et al. 2023 (DINOv2), named as in timm, whose names both publish. Only what
depth needs: pixels in, the tokens after some of the blocks out.
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .resnet import Pyramid, ResNet, ResNetConfig

Tokens = Float[Tensor, "n t d"]
Grid = Float[Tensor, "n d rows columns"]


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Sizes of a vision transformer, by default ViT-L/16 at 384 pixels.

    ``dino`` makes it a DINOv2: each branch has a learned scale, and positions are resampled bicubically, which DINOv2's
    own code does with ``position_offset`` 0.1 (a grid of 50 is sampled as 50.1); transformers has 0. With ``resnet``
    the patches are pixels of that network's last map, and ``patch_size`` is how much smaller than the image it is.
    """

    image_size: int = 384
    patch_size: int = 16
    width: int = 1024
    depth: int = 24
    heads: int = 16
    norm_eps: float = 1e-6
    dino: bool = False
    position_offset: float = 0.0
    resnet: ResNetConfig | None = None

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"width={self.width} does not split into {self.heads} heads; make it a multiple of heads.")
        if self.patch_size < 1 or self.image_size % self.patch_size:
            raise ValueError(
                f"image_size={self.image_size} is not a whole number of patches of patch_size={self.patch_size}; "
                "make image_size a multiple of patch_size."
            )


class Attention(nn.Module):
    """Every token looks at all tokens of its image."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tokens) -> Tokens:
        """Same shape."""
        q, k, v = rearrange(self.qkv(x), "n t (three heads d) -> three n heads t d", three=3, heads=self.heads)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(rearrange(mixed, "n heads t d -> n t (heads d)"))


class MLP(nn.Module):
    """Two linear layers with a GELU between them, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tokens) -> Tokens:
        """Same shape."""
        return self.fc2(F.gelu(self.fc1(x)))


class Scale(nn.Module):
    """A learned factor per channel (Touvron et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: Tokens) -> Tokens:
        """Same shape."""
        return x * self.gamma.to(x)


class Block(nn.Module):
    """Attention, then a two-layer network, each normalised before and added after."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn = Attention(width, config.heads)
        self.ls1 = Scale(width) if config.dino else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = MLP(width)
        self.ls2 = Scale(width) if config.dino else nn.Identity()

    def forward(self, x: Tokens) -> Tokens:
        """Same shape."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Pixels to a map of tokens: patches through a linear layer, or a ResNet's last map."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        if config.resnet is None:
            self.proj = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        else:
            self.backbone = ResNet(config.resnet)
            self.proj = nn.Conv2d(config.resnet.widths[-1], config.width, 1)
        self.has_backbone = config.resnet is not None

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> tuple[Grid, Pyramid]:
        """The map of tokens, and the ResNet's maps on the way there (none without one)."""
        maps = self.backbone(pixels) if self.has_backbone else []
        return self.proj(maps[-1] if maps else pixels), maps


class VisionTransformer(nn.Module):
    """An image to the tokens after chosen blocks; the first token stands for the whole image."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        side = config.image_size // config.patch_size
        self.cls_token = nn.Parameter(torch.randn(1, 1, config.width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, side * side + 1, config.width) * 0.02)
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, pixels: Float[Tensor, "n 3 h w"], after: tuple[int, ...]) -> tuple[list[Tokens], Pyramid]:
        """The tokens after the blocks numbered in ``after``, before any last norm, and the ResNet's maps."""
        patches, maps = self.patch_embed(pixels)
        first = repeat(self.cls_token.to(patches), "1 1 d -> n 1 d", n=len(pixels))
        x = torch.cat([first, rearrange(patches, "n d h w -> n (h w) d")], dim=1)
        x = x + grid_positions(self.pos_embed, *patches.shape[-2:], config=self.config).to(x)
        found = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in after:
                found.append(x)
        return found, maps


def grid_positions(
    positions: Float[Tensor, "1 t d"], rows: int, columns: int, *, config: ViTConfig
) -> Float[Tensor, "1 t2 d"]:
    """Learned positions on another grid of patches; in float32, as half precision would shift them."""
    side = math.isqrt(positions.shape[1] - 1)
    if (rows, columns) == (side, side):
        return positions
    grid = rearrange(positions[:, 1:].float(), "1 (h w) d -> 1 d h w", h=side)
    if not config.dino:
        grid = F.interpolate(grid, size=(rows, columns), mode="bilinear", align_corners=False)
    elif config.position_offset == 0:
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
    else:
        factors = ((rows + config.position_offset) / side, (columns + config.position_offset) / side)
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1].float(), rearrange(grid, "1 d h w -> 1 (h w) d")], dim=1).to(positions)
