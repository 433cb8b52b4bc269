"""IP-Adapter's projections (Ye et al., 2023): what CLIP sees in a picture, as tokens for cross-attention.

Three kinds, named as in IP-Adapter's own files: four tokens from the embedding (plain), 257 tokens from the hidden
states (full face), 16 tokens gathered from the hidden states by a resampler (plus). The attention that reads the tokens
is part of the U-Net.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from .blocks import UNetConfig
from .layers import Ops

HEAD_WIDTH = 64
"""Width of one head of every resampler that was released; a file does not tell it."""

Reads = Literal["embedding", "hidden"]
"""What a projection takes from the vision tower: its embedding, or its penultimate hidden states."""


@dataclass(frozen=True, kw_only=True)
class ImageProjectionConfig:
    """Plain IP-Adapter: the defaults are SD 1.5's, for the embeddings of ViT-H."""

    input_width: int = 1024
    context_width: int = 768
    tokens: int = 4
    reads: Reads = "embedding"

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        _require_positive(self, ("input_width", "context_width", "tokens"))


@dataclass(frozen=True, kw_only=True)
class MLPProjectionConfig:
    """IP-Adapter full face: one token for each of the tower's; the defaults are SD 1.5's, for ViT-H."""

    input_width: int = 1280
    context_width: int = 768
    reads: Reads = "hidden"

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        _require_positive(self, ("input_width", "context_width"))


@dataclass(frozen=True, kw_only=True)
class ResamplerConfig:
    """IP-Adapter plus: the defaults are SD 1.5's, for the hidden states of ViT-H; ``tokens`` learned queries."""

    input_width: int = 1280
    width: int = 768
    context_width: int = 768
    tokens: int = 16
    depth: int = 4
    heads: int = 12
    mlp_width: int = 3072
    reads: Reads = "hidden"

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        _require_positive(self, ("input_width", "width", "context_width", "tokens", "depth", "heads", "mlp_width"))


ProjectionConfig = ImageProjectionConfig | MLPProjectionConfig | ResamplerConfig


def _require_positive(config: ProjectionConfig, names: tuple[str, ...]) -> None:
    sizes = {name: getattr(config, name) for name in names}
    if min(sizes.values()) < 1:
        given = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise ValueError(f"{given} leave nothing to build; give sizes of at least 1.")


class ImageProjection(nn.Module):
    """One linear layer to all tokens at once, and a norm over each."""

    def __init__(self, config: ImageProjectionConfig, *, ops: Ops = nn):
        super().__init__()
        self.config = config
        self.proj = ops.Linear(config.input_width, config.tokens * config.context_width)
        self.norm = ops.LayerNorm(config.context_width)

    def forward(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, "n k e"]:
        """A picture's embedding to its tokens."""
        return self.norm(rearrange(self.proj(embedding), "n (k e) -> n k e", k=self.config.tokens))


class MLPProjection(nn.Module):
    """Two linear layers and a norm, on each of the tower's tokens."""

    def __init__(self, config: MLPProjectionConfig, *, ops: Ops = nn):
        super().__init__()
        self.config = config
        self.proj = nn.Sequential(
            ops.Linear(config.input_width, config.input_width),
            nn.GELU(),
            ops.Linear(config.input_width, config.context_width),
            ops.LayerNorm(config.context_width),
        )

    def forward(self, hidden: Float[Tensor, "n k d"]) -> Float[Tensor, "n k e"]:
        """As many tokens as the tower has."""
        return self.proj(hidden)


class LatentAttention(nn.Module):
    """Perceiver attention (Alayrac et al., 2022): the latents look at the picture and at themselves."""

    def __init__(self, config: ResamplerConfig, *, ops: Ops = nn):
        super().__init__()
        inner = HEAD_WIDTH * config.heads
        self.heads = config.heads
        self.norm1 = ops.LayerNorm(config.width)
        self.norm2 = ops.LayerNorm(config.width)
        self.to_q = ops.Linear(config.width, inner, bias=False)
        self.to_kv = ops.Linear(config.width, 2 * inner, bias=False)
        self.to_out = ops.Linear(inner, config.width, bias=False)

    def forward(self, picture: Float[Tensor, "n t d"], latents: Float[Tensor, "n k d"]) -> Float[Tensor, "n k d"]:
        """What is added to the latents."""
        normed = self.norm2(latents)
        keys, values = self.to_kv(torch.cat([self.norm1(picture), normed], dim=1)).chunk(2, dim=-1)
        q, k, v = (rearrange(x, "n t (h e) -> n h t e", h=self.heads) for x in (self.to_q(normed), keys, values))
        return self.to_out(rearrange(functional.scaled_dot_product_attention(q, k, v), "n h t e -> n t (h e)"))


