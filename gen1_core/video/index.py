"""How many frames a container holds and when each is shown.

MP4, MOV and Matroska keep one frame a packet for the codecs in `ONE_FRAME_A_PACKET`, so reading the packets
without decoding them counts exactly, at the speed of the disk. The numbers that containers state are not
trusted: edit lists hide frames, and Matroska states none. Everything else (transport streams, AVI, clips cut
before their first key frame) is counted by decoding once.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from .source import damaged

ONE_FRAME_A_PACKET = frozenset("h264 hevc av1 vp9 prores dnxhd mjpeg png ffv1 mpeg4 qtrle".split())
EBML_ID, SEGMENT_ID = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")
ONE_FRAME_CONTAINERS = frozenset(("mov", "matroska"))


@dataclass(frozen=True, kw_only=True)
class FrameIndex:
    """Presentation times of all frames, rising, in units of ``tick`` seconds; ``seekable`` if packets gave
    them.
    """

    pts: tuple[int, ...]
    tick: Fraction
    seekable: bool


def index_frames(container: InputContainer, stream: VideoStream, path: Path) -> FrameIndex:
    """Count the frames of ``stream`` by its packets, or by decoding it where packets do not tell."""
    stated, held = _stated_bytes(path), path.stat().st_size
    if held < stated:
        raise damaged(path, f"it states {stated} bytes and holds {held}")
    pts = _packet_times(container, stream, path) if _packets_tell(container, stream) else None
    seekable = pts is not None
    if pts is None:
        container.seek(0)
        stream.codec_context.flush_buffers()
        pts = _decoded_times(container, stream, path)
    return FrameIndex(pts=tuple(pts), tick=fraction(stream.time_base or Fraction(1, 1000)), seekable=seekable)


def fraction(rational: Fraction) -> Fraction:
    """Python's own Fraction: newer PyAV returns a type of its own."""
    return Fraction(rational.numerator, rational.denominator)


def _stated_bytes(path: Path) -> int:
    """How long a RIFF (AVI) or EBML (Matroska, WebM) file says it is; 0 where it does not say."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little")
    at = head.find(SEGMENT_ID)
    if head[:4] != EBML_ID or not 0 <= at < len(head) - 12:
        return 0
    # An EBML length is 1 to 8 bytes long, as its leading zero bits tell; all ones mean "unknown" (a live stream).
    start = at + len(SEGMENT_ID)
    bytes_long = 9 - head[start].bit_length()
    bits = 7 * bytes_long
    size = int.from_bytes(head[start : start + bytes_long], "big") & ((1 << bits) - 1)
    return 0 if size == (1 << bits) - 1 else start + bytes_long + size


def _packets_tell(container: InputContainer, stream: VideoStream) -> bool:
    kinds = set(container.format.name.split(","))
    return bool(kinds & ONE_FRAME_CONTAINERS) and stream.codec_context.codec.canonical_name in ONE_FRAME_A_PACKET


def _packet_times(container: InputContainer, stream: VideoStream, path: Path) -> list[int] | None:
    """The packets' times in order of showing, or None if they do not stand for frames one to one."""
    pts: list[int] = []
    starts_clean, unclear = True, False
    try:
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            if packet.is_corrupt:
                raise damaged(path, f"packet {len(pts)} is incomplete")
            if not pts:
                starts_clean = packet.is_keyframe
            unclear = unclear or packet.pts is None
            pts.append(-1 if packet.pts is None else packet.pts)
    except FFmpegError as error:
        raise damaged(path, f"reading stops after {len(pts)} frames ({error.strerror})") from error
    if unclear or not starts_clean or len(set(pts)) < len(pts) or (pts and min(pts) < pts[0]):
        return None
    return sorted(pts)


def _decoded_times(container: InputContainer, stream: VideoStream, path: Path) -> list[int]:
    pts: list[int] = []
    step = max(1, round(1 / (stream.guessed_rate or 25) / (stream.time_base or Fraction(1, 1000))))
    try:
        for frame in container.decode(stream):
            following = pts[-1] + step if pts else 0
            # AVI states no times but a rate; times that run back (joined transport streams) go on at their step.
            own = following if frame.pts is None or container.format.name == "avi" else frame.pts
            pts.append(own if not pts or own > pts[-1] else following)
    except FFmpegError as error:
        raise damaged(path, f"decoding stops after {len(pts)} frames ({error.strerror})") from error
    return pts
