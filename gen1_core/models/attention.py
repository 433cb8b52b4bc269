"""Attention on tokens, feed-forward network and spatial transformer of SD 1.x and 2.x, named as in diffusers."""

from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True)
class Context:
    """What cross-attention reads: tokens, and beside them those of pictures, one tensor for each IP-Adapter.

    Each row serves as many neighbouring frames as come on it: one row is a whole clip's. ``scales`` has for each of
    the pictures one number, or one for each cross-attention in the order of IP-Adapter files (down, up, middle).
    """

    tokens: Float[Tensor, "r k e"]
    pictures: tuple[Float[Tensor, "_ _ e"], ...] = ()
    scales: tuple[tuple[float, ...], ...] = ()

    def scale(self, picture: int, number: int) -> float:
        """How much the cross-attention of this number listens to a picture; 0 is not at all."""
        scales = self.scales[picture]
        return scales[0] if len(scales) == 1 else scales[number]


def attend(
    q: Float[Tensor, "n q d"], k: Float[Tensor, "n k d"], v: Float[Tensor, "n k d"], *, heads: int
) -> Float[Tensor, "n q d"]:
    """Scaled dot-product attention, every head on its share of the width."""
    q, k, v = (rearrange(x, "n t (heads e) -> n heads t e", heads=heads) for x in (q, k, v))
    parts = zip(q.split(ROWS_AT_ONCE), k.split(ROWS_AT_ONCE), v.split(ROWS_AT_ONCE), strict=True)
    attended = [functional.scaled_dot_product_attention(*part) for part in parts]
    mixed = attended[0] if len(attended) == 1 else torch.cat(attended)
    return rearrange(mixed, "n heads t e -> n t (heads e)")


def attend_shared(
    q: Float[Tensor, "n q d"], k: Float[Tensor, "r k d"], v: Float[Tensor, "r k d"], *, heads: int
) -> Float[Tensor, "n q d"]:
    """The same where each row of keys and values serves ``n / r`` neighbouring rows of queries."""
    share = q.shape[0] // k.shape[0]
    k, v = (repeat(x, "r k d -> (r share) k d", share=share) for x in (k, v))
    return attend(q, k, v, heads=heads)


class Attention(nn.Module):
    """Multi-head self-attention of tokens."""

    def __init__(self, width: int, *, heads: int, ops: Ops = nn):
        super().__init__()
        self.heads = heads
        self.to_q = ops.Linear(width, width, bias=False)
        self.to_k = ops.Linear(width, width, bias=False)
        self.to_v = ops.Linear(width, width, bias=False)
        # A list of one, because diffusers keeps its dropout in second place.
        self.to_out = nn.ModuleList([ops.Linear(width, width)])

    def forward(self, x: Float[Tensor, "n q d"]) -> Float[Tensor, "n q d"]:
        """Tokens to tokens."""
        return self.to_out[0](attend(self.to_q(x), self.to_k(x), self.to_v(x), heads=self.heads))


class CrossAttention(nn.Module):
    """Multi-head attention on a context, and on pictures by keys and values of their own (IP-Adapter, Eq. 5).

    ``pictures`` is the number of IP-Adapters, ``number`` this layer's place among all cross-attentions of the network,
    by which it finds its scale.
    """

    def __init__(
        self, width: int, context_width: int, *, heads: int, pictures: int = 0, number: int = 0, ops: Ops = nn
    ):
        super().__init__()
        self.heads, self.number = heads, number
        self.to_q = ops.Linear(width, width, bias=False)
        self.to_k = ops.Linear(context_width, width, bias=False)
        self.to_v = ops.Linear(context_width, width, bias=False)
        self.to_out = nn.ModuleList([ops.Linear(width, width)])
        self.to_k_ip = nn.ModuleList(ops.Linear(context_width, width, bias=False) for _ in range(pictures))
        self.to_v_ip = nn.ModuleList(ops.Linear(context_width, width, bias=False) for _ in range(pictures))

    def forward(self, x: Float[Tensor, "n q d"], context: Context) -> Float[Tensor, "n q d"]:
        """Tokens to tokens; a clip's context is projected once, a picture of scale 0 costs nothing."""
        q = self.to_q(x)
        mixed = attend_shared(q, self.to_k(context.tokens), self.to_v(context.tokens), heads=self.heads)
        for index, (tokens, to_k, to_v) in enumerate(zip(context.pictures, self.to_k_ip, self.to_v_ip, strict=True)):
            if scale := context.scale(index, self.number):
                mixed = mixed + scale * attend_shared(q, to_k(tokens), to_v(tokens), heads=self.heads)
        return self.to_out[0](mixed)


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

    def __init__(
        self, width: int, context_width: int, *, heads: int, pictures: int = 0, number: int = 0, ops: Ops = nn
    ):
        super().__init__()
        self.norm1 = ops.LayerNorm(width)
        self.attn1 = Attention(width, heads=heads, ops=ops)
        self.norm2 = ops.LayerNorm(width)
        self.attn2 = CrossAttention(width, context_width, heads=heads, pictures=pictures, number=number, ops=ops)
        self.norm3 = ops.LayerNorm(width)
        self.ff = FeedForward(width, ops=ops)

    def forward(self, x: Float[Tensor, "n q d"], context: Context) -> Float[Tensor, "n q d"]:
        """Tokens to tokens."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer block on the pixels of each frame, between two projections, added to its input.

    The projections are 1 x 1 convolutions in SD 1.x and linear layers in SD 2.x (``linear``): the same sums, other
    shapes in the file.
    """

    def __init__(
        self,
        width: int,
        context_width: int,
        *,
        heads: int,
        groups: int,
        linear: bool = False,
        pictures: int = 0,
        number: int = 0,
        ops: Ops = nn,
    ):
        super().__init__()
        self.norm = ops.GroupNorm(groups, width, eps=1e-6)
        self.proj_in = ops.Linear(width, width) if linear else ops.Conv2d(width, width, 1)
        block = TransformerBlock(width, context_width, heads=heads, pictures=pictures, number=number, ops=ops)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = ops.Linear(width, width) if linear else ops.Conv2d(width, width, 1)
        self.linear = linear

    def forward(self, x: Float[Tensor, "n c h w"], context: Context) -> Float[Tensor, "n c h w"]:
        """Maps to maps."""
        height = x.shape[2]
        hidden = self.norm(x)
        if self.linear:
            tokens = self.proj_in(rearrange(hidden, "n c h w -> n (h w) c"))
            tokens = self.proj_out(self.transformer_blocks[0](tokens, context))
            return x + rearrange(tokens, "n (h w) c -> n c h w", h=height)
        tokens = rearrange(self.proj_in(hidden), "n c h w -> n (h w) c")
        tokens = self.transformer_blocks[0](tokens, context)
        return x + self.proj_out(rearrange(tokens, "n (h w) c -> n c h w", h=height).contiguous())
