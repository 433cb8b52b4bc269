"""Sound beside the pictures: packets copied where the container is widely played with it, else AAC."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import inf
from pathlib import Path

from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.packet import Packet

from .decode import open_input
from .index import fraction
from .source import damaged, not_a_video

PLAYED: dict[str, frozenset[str]] = {
    "mp4": frozenset(("aac", "mp3")),
    "mov": frozenset("aac mp3 alac pcm_s16le pcm_s16be pcm_s24le pcm_s24be pcm_s32le pcm_f32le".split()),
    "matroska": frozenset(
        "aac mp3 opus vorbis flac ac3 eac3 dts alac pcm_u8 pcm_s16le pcm_s24le pcm_s32le pcm_f32le".split()
    ),
}
"""Codecs that players expect in each container, by ffmpeg's names; their packets are copied bit by bit."""

BITS_PER_CHANNEL_S = 96_000
AAC_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}
AAC_RATES = frozenset((8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000))


@dataclass(frozen=True, kw_only=True)
class AudioTrack:
    """The sound of ``path`` with ``start_s <= time < end_s`` on the file's clock; ``zero`` becomes time 0."""

    path: Path
    zero: Fraction = Fraction(0)
    start_s: float = -inf
    end_s: float = inf


def whole_track(path: Path) -> AudioTrack | None:
    """All sound of a file, in step with the first frame of its video; None where it is silent."""
    with open_input(path) as container:
        first = next(iter(container.streams.video), None)
        if not container.streams.audio:
            return None
        if first is None or first.start_time is None or first.time_base is None:
            return AudioTrack(path=path)
        return AudioTrack(path=path, zero=first.start_time * fraction(first.time_base))


class AudioFeed:
    """The sound on its way into a container: opened before its header, muxed in step with the pictures,
    closed after.
    """

    def __init__(self, output: OutputContainer, track: AudioTrack) -> None:
        self.notes: list[str] = []
        self._output, self._path = output, track.path
        self._input = open_input(track.path)
        self._next: tuple[float, Packet] | None = None
        try:
            self._packets = self._prepare(self._input, track)
        except BaseException:
            self._input.close()
            raise

    def mux_until(self, time_s: float) -> None:
        """Write what sounds up to ``time_s``, so that the container interleaves and nothing piles up."""
        while True:
            if self._next is None:
                self._next = self._pull()
            if self._next is None or self._next[0] > time_s:
                return
            self._output.mux(self._next[1])
            self._next = None

    def close(self) -> None:
        """Let go of the source file."""
        self._input.close()

    def _pull(self) -> tuple[float, Packet] | None:
        try:
            return next(self._packets, None)
        except FFmpegError as error:
            raise damaged(self._path, f"its audio cannot be read on ({error.strerror})") from error

    def _prepare(self, source: InputContainer, track: AudioTrack) -> Iterator[tuple[float, Packet]]:
        if not source.streams.audio:
            raise not_a_video(track.path, "audio was asked for and it has none")
        stream = source.streams.audio[0]
        if len(source.streams.audio) > 1:
            self.notes.append(f"The first of {len(source.streams.audio)} audio tracks was kept.")
        if stream.codec_context is None:
            self.notes.append("The audio was left out: this ffmpeg knows no decoder for it.")
            return iter(())
        name = stream.codec_context.codec.canonical_name
        if name in PLAYED[self._output.format.name]:
            copied = self._output.add_stream_from_template(stream)
            return _copied(source, stream, copied, track)
        encoded = _aac_stream(self._output, stream)
        self.notes.append(
            f"The audio was encoded anew: {name} -> AAC, because few players take {name} in this container; write "
            f".mkv or .mov to keep uncompressed sound."
        )
        return _encoded(source, stream, encoded, track)


def _copied(
    source: InputContainer, stream: AudioStream, copied: AudioStream, track: AudioTrack
) -> Iterator[tuple[float, Packet]]:
    tick = fraction(stream.time_base or Fraction(1, 1000))
    shift = round(track.zero / tick)
    for packet in source.demux(stream):
        if packet.pts is None or packet.dts is None:
            continue
        if not track.start_s <= packet.pts * tick < track.end_s:
            continue
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        packet.stream = copied
        yield float(packet.dts * tick), packet


def _aac_stream(output: OutputContainer, stream: AudioStream) -> AudioStream:
    context = stream.codec_context
    rate = context.sample_rate if context.sample_rate in AAC_RATES else 48000
    encoded = output.add_stream("aac", rate=rate)
    encoded.layout = AAC_LAYOUTS.get(context.layout.nb_channels, "stereo")
    encoded.bit_rate = BITS_PER_CHANNEL_S * encoded.layout.nb_channels
    return encoded


def _encoded(
    source: InputContainer, stream: AudioStream, encoded: AudioStream, track: AudioTrack
) -> Iterator[tuple[float, Packet]]:
    def timed(packets: list[Packet]) -> Iterator[tuple[float, Packet]]:
        return ((_seconds(packet.dts, packet.time_base), packet) for packet in packets)

    for frame in source.decode(stream):
        if frame.pts is None or frame.time_base is None:
            continue
        tick = fraction(frame.time_base)
        if track.start_s <= frame.pts * tick < track.end_s:
            frame.pts -= round(track.zero / tick)
            yield from timed(encoded.encode(frame))
    yield from timed(encoded.encode(None))


def _seconds(ticks: int | None, tick: Fraction | None) -> float:
    return 0.0 if ticks is None or tick is None else float(ticks * tick)
