"""A container's video stream as upright RGB frames: PyAV in, `Source` out."""

from bisect import bisect_left
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from math import cos, radians, sin
from pathlib import Path
from struct import unpack

import av
import numpy as np
from av.codec import CodecContext
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

from .index import FrameIndex, fraction, index_frames
from .source import Pixels, Source, damaged, not_a_video
from .timing import steady

DECODER_THREADS = 2
"""Every further thread holds frames of its own; two keep memory flat and decode 720p faster than any model
edits.
"""

SCALING = 0x4 | 0x2000 | 0x4000 | 0x40000
"""swscale's flags: bicubic, chroma at full width on both sides, accurate rounding."""

UNSPECIFIED = 2
HD_WIDTH, SD_HEIGHT = 1280, 576
"""Untagged video is BT.709 from this size on and BT.601 below, as players take it."""

HDR_CURVES = {16: "PQ", 18: "HLG"}
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""ffmpeg's own decoders for these drop the alpha plane; libvpx keeps it."""

NO_PICTURES = frozenset(("tty", "lavfi", "srt", "ass", "webvtt"))
"""ffmpeg draws any text file as a video; that is not what anyone who gives one means."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """From stored to upright: swap the axes first, then mirror."""

    swap: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    def apply(self, pixels: Pixels) -> UInt8[np.ndarray, "y x 3"]:
        """The upright frame."""
        if self.swap:
            pixels = pixels.swapaxes(0, 1)
        return pixels[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]


def open_stream(path: Path) -> Source:
    """Look through a video file: every frame's time, and from the first frame its size, rotation, alpha and
    colours.
    """
    with open_input(path) as container:
        stream = _video_stream(container, path)
        index = index_frames(container, stream, path)
        has_audio = bool(container.streams.audio)
        rates = [stream.average_rate, stream.guessed_rate, stream.base_rate]
        stated = [fraction(rate) for rate in rates if rate]
        aspect = fraction(stream.sample_aspect_ratio) if stream.sample_aspect_ratio else Fraction(1)
    if not index.pts:
        raise not_a_video(path, "it holds zero frames")
    first = _first_frame(path, index)
    times, frame_rate = _times(index, stated)
    turn = turn_of(first)
    width, height = (first.height, first.width) if turn.swap else (first.width, first.height)

    def read_frames(numbers: Sequence[int], width: int, height: int) -> Generator[Pixels, None, None]:
        return _read(path, index, turn, numbers, width, height)

    return Source(
        path=path,
        width=width,
        height=height,
        time_stamps=times,
        frame_rate=frame_rate,
        read_frames=read_frames,
        pixel_aspect=1 / aspect if turn.swap else aspect,
        has_audio=has_audio,
        notes=tuple(_notes(first)),
    )


def open_input(path: Path) -> InputContainer:
    """Open a media file for reading; the protocol is named so that no character of a file name is taken for
    one.
    """
    try:
        return av.open(f"file:{path}", "r", metadata_errors="replace")
    except FFmpegError as error:
        with path.open("rb") as file:
            head = file.read(12)
        if head[4:8] == b"ftyp":
            raise damaged(path, "it ends before its index (moov)") from error
        raise not_a_video(path, f"ffmpeg cannot open it ({error.strerror})") from error


def turn_of(frame: VideoFrame) -> Turn:
    """The display matrix of a frame (phones store what their sensor saw, and this beside it) as mirrors and a
    swap.
    """
    a, b, c, d = _display_matrix(frame)
    if abs(b) > abs(a):
        return Turn(swap=True, mirror_x=c < 0, mirror_y=b < 0)
    return Turn(mirror_x=a < 0, mirror_y=d < 0)


def _display_matrix(frame: VideoFrame) -> tuple[float, float, float, float]:
    """a, b, c, d of x' = a x + c y, y' = b x + d y (ISO 14496-12, 8.3.2)."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # the frame carries a kind of side data that PyAV does not know
        angle = radians(-frame.rotation)
        return cos(angle), sin(angle), -sin(angle), cos(angle)
    if matrix is None:
        return 1.0, 0.0, 0.0, 1.0
    a, b, _, c, d = (float(entry) for entry in unpack("=5i", bytes(matrix)[:20]))
    return a, b, c, d


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if container.format.name in NO_PICTURES or not moving:
        raise not_a_video(path, f"it is {container.format.long_name} without moving pictures")
    if moving[0].codec_context is None:
        raise not_a_video(path, "this ffmpeg has no decoder for its pictures")
    moving[0].codec_context.thread_count = DECODER_THREADS
    moving[0].codec_context.thread_type = "AUTO"
    return moving[0]


