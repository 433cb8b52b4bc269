"""Which frames of a clip are used, and when they are shown."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor, inf

COARSE_CLOCK = Fraction(1, 8)
"""Beyond this part of a frame, a clock's tick is no rounding error: such times are taken at their word."""


ROUNDING_S = 1e-6
"""0.28 as a float lies beyond 7/25: a frame this close to a bound counts as on it."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Which part of a clip is read, and how large.

    ``start_s`` and ``end_s`` count from the first frame; every ``stride``-th frame of that part is kept with
    its own time; ``fps`` then makes the rate constant (0 keeps it) by dropping or repeating frames;
    ``max_size`` bounds the longer side (0 keeps it).
    """

    start_s: float = 0.0
    end_s: float = inf
    stride: int = 1
    fps: Fraction = Fraction(0)
    max_size: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.start_s < self.end_s:
            raise ValueError(
                f"start_s={self.start_s:g} and end_s={self.end_s:g} leave no time between them; "
                f"choose 0 <= start_s < end_s."
            )
        if self.stride < 1:
            raise ValueError(f"stride={self.stride} would never move on; choose 1 (every frame) or more.")
        if self.fps < 0:
            raise ValueError(f"fps={self.fps} cannot be negative; choose a rate, or 0 to keep the source's.")
        if self.max_size < 0:
            raise ValueError(
                f"max_size={self.max_size} cannot be negative; choose a length in pixels, or 0 to keep it."
            )


@dataclass(frozen=True, kw_only=True)
class Picks:
    """The chosen frame numbers (rising, some repeated by ``fps``), their times from the first, the rate."""

    numbers: tuple[int, ...]
    time_stamps: tuple[Fraction, ...]
    frame_rate: Fraction


def pick_frames(time_stamps: Sequence[Fraction], frame_rate: Fraction, options: ReadOptions) -> Picks:
    """Apply ``start_s``, ``end_s``, ``stride`` and ``fps`` to frames shown at ``time_stamps``."""
    since = [time - time_stamps[0] for time in time_stamps]
    start_s, end_s = options.start_s - ROUNDING_S, options.end_s - ROUNDING_S
    numbers = [k for k, time in enumerate(since) if start_s <= time < end_s][:: options.stride]
    if not numbers:
        raise ValueError(
            f"no frame lies between start_s={options.start_s:g} and end_s={options.end_s:g}: the clip's last "
            f"frame is at {float(since[-1]):.3f} s; lower start_s or raise end_s."
        )
    times, rate = [since[k] - since[numbers[0]] for k in numbers], frame_rate / options.stride
    if options.fps == 0:
        return Picks(numbers=tuple(numbers), time_stamps=tuple(times), frame_rate=rate)
    count = max(1, floor((times[-1] + 1 / rate) * options.fps + Fraction(1, 2)))
    even = tuple(k / options.fps for k in range(count))
    shown = tuple(numbers[bisect_right(times, time) - 1] for time in even)
    return Picks(numbers=shown, time_stamps=even, frame_rate=options.fps)


def steady(
    times: Sequence[Fraction], tick: Fraction, stated: Sequence[Fraction]
) -> tuple[tuple[Fraction, ...], Fraction]:
    """Times without the rounding of a container's clock, and the frame rate.

    Matroska counts in milliseconds, so that 30000/1001 frames a second come back as 33, 34, 33 ms. If every
    frame lies within one tick of a ``stated`` rate, that rate is meant and the exact times are given;
    otherwise the rate varies: the times stay as they are, and the rate is their mean.
    """
    for rate in stated:
        exact = [times[0] + k / rate for k in range(len(times))]
        slack = tick if tick * rate <= COARSE_CLOCK else Fraction(0)
        if all(a == b or abs(a - b) < slack for a, b in zip(times, exact, strict=True)):
            return tuple(exact), rate
    mean = (len(times) - 1) / (times[-1] - times[0])
    return tuple(times), mean.limit_denominator(1001)
