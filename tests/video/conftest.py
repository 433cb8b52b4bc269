"""Clips of every kind, made with PyAV alone, so that our writer cannot hide our reader's faults."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame

SAMPLE_RATE = 48000
CLICK_S = 0.5


@pytest.fixture(scope="session")
def moving() -> Callable[..., torch.Tensor]:
    """Frames ``[n 3 h w]``: smooth gradients, a bar that moves, and a blue of its own for each frame."""

    def make(frames: int, height: int, width: int) -> torch.Tensor:
        across = torch.linspace(0, 200, width).expand(height, width)
        down = torch.linspace(0, 200, height)[:, None].expand(height, width)
        clip = torch.stack([torch.stack([across, down, torch.full_like(down, 6.0 * k)]) for k in range(frames)])
        for k, frame in enumerate(clip):
            frame[:, :, 3 * k % width : 3 * k % width + 8] = 220
        return clip.round().to(torch.uint8)

    return make


@pytest.fixture(scope="session")
def quarters() -> np.ndarray:
    """One frame ``[64 96 3]``: red, green above blue, white."""
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[:32, :48], frame[:32, 48:], frame[32:, :48], frame[32:, 48:] = (
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 255),
    )
    return frame


@pytest.fixture(scope="session")
def encode() -> Callable[..., Path]:
    """Write arrays as they come with any codec; ``pts`` in milliseconds makes the rate vary."""

    def write(
        path: Path,
        frames: Sequence[np.ndarray],
        *,
        codec: str = "libx264",
        pix_fmt: str = "yuv420p",
        array_format: str = "rgb24",
        rate: Fraction = Fraction(25),
        pts: Sequence[int] | None = None,
        options: dict[str, str] | None = None,
        **context: int,
    ) -> Path:
        with av.open(str(path), "w") as output:
            stream = output.add_stream(codec, rate=rate, options=options or {})
            first = VideoFrame.from_ndarray(frames[0], format=array_format)
            stream.width, stream.height, stream.pix_fmt = first.width, first.height, pix_fmt
            for name, value in context.items():
                setattr(stream.codec_context, name, value)
            if pts is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            for k, pixels in enumerate(frames):
                frame = VideoFrame.from_ndarray(pixels, format=array_format)
                if pts is not None:
                    frame.pts, frame.time_base = pts[k], Fraction(1, 1000)
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        return path

    return write


@pytest.fixture(scope="session")
def with_sound() -> Callable[..., Path]:
    """A clip of 64x48 at 25 fps and a second of sound: silence with a click at ``CLICK_S``."""

    def write(path: Path, codec: str, *, seconds: float = 1.0) -> Path:
        sound = np.zeros((1, round(SAMPLE_RATE * seconds)), np.int16)
        sound[0, round(SAMPLE_RATE * CLICK_S) : round(SAMPLE_RATE * CLICK_S) + 240] = 20000
        with av.open(str(path), "w") as output:
            video = output.add_stream("mpeg4" if path.suffix == ".avi" else "libx264", rate=25)
            video.width, video.height = 64, 48
            audio = output.add_stream(codec, rate=SAMPLE_RATE)
            audio.layout = "mono"
            for k in range(round(25 * seconds)):
                picture = VideoFrame.from_ndarray(np.full((48, 64, 3), 5 * k, np.uint8), format="rgb24")
                output.mux(video.encode(picture))
            output.mux(video.encode(None))
            frame = AudioFrame.from_ndarray(sound, format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, 0
            output.mux(audio.encode(frame))
            output.mux(audio.encode(None))
        return path

    return write


@pytest.fixture(scope="session")
def click_at() -> Callable[[Path], float]:
    """When the click sounds, in seconds from the first frame of the video."""

    def find(path: Path) -> float:
        with av.open(str(path)) as container:
            first = next(container.decode(video=0)).time
        with av.open(str(path)) as container:
            for frame in container.decode(audio=0):
                samples = np.abs(frame.to_ndarray().astype(np.float64))
                loud = np.flatnonzero(samples.reshape(-1, samples.shape[-1])[0] > (8000 if samples.max() > 2 else 0.25))
                if len(loud):
                    return frame.time + loud[0] / frame.sample_rate - first
        raise LookupError("nothing was loud")

    return find


@pytest.fixture(scope="session")
def audio_packets() -> Callable[[Path], list[bytes]]:
    """The bytes of every audio packet."""

    def read(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(audio=0) if packet.size]

    return read


@pytest.fixture(scope="session")
def file_size_limit() -> Callable[[int], object]:
    """A full disk, as far as this process can tell: no file may grow beyond so many bytes."""
    resource = pytest.importorskip("resource", reason="limits on file sizes are a Unix thing")

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit
