"""Part of the adapter: VIDEO and AUDIO of ComfyUI into streams of gen1_core, and back."""

import os
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from io import BytesIO
from math import inf
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import av
import torch
from av.error import FFmpegError
from comfy_api.latest import InputImpl
from einops import rearrange
from torch import Tensor

from ..gen1_core.tensors import Bytes
from ..gen1_core.video.audio import AAC_LAYOUTS, AudioTrack, whole_track
from ..gen1_core.video.clip import Clip
from ..gen1_core.video.geometry import fit_within, resize
from ..gen1_core.video.read import open_video
from ..gen1_core.video.timing import ReadOptions, pick_frames
from ..gen1_core.video.write import write_video
from .host_files import temp_path
from .host_frames import clip_of, image_of, images_of
from .host_progress import check_cancel

NTSC_TOLERANCE = 0.001
"""29.97, 23.976 and 23.98 are what people write for 30000/1001 and 24000/1001."""

PREROLL_S = 1
"""Decoders of sound need what was before to come into step, which a seek leaves out."""

BLOCK = 2**20
"""Samples of AUDIO that are encoded at once: a frame of FFmpeg's holds no more than 2 GB."""


class KeptPath(type(Path())):
    """A file's name that is handed on as itself, so that the file can go with it: see ``kept_path``."""


class FileName(str):
    """A file's name as the core takes one; with it the ``KeptPath`` lives on."""

    def __new__(cls, path: Path) -> "FileName":
        """The same name as text."""
        name = super().__new__(cls, path)
        name.path = path
        return name

    path: Path


_copies: WeakKeyDictionary[Any, Path] = WeakKeyDictionary()
"""Of each VIDEO in memory that was needed as a file."""


def kept_path(suffix: str) -> Path:
    """A new name in the temp folder, whose file is removed when nothing holds this path any more.

    ``Source``, ``AudioTrack`` and the VIDEO of ``video_of`` hold it.
    """
    path = KeptPath(temp_path(suffix))
    weakref.finalize(path, _remove, str(path))
    return path


