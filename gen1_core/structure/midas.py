"""MiDaS DPT-Large, the depth estimator of the paper (Ranftl et al. 2021, arXiv 2103.13413).

Both published forms: a transformers folder (Intel/dpt-large), and the original ``dpt_large_384.pt`` on a timm ViT.
Their layer norms differ in epsilon (1e-12 and 1e-6), each as it was published. For the original, ``from_midas`` renames
the tensors, ``build_dpt`` makes the module they fill, ``dpt_estimator`` runs it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from ..tensors import Images
from ..video.geometry import resize
from .estimator import DepthEstimator, RawDepth, near_size, resize_raw

Features = Float[Tensor, "n c h w"]
Larger = Float[Tensor, "n c h2 w2"]

MULTIPLE = 32
"""The coarsest feature map has half the resolution of the 16 pixel patches."""


@dataclass(frozen=True, kw_only=True)
class DPTConfig:
    """Sizes of a DPT on a plain ViT, by default DPT-Large; tokens are read after the blocks in ``hooks``."""

    image_size: int = 384
    patch_size: int = 16
    width: int = 1024
    depth: int = 24
    heads: int = 16
    hooks: tuple[int, int, int, int] = (5, 11, 17, 23)
    reassembled: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    features: int = 256
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if list(self.hooks) != sorted(set(self.hooks)) or self.hooks[0] < 0 or self.hooks[-1] >= self.depth:
            raise ValueError(
                f"hooks={self.hooks} are not four blocks in order of a ViT with depth={self.depth}; "
                f"give rising numbers from 0 to {self.depth - 1}."
            )
        if self.width % self.heads:
            raise ValueError(f"width={self.width} does not split into {self.heads} heads; make it a multiple of heads.")


class Reassemble(nn.Module):
    """Tokens of one block to a feature map; the class token is mixed into every patch (readout "project")."""

    def __init__(self, width: int, channels: int, *, resize: nn.Module) -> None:
        super().__init__()
        self.readout = nn.Linear(2 * width, width)
        self.project = nn.Conv2d(width, channels, 1)
        self.resize = resize

    def forward(self, tokens: Float[Tensor, "n t d"], rows: int) -> Features:
        """``rows`` is the height of the grid of patches."""
        patches = tokens[:, 1:]
        whole = repeat(tokens[:, 0], "n d -> n t d", t=patches.shape[1])
        mixed = F.gelu(self.readout(torch.cat([patches, whole], dim=-1)))
        return self.resize(self.project(rearrange(mixed, "n (h w) d -> n d h w", h=rows)))


class ResidualUnit(nn.Module):
    """Two ReLU and 3x3 convolution, with a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Features) -> Features:
        """Same shape."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Fusion(nn.Module):
    """A finer feature map joins the coarser ones, and the result doubles in size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The coarsest level has nothing to join, yet the published weights hold this unit for it too.
        self.branch = ResidualUnit(channels)
        self.merged = ResidualUnit(channels)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, coarse: Features, fine: Features | None) -> Larger:
        """``fine`` has the size of ``coarse``."""
        x = coarse if fine is None else coarse + self.branch(fine)
        return self.project(_double(self.merged(x)))