class Resampler(nn.Module):
    """Learned queries that gather a picture's tokens, layer by layer, and a projection to the context's width."""

    def __init__(self, config: ResamplerConfig, *, ops: Ops = nn):
        super().__init__()
        self.config = config
        self.latents = nn.Parameter(torch.randn(1, config.tokens, config.width) * config.width**-0.5)
        self.proj_in = ops.Linear(config.input_width, config.width)
        self.proj_out = ops.Linear(config.width, config.context_width)
        self.norm_out = ops.LayerNorm(config.context_width)
        # Pairs in lists, because the files number attention and network of a layer, and the network's parts.
        self.layers = nn.ModuleList(
            nn.ModuleList([LatentAttention(config, ops=ops), _mlp(config, ops=ops)]) for _ in range(config.depth)
        )

    def forward(self, hidden: Float[Tensor, "n t d"]) -> Float[Tensor, "n k e"]:
        """The tower's penultimate hidden states to the picture's tokens."""
        picture = self.proj_in(hidden)
        latents = repeat(self.latents, "1 k d -> n k d", n=len(hidden)).to(picture.dtype)
        for layer in self.layers:
            attention, mlp = layer.children()
            latents = latents + attention(picture, latents)
            latents = latents + mlp(latents)
        return self.norm_out(self.proj_out(latents))


def _mlp(config: ResamplerConfig, *, ops: Ops) -> nn.Sequential:
    return nn.Sequential(
        ops.LayerNorm(config.width),
        ops.Linear(config.width, config.mlp_width, bias=False),
        nn.GELU(),
        ops.Linear(config.mlp_width, config.width, bias=False),
    )


Projection = ImageProjection | MLPProjection | Resampler


def build_projection(config: ProjectionConfig, *, ops: Ops = nn) -> Projection:
    """The projection that a config describes."""
    if isinstance(config, ImageProjectionConfig):
        return ImageProjection(config, ops=ops)
    return MLPProjection(config, ops=ops) if isinstance(config, MLPProjectionConfig) else Resampler(config, ops=ops)


def cross_attentions(unet: UNetConfig) -> list[tuple[str, int]]:
    """Every cross-attention of a U-Net and its width, in the order of IP-Adapter's numbers: down, up, middle."""
    widths = unet.block_out_channels
    levels = [*range(len(widths)), *reversed(range(len(widths))), len(widths) - 1]
    blocks = [f"{way}_blocks.{index}" for way in ("down", "up") for index in range(len(widths))] + ["mid_block"]
    return [
        (f"{block}.attentions.{index}.transformer_blocks.0.attn2", widths[level])
        for block, level, count in zip(blocks, levels, unet.cross_attentions, strict=True)
        for index in range(count)
    ]


def block_scales(unet: UNetConfig, scales: Mapping[str, float], *, others: float = 0.0) -> tuple[float, ...]:
    """The scales of PictureTokens from names: ``{"up_blocks.1": 1.0, "down_blocks.2.attentions.1": 0.5}``.

    A name is a block of the U-Net, or one transformer of it; the longest that fits counts, and ``others`` is for the
    rest. Raises ValueError for a name that no cross-attention has.
    """
    places = [name.split(".transformer_blocks")[0] + "." for name, _ in cross_attentions(unet)]
    if unknown := [name for name in scales if not any(place.startswith(name + ".") for place in places)]:
        blocks = sorted({place.split(".attentions")[0] for place in places})
        raise ValueError(
            f"{', '.join(unknown)} names no cross-attention of this U-Net; name one of {', '.join(blocks)}, "
            "alone or with .attentions.0 and so on."
        )

    def scale(place: str) -> float:
        fitting = [name for name in scales if place.startswith(name + ".")]
        return scales[max(fitting, key=len)] if fitting else others

    return tuple(scale(place) for place in places)


TOWERS = {
    "embedding": {768: "ViT-L/14", 1024: "ViT-H/14", 1280: "ViT-bigG/14"},
    "hidden": {1024: "ViT-L/14", 1280: "ViT-H/14", 1664: "ViT-bigG/14"},
}
"""CLIP's public vision towers by the width of their embeddings and of their hidden states."""


def require_tower(config: ProjectionConfig, *, embedding_width: int, hidden_width: int) -> None:
    """Refuses a vision tower whose states have another width than this projection was trained on."""
    widths = {"embedding": embedding_width, "hidden": hidden_width}
    if widths[config.reads] == config.input_width:
        return
    what = "embeddings" if config.reads == "embedding" else "hidden states"
    given = TOWERS["hidden"].get(hidden_width, "another tower")
    wanted = TOWERS[config.reads].get(config.input_width)
    other = (
        f"give the CLIP vision file of {wanted}"
        if wanted
        else f"give a CLIP vision file whose {what} are {config.input_width} wide"
    )
    raise ValueError(
        f"the CLIP vision file is {given}, whose {what} are {widths[config.reads]} wide, but this IP-Adapter was "
        f"trained on {what} of width {config.input_width}; {other}{_usual(wanted)}, or an IP-Adapter made for {given}."
    )


def _usual(tower: str | None) -> str:
    names = {
        "ViT-L/14": "clip-vit-large-patch14.safetensors",
        "ViT-H/14": "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors",
        "ViT-bigG/14": "CLIP-ViT-bigG-14-laion2B-39B-b160k.safetensors",
    }
    return f" (usually called {names[tower]})" if tower else ""
