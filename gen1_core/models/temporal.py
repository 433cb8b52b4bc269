"""The temporal transformer: the spatial one's counterpart along frames (paper, space-time U-Net)."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .attention import Attention, FeedForward
from .layers import Ops, zeroed


class TemporalBlock(nn.Module):
    """Self-attention along frames and feed-forward; each after its own norm and added.

    The paper does not say whether its temporal block also looks at the content; this one does not. Names are
    those of the spatial block without its cross-attention.
    """

    def __init__(self, width: int, *, heads: int, ops: Ops = nn):
        super().__init__()
        self.norm1 = ops.LayerNorm(width)
        self.attn1 = Attention(width, heads=heads, ops=ops)
        self.norm3 = ops.LayerNorm(width)
        self.ff = FeedForward(width, ops=ops)

    def forward(self, x: Float[Tensor, "n f d"]) -> Float[Tensor, "n f d"]:
        """Tokens to tokens."""
        x = x + self.attn1(self.norm1(x))
        return x + self.ff(self.norm3(x))


class TemporalTransformer(nn.Module):
    """Every pixel attends to itself in the other frames; learned frame positions; added to its input.

    Only the output projection starts at zero: the whole is then the identity, yet every layer before it gets
    a gradient from the second step on. The group norm is per frame, as the spatial one's.
    """

    def __init__(self, width: int, *, heads: int, groups: int, frames: int, ops: Ops = nn):
        super().__init__()
        self.norm = ops.GroupNorm(groups, width, eps=1e-6)
        self.proj_in = ops.Linear(width, width)
        # An embedding layer and not a bare parameter, so that ``ops`` casts and streams it like all others.
        self.position = _small(ops.Embedding(frames, width))
        self.transformer_blocks = nn.ModuleList([TemporalBlock(width, heads=heads, ops=ops)])
        self.proj_out = zeroed(ops.Linear(width, width))

    def forward(self, x: Float[Tensor, "n c h w"], frames: int) -> Float[Tensor, "n c h w"]:
        """Frames of one clip are neighbours in the batch: n = b * frames."""
        height, width = x.shape[-2:]
        # Contiguous once here; otherwise every product below would make its own copy of the strided rows.
        tokens = rearrange(self.norm(x), "(b f) c h w -> (b h w) f c", f=frames).contiguous()
        positions = self.position(torch.arange(frames, device=x.device)).to(x.dtype)
        tokens = self.transformer_blocks[0](self.proj_in(tokens) + positions)
        return x + rearrange(self.proj_out(tokens), "(b h w) f c -> (b f) c h w", h=height, w=width)


def _small(module: nn.Module) -> nn.Module:
    """A start well below the tokens' own spread of about 0.6, so that new positions do not drown them."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    return module
