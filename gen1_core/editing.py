"""Masks as pure functions: where the edit goes (1) and where the source stays (0)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jaxtyping import Float, UInt8
from kornia.filters import gaussian_blur2d
from torch import Tensor
from torch.nn import functional as F

from .tensors import Bytes, to_bytes, to_float
from .video.clip import Clip, each_frame, rechunk

Mask = Float[Tensor, "n 1 h w"]
"""0..1, 1 edit, 0 keep the source."""


@dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """How a mask is prepared, in pixels of the source clip.

    ``grow_px`` widens the edited part (negative: narrows it), ``feather_px`` softens its edge (standard deviation of
    a Gaussian), ``invert`` swaps what is edited and what is kept.
    """

    grow_px: int = 0
    feather_px: float = 2.0
    invert: bool = False

    def __post_init__(self) -> None:
        if self.feather_px < 0:
            raise ValueError(
                f"feather_px={self.feather_px} is negative, but it is the width of a blur; give 0 for a hard edge."
            )


DEFAULT_MASK = MaskOptions()


def grow(mask: Mask, pixels: int) -> Mask:
    """Dilate by ``pixels`` (square neighbourhood); a negative number erodes."""
    if pixels == 0:
        return mask
    reach = abs(pixels)
    size = 2 * reach + 1
    # A square's maximum is that of its rows' maxima, which costs a row and a column per pixel instead of the square.
    rows = F.max_pool2d(mask if pixels > 0 else -mask, (1, size), stride=1, padding=(0, reach))
    pooled = F.max_pool2d(rows, (size, 1), stride=1, padding=(reach, 0))
    return pooled if pixels > 0 else -pooled


def feather(mask: Mask, sigma_px: float) -> Mask:
    """Gaussian blur of the edge; 0 leaves the mask as it is."""
    if sigma_px == 0:
        return mask
    radius = min(int(3 * sigma_px + 0.5), min(mask.shape[-2:]) - 1)
    size = 2 * max(radius, 1) + 1
    return gaussian_blur2d(mask, (size, size), (sigma_px, sigma_px), border_type="replicate")


def mask_from_frames(frames: Bytes, options: MaskOptions) -> Mask:
    """White edits, black keeps: mean of the colours, then invert, grow and feather, in this order."""
    mask = to_float(frames).mean(dim=1, keepdim=True)
    if options.invert:
        mask = 1 - mask
    return feather(grow(mask, options.grow_px), options.feather_px).clamp(0, 1)


def composite(edited: Bytes, source: Bytes, mask: Mask) -> Bytes:
    """mask * edited + (1 - mask) * source; where the mask is 0 the source's bytes come through unchanged."""
    return to_bytes(mask * to_float(edited) + (1 - mask) * to_float(source))


def check_mask(mask: Clip, num_frames: int) -> None:
    """Reads nothing: raises ValueError where the mask has neither one picture nor one for every frame of the clip."""
    if mask.num_frames not in (1, num_frames):
        raise ValueError(
            f"the mask has {mask.num_frames} frames and the clip {num_frames}, so they cannot be matched; "
            "give one mask picture, or a mask video of the same length."
        )


def mask_chunks(mask: Clip, like: Clip, length: int, options: MaskOptions = DEFAULT_MASK) -> Iterator[Mask]:
    """The prepared mask of a clip in chunks, at the clip's own size; a single picture is prepared once for all frames.

    Raises ValueError as ``check_mask`` does.
    """
    check_mask(mask, like.num_frames)
    if mask.num_frames == 1:
        single = mask_from_frames(_at_size_of(like, next(each_frame(mask))[None]), options)
        for first in range(0, like.num_frames, length):
            yield single.expand(min(length, like.num_frames - first), -1, -1, -1)
    else:
        for chunk in rechunk(mask, length):
            yield mask_from_frames(_at_size_of(like, chunk), options)


def keep_background(
    edited: Iterable[Bytes], source: Clip, mask: Clip, options: MaskOptions = DEFAULT_MASK, *, length: int = 8
) -> Iterator[Bytes]:
    """The edited clip inside the mask, the source outside it, streamed; all three are read once, side by side."""
    streams = zip(
        rechunk(edited, length),
        rechunk(source, length),
        mask_chunks(mask, source, length, options),
        strict=True,
    )
    for new, old, where in streams:
        yield composite(new, old, where)


def latent_mask(mask: Mask, size: tuple[int, int]) -> Float[Tensor, "n 1 a b"]:
    """The mask at latent resolution ``size`` (h, w): a latent cell is edited as soon as any of its pixels is."""
    return F.adaptive_max_pool2d(mask, size)


def _at_size_of(like: Clip, frames: Bytes) -> UInt8[Tensor, "n 3 height width"]:
    if frames.shape[-2:] == (like.height, like.width):
        return frames
    return to_bytes(F.interpolate(to_float(frames), (like.height, like.width), mode="bilinear", antialias=True))
