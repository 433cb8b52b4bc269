"""Sizes and the way between them: source, working size, padded for the network, and back to exactly the source.

A model edits at its preset's short side. The frame is resampled to that, padded at the right and at the bottom to what
the network can divide, and on the way back cropped and resampled, so that any size, odd ones too, comes out as it went
in.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SMALLEST_SIDE = 8
"""Below this a source has no structure to keep."""

LONGEST_ASPECT = 8
"""Of a longer strip the short side alone would set the size, and the long one fill any memory."""


@dataclass(frozen=True, kw_only=True)
class WorkingSize:
    """``width`` x ``height`` is the frame at working size, ``padded_width`` x ``padded_height`` what networks get."""

    width: int
    height: int
    padded_width: int
    padded_height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, padded to {self.padded_width}x{self.padded_height}"


def working_size(width: int, height: int, *, short_side: int, multiple: int) -> WorkingSize:
    """The size a source is edited at: aspect kept, short side ``short_side``, padded to ``multiple``.

    Raises ValueError for a source that is too small or too long a strip.
    """
    if min(width, height) < SMALLEST_SIDE:
        raise ValueError(
            f"the frames are {width}x{height}, but a side under {SMALLEST_SIDE} pixels holds no structure to "
            f"keep; use a larger source, or enlarge it first."
        )
    if max(width, height) > LONGEST_ASPECT * min(width, height):
        raise ValueError(
            f"the frames are {width}x{height}, a strip longer than {LONGEST_ASPECT}:1, which at a short side of "
            f"{short_side} pixels has too many for any memory; crop the clip to {LONGEST_ASPECT}:1 or less first."
        )
    if short_side < multiple:
        raise ValueError(
            f"short_side={short_side} is smaller than multiple={multiple}, the least the network can divide; "
            f"raise short_side to {multiple} or more."
        )
    scale = short_side / min(width, height)
    inner_width, inner_height = max(1, round(width * scale)), max(1, round(height * scale))
    return WorkingSize(
        width=inner_width,
        height=inner_height,
        padded_width=next_multiple(inner_width, multiple),
        padded_height=next_multiple(inner_height, multiple),
    )


def next_multiple(length: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is at least ``length``."""
    return -(-length // multiple) * multiple


def fit_within(width: int, height: int, max_size: int) -> tuple[int, int]:
    """The size with the same aspect whose longer side is at most ``max_size``; 0 keeps, and nothing is enlarged."""
    longer = max(width, height)
    if max_size == 0 or longer <= max_size:
        return width, height
    return max(1, round(width * max_size / longer)), max(1, round(height * max_size / longer))


def resize(images: Float[Tensor, "n c h w"], *, width: int, height: int) -> Float[Tensor, "n c height width"]:
    """Images, masks or depth in 0..1 at another size: antialiased bicubic, kept within 0..1."""
    if images.shape[-2:] == (height, width):
        return images
    sized = F.interpolate(images, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return sized.clamp(0, 1)


def pad(images: Float[Tensor, "n c h w"], *, width: int, height: int) -> Float[Tensor, "n c height width"]:
    """Repeat the last column and row until the size is reached: no edge appears that a network would draw."""
    right, bottom = width - images.shape[-1], height - images.shape[-2]
    if right == 0 and bottom == 0:
        return images
    return F.pad(images, (0, right, 0, bottom), mode="replicate")


def crop(images: Float[Tensor, "n c h w"], *, width: int, height: int) -> Float[Tensor, "n c height width"]:
    """Undo `pad`: the upper left part."""
    return images[..., :height, :width]


def to_working(images: Float[Tensor, "n c h w"], size: WorkingSize) -> Float[Tensor, "n c ph pw"]:
    """Source frames, masks or depth as the network gets them: resampled, then padded."""
    inner = resize(images, width=size.width, height=size.height)
    return pad(inner, width=size.padded_width, height=size.padded_height)


def from_working(
    images: Float[Tensor, "n c ph pw"], size: WorkingSize, *, width: int, height: int
) -> Float[Tensor, "n c height width"]:
    """What the network made, at the source's size again: cropped, then resampled."""
    return resize(crop(images, width=size.width, height=size.height), width=width, height=height)
