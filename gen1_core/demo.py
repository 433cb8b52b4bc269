"""The demo: one real clip, three prompts, one comparison video and one contact sheet."""

from collections.abc import Iterator
from pathlib import Path

import torch

from .frames import depth_frames, read_depth
from .gen1 import EditOptions, Gen1
from .pipeline import describe, edit
from .tensors import Bytes, OnStep, ignore_progress
from .video.clip import Clip, MemoryClip
from .video.read import open_video
from .video.sheet import beside, contact_sheet
from .video.write import write_video

PROMPTS = ("a pencil sketch on white paper", "golden desert sand at dusk", "snow and blue ice in winter")
"""Three looks far from each other and from the source; words that the embedded model knows."""

SHEET_FRAMES = 6

START_S, END_S = 0.8, 1.76
"""The second in which the rabbit stands and stretches: every frame of it, at the clip's own rate and with its sound."""


def run_demo(
    gen1: Gen1,
    source: Path,
    folder: Path,
    options: EditOptions,
    *,
    prompts: tuple[str, ...] = PROMPTS,
    on_step: OnStep = ignore_progress,
) -> tuple[Path, Path]:
    """Edits ``source`` once per prompt; returns the paths of the comparison video and of the contact sheet."""
    folder.mkdir(parents=True, exist_ok=True)
    video = open_video(source, start_s=START_S, end_s=END_S)
    depth, _ = read_depth(gen1, video, on_step=on_step)
    edits = [
        collect(edit(gen1, video, describe(gen1, prompt=prompt), options, depth=depth, on_step=on_step))
        for prompt in prompts
    ]
    original, near = collect(video), collect(depth_frames(gen1, depth, video))
    names = ("source", "depth", *prompts)
    clips = (original, near, *edits)

    movie, sheet = folder / "comparison.mp4", folder / "sheet.png"
    frames = beside([MemoryClip(clip) for clip in clips], names, columns=3)
    write_video(movie, frames, frame_rate=video.frame_rate, time_stamps=video.time_stamps, audio_from=video)
    at = torch.linspace(0, original.shape[0] - 1, SHEET_FRAMES).round().long()
    contact_sheet([(name, clip[at]) for name, clip in zip(names, clips, strict=True)], sheet)
    return movie, sheet


def collect(chunks: Clip | Iterator[Bytes]) -> Bytes:
    """All frames of a short clip in memory."""
    return torch.cat(list(chunks))
