"""What ``gen1 prepare`` is given, as units of work: one unit becomes one sample.

The list of units is a pure function of the sources and the config, so a run that was stopped goes on where it was,
and any number of workers make the same shards.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from ...video.geometry import working_size
from ...video.read import open_video
from .cuts import CutConfig, find_scenes
from .files import hash_of

Kind = Literal["video", "image", "world"]
Levels = Literal["one", "all"]

VIDEOS = frozenset((".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".gif", ".webp"))
PICTURES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"))
"""What is taken from a folder; a file that is named by itself is tried whatever it is called."""

SCAN_PX = 96
"""The longer side at which a video is looked through for cuts."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What the samples are; part of every shard's identity.

    ``size`` is the short side in pixels, and both sides become multiples of ``multiple``. A clip has ``frames`` frames,
    every ``stride``-th of the video, and the next one of the same scene begins ``hop`` frames later. ``levels``: the
    depth at t_s = 0 and at one level drawn for each clip, or at all eight. ``looks`` and ``captions`` are styles per
    scene of the procedural world and captions per style. Beside itself a real clip is shown as ``reliefs`` of its depth
    in styles of the world. ``shard`` samples go into one file; ``chunk`` frames at a time through the networks.
    """

    size: int = 128
    frames: int = 8
    stride: int = 4
    hop: int = 29
    multiple: int = 32
    levels: Levels = "one"
    looks: int = 2
    captions: int = 4
    reliefs: int = 0
    shard: int = 64
    chunk: int = 8
    seed: int = 0
    cuts: CutConfig = CutConfig()

    def __post_init__(self) -> None:
        for name in ("size", "frames", "stride", "hop", "multiple", "looks", "captions", "shard", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name)} leaves nothing to prepare; give a number of at least 1."
                )
        if self.reliefs < 0:
            raise ValueError(f"reliefs={self.reliefs} is no number of styles; give 0 for none.")
        if self.multiple % 8 or self.size % self.multiple:
            raise ValueError(
                f"size={self.size} with multiple={self.multiple} is no size that autoencoder and U-Net can halve; "
                "give a multiple of 8 and a size that it divides, for instance 128 and 32, or 512 and 64."
            )

    @property
    def span(self) -> int:
        """How many frames of the video a clip reaches over."""
        return (self.frames - 1) * self.stride + 1


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One sample to be: which frames of what, and how large it gets. ``hash`` notices a file that was replaced.

    Of the procedural world ``source`` is ``world:SEED`` and ``first`` the number of the clip.
    """

    kind: Kind
    source: str
    first: int
    frames: int
    stride: int
    height: int
    width: int
    hash: str = ""
    captions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class World:
    """``world:CLIPS[:SEED]``: clips rendered in the worker."""

    clips: int
    seed: int = 1

    @property
    def name(self) -> str:
        """The source that its samples name."""
        return f"world:{self.seed}"


def expand(sources: Sequence[str], *, match: str = "*") -> list[Path | World]:
    """Folders (all below them), list files (.txt, one path a line), files and worlds, in an order of their own.

    ``match`` is a pattern for the names of files in folders. Raises ValueError for what is not there.
    """
    found: dict[Path | World, None] = {}
    for source in sources:
        world = re.fullmatch(r"world:(\d+)(?::(\d+))?", source)
        path = Path(source)
        if source.startswith("world:"):
            if world is None or int(world[1]) < 1:
                raise ValueError(
                    f"{source} names no clips of the procedural world; give world:CLIPS or world:CLIPS:SEED."
                )
            found[World(clips=int(world[1]), seed=int(world[2] or 1))] = None
        elif path.is_dir():
            inside = (p for p in path.rglob("*") if p.suffix.lower() in VIDEOS | PICTURES and p.is_file())
            found.update(dict.fromkeys(sorted(p for p in inside if fnmatch(p.name, match))))
        elif path.suffix.lower() == ".txt" and path.is_file():
            lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
            found.update(dict.fromkeys(path.parent / line for line in lines if line and not line.startswith("#")))
        elif path.is_file():
            found[path] = None
        else:
            raise ValueError(f"{source} is no file and no folder; check the spelling (here: {Path.cwd()}).")
    if not found:
        raise ValueError(
            f"{', '.join(sources)} holds no video and no picture whose name matches {match!r}; name other folders, "
            f"or another pattern (these are taken: {', '.join(sorted(VIDEOS | PICTURES))})."
        )
    return list(found)


