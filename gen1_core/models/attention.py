"""Attention on tokens, feed-forward network and spatial transformer of SD 1.x, named as in diffusers."""

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from .layers import Ops

ROWS_AT_ONCE = 2**15
"""Longest batch of one attention call.

Temporal attention has one row per pixel (b h w), and fused GPU kernels put the batch on a grid axis that ends
at 65,535: eight clips of 768 x 768 pixels would be beyond it. Half of the limit is as fast.
"""


def attend(
    q: Float[Tensor, "n q d"], k: Float[Tensor, "n k d"], v: Float[Tensor, "n k d"], *, heads: int
) -> Float[Tensor, "n q d"]:
    """Scaled dot-product attention, every head on its share of the width."""
    q, k, v = (rearrange(x, "n t (heads e) -> n heads t e", heads=heads) for x in (q, k, v))
    parts = zip(q.split(ROWS_AT_ONCE), k.split(ROWS_AT_ONCE), v.split(ROWS_AT_ONCE), strict=True)
    attended = [functional.scaled_dot_product_attention(*part) for part in parts]
    mixed = attended[0] if len(attended) == 1 else torch.cat(attended)
    return rearrange(mixed, "n heads t e -> n t (heads e)")


class Attention(nn.Module):
    """Multi-head attention of tokens on a context (on themselves: pass them twice)."""

    def __init__(self, width: int, context_width: int, *, heads: int, ops: Ops = nn):
        super().__init__()
        self.heads = heads
        self.to_q = ops.Linear(width, width, bias=False)
        self.to_k = ops.Linear(context_width, width, bias=False)
        self.to_v = ops.Linear(context_width, width, bias=False)
        # A list of one, because diffusers keeps its dropout in second place.
        self.to_out = nn.ModuleList([ops.Linear(width, width)])

    def forward(self, x: Float[Tensor, "n q d"], context: Float[Tensor, "r k e"]) -> Float[Tensor, "n q d"]:
        """Each row of the context serves ``n / r`` neighbouring rows of x: a clip's is projected once."""
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        share = x.shape[0] // context.shape[0]
        k, v = (
            repeat(k, "r k d -> (r share) k d", share=share),
            repeat(v, "r k d -> (r share) k d", share=share),
        )
        return self.to_out[0](attend(q, k, v, heads=self.heads))


class GatedProjection(nn.Module):
    """GEGLU (Shazeer 2020): one linear layer gives values and gates."""

    def __init__(self, width: int, hidden: int, *, ops: Ops = nn):
        super().__init__()
        self.proj = ops.Linear(width, 2 * hidden)

    def forward(self, x: Float[Tensor, "n q d"]) -> Float[Tensor, "n q hidden"]:
        """Values times the GELU of the gates."""
        values, gates = self.proj(x).chunk(2, dim=-1)
        return values * functional.gelu(gates)


class FeedForward(nn.Module):
    """The feed-forward network of a transformer block: GEGLU of four times the width."""

    def __init__(self, width: int, *, ops: Ops = nn):
        super().__init__()
        # Identity stands where diffusers has its dropout, so that the last layer is net.2 as there.
        self.net = nn.Sequential(
            GatedProjection(width, 4 * width, ops=ops), nn.Identity(), ops.Linear(4 * width, width)
        )

    def forward(self, x: Float[Tensor, "n q d"]) -> Float[Tensor, "n q d"]:
        """Tokens to tokens."""
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention on the content, feed-forward; each after its own norm and added."""

    def __init__(self, width: int, context_width: int, *, heads: int, ops: Ops = nn):
        super().__init__()
        self.norm1 = ops.LayerNorm(width)
        self.attn1 = Attention(width, width, heads=heads, ops=ops)
        self.norm2 = ops.LayerNorm(width)
        self.attn2 = Attention(width, context_width, heads=heads, ops=ops)
        self.norm3 = ops.LayerNorm(width)
        self.ff = FeedForward(width, ops=ops)

    def forward(self, x: Float[Tensor, "n q d"], context: Float[Tensor, "r k e"]) -> Float[Tensor, "n q d"]:
        """Tokens to tokens."""
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer block on the pixels of each frame, between two 1 x 1 convolutions, added to its input."""

    def __init__(self, width: int, context_width: int, *, heads: int, groups: int, ops: Ops = nn):
        super().__init__()
        self.norm = ops.GroupNorm(groups, width, eps=1e-6)
        self.proj_in = ops.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, context_width, heads=heads, ops=ops)])
        self.proj_out = ops.Conv2d(width, width, 1)

    def forward(self, x: Float[Tensor, "n c h w"], context: Float[Tensor, "r k e"]) -> Float[Tensor, "n c h w"]:
        """Maps to maps."""
        tokens = rearrange(self.proj_in(self.norm(x)), "n c h w -> n (h w) c")
        tokens = self.transformer_blocks[0](tokens, context)
        return x + self.proj_out(rearrange(tokens, "n (h w) c -> n c h w", h=x.shape[2]).contiguous())