class DPT(nn.Module):
    """DPT for monocular depth on a timm VisionTransformer."""

    def __init__(self, config: DPTConfig, *, backbone: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone: Any = backbone
        resizes = (_upscale(config, 0, 4), _upscale(config, 1, 2), nn.Identity(), _downscale(config))
        self.reassemble = nn.ModuleList(
            Reassemble(config.width, channels, resize=resize)
            for channels, resize in zip(config.reassembled, resizes, strict=True)
        )
        self.narrow = nn.ModuleList(
            nn.Conv2d(channels, config.features, 3, padding=1, bias=False) for channels in config.reassembled
        )
        self.fuse = nn.ModuleList(Fusion(config.features) for _ in config.reassembled)
        self.head = nn.Sequential(
            nn.Conv2d(config.features, config.features // 2, 3, padding=1),
            nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=True),
            nn.Conv2d(config.features // 2, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 1, 1),
            nn.ReLU(),
        )

    def forward(self, pixels: Images) -> RawDepth:
        """Pixels normalised to -1..1, height and width multiples of 32."""
        rows = pixels.shape[-2] // self.config.patch_size
        levels = [
            narrow(reassemble(tokens, rows))
            for narrow, reassemble, tokens in zip(self.narrow, self.reassemble, self.tokens(pixels), strict=True)
        ]
        x = self.fuse[3](levels[3], None)
        for level in (2, 1, 0):
            x = self.fuse[level](x, levels[level])
        return self.head(x)

    def tokens(self, pixels: Images) -> list[Float[Tensor, "n t d"]]:
        """The tokens after each hooked block of the ViT, before its last norm, which DPT does not use."""
        patches = self.backbone.patch_embed.proj(pixels)
        positions = _grid_positions(self.backbone.pos_embed, *patches.shape[-2:])
        first = repeat(self.backbone.cls_token, "1 1 d -> n 1 d", n=len(pixels))
        x = torch.cat([first, rearrange(patches, "n d h w -> n (h w) d")], dim=1) + positions
        found = []
        for number, block in enumerate(self.backbone.blocks):
            x = block(x)
            if number in self.config.hooks:
                found.append(x)
        return found


def build_dpt(config: DPTConfig) -> DPT:
    """An untrained DPT; the defaults of the config make timm's ``vit_large_patch16_384`` its backbone."""
    try:
        from timm.models.vision_transformer import VisionTransformer
    except ImportError as error:
        raise ValueError(
            f"dpt_large_384.pt needs timm, which cannot be imported ({error}); pip install timm."
        ) from error
    backbone = VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        num_classes=0,
        norm_layer=partial(nn.LayerNorm, eps=config.norm_eps),
    )
    return DPT(config, backbone=backbone)


def midas_key_table() -> dict[str, str]:
    """Prefixes of the original file to prefixes of DPT. An empty one is dropped: the unused ImageNet head."""
    table = {"pretrained.model.head.": "", "pretrained.model.": "backbone.", "scratch.output_conv.": "head."}
    for level in range(4):
        post, unit = f"pretrained.act_postprocess{level + 1}", f"scratch.refinenet{level + 1}"
        table |= {
            f"{post}.0.project.0.": f"reassemble.{level}.readout.",
            f"{post}.3.": f"reassemble.{level}.project.",
            f"{post}.4.": f"reassemble.{level}.resize.",
            f"scratch.layer{level + 1}_rn.": f"narrow.{level}.",
            f"{unit}.resConfUnit1.": f"fuse.{level}.branch.",
            f"{unit}.resConfUnit2.": f"fuse.{level}.merged.",
            f"{unit}.out_conv.": f"fuse.{level}.project.",
        }
    return table


def from_midas(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of ``dpt_large_384.pt`` by the names of DPT; unknown ones stay, for loading to report."""
    table = midas_key_table()
    renamed = {}
    for name, tensor in tensors.items():
        old = next((prefix for prefix in table if name.startswith(prefix)), None)
        if old is None:
            renamed[name] = tensor
        elif table[old]:
            renamed[table[old] + name.removeprefix(old)] = tensor
    return renamed


def dpt_estimator(model: DPT) -> DepthEstimator:
    """Images as MiDaS prepares them: the short side near 384, the aspect kept, multiples of 32."""
    weight = next(model.head.parameters())

    def size(height: int, width: int) -> tuple[int, int]:
        return near_size(height, width, short_side=model.config.image_size, multiple=MULTIPLE)

    return _estimator(model, size=size, device=weight.device, dtype=weight.dtype)


def load_dpt_transformers(folder: Path, *, device: torch.device, dtype: torch.dtype) -> DepthEstimator:
    """Intel/dpt-large or another DPT on a plain ViT, from a local transformers folder; no download.

    This implementation takes squares only, so images are squeezed to 384x384, as its own processor does.
    """
    try:
        from transformers import DPTForDepthEstimation
    except ImportError as error:
        raise ValueError(
            f"{folder} needs transformers, which cannot be imported ({error}); pip install transformers."
        ) from error
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(
            f"{folder} has no config.json, so it is not a folder of transformers; "
            "give the folder with config.json and model.safetensors."
        )
    try:
        # With loading info it returns a pair, which its type does not say.
        loaded: Any = DPTForDepthEstimation.from_pretrained(
            Path(folder), local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{folder} cannot be read as a DPT of transformers ({error}); "
            "give the folder with config.json and model.safetensors, both whole."
        ) from error
    model, report = loaded
    if report["missing_keys"]:
        raise ValueError(
            f"{folder} lacks {sorted(report['missing_keys'])[:4]}, which would stay random; "
            "give a DPT for depth such as Intel/dpt-large."
        )
    side = int(model.config.image_size)
    model = model.to(device, dtype).eval()
    return _estimator(
        lambda pixels: rearrange(model(pixels).predicted_depth, "n h w -> n 1 h w"),
        size=lambda height, width: (side, side),
        device=device,
        dtype=dtype,
    )


def _estimator(
    network: Callable[[Tensor], Tensor],
    *,
    size: Callable[[int, int], tuple[int, int]],
    device: torch.device,
    dtype: torch.dtype,
) -> DepthEstimator:
    def estimate(images: Images) -> RawDepth:
        height, width = images.shape[-2:]
        inner_height, inner_width = size(height, width)
        pixels = resize(images.to(device, torch.float32), width=inner_width, height=inner_height)
        with torch.no_grad():
            raw = network((pixels.to(dtype) - 0.5) / 0.5)
        return resize_raw(raw, height=height, width=width)

    return estimate


def _grid_positions(positions: Float[Tensor, "1 t d"], rows: int, columns: int) -> Float[Tensor, "1 t2 d"]:
    """Learned positions on another grid of patches: bilinear, as MiDaS does it (timm would take bicubic)."""
    side = math.isqrt(positions.shape[1] - 1)
    grid = rearrange(positions[:, 1:], "1 (h w) d -> 1 d h w", h=side)
    grid = F.interpolate(grid, size=(rows, columns), mode="bilinear", align_corners=False)
    return torch.cat([positions[:, :1], rearrange(grid, "1 d h w -> 1 (h w) d")], dim=1)


def _double(x: Features) -> Larger:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)


def _upscale(config: DPTConfig, level: int, factor: int) -> nn.Module:
    channels = config.reassembled[level]
    return nn.ConvTranspose2d(channels, channels, factor, stride=factor)


def _downscale(config: DPTConfig) -> nn.Module:
    channels = config.reassembled[3]
    return nn.Conv2d(channels, channels, 3, stride=2, padding=1)