def stamp(path: Path, cuts: CutConfig) -> dict[str, Any]:
    """What a scan of a file depends on: where it equals that of an earlier run, the scan does too."""
    try:
        about = path.stat()
    except OSError:
        return {"path": path.as_posix(), "bytes": -1}
    return {"path": path.as_posix(), "bytes": about.st_size, "mtime_ns": about.st_mtime_ns, "cuts": asdict(cuts)}


def scan(path: Path, cuts: CutConfig) -> dict[str, Any]:
    """Look through a whole file: its size, its frames and its scenes, or why it cannot be used (``error``).

    Every frame is decoded, so that a file that is damaged in the middle is found here.
    """
    found = stamp(path, cuts)
    try:
        found["hash"] = hash_of(path)
        video = open_video(path, max_size=SCAN_PX, chunk=32)
        size = {"width": video.source.width, "height": video.source.height}
        return {**found, **size, "scenes": find_scenes(video, cuts)}
    except Exception as error:  # decoders raise all kinds; one bad file must not end a run over a million
        return {**found, "error": f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"}


def units_of(found: dict[str, Any], config: PrepareConfig) -> list[Unit]:
    """The clips of a file that was scanned; a file of one frame is an image.

    Raises ValueError where there are none.
    """
    if "error" in found:
        raise ValueError(found["error"])
    scenes = [(first, end) for first, end in found["scenes"]]
    height, width = snap(found["width"], found["height"], config)
    still = scenes == [(0, 1)]
    span, frames = (1, 1) if still else (config.span, config.frames)
    firsts = [first for begin, end in scenes for first in range(begin, end - span + 1, config.hop)]
    if not firsts:
        longest = max(end - first for first, end in scenes)
        raise ValueError(
            f"{found['path']} has {longest} frames in its longest scene, but a clip of {config.frames} frames at "
            f"stride {config.stride} needs {config.span}; prepare it with fewer frames or a smaller stride."
        )
    captions = captions_of(Path(found["path"]))
    about: dict[str, Any] = {
        "source": found["path"],
        "hash": found["hash"],
        "captions": captions,
        "height": height,
        "width": width,
    }
    stride = 1 if still else config.stride
    kind: Kind = "image" if still else "video"
    return [Unit(kind=kind, first=first, frames=frames, stride=stride, **about) for first in firsts]


def captions_of(path: Path) -> tuple[str, ...]:
    """The lines of ``NAME.txt`` beside the file; none where there is none."""
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        return ()
    lines = (line.strip() for line in beside.read_text(encoding="utf-8").splitlines())
    return tuple(line for line in lines if line)


def units_of_world(world: World, config: PrepareConfig) -> list[Unit]:
    """One unit for each clip; all are square."""
    about: dict[str, Any] = {"frames": config.frames, "stride": 1, "height": config.size, "width": config.size}
    return [Unit(kind="world", source=world.name, first=number, **about) for number in range(world.clips)]


def snap(width: int, height: int, config: PrepareConfig) -> tuple[int, int]:
    """The bucket (height, width) of a source: the short side is ``config.size``, the other the nearest multiple.

    Raises ValueError for a source that is too small or too long a strip, as an edit would.
    """
    working_size(width, height, short_side=config.size, multiple=config.multiple)
    longer = round(config.size * max(width, height) / min(width, height) / config.multiple) * config.multiple
    longer = max(config.size, longer)
    return (config.size, longer) if width >= height else (longer, config.size)


def identity(*parts: Any) -> str:
    """A short hash of plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
