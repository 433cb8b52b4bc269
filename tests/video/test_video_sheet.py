"""Grids that every player plays, and contact sheets that are whole or not there."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from PIL import Image

from gen1_core.video.sheet import LABEL_HEIGHT_PX, beside, contact_sheet, grid
from gen1_core.video.write import write_video


def frames(count: int, height: int, width: int, value: int = 200) -> torch.Tensor:
    return torch.full((count, 3, height, width), value, dtype=torch.uint8)


def test_a_grid_has_even_sides_and_pads_at_the_right_and_at_the_bottom() -> None:
    whole = grid([frames(2, 9, 31), frames(2, 9, 31, 100), frames(2, 9, 31)], ["a", "b", "c"], columns=3)
    assert whole.shape == (2, 3, LABEL_HEIGHT_PX + 10, 94)
    assert (whole[..., LABEL_HEIGHT_PX:-1, :31] == 200).all() and (whole[..., LABEL_HEIGHT_PX:-1, 31:62] == 100).all()
    assert not whole[..., -1, :].any() and not whole[..., -1].any()


def test_an_even_grid_is_left_as_it_is_and_an_empty_place_is_black() -> None:
    whole = grid([frames(1, 8, 16)] * 3, ["a", "b", "c"], columns=2)
    assert whole.shape == (1, 3, 2 * (LABEL_HEIGHT_PX + 8), 32)
    assert not whole[..., -8:, 16:].any() and (whole[..., -8:, :16] == 200).all()


def test_a_comparison_of_odd_clips_is_ordinary_video(tmp_path: Path) -> None:
    streams = [[frames(3, 33, 35)], [frames(3, 33, 35, 90)], [frames(3, 33, 35)]]
    movie = beside(streams, ["source", "depth", "edit"], columns=3)
    assert write_video(tmp_path / "comparison.mp4", movie, frame_rate=Fraction(10)) == []


def test_a_contact_sheet_holds_its_rows_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    contact_sheet([("one", frames(2, 10, 12)), ("two", frames(2, 10, 12, 50))], path)
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.size == (24, 2 * (LABEL_HEIGHT_PX + 10))
        assert picture.getpixel((23, LABEL_HEIGHT_PX + 9)) == (200, 200, 200)
        assert picture.getpixel((0, picture.height - 1)) == (50, 50, 50)
    assert list(tmp_path.iterdir()) == [path]


def test_a_sheet_without_a_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose a folder that exists"):
        contact_sheet([("one", frames(1, 8, 8))], tmp_path / "missing" / "sheet.png")


def test_a_failed_sheet_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sheet.png"
    contact_sheet([("old", frames(1, 8, 8))], path)
    before = path.read_bytes()

    def full(self: Image.Image, target: Path, **options: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(ValueError, match="No space left on device.*free some space"):
        contact_sheet([("new", frames(1, 8, 8, 20))], path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
