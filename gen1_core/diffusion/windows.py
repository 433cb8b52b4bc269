"""Clips longer than the network was trained on: overlapping windows, each with its own frames' condition."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..tensors import Latents
from .condition import Condition, Denoiser


def require_windows(length: int, overlap: int) -> None:
    """Refuse windows that would not get anywhere."""
    if length < 1:
        raise ValueError(f"length={length} is no window; use at least 1, best the length the model was trained on.")
    if not 0 <= overlap < length:
        raise ValueError(
            f"overlap={overlap} must be smaller than length={length} and not negative, or windows would not "
            f"move; use 0 to {length - 1}."
        )


def plan(frames: int, length: int, overlap: int) -> list[range]:
    """The frames of each window: all of one length, the last one moved back so that it ends with the clip.

    A clip no longer than one window is one window.
    """
    require_windows(length, overlap)
    if frames <= length:
        return [range(frames)]
    starts = [*range(0, frames - length, length - overlap), frames - length]
    return [range(first, first + length) for first in starts]


def blend_weights(windows: Sequence[range], frames: int, device: torch.device) -> list[Float[Tensor, " _"]]:
    """What each window counts for at its frames: a pyramid, so that seams fade; all windows sum to 1.

    Made on the device: copying them there would make every step wait.
    """
    pyramids = [_pyramid(len(window), device) for window in windows]
    total = torch.zeros(frames, device=device)
    for window, pyramid in zip(windows, pyramids, strict=True):
        total[window.start : window.stop] += pyramid
    return [pyramid / total[window.start : window.stop] for window, pyramid in zip(windows, pyramids, strict=True)]


def _pyramid(length: int, device: torch.device) -> Float[Tensor, " k"]:
    """1, 2, 3, 3, 2, 1: a frame counts by its distance from the window's ends."""
    up = torch.arange(1, length + 1, device=device, dtype=torch.float32)
    return torch.minimum(up, up.flip(0))


def windowed(denoise: Denoiser, *, length: int, overlap: int) -> Denoiser:
    """A Denoiser for clips of any length out of one for ``length`` frames; one that fits is one plain call.

    Put it next to the network, inside guidance and masks: those hold tensors of the whole clip.
    """
    require_windows(length, overlap)

    def denoise_windows(x: Latents, sigma: float, conditions: Sequence[Condition]) -> list[Latents]:
        windows = plan(x.shape[2], length, overlap)
        if len(windows) == 1:
            return denoise(x, sigma, conditions)
        blended = [torch.zeros_like(x) for _ in conditions]
        weights = blend_weights(windows, x.shape[2], x.device)
        for window, weight in zip(windows, weights, strict=True):
            at = slice(window.start, window.stop)
            frames = torch.arange(window.start, window.stop, device=x.device)
            clean = denoise(x[:, :, at], sigma, [condition.frames(frames) for condition in conditions])
            for whole, part in zip(blended, clean, strict=True):
                whole[:, :, at] += weight[:, None, None].to(x.dtype) * part
        return blended

    return denoise_windows
