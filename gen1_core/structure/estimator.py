"""Frames to depth: the contract of every estimator, and one scale per clip.

Section 3.3 of the paper takes depth because it says little about content. How depth is scaled is our choice: a clip
has one range (percentiles 1 and 99 over all its frames), because a range per frame flickers.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float
from kornia.filters import guided_blur
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from ..models.depth import DepthNet
from ..tensors import Depth, Images
from ..video.geometry import resize
from ..whole import whole

RawDepth = Float[Tensor, "n 1 h w"]
"""Inverse depth of each frame up to scale and shift, near larger, at the size of the frames."""


@runtime_checkable
class DepthEstimator(Protocol):
    """Any function from images to depth; each frame by itself."""

    def __call__(self, images: Images, /) -> RawDepth:
        """Images 0..1 of any size to raw depth of the same height and width."""
        ...


MAX_BLUR_LEVEL = 7
LOW_PERCENTILE, HIGH_PERCENTILE = 0.01, 0.99
_SAMPLES = 2**20  # torch.quantile sorts, and takes at most 2**24 values


@dataclass(frozen=True, kw_only=True)
class DepthRange:
    """The raw depth that becomes 0 (far) and 1 (near) in a whole clip."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"low={self.low}, high={self.high} is not a range; give two finite numbers, low first.")


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What an edit keeps of a clip.

    ``blur_level`` is t_s of section 3.3: 0 keeps every detail of the depth, 7 almost none. ``strength`` 1 is the depth
    itself, 0 a flat map at its mean. The network sees it between ``start`` and ``end``, fractions of the sampling
    steps; outside it sees a flat map.
    """

    depth: Depth
    blur_level: int = 0
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.blur_level, int) or not 0 <= self.blur_level <= MAX_BLUR_LEVEL:
            raise ValueError(
                f"blur_level={self.blur_level} is not one of the levels the network knows; "
                f"give a whole number from 0 (all detail) to {MAX_BLUR_LEVEL} (almost none)."
            )
        if not 0 <= self.strength <= 1:
            raise ValueError(
                f"strength={self.strength} would flip or exaggerate the depth; give 0 (flat) to 1 (the depth itself)."
            )
        if not 0 <= self.start < self.end <= 1:
            raise ValueError(
                f"start={self.start}, end={self.end} leaves no step between them; "
                "give fractions of the sampling with 0 <= start < end <= 1."
            )


def range_of(raw: RawDepth) -> DepthRange:
    """Percentiles 1 and 99 over all frames of a clip: a few wild pixels do not squeeze the rest.

    Of a huge clip a regular sample of the pixels is taken.
    """
    values = rearrange(raw.float(), "n 1 h w -> (n h w)")
    if not torch.isfinite(values).all():
        raise ValueError(
            f"the depth of {len(raw)} frames holds NaN or infinity, so it has no range; "
            "run the depth estimator in float32, or check its weights."
        )
    values = values[:: _sample_step(len(values), width=raw.shape[-1])]
    low, high = torch.quantile(values, values.new_tensor([LOW_PERCENTILE, HIGH_PERCENTILE])).tolist()
    return DepthRange(low=low, high=high)


def scale_depth(raw: Float[Tensor, "*axes"], depth_range: DepthRange) -> Float[Tensor, "*axes"]:
    """Raw depth to 0..1 with near 1, clipped; where the range is one value (a wall), zeros.

    Works pixel by pixel, so chunks scaled with the clip's range are exactly the parts of the whole.
    """
    if depth_range.low == depth_range.high:
        return torch.zeros_like(raw)
    return ((raw - depth_range.low) / (depth_range.high - depth_range.low)).clamp(0, 1)


def save_depth(path: Path, depth: Depth, depth_range: DepthRange) -> None:
    """Scaled depth with the range it was scaled by, as safetensors; whole or not at all."""
    path = Path(path)
    metadata = {"kind": "depth map", **{name: repr(value) for name, value in asdict(depth_range).items()}}
    with whole(path, also=(SafetensorError,)) as part:
        save_file({"depth": depth.detach().cpu().contiguous()}, part, metadata=metadata)


def load_depth(path: Path) -> tuple[Depth, DepthRange]:
    """What save_depth wrote."""
    try:
        with safe_open(Path(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            depth = file.get_tensor("depth").clone()  # a mapped file could not be replaced on Windows
        return depth, DepthRange(low=float(metadata["low"]), high=float(metadata["high"]))
    except (OSError, SafetensorError, KeyError) as error:
        raise ValueError(
            f"{path} does not hold a depth map with its range ({error}); give a file that save_depth wrote."
        ) from error


def near_size(height: int, width: int, *, short_side: int, multiple: int) -> tuple[int, int]:
    """The height and width near ``short_side`` that keep the aspect as well as multiples allow."""
    scale = short_side / min(height, width)
    high, wide = (max(1, round(side * scale / multiple)) * multiple for side in (height, width))
    return high, wide


REFINEMENT_WINDOW = 0.1
"""Side of the guided filter's window, as a fraction of the short side that the network was trained at."""

REFINEMENT_SMOOTHING = 3e-3
"""Variance of colours 0..1 in a window below which a picture has no edge there."""


def network_estimator(net: DepthNet) -> DepthEstimator:
    """The embedded model's depth network on images of any size: brought near its training size, refined, and back."""
    weight = net.out.weight

    def estimate(images: Images) -> RawDepth:
        height, width = images.shape[-2:]
        sizes = near_size(height, width, short_side=net.config.train_size, multiple=net.config.multiple)
        small = resize(images.to(weight.device, torch.float32), height=sizes[0], width=sizes[1])
        with torch.no_grad():
            raw = net(small.to(weight.dtype)).float()
        return resize_raw(refine(raw, small, short_side=net.config.train_size), height=height, width=width)

    return estimate


def refine(raw: RawDepth, images: Images, *, short_side: int) -> RawDepth:
    """Depth whose edges are the picture's: in each window it is a linear function of the colours (He et al. 2010).

    A small network finds the bodies but not their outlines. What the picture shows without an edge in depth, texture,
    is left to the smoothing; ``short_side`` in pixels is what the window is measured by.
    """
    window = round(REFINEMENT_WINDOW * short_side) // 2 * 2 + 1
    return guided_blur(images, raw, window, REFINEMENT_SMOOTHING, border_type="replicate")


def resize_raw(raw: RawDepth, *, height: int, width: int) -> Float[Tensor, "n 1 height width"]:
    """Raw depth at another size, bicubic as in MiDaS; its values have no bounds, so nothing is clipped."""
    return F.interpolate(raw.float(), size=(height, width), mode="bicubic", align_corners=False)


def _sample_step(count: int, *, width: int) -> int:
    """Every how many values one is looked at; never in step with the rows, which would miss columns."""
    step = -(-count // _SAMPLES)
    while math.gcd(step, width) > 1:
        step += 1
    return step
