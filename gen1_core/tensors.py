"""The axis letters, the value ranges and the array types of the whole library, and the way between bytes and floats.

Axes: ``b`` batch, ``c`` channels, ``f`` frames, ``h`` height, ``w`` width, ``n`` tokens (or images in a flat batch),
``d`` token width, ``s`` structure channels, ``g`` content frames (1, or ``f`` where content changes over time).

Ranges: bytes are uint8 0..255; images are float 0..1; the autoencoder sees -1..1; depth is 0..1 with 1 near.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

Bytes = UInt8[Tensor, "n 3 h w"]
"""Frames as they are read and written."""

Images = Float[Tensor, "n 3 h w"]
"""Frames as networks other than the autoencoder see them, 0..1."""

Latents = Float[Tensor, "b c f h w"]
"""A clip in the autoencoder's space, normalised to about unit variance."""

Depth = Float[Tensor, "b 1 f h w"]
"""Relative inverse depth, 0..1, 1 is near; one range for the whole clip."""

OnStep = Callable[[str, int, int], None]
"""Progress: stage name, steps done, steps in all. May raise to cancel; nothing is caught."""


OnLatents = Callable[[Latents], None]
"""A look at the clean estimate ``[1 c f h w]`` of a step, in the U-Net's scale: for previews; not to be changed."""


def ignore_progress(stage: str, done: int, total: int) -> None:
    """The OnStep that does nothing."""


def to_float(frames: Bytes) -> Images:
    """Bytes 0..255 to float32 0..1."""
    return frames.to(torch.float32) / 255


def to_bytes(images: Images) -> Bytes:
    """Float 0..1 to bytes, rounded to nearest; values outside are clipped."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
