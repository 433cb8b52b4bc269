"""Where one scene of a video ends and the next begins, so that no training clip runs across a cut.

A hard cut is a change of the picture that is large by itself and large beside the changes around it, as in
PySceneDetect's AdaptiveDetector: fast motion changes every frame, a cut only one. Dissolves and fades are not found.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ...tensors import Bytes, to_float

GRID, BINS = 16, 16


@dataclass(frozen=True, kw_only=True)
class CutConfig:
    """``least`` is the change of a cut (0..1), ``ratio`` how often that of the frames around it, ``reach`` how far
    "around" goes to each side.
    """

    least: float = 0.12
    ratio: float = 3.0
    reach: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.least < 1 or self.ratio < 1 or self.reach < 1:
            raise ValueError(
                f"least={self.least}, ratio={self.ratio}, reach={self.reach} cannot tell a cut from motion; "
                "give 0 < least < 1, ratio >= 1 and reach >= 1."
            )


def signature(frames: Bytes) -> Float[Tensor, "n d"]:
    """What a frame looks like from afar: a coarse picture, which tells layouts apart, and histograms, which motion
    changes little. The mean absolute difference of two signatures is 0..1.
    """
    images = to_float(frames)
    coarse = rearrange(F.adaptive_avg_pool2d(images, GRID), "n c h w -> n (c h w)")
    bins = rearrange((frames.long() * BINS) // 256, "n c h w -> n c (h w)")
    counts = torch.zeros(*bins.shape[:2], BINS).scatter_add_(2, bins, torch.ones(bins.shape))
    histogram = rearrange(counts / bins.shape[2], "n c k -> n (c k)")
    # Each half is worth the same: pixels differ by 1 at most, the three histograms by 2 each in sum.
    return torch.cat([coarse / coarse.shape[1], histogram / 6], dim=1) / 2


def changes(chunks: Iterable[Bytes]) -> Float[Tensor, " n"]:
    """How much each frame differs from the one before, 0..1; 0 for the first. Holds one chunk at a time."""
    parts, last = [torch.zeros(0)], torch.zeros(0)
    for frames in chunks:
        now = signature(frames)
        before = torch.cat([last if len(last) else now[:1], now[:-1]])
        parts.append(reduce((now - before).abs(), "n d -> n", "sum"))
        last = now[-1:]
    return torch.cat(parts)


def cuts_in(change: Float[Tensor, " n"], config: CutConfig) -> list[int]:
    """The numbers of the frames that begin a new scene (never 0)."""
    found = []
    for at in range(1, len(change)):
        around = torch.cat([change[max(1, at - config.reach) : at], change[at + 1 : at + 1 + config.reach]])
        usual = float(around.median()) if len(around) else 0.0
        if float(change[at]) >= max(config.least, config.ratio * usual):
            found.append(at)
    return found


def find_scenes(chunks: Iterable[Bytes], config: CutConfig) -> list[tuple[int, int]]:
    """The scenes of a video as (first, one past the last) frame, in order and without gaps."""
    change = changes(chunks)
    ends = [0, *cuts_in(change, config), len(change)]
    return [(first, end) for first, end in zip(ends, ends[1:], strict=False) if end > first]
