"""Motion modules: AnimateDiff's temporal layers, named as in diffusers' UNetMotionModel."""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .attention import Attention, FeedForward
from .layers import Ops, zeroed


@dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """Sizes of a motion module; the defaults are AnimateDiff v3. v1 has 24 frames, v2 also has one in the middle.

    ``frames`` is the number of frame positions, the longest clip. ``attentions`` per block are one or two.
    ``joint_norm`` says over what the group norm of a module takes its mean: each frame alone (AnimateDiff's own code,
    which trained the public weights; the picture then does not depend on the window), or all frames of the clip
    (diffusers).
    """

    frames: int = 32
    attentions: int = 2
    middle: bool = False
    heads: int = 8
    norm_num_groups: int = 32
    joint_norm: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        if min(self.frames, self.heads, self.norm_num_groups) < 1 or self.attentions not in (1, 2):
            raise ValueError(
                f"frames={self.frames}, attentions={self.attentions}, heads={self.heads}, "
                f"norm_num_groups={self.norm_num_groups} are no motion module; give positive numbers, "
                "and one or two attentions."
            )


def positions(frames: int, width: int) -> Float[Tensor, "1 frames width"]:
    """Sines at the even and cosines at the odd channels, as in "Attention is all you need", section 3.5; float32.

    What every public motion module holds, and what AnimateLCM, which holds none, was trained with.
    """
    powers = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(frames)[:, None] * powers
    return rearrange(torch.stack([angles.sin(), angles.cos()]), "part f half -> 1 f (half part)")


class Positions(nn.Module):
    """Frame positions, added to tokens; a buffer, since they are in the files but not learned."""

    pe: Tensor

    def __init__(self, frames: int, width: int):
        super().__init__()
        self.register_buffer("pe", positions(frames, width))

    def forward(self, x: Float[Tensor, "n f d"]) -> Float[Tensor, "n f d"]:
        """Tokens with their place in time."""
        return x + self.pe[:, : x.shape[1]].to(x)


class MotionBlock(nn.Module):
    """One or two self-attentions along frames and a feed-forward; each after its own norm and added.

    The positions are added before each attention, after its norm.
    """

    def __init__(self, width: int, config: MotionConfig, *, ops: Ops = nn):
        super().__init__()
        self.pos_embed = Positions(config.frames, width)
        self.norm1 = ops.LayerNorm(width)
        self.attn1 = Attention(width, heads=config.heads, ops=ops)
        if config.attentions == 2:
            self.norm2 = ops.LayerNorm(width)
            self.attn2 = Attention(width, heads=config.heads, ops=ops)
        self.norm3 = ops.LayerNorm(width)
        self.ff = FeedForward(width, ops=ops)
        self.attentions = config.attentions

    def forward(self, x: Float[Tensor, "n f d"]) -> Float[Tensor, "n f d"]:
        """Tokens to tokens."""
        x = x + self.attn1(self.pos_embed(self.norm1(x)))
        if self.attentions == 2:
            x = x + self.attn2(self.pos_embed(self.norm2(x)))
        return x + self.ff(self.norm3(x))


class MotionModule(nn.Module):
    """Every pixel attends to itself in the other frames (AnimateDiff, section 4.2), added to its input.

    The output projection of a new one is zero: it then changes nothing.
    """

    def __init__(self, width: int, config: MotionConfig, *, ops: Ops = nn):
        super().__init__()
        self.norm = ops.GroupNorm(config.norm_num_groups, width, eps=1e-6)
        self.proj_in = ops.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([MotionBlock(width, config, ops=ops)])
        self.proj_out = zeroed(ops.Linear(width, width))
        self.joint_norm = config.joint_norm

    def forward(self, x: Float[Tensor, "n c h w"], frames: int) -> Float[Tensor, "n c h w"]:
        """Frames of one clip are neighbours in the batch: n = b * frames."""
        height, width = x.shape[-2:]
        if self.joint_norm:
            clip = rearrange(x, "(b f) c h w -> b c f (h w)", f=frames)
            tokens = rearrange(self.norm(clip.contiguous()), "b c f p -> (b p) f c").contiguous()
        else:
            tokens = rearrange(self.norm(x), "(b f) c h w -> (b h w) f c", f=frames).contiguous()
        tokens = self.transformer_blocks[0](self.proj_in(tokens))
        return x + rearrange(self.proj_out(tokens), "(b h w) f c -> (b f) c h w", h=height, w=width)
