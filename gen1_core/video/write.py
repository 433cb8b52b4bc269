"""Frames into a video file as they come: H.264 with BT.709 tags, sound taken along, all or nothing.

The file is written beside its target under another name and moved into place when it is whole, so that an
error, a full disk or Ctrl-C leaves what was there before, and never half a video.
"""

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from fractions import Fraction
from math import inf
from os import replace
from pathlib import Path
from types import TracebackType

import av
from av.container import OutputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8
from torch import Tensor

from .audio import AudioFeed, AudioTrack, whole_track
from .h264 import clock, h264_stream, is_steady, open_output, pixel_format, to_yuv
from .read import Video

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
Chunk = UInt8[Tensor, "_ 3 _ _"]
"""Some frames of the stream: chunks may differ in length, so no axis is named."""

ODD_SIZE = (
    "{width}x{height} is odd, which H.264 cannot hold with halved colour (yuv420p): it was written as "
    "yuv444p, which some players (Safari, QuickTime, Firefox) refuse; an even size plays everywhere."
)


def write_video(
    path: str | Path,
    chunks: Iterable[Chunk],
    *,
    frame_rate: Fraction,
    time_stamps: Sequence[Fraction] | None = None,
    audio_from: Video | AudioTrack | Path | None = None,
    crf: float = 18.0,
    metadata: Mapping[str, str] | None = None,
    pixel_aspect: Fraction = Fraction(1),
) -> list[str]:
    """Write ``chunks`` as `VideoWriter` does; return its notes on what a person may want to know."""
    with VideoWriter(
        path,
        frame_rate=frame_rate,
        time_stamps=time_stamps,
        audio_from=audio_from,
        crf=crf,
        metadata=metadata,
        pixel_aspect=pixel_aspect,
    ) as writer:
        for chunk in chunks:
            writer.add(chunk)
    return writer.notes


