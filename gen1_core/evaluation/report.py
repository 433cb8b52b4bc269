"""A static report of an evaluation: pages, players and sheets in its folder, nothing from the network."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from ..tensors import Bytes, OnStep, ignore_progress, to_bytes, to_float
from ..video.clip import MemoryClip
from ..video.sheet import beside, contact_sheet, label_strip, to_picture
from ..video.write import write_video
from .benchmark import BenchmarkConfig, Case
from .methods import OURS, OURS_IMAGE, SOURCE, TRUTH, methods_for
from .pages import blind_page, report_page
from .run import frames_of
from .store import identity_of, keep, kept, stack_rows, write_page, write_whole
from .votes import KEY, draw_pairs, read_tally, write_key

FRAME_RATE = Fraction(8)
SCALE = 2
"""Players show clips this much larger, so that labels fit."""

MEDIA_VERSION = 2
"""Goes up with every change of how players, sheets and the page to vote on look."""

ROWS = 12
"""Edits on one sheet."""


MEDIA = "media.json"
"""What the players, sheets and pairs to vote on were made from, and their names."""


def write_report(folder: Path, results: dict[str, Any], *, on_step: OnStep = ignore_progress) -> Path:
    """All files of the report, from finished results; returns the path of its first page.

    Players and sheets that were made from the same results stay.
    """
    told = [results[name] for name in ("config", "methods", "weights", "options", "tuning", "edits")]
    identity = identity_of(MEDIA_VERSION, *told)
    media = kept(folder / MEDIA, identity)
    if media is None or not all((folder / name).is_file() for name in media["files"]):
        media = write_media(folder, results, on_step=on_step)
        keep(folder / MEDIA, identity, media)
    page = report_page(results, read_tally(folder), media["edits"], media["sheets"])
    write_page(folder / "index.html", page)
    return folder / "index.html"


def write_media(folder: Path, results: Mapping[str, Any], *, on_step: OnStep) -> dict[str, Any]:
    """Players, sheets, and the page to vote on with its videos: text, player and sheet of each edit, and all files."""
    config = BenchmarkConfig(
        **results["config"]["benchmark"] | {"seeds": tuple(results["config"]["benchmark"]["seeds"])}
    )
    cases = [Case(**record["case"]) for record in results["edits"][OURS]]
    names = list(results["methods"])
    order = [SOURCE, TRUTH, OURS, OURS_IMAGE, *(n for n in names if n not in (SOURCE, TRUTH, OURS, OURS_IMAGE))]
    rivals = [name for name in order if name not in (OURS, OURS_IMAGE, SOURCE, TRUTH)]
    short = {method.name: method.short for method in methods_for(unstructured=True)}
    labels = [short[name] for name in order]
    middles: list[list[Bytes]] = []
    shown = []
    for done, case in enumerate(cases, 1):
        clips = {name: frames_of(folder, case, name, config) for name in order}
        shown.append(write_case(folder, case, list(clips.values()), labels))
        middles.append([clip[config.frames // 2][None] for clip in clips.values()])
        on_step("report: players", done, len(cases))
    sheets = write_sheets(folder, cases, middles, labels)
    pairs = draw_pairs(cases, rivals)
    videos = []
    for done, pair in enumerate(pairs, 1):
        case = next(each for each in cases if (each.seed, each.number) == (pair.seed, pair.number))
        clips = [frames_of(folder, case, name, config) for name in (SOURCE, pair.left, pair.right)]
        videos.append(f"blind/{pair.name}.mp4")
        player(folder / videos[-1], clips, ["source", "A", "B"], columns=3)
        on_step("report: pairs to vote on", done, len(pairs))
    report = write_key(folder, pairs, *(results[name] for name in ("weights", "options", "config", "tuning")))
    write_page(folder / "blind.html", blind_page(pairs, videos, report))
    files = [*sheets, *videos, "blind.html", KEY, *(name for _, *names in shown for name in names)]
    return {"edits": shown, "sheets": sheets, "files": files}


def player(path: Path, clips: Sequence[Bytes], labels: Sequence[str], *, columns: int) -> None:
    """Clips in a grid as one video, so that they run together."""
    path.parent.mkdir(parents=True, exist_ok=True)
    large = [to_bytes(F.interpolate(to_float(clip), scale_factor=SCALE, mode="bilinear")) for clip in clips]
    write_video(path, beside([MemoryClip(clip) for clip in large], labels, columns=columns), frame_rate=FRAME_RATE)


def write_case(folder: Path, case: Case, clips: Sequence[Bytes], labels: Sequence[str]) -> list[str]:
    """The player and the sheet of one edit, and what it is, in words."""
    stem = f"media/{case.seed}-{case.number:03d}"
    player(folder / f"{stem}.mp4", clips, labels, columns=4)
    contact_sheet(list(zip(labels, clips, strict=True)), folder / f"{stem}.png")
    text = f"{case.number}. {case.family}: {case.source} to {case.target}, by “{case.prompt}” ({case.wording})"
    return [text, f"{stem}.mp4", f"{stem}.png"]


def write_sheets(
    folder: Path, cases: Sequence[Case], middles: Sequence[Sequence[Bytes]], titles: Sequence[str]
) -> list[str]:
    """Middle frames of every edit: a row is an edit, a column a method; the names of the files."""
    names = []
    for first in range(0, len(cases), ROWS):
        rows: list[Bytes] = [torch.cat([label_strip(title, middles[0][0].shape[-1]) for title in titles])]
        for case, row in zip(cases[first : first + ROWS], middles[first : first + ROWS], strict=True):
            width = row[0].shape[-1] * len(row)
            rows += [label_strip(f"{case.number}. {case.family}, {case.prompt}", width), torch.cat(list(row))]
        names.append(f"sheet-{first // ROWS}.png")
        picture = to_picture(stack_rows(rows)[0])
        write_whole(folder / names[-1], lambda part, picture=picture: picture.save(part, format="PNG"))
    return names