def _first_frame(path: Path, index: FrameIndex) -> VideoFrame:
    with closing(_decode(path, index, 0)) as frames:
        try:
            for _, frame in frames:
                return frame
        except FFmpegError as error:
            raise damaged(path, f"its first frame cannot be decoded ({error.strerror})") from error
    raise damaged(path, "its first frame cannot be decoded")


def _times(index: FrameIndex, stated: list[Fraction]) -> tuple[tuple[Fraction, ...], Fraction]:
    times = [pts * index.tick for pts in index.pts]
    if len(times) == 1:
        return tuple(times), stated[0] if stated else Fraction(25)
    return steady(times, index.tick, [*stated, 1 / (times[1] - times[0])])


def _notes(frame: VideoFrame) -> Iterator[str]:
    if _has_alpha(frame):
        yield "The source is transparent in places; it was laid over black."
    if int(frame.color_trc) in HDR_CURVES:
        curve = HDR_CURVES[int(frame.color_trc)]
        yield f"The source is HDR ({curve}), read without tone mapping: colours look flat; make it SDR first."
    if frame.interlaced_frame:
        yield "The source is interlaced: moving edges show combs; deinterlace it first."


def _has_alpha(frame: VideoFrame) -> bool:
    return any(component.is_alpha for component in frame.format.components)


def _decode(path: Path, index: FrameIndex, first: int) -> Generator[tuple[int, VideoFrame], None, None]:
    """Decoded frames with their numbers, beginning at or before ``first``: at its key frame where packets
    gave the index.
    """
    with open_input(path) as container:
        stream = _video_stream(container, path)
        if index.seekable and first > 0:
            container.seek(index.pts[first], stream=stream, backward=True)
        for count, frame in enumerate(_frames(container, stream)):
            if not index.seekable:
                yield count, frame
                continue
            number = bisect_left(index.pts, frame.pts if frame.pts is not None else -1)
            if number < len(index.pts) and index.pts[number] == frame.pts:
                yield number, frame


def _frames(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    decode = stream.decode
    name = ALPHA_DECODERS.get(stream.codec_context.codec.canonical_name)
    if name in av.codecs_available and stream.metadata.get("alpha_mode") == "1":
        with_alpha = CodecContext.create(name, "r", None)
        if isinstance(with_alpha, VideoCodecContext):
            with_alpha.thread_count = DECODER_THREADS
            decode = with_alpha.decode
    for packet in container.demux(stream):
        yield from decode(packet)
        if packet.size == 0:
            return


def _read(
    path: Path, index: FrameIndex, turn: Turn, numbers: Sequence[int], width: int, height: int
) -> Generator[Pixels, None, None]:
    """The frames ``numbers``, upright, at ``width`` x ``height``."""
    stored = (height, width) if turn.swap else (width, height)
    reformatter, wanted = VideoReformatter(), 0
    with closing(_decode(path, index, numbers[0])) as frames:
        try:
            for number, frame in frames:
                if number > numbers[wanted]:
                    break
                if number == numbers[wanted]:
                    yield turn.apply(_to_rgb(reformatter, frame, *stored))
                    wanted += 1
                if wanted == len(numbers):
                    return
        except FFmpegError as error:
            raise damaged(path, f"frame {numbers[wanted]} cannot be decoded ({error.strerror})") from error
    raise damaged(path, f"frame {numbers[wanted]} of {len(index.pts)} is missing")


def _to_rgb(reformatter: VideoReformatter, frame: VideoFrame, width: int, height: int) -> Pixels:
    """RGB bytes by the frame's own matrix and range; transparency over black."""
    alpha = _has_alpha(frame)
    matrix = frame.colorspace
    if int(matrix) == UNSPECIFIED:
        high = frame.width >= HD_WIDTH or frame.height > SD_HEIGHT
        matrix = Colorspace.ITU709 if high else Colorspace.ITU601
    rgb = reformatter.reformat(
        frame,
        width=width,
        height=height,
        format="rgba" if alpha else "rgb24",
        src_colorspace=int(matrix),
        dst_colorspace=int(matrix),
        src_color_range=int(frame.color_range),
        dst_color_range=ColorRange.JPEG,
        interpolation=SCALING,
    )
    pixels = rgb.to_ndarray()
    return over_black(pixels) if alpha else pixels


def over_black(rgba: np.ndarray) -> Pixels:
    """Straight alpha composited over black, rounded to nearest."""
    product = rgba[..., :3].astype(np.uint16) * rgba[..., 3:]
    return ((product + 127) // 255).astype(np.uint8)
