"""How the library encodes: H.264 that plays widely, BT.709 in limited range, times on an exact clock."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import lcm
from pathlib import Path

import av
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from .decode import SCALING

ENCODER_THREADS = 2
LOOKAHEAD = 20
"""Frames x264 looks ahead; its default of 40 costs twice the memory and buys nothing at constant quality."""

REPRODUCIBLE = "cpu-independent=1"
"""The same file on every machine. Without it x264 with AVX-512 gives the same frames another file each time, where a
side is no multiple of 16."""

FINEST_CLOCK, FALLBACK_CLOCK = 1_000_000, 90_000
"""Ticks a second: time stamps whose common denominator is finer than the first are rounded to the second."""

BT709 = 1
"""The number of BT.709 among matrices, primaries and transfer curves alike (ITU-T H.273)."""

STANDARD_KEYS = frozenset(("title", "artist", "album", "comment", "genre", "copyright", "description", "date"))


def clock(frame_rate: Fraction, time_stamps: Sequence[Fraction] | None) -> Fraction:
    """The tick of which every time is a whole number, where it is not too fine."""
    stamps = lcm(*(time.denominator for time in time_stamps or ()))
    # The mean of a varying rate is an odd number, which only the last frame's duration needs.
    for ticks in (lcm(stamps, frame_rate.numerator), stamps):
        if ticks <= FINEST_CLOCK:
            return Fraction(1, ticks)
    return Fraction(1, FALLBACK_CLOCK)


def is_steady(time_stamps: Sequence[Fraction], frame_rate: Fraction) -> bool:
    """Whether the times are exactly those of a constant rate."""
    return all(time == time_stamps[0] + k / frame_rate for k, time in enumerate(time_stamps))


def open_output(part: Path, container: str, metadata: Mapping[str, str]) -> OutputContainer:
    """An empty file of a container that ffmpeg calls ``container``."""
    options = {}
    if container in ("mp4", "mov"):
        # The index goes to the front, so that browsers play while they load; own keys need their own box.
        own_keys = not metadata.keys() <= STANDARD_KEYS
        options["movflags"] = "+faststart+use_metadata_tags" if own_keys else "+faststart"
    output = av.open(f"file:{part}", "w", format=container, options=options)
    output.metadata.update(metadata)
    return output


def pixel_format(width: int, height: int) -> str:
    """Halved colour plays everywhere, but with it H.264 counts and crops in pairs of pixels: odd sizes take 4:4:4."""
    return "yuv420p" if width % 2 == 0 and height % 2 == 0 else "yuv444p"


def h264_stream(
    output: OutputContainer,
    width: int,
    height: int,
    *,
    frame_rate: Fraction,
    tick: Fraction,
    varying: bool,
    crf: float,
) -> VideoStream:
    """A stream for x264."""
    stream = output.add_stream("libx264", rate=frame_rate)
    stream.width, stream.height = width, height
    stream.pix_fmt = pixel_format(width, height)
    stream.time_base = tick
    context = stream.codec_context
    context.time_base = tick
    context.thread_count = ENCODER_THREADS
    context.color_primaries, context.color_trc, context.colorspace = BT709, BT709, BT709
    context.color_range = ColorRange.MPEG
    options = {"crf": f"{crf:g}", "preset": "medium", "rc-lookahead": str(LOOKAHEAD), "x264-params": REPRODUCIBLE}
    if varying:
        # MP4 tells durations in decoding order: only where that is the order of showing are they the frames' own.
        options["bf"] = "0"
    context.options = options
    return stream


def to_yuv(reformatter: VideoReformatter, pixels: UInt8[Tensor, "3 h w"], pix_fmt: str) -> VideoFrame:
    """A frame as the encoder takes it, converted by the matrix and range that its tags name."""
    rgb = rearrange(pixels, "c h w -> h w c").contiguous().cpu().numpy()
    return reformatter.reformat(
        VideoFrame.from_ndarray(rgb, format="rgb24"),
        format=pix_fmt,
        src_colorspace=Colorspace.ITU709,
        dst_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
        interpolation=SCALING,
    )
