"""Part of the adapter: a part of a file as VIDEO, a VIDEO copied into a file, and what a node need not decode."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import comfy.model_management
import torch
from av.error import FFmpegError
from comfy_api.latest import Input, InputImpl, Types
from comfy_execution.utils import get_executing_context

from ..gen1_core.video.audio import PLAYED, AudioTrack, whole_track
from ..gen1_core.video.geometry import fit_within
from ..gen1_core.video.read import Video
from ..gen1_core.video.timing import ROUNDING_S, Picks, ReadOptions, pick_frames
from .host_files import temp_path
from .host_frames import gather
from .host_videos import Source, audio_of, file_of, sound_file, write

BYTES_PER_PIXEL = 3 * 4
"""Of IMAGE: float32 for each colour."""


class PartOfFile(Input.Video):
    """Chosen frames of a file as VIDEO: streamed by our nodes, decoded or written anew where other nodes ask."""

    def __init__(self, source: Source, video: Video):
        self._source, self._video = source, video
        self._written: Path | None = None

    def gen1_source(self, options: ReadOptions, *, chunk: int) -> Source:
        """The stream behind it, or a part of that."""
        video = replace(part_of(self._video, options), chunk=chunk)
        return replace(
            self._source,
            clip=video,
            frame_rate=video.frame_rate,
            time_stamps=video.time_stamps,
            audio=video.audio,
        )

    def get_components(self) -> Types.VideoComponents:
        """All frames in memory, with the sound."""
        return Types.VideoComponents(
            images=gather(self._video, frames=self._video.num_frames),
            audio=audio_of(self._source.audio),  # pyright: ignore[reportArgumentType]
            frame_rate=self._video.frame_rate,
        )

    def save_to(self, path: Any, format: Any = None, codec: Any = None, metadata: dict[str, Any] | None = None) -> None:
        """Into an MP4, which is the only format that the core asks for."""
        texts = {key: one if isinstance(one, str) else json.dumps(one) for key, one in (metadata or {}).items()}
        file = temp_path(".mp4")
        write(file, self._video, self._source, metadata=texts)
        if isinstance(path, BytesIO):
            path.write(file.read_bytes())
            file.unlink()
        else:
            shutil.move(file, path)

    def get_stream_source(self) -> str:
        """A file that holds just this part; written when it is first asked for."""
        if self._written is None or not self._written.exists():
            self._written = temp_path(".mp4")
            write(self._written, self._video, self._source)
        return str(self._written)

    def get_dimensions(self) -> tuple[int, int]:
        """Width and height."""
        return self._video.width, self._video.height

    def get_duration(self) -> float:
        """Seconds, the last frame's included."""
        return float(length_of(self._source))


def part_of(video: Video, options: ReadOptions) -> Video:
    """A part of a part: its frames chosen among those that were chosen already."""
    picks = pick_frames(video.time_stamps, video.frame_rate, options)
    first = picks.numbers[0]
    zero = video.source.time_stamps[video.picks.numbers[first]]
    width, height = fit_within(video.width, video.height, options.max_size)
    audio = video.audio
    if audio is not None:
        audio = AudioTrack(
            path=audio.path,
            zero=zero,
            start_s=float(zero) - ROUNDING_S if options.start_s > 0 else audio.start_s,
            end_s=min(audio.end_s, float(audio.zero) + options.end_s - ROUNDING_S),
        )
    numbers = tuple(video.picks.numbers[number] for number in picks.numbers)
    chosen = Picks(numbers=numbers, time_stamps=picks.time_stamps, frame_rate=picks.frame_rate)
    return replace(video, picks=chosen, width=width, height=height, audio=audio)


def video_from(source: Source) -> Any:
    """A stream as VIDEO; frames that are in memory stay there."""
    if isinstance(source.clip, Video):
        return PartOfFile(source, source.clip)
    images = gather(source.clip, frames=source.clip.num_frames)
    parts = Types.VideoComponents(
        images=images,
        audio=audio_of(source.audio),  # pyright: ignore[reportArgumentType]
        frame_rate=source.frame_rate,
    )
    return InputImpl.VideoFromComponents(parts)


def length_of(source: Source) -> Fraction:
    """How long a clip is shown, in seconds."""
    last = source.time_stamps[-1] if source.time_stamps else (source.clip.num_frames - 1) / source.frame_rate
    return last + 1 / source.frame_rate


def with_sound(source: Source, audio: Mapping[str, Any]) -> Source:
    """The same with AUDIO in place of its own sound, no longer than the pictures."""
    track = whole_track(sound_file(audio))
    return replace(source, audio=track and replace(track, end_s=float(length_of(source))))


def playable(video: Any) -> Path | None:
    """The file of a VIDEO that is H.264 in MP4 with a sound that goes with it, to be copied without loss; else None."""
    path = file_of(video)
    try:
        with av.open(f"file:{path}") as container:
            names = [stream.codec_context.name for stream in container.streams.video]
            sounds = [stream.codec_context.codec.canonical_name for stream in container.streams.audio]
            fits = "mp4" in container.format.name and names == ["h264"] and set(sounds) <= PLAYED["mp4"]
            return path if fits else None
    except (FFmpegError, AttributeError):  # no file, no container, or a stream without a decoder
        return None


def copy_file(source: Path, path: Path, metadata: dict[str, str]) -> None:
    """The streams of an MP4, packet by packet, with other metadata; whole or not at all."""
    part = temp_path(".mp4")
    try:
        InputImpl.VideoFromFile(str(source)).save_to(str(part), metadata=metadata)
        beside = path.with_name(f".{part.name}")
        shutil.move(part, beside)  # the temp folder may lie on another disk
        os.replace(beside, path)
    finally:
        part.unlink(missing_ok=True)


def require_memory(frames: int, height: int, width: int) -> None:
    """Refuses frames that memory does not hold as IMAGE, before the machine begins to swap."""
    free = comfy.model_management.get_free_memory(torch.device("cpu"))
    needed = frames * height * width * BYTES_PER_PIXEL
    if needed > free:
        raise ValueError(
            f"{frames} frames of {width}x{height} take {needed / 1e9:.1f} GB as IMAGE, and {free / 1e9:.1f} GB of "
            "memory are free; connect VIDEO instead, which streams, or take fewer frames (end_s, stride) or smaller "
            "ones (max_size)."
        )


def linked_outputs(*, count: int) -> frozenset[int]:
    """Which of the ``count`` outputs of the node that is being run go anywhere; all where that cannot be told.

    What nothing takes need not be decoded. Every such answer belongs into the node's ``fingerprint_inputs``, where it
    can be asked for too: else a link drawn later would find what the first run left out.
    """
    context = get_executing_context()
    if context is None:
        return frozenset(range(count))
    from server import PromptServer  # there is none where the nodes run without a server

    for _, prompt_id, prompt, *_ in PromptServer.instance.prompt_queue.get_current_queue_volatile()[0]:
        if prompt_id == context.prompt_id and context.node_id in prompt:
            values = [value for node in prompt.values() for value in node["inputs"].values()]
            links = [value for value in values if isinstance(value, list) and len(value) == 2]
            return frozenset(place for node, place in links if node == context.node_id)
    return frozenset(range(count))