def _remove(file: str) -> None:
    with suppress(OSError):  # still open somewhere, which Windows does not allow: ComfyUI empties the folder later
        os.unlink(file)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A clip with what belongs to it: rate, time of each frame, sound. ``audio`` is None for a silent one."""

    clip: Clip
    frame_rate: Fraction
    time_stamps: tuple[Fraction, ...] | None = None
    audio: AudioTrack | None = None
    pixel_aspect: Fraction = Fraction(1)
    notes: tuple[str, ...] = ()


def source_of_file(path: Path, *, chunk: int = 8, **options: Any) -> Source:
    """A file as a stream, of which never more than ``chunk`` frames are in memory; ``options``: ``ReadOptions``."""
    video = open_video(path, **options, chunk=chunk)
    if isinstance(path, KeptPath):
        source, audio = replace(video.source, path=path), video.audio and replace(video.audio, path=path)
        video = replace(video, source=source, audio=audio)
    return Source(
        clip=video,
        frame_rate=video.frame_rate,
        time_stamps=video.time_stamps,
        audio=video.audio,
        pixel_aspect=video.pixel_aspect,
        notes=tuple(video.notes),
    )


def source_of_video(video: Any, *, chunk: int = 8, **options: Any) -> Source:
    """VIDEO as a stream of its file; where it has none (frames in memory, a trimmed clip), its frames.

    Our own parts of files are streams already. ``options``: ``ReadOptions``.
    """
    if hasattr(video, "gen1_source"):
        return video.gen1_source(ReadOptions(**options), chunk=chunk)
    path = file_of(video)
    if path is not None:
        return source_of_file(path, chunk=chunk, **options)
    parts = video.get_components()
    return source_of_images(parts.images, frame_rate=parts.frame_rate, audio=parts.audio, chunk=chunk, **options)


def source_of_images(
    image: Tensor,
    *,
    frame_rate: float | Fraction,
    audio: Mapping[str, Any] | None = None,
    chunk: int = 8,
    **options: Any,
) -> Source:
    """IMAGE with a rate and a sound (AUDIO or None); of a part the sound is cut too."""
    rate = frame_rate if isinstance(frame_rate, Fraction) else rate_of(frame_rate)
    clip_of(image)
    wanted = ReadOptions(**options)
    picks = pick_frames(tuple(k / rate for k in range(len(image))), rate, wanted)
    size = fit_within(image.shape[2], image.shape[1], wanted.max_size)
    if len(picks.numbers) != len(image):
        image = image[list(picks.numbers)]
    if size != (image.shape[2], image.shape[1]):
        image = image_of(torch.cat([resize(images_of(one), width=size[0], height=size[1]) for one in image.split(1)]))
    track = None if audio is None else whole_track(sound_file(audio))
    if track is not None:
        zero = picks.numbers[0] / rate
        track = replace(track, zero=zero, start_s=float(zero), end_s=wanted.end_s)
    return Source(clip=clip_of(image, chunk=chunk), frame_rate=picks.frame_rate, audio=track)


def file_of(video: Any) -> Path | None:
    """The file that a VIDEO streams from, None where its frames have to be asked for.

    A file in memory is laid into the temp folder, once. Newer versions cut a VIDEO without writing a file; that one's
    frames are right and its file is not.
    """
    if not isinstance(video, InputImpl.VideoFromFile):
        return None
    cut = any(getattr(video, f"_VideoFromFile__{name}", 0) for name in ("start_time", "duration"))
    stream = video.get_stream_source()
    if cut:
        return None
    if isinstance(stream, BytesIO):
        if video not in _copies:
            path = kept_path(".video")
            path.write_bytes(stream.getbuffer())
            _copies[video] = path
        return _copies[video]
    return stream.path if isinstance(stream, FileName) else Path(stream)


def write(
    path: Path, chunks: Iterable[Bytes], source: Source, *, metadata: Mapping[str, str] | None = None, crf: float = 18.0
) -> list[str]:
    """Chunks into a video file with the rate, the times and the sound of ``source``; whole or not at all; notes."""
    return write_video(
        path,
        chunks,
        frame_rate=source.frame_rate,
        time_stamps=source.time_stamps,
        audio_from=source.audio,
        crf=crf,
        metadata=metadata,
        pixel_aspect=source.pixel_aspect,
    )


def video_of(path: Path) -> Any:
    """A file as VIDEO."""
    return InputImpl.VideoFromFile(FileName(path))


def rate_of(frame_rate: float) -> Fraction:
    """A FLOAT as the exact rate it stands for: 29.97 is 30000/1001, 24.0 is 24.

    Raises ValueError where it is no rate.
    """
    if not 0 < frame_rate < inf:
        raise ValueError(f"frame_rate={frame_rate} shows no frame; give frames a second, such as 24.")
    whole = round(frame_rate * 1.001)
    meant = abs(whole / 1.001 - frame_rate) < NTSC_TOLERANCE or round(whole / 1.001, 2) == frame_rate
    if frame_rate != round(frame_rate) and meant:
        return Fraction(whole * 1000, 1001)
    return Fraction(frame_rate).limit_denominator(1001)


def audio_of(track: AudioTrack | None) -> dict[str, Any] | None:
    """A sound as AUDIO ``{waveform [1 c t], sample_rate}`` from its clip's first frame on; None where there is none."""
    if track is None:
        return None
    parts: list[Tensor] = []
    first, rate = None, 1
    begin = max(track.start_s, track.zero)
    with av.open(str(track.path)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.sample_rate)
        rate = stream.sample_rate
        if begin > PREROLL_S and stream.time_base:
            with suppress(FFmpegError):  # what cannot be sought in is read from its start
                container.seek(int((begin - PREROLL_S) / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            check_cancel()
            if frame.pts is None or frame.time_base is None:
                continue
            time = Fraction(frame.pts) * Fraction(frame.time_base.numerator, frame.time_base.denominator)
            if time >= track.end_s:
                break
            if time + Fraction(frame.samples, rate) <= begin:
                continue
            first = time if first is None else first
            parts += [torch.from_numpy(piece.to_ndarray()) for piece in resampler.resample(frame)]
    if first is None or not parts:
        return None
    waveform = torch.cat(parts, dim=1)
    missing = round((first - track.zero) * rate)
    waveform = torch.nn.functional.pad(waveform, (missing, 0))  # a negative padding cuts
    if track.end_s < inf:
        waveform = waveform[:, : max(1, round((track.end_s - float(track.zero)) * rate))]
    return {"waveform": rearrange(waveform, "c t -> 1 c t"), "sample_rate": rate}


def sound_file(audio: Mapping[str, Any]) -> Path:
    """AUDIO as an uncompressed file in the temp folder, which is gone when nothing holds its path any more.

    Raises ValueError where it holds no sound.
    """
    waveform, rate = audio["waveform"], int(audio["sample_rate"])
    samples = waveform[0] if waveform.ndim == 3 else waveform
    if samples.ndim != 2 or not samples.numel() or samples.shape[0] not in AAC_LAYOUTS:
        raise ValueError(
            f"an AUDIO of shape {tuple(waveform.shape)} is not [1, channels, samples] with sound in it; "
            "connect another, or leave the input open for a silent video."
        )
    whole = 1 if samples.is_floating_point() else 2 ** (8 * samples.element_size() - 1)
    layout, path = AAC_LAYOUTS[samples.shape[0]], kept_path(".wav")
    with av.open(str(path), "w", format="wav", options={"rf64": "auto"}) as container:  # more than 4 GB is no plain WAV
        stream = container.add_stream("pcm_f32le", rate=rate)
        stream.layout = layout
        for begin in range(0, samples.shape[1], BLOCK):
            check_cancel()
            block = samples[:, begin : begin + BLOCK].float().cpu() / whole
            packed = rearrange(block, "c t -> 1 (t c)").contiguous().numpy()
            frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), begin
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
