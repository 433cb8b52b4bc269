"""Edits of clips without a known truth: which are taken, what is on the sheet."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from parts import tiny_gen1, write_model
from PIL import Image

from gen1_core.cli import main
from gen1_core.evaluation.real import (
    CELL,
    CLIPS,
    COLUMNS,
    GAP,
    file_names,
    find_jobs,
    in_cell,
    read_frames,
    write_real_sheet,
)
from gen1_core.frames import depth_frames, read_depth
from gen1_core.tensors import to_bytes
from gen1_core.video.clip import MemoryClip
from gen1_core.video.sheet import LABEL_HEIGHT_PX, from_picture, to_picture
from gen1_core.video.write import write_video

NAMES = tuple(CLIPS)


def moving(count: int, *, height: int = 48, width: int = 64) -> torch.Tensor:
    """A bright bar that moves over a ramp."""
    frames = torch.linspace(0, 0.6, width).expand(count, 3, height, width).clone()
    for number in range(count):
        frames[number, :, 10:30, 2 * number : 2 * number + 10] = 1
    return to_bytes(frames)


def animation(path: Path, frames: torch.Tensor) -> Path:
    """A lossless animated WebP."""
    first, *others = (to_picture(frame) for frame in frames)
    first.save(path, save_all=True, append_images=others, duration=60, lossless=True)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "package"
    (inside / "templates").mkdir(parents=True)
    for name in (NAMES[1], NAMES[0], "video_of_training.webp"):
        animation(inside / "templates" / name, moving(9))
    return inside


def test_ten_clips_none_of_them_for_training():
    assert len(CLIPS) == 10 and len(set(CLIPS.values())) == 10
    assert not [name for name in CLIPS if name.startswith("video_")]


def test_clips_of_one_name_have_players_of_their_own():
    paths = [Path("a/x.mp4"), Path("y.webp"), Path("b/x.mov"), Path("c/x.mp4")]
    assert file_names(paths) == ["x-1.mp4", "y.mp4", "x-2.mp4", "x-3.mp4"]


def test_of_a_folder_the_named_clips_in_their_order_of_files_all(folder: Path, tmp_path: Path):
    own = animation(tmp_path / "own.webp", moving(3))
    jobs = find_jobs([own, folder])
    assert [(job.path.name, job.prompt) for job in jobs] == [
        (NAMES[0], CLIPS[NAMES[0]]),
        (NAMES[1], CLIPS[NAMES[1]]),
        ("own.webp", CLIPS[NAMES[2]]),
    ]
    assert [job.prompt for job in find_jobs([folder, own], ["a", "b"])] == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("source", "cure"), [("nothing", "check the spelling"), (".", "name the folder of the package")]
)
def test_what_holds_no_clip_is_refused(tmp_path: Path, source: str, cure: str):
    with pytest.raises(ValueError, match=cure):
        find_jobs([tmp_path / source])


def test_frames_are_every_second_where_there_are_enough(tmp_path: Path):
    long, short = moving(9), moving(5)
    torch.testing.assert_close(read_frames(animation(tmp_path / "long.webp", long), 4), long[:8:2], rtol=0, atol=0)
    torch.testing.assert_close(read_frames(animation(tmp_path / "short.webp", short), 4), short[:4], rtol=0, atol=0)
    write_video(tmp_path / "clip.mp4", [long], frame_rate=Fraction(8))
    assert read_frames(tmp_path / "clip.mp4", 4).shape == (4, 3, 48, 64)
    to_picture(long[0]).save(tmp_path / "still.webp")
    with pytest.raises(ValueError, match="at least two frames"):
        read_frames(tmp_path / "still.webp", 4)


def test_a_wide_frame_stands_whole_in_its_cell():
    cell = in_cell(torch.full((3, 40, 80), 200, dtype=torch.uint8), 100)
    assert cell.shape == (3, 100, 100)
    assert cell[:, 25:75].unique().tolist() == [200] and cell[:, :25].max() == 0 and cell[:, 75:].max() == 0


@pytest.mark.slow
def test_the_sheet_shows_source_depth_and_edit(folder: Path, tmp_path: Path):
    gen1, out = tiny_gen1(), tmp_path / "out"
    jobs = find_jobs([folder], ["one", "two"])
    sheet = from_picture(Image.open(write_real_sheet(gen1, jobs, out, frames=4)))[0]
    assert sheet.shape == (3, CELL + 2 * LABEL_HEIGHT_PX, 2 * (len(COLUMNS) * CELL + GAP))
    source = MemoryClip(moving(9)[:8:2])
    depth = next(iter(depth_frames(gen1, read_depth(gen1, source)[0], source)))
    pictures = sheet[:, 2 * LABEL_HEIGHT_PX :]
    starts = [at * CELL + GAP * (at // len(COLUMNS)) for at in range(2 * len(COLUMNS))]
    cells = [pictures[..., start : start + CELL] for start in starts]
    for first in (0, len(COLUMNS)):
        torch.testing.assert_close(cells[first], in_cell(source.frames[0]), rtol=0, atol=0)
        torch.testing.assert_close(cells[first + 1], in_cell(depth[0]), rtol=0, atol=0)
    edits = [cells[at] for at in (2, 3, 4, 7, 8, 9)]
    assert not any(torch.equal(a, b) for number, a in enumerate(edits) for b in edits[:number])
    assert {path.name for path in (out / "real").iterdir()} == {f"{Path(name).stem}.mp4" for name in NAMES[:2]}


@pytest.mark.slow
def test_the_command_makes_the_sheet_and_refuses_before_loading(folder: Path, tmp_path: Path, capsys):
    model = write_model(tiny_gen1(), tmp_path / "model")
    command = ["eval", "--weights", str(model), "--out", str(tmp_path / "out"), "--frames", "2", "--steps", "1"]
    assert main([*command, "--real", str(folder)]) == 0 and (tmp_path / "out" / "real.png").is_file()
    assert main([*command, "--real", str(folder), "--frames", "1"]) == 2 and "at least 2" in capsys.readouterr().err
    assert main([*command, "--prompts", "a"]) == 2 and "are for --real" in capsys.readouterr().err
    assert main([*command, "--real", str(folder), "--size", "64"]) == 2
    assert "is for the benchmark" in capsys.readouterr().err
    command[2] = "no such weights"
    assert main([*command, "--real", str(tmp_path / "none.webp")]) == 2
    assert "none.webp is no folder and no video" in capsys.readouterr().err
