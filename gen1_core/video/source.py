"""What is known about a clip before its first frame is read, whatever kind of file it comes from."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

Pixels = UInt8[np.ndarray, "h w 3"]
"""One frame, RGB, as it lies in memory after decoding."""

ReadFrames = Callable[[Sequence[int], int, int], Generator[Pixels, None, None]]
"""``(rising frame numbers, width, height) -> those frames at that size``; opens the file anew and closes it.
"""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A clip on disk: upright size, the time of every frame in seconds of the file's own clock, and how to
    read it.
    """

    path: Path
    width: int
    height: int
    time_stamps: tuple[Fraction, ...]
    frame_rate: Fraction
    read_frames: ReadFrames
    pixel_aspect: Fraction = Fraction(1)
    has_audio: bool = False
    notes: tuple[str, ...] = ()


def damaged(path: Path, why: str) -> ValueError:
    """The error for a file that was a video once."""
    return ValueError(
        f"{path} is damaged or was cut short: {why}; copy or download it again, or repair it with "
        f"`ffmpeg -i IN -c:v libx264 OUT.mp4`."
    )


def not_a_video(path: Path, why: str) -> ValueError:
    """The error for a file that holds no moving picture."""
    return ValueError(
        f"{path} is not a video that can be read: {why}; give an MP4, MOV, MKV or WebM file, an animated GIF "
        f"or WebP, or a folder of pictures."
    )
