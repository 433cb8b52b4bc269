"""The prior: a text embedding and noise to a clean image embedding (unCLIP, Ramesh et al., 2022, 2.2).

Gen-1 conditions on CLIP image embeddings and says only that "a prior" turns text into them, so the design is
unCLIP's: a transformer over a few tokens that predicts the clean embedding directly.
"""

import math
from dataclasses import dataclass

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from .clip import Transformer


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Sizes; the defaults are the embedded model's. ``dim`` is the width of the embeddings."""

    dim: int = 128
    width: int = 192
    depth: int = 3
    heads: int = 6
    mlp_ratio: float = 3.0

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(
                f"width={self.width} cannot be split into heads={self.heads} equal heads; "
                "make width a multiple of heads."
            )
        if self.width % 2:
            raise ValueError(
                f"width={self.width} is odd, but timesteps are embedded as pairs of sine and cosine; make width even."
            )


def timestep_features(timestep: Float[Tensor, " b"], width: int) -> Float[Tensor, "b d"]:
    """Cosines and sines of a timestep 0..1000 at geometric frequencies from 1 to 1/10000."""
    half = width // 2
    steps = torch.arange(half, device=timestep.device, dtype=torch.float32)
    angles = timestep.float()[:, None] * torch.exp(-math.log(10000) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Prior(nn.Module):
    """Transformer over [text, timestep, noisy embedding, query]; the query becomes the clean embedding.

    ``null_text`` stands for "no text" and is learnt, for the prior's own classifier-free guidance.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.null_text = nn.Parameter(torch.randn(config.dim))
        self.text_in = nn.Linear(config.dim, width)
        self.noisy_in = nn.Linear(config.dim, width)
        self.time_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.query = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positions = nn.Parameter(torch.randn(4, width) * width**-0.5)
        self.transformer = Transformer(width, config.depth, config.heads, mlp_ratio=config.mlp_ratio, quick_gelu=False)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, config.dim)

    def forward(
        self, noisy: Float[Tensor, "b d"], timestep: Float[Tensor, " b"], text: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b d"]:
        """The clean image embedding behind a noisy one at this timestep (0..1000, 0 is clean)."""
        features = timestep_features(timestep, self.config.width).to(noisy.dtype)
        query = repeat(self.query, "d -> b d", b=len(noisy))
        tokens = torch.stack([self.text_in(text), self.time_in(features), self.noisy_in(noisy), query], dim=1)
        return self.out(self.norm(self.transformer(tokens + self.positions))[:, -1])