class VideoWriter(AbstractContextManager["VideoWriter"]):
    """An .mp4, .mov or .mkv file being written; it appears when the ``with`` block ends without an error.

    Without ``time_stamps`` the rate is constant; with them, one for each frame, it may vary. ``crf`` is
    x264's quality: 0 is lossless, 18 hardly visible, 51 worst. The size is that of the first chunk.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        frame_rate: Fraction,
        time_stamps: Sequence[Fraction] | None = None,
        audio_from: Video | AudioTrack | Path | None = None,
        crf: float = 18.0,
        metadata: Mapping[str, str] | None = None,
        pixel_aspect: Fraction = Fraction(1),
    ) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        self._rate, self._crf, self._pixel_aspect = frame_rate, crf, pixel_aspect
        self._stamps = time_stamps
        _check(self.path, frame_rate=frame_rate, time_stamps=time_stamps, crf=crf)
        self._track = _track(audio_from)
        self._metadata = dict(metadata or {})
        self._part = self.path.with_name(f".gen1-{secrets.token_hex(6)}.part")
        self._output: OutputContainer | None = None
        self._audio: AudioFeed | None = None
        self._durations: dict[int, int] = {}
        self._written = 0
        self._tick = clock(frame_rate, time_stamps)
        self._reformatter = VideoReformatter()

    def __enter__(self) -> "VideoWriter":
        with _blaming(self.path):  # a target that cannot be written shows now, not after the work is done
            self._part.touch()
        return self

    def add(self, frames: Chunk) -> None:
        """Encode some frames."""
        if self._output is None and len(frames):
            self._begin(width=frames.shape[-1], height=frames.shape[-2])
        for frame in frames:
            _check_size(frame, self._video.width, self._video.height, self._written)
            with _blaming(self.path):
                self._mux(self._video.encode(self._frame(frame)))
            self._written += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._close()
            self._part.unlink(missing_ok=True)

    def _begin(self, *, width: int, height: int) -> None:
        with _blaming(self.path):
            self._output = open_output(self._part, CONTAINERS[self.path.suffix.lower()], self._metadata)
        self._video = h264_stream(
            self._output,
            width,
            height,
            frame_rate=self._rate,
            tick=self._tick,
            varying=self._stamps is not None and not is_steady(self._stamps, self._rate),
            crf=self._crf,
        )
        self._video.codec_context.sample_aspect_ratio = self._pixel_aspect
        if pixel_format(width, height) != "yuv420p":
            self.notes.append(ODD_SIZE.format(width=width, height=height))
        if self._track is not None:
            self._audio = AudioFeed(self._output, self._track)
            self.notes += self._audio.notes

    def _frame(self, pixels: UInt8[Tensor, "3 h w"]) -> VideoFrame:
        """One frame as the encoder takes it: converted by the matrix that its tags name, at its time."""
        height, width = pixels.shape[-2:]
        frame = to_yuv(self._reformatter, pixels, pixel_format(width, height))
        frame.time_base = self._tick
        frame.pts = self._pts(self._written)
        self._durations[frame.pts] = max(1, self._pts(self._written + 1) - frame.pts)
        return frame

    def _pts(self, number: int) -> int:
        if self._stamps is None:
            return round(number / self._rate / self._tick)
        beyond = number - len(self._stamps) + 1
        if beyond <= 0:
            return round(self._stamps[number] / self._tick)
        return round((self._stamps[-1] + beyond / self._rate) / self._tick)

    def _mux(self, packets: list[av.Packet]) -> None:
        if self._output is None:
            return
        for packet in packets:
            if packet.pts is None or packet.dts is None:
                continue
            packet.duration = self._durations.pop(packet.pts, 1)
            if self._audio is not None:
                self._audio.mux_until(float(packet.dts * self._tick))
            self._output.mux(packet)

    def _finish(self) -> None:
        """Flush, close and move into place."""
        if self._output is None:
            raise ValueError(f"zero frames were given for {self.path}, and a video needs one; give at least one frame.")
        if self._stamps is not None and self._written != len(self._stamps):
            raise ValueError(
                f"{self._written} frames and {len(self._stamps)} time stamps were given for {self.path}, and "
                f"every frame needs its own; give as many of one as of the other."
            )
        with _blaming(self.path):
            self._mux(self._video.encode(None))
            if self._audio is not None:
                self._audio.mux_until(inf)
                # The source may be the target, and Windows cannot replace a file that is open.
                self._audio.close()
            self._output.close()
            replace(self._part, self.path)

    def _close(self) -> None:
        if self._audio is not None:
            self._audio.close()
        if self._output is not None:
            # Only a failed file is still open here; that its end cannot be written either is no news.
            with suppress(OSError, FFmpegError):
                self._output.close()


def _check(path: Path, *, frame_rate: Fraction, time_stamps: Sequence[Fraction] | None, crf: float) -> None:
    if path.suffix.lower() not in CONTAINERS:
        raise ValueError(
            f"{path} ends in {path.suffix or 'nothing'!r}, which is no container for H.264 here; "
            f"choose a name that ends in {', '.join(CONTAINERS)}."
        )
    if path.is_dir():
        raise ValueError(f"{path} is a folder, and a video is one file; choose another name.")
    if frame_rate <= 0:
        raise ValueError(f"frame_rate={frame_rate} would never show a frame; choose a rate above 0.")
    if not 0 <= crf <= 51:
        raise ValueError(f"crf={crf:g} is outside x264's scale; choose 0 (lossless) to 51 (worst), 18 is a good start.")
    if time_stamps is not None and any(b <= a for a, b in zip(time_stamps, time_stamps[1:], strict=False)):
        raise ValueError(
            "time_stamps stand still or run back, and each frame is shown after the one before; sort them "
            "and drop repeated ones."
        )


def _track(audio_from: Video | AudioTrack | Path | None) -> AudioTrack | None:
    if isinstance(audio_from, Video):
        return audio_from.audio
    return whole_track(audio_from) if isinstance(audio_from, Path) else audio_from


def _check_size(frame: UInt8[Tensor, "3 h w"], width: int, height: int, number: int) -> None:
    if frame.shape[-2:] != (height, width):
        raise ValueError(
            f"frame {number} is {frame.shape[-1]}x{frame.shape[-2]} and the first one {width}x{height}, but "
            f"the frames of a video share one size; resize them before writing."
        )


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Say which file could not be written, and what to do."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{path} could not be written: {error.strerror}. Nothing that was there has changed; free disk "
            f"space, or choose a folder that exists and may be written to."
        ) from error
