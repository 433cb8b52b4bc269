"""A clip as a stream of uint8 chunks: never more than one chunk of frames is in memory."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import groupby, islice
from math import inf
from pathlib import Path

import torch
from einops import rearrange

from ..tensors import Bytes
from .audio import AudioTrack
from .decode import open_stream
from .geometry import fit_within
from .pictures import FOLDER_RATE, is_picture, open_folder, open_picture
from .source import Pixels, Source
from .timing import ROUNDING_S, Picks, ReadOptions, pick_frames


@dataclass(frozen=True, kw_only=True)
class Video:
    """A clip looked through once; iterate as often as wanted.

    Each iteration opens the file anew, yields chunks of at most ``chunk`` frames, RGB and upright, and closes
    the file at the end or when the consumer stops. ``width`` and ``height`` are those of the yielded frames;
    ``time_stamps`` count from the first of them; ``notes`` says what was done that a person may want to know.
    """

    source: Source
    picks: Picks
    width: int
    height: int
    chunk: int
    audio: AudioTrack | None
    notes: list[str] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """The file or folder."""
        return self.source.path

    @property
    def num_frames(self) -> int:
        """Exactly as many frames as an iteration yields."""
        return len(self.picks.numbers)

    @property
    def frame_rate(self) -> Fraction:
        """Frames a second; the mean where the rate varies."""
        return self.picks.frame_rate

    @property
    def time_stamps(self) -> tuple[Fraction, ...]:
        """When each frame is shown, in seconds from the first."""
        return self.picks.time_stamps

    @property
    def has_audio(self) -> bool:
        """Whether there is sound to take along (``audio``)."""
        return self.audio is not None

    @property
    def pixel_aspect(self) -> Fraction:
        """Width of a pixel over its height."""
        return self.source.pixel_aspect

    def __iter__(self) -> Generator[Bytes, None, None]:
        with closing(self._pictures()) as pictures:
            left = self.num_frames
            while left:
                chunk = torch.empty(min(left, self.chunk), 3, self.height, self.width, dtype=torch.uint8)
                for frame, pixels in zip(chunk, islice(pictures, len(chunk)), strict=True):
                    # By way of numpy: a mirrored frame has negative strides, which torch does not take.
                    frame.numpy()[...] = rearrange(pixels, "h w c -> c h w")
                yield chunk
                left -= len(chunk)

    def _pictures(self) -> Generator[Pixels, None, None]:
        """Frames in order, repeated where the picks repeat."""
        numbers = sorted(set(self.picks.numbers))
        with closing(self.source.read_frames(numbers, self.width, self.height)) as frames:
            for (_, repeats), pixels in zip(groupby(self.picks.numbers), frames, strict=True):
                yield from (pixels for _ in repeats)


def open_video(
    path: str | Path,
    *,
    start_s: float = 0.0,
    end_s: float = inf,
    stride: int = 1,
    fps: Fraction = Fraction(0),
    max_size: int = 0,
    chunk: int = 16,
) -> Video:
    """Look through a video, an animation, a picture or a folder of pictures; options as in `ReadOptions`.

    A folder has no frame rate of its own: ``fps`` sets it.
    """
    options = ReadOptions(start_s=start_s, end_s=end_s, stride=stride, fps=fps, max_size=max_size)
    if chunk < 1:
        raise ValueError(f"chunk={chunk} frames would never read anything; choose 1 or more.")
    path = Path(path)
    source = _open_source(path, fps)
    picks = pick_frames(source.time_stamps, source.frame_rate, options)
    width, height = fit_within(source.width, source.height, max_size)
    return Video(
        source=source,
        picks=picks,
        width=width,
        height=height,
        chunk=chunk,
        audio=_audio_of(source, picks, options) if source.has_audio else None,
        notes=list(source.notes),
    )


def _open_source(path: Path, fps: Fraction) -> Source:
    if path.is_dir():
        return open_folder(path, rate=fps or FOLDER_RATE)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; check the spelling and the folder (here: {Path.cwd()}).")
    return open_picture(path) if is_picture(path) else open_stream(path)


def _audio_of(source: Source, picks: Picks, options: ReadOptions) -> AudioTrack:
    """The sound of the picked part, on the clock of the file."""
    zero = source.time_stamps[picks.numbers[0]]
    return AudioTrack(
        path=source.path,
        zero=zero,
        start_s=float(zero) - ROUNDING_S if options.start_s > 0 else -inf,
        end_s=float(source.time_stamps[0]) + options.end_s - ROUNDING_S,
    )
