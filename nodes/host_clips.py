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
from av.error import FFmpegError
from comfy_api.latest import Input, InputImpl, Types, io
from comfy_execution.utils import get_executing_context

from ..gen1_core.video.audio import PLAYED, AudioTrack, whole_track
from ..gen1_core.video.geometry import fit_within
from ..gen1_core.video.read import Video
from ..gen1_core.video.timing import ROUNDING_S, Picks, ReadOptions, pick_frames
from .host_files import temp_path
from .host_frames import gather
from .host_progress import counted, on_step
from .host_videos import FileName, Source, audio_of, file_of, kept_path, sound_file, write


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
            images=gather(counted(self._video, on_step("read"), "read"), frames=self._video.num_frames),
            audio=audio_of(self._source.audio),  # pyright: ignore[reportArgumentType]
            frame_rate=self._video.frame_rate,
        )

    def save_to(self, path: Any, format: Any = None, codec: Any = None, metadata: dict[str, Any] | None = None) -> None:
        """Into an MP4, which is the only format that the core asks for."""
        texts = {key: one if isinstance(one, str) else json.dumps(one) for key, one in (metadata or {}).items()}
        file = temp_path(".mp4")
        write(file, counted(self._video, on_step("write"), "write"), self._source, metadata=texts)
        if isinstance(path, BytesIO):
            path.write(file.read_bytes())
            file.unlink()
        else:
            place(file, Path(path))

    def get_stream_source(self) -> str:
        """A file that holds just this part; written when it is first asked for."""
        if self._written is None or not self._written.exists():
            file = kept_path(".mp4")
            write(file, counted(self._video, on_step("write"), "write"), self._source)
            self._written = file
        return FileName(self._written)

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
    except OSError as error:
        part.unlink(missing_ok=True)
        raise unwritten(part, error) from error
    place(part, path)


def place(part: Path, path: Path) -> None:
    """A finished file to where it belongs; whole or not at all."""
    beside = path.with_name(f".{part.name}")
    try:
        shutil.move(part, beside)  # the temp folder may lie on another disk
        os.replace(beside, path)
    except OSError as error:
        raise unwritten(path, error) from error
    finally:
        part.unlink(missing_ok=True)
        beside.unlink(missing_ok=True)


def unwritten(path: Path, error: OSError) -> ValueError:
    """What the user is told of a disk that is full, or a folder that may not be written to."""
    return ValueError(
        f"{path} could not be written: {error.strerror}. Nothing that was there has changed; free disk space, or "
        "choose a folder that may be written to."
    )


def linked_input(node: type[io.ComfyNode], name: str) -> bool:
    """Whether an input of the node that is being run comes through a link; its schema needs ``hidden=[io.Hidden.prompt,
    io.Hidden.unique_id]``.
    """
    prompt = (node.hidden and node.hidden.prompt) or {}
    this = prompt.get(node.hidden.unique_id) if node.hidden else None
    return isinstance((this or {}).get("inputs", {}).get(name), list)


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
