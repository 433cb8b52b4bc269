from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gen1_core.video.read import open_video

COLOURS = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]


def pictures(alpha: int = 255) -> list[Image.Image]:
    return [Image.new("RGBA", (33, 21), (*colour, alpha)) for colour in COLOURS]


@pytest.mark.parametrize(("suffix", "options"), [(".gif", {}), (".webp", {"lossless": True}), (".png", {})])
def test_animations_have_their_own_rate(suffix: str, options: dict, tmp_path: Path) -> None:
    first, *rest = [picture.convert("RGB") for picture in pictures()]
    path = tmp_path / f"moving{suffix}"
    first.save(path, save_all=True, append_images=rest, duration=40, **options)
    video = open_video(path, chunk=2)
    assert (video.num_frames, video.width, video.height, video.frame_rate) == (3, 33, 21, 25)
    assert [len(chunk) for chunk in video] == [2, 1]
    middle = torch.cat(list(video))[:, :, 10, 16]
    assert (middle.int() - torch.tensor(COLOURS)).abs().max() <= 8
    assert not video.notes and not video.has_audio


def test_frames_of_a_gif_keep_their_own_times(tmp_path: Path) -> None:
    first, *rest = [picture.convert("RGB") for picture in pictures()]
    first.save(tmp_path / "vfr.gif", save_all=True, append_images=rest, duration=[40, 200, 40])
    assert open_video(tmp_path / "vfr.gif").time_stamps == (0, Fraction(40, 1000), Fraction(240, 1000))
    first.save(tmp_path / "untimed.gif", save_all=True, append_images=rest, duration=0)
    assert open_video(tmp_path / "untimed.gif").frame_rate == 10


@pytest.mark.parametrize("suffix", [".webp", ".png"])
def test_transparency_is_laid_over_black_and_said(suffix: str, tmp_path: Path) -> None:
    first, *rest = pictures(alpha=128)
    path = tmp_path / f"glass{suffix}"
    first.save(
        path,
        save_all=True,
        append_images=rest,
        duration=40,
        **({"lossless": True} if suffix == ".webp" else {}),
    )
    video = open_video(path)
    assert "over black" in video.notes[0]
    assert (next(iter(video))[0, :, 5, 5].int() - torch.tensor([125, 5, 5])).abs().max() <= 1


def test_a_folder_in_natural_order_with_the_rate_that_is_given(tmp_path: Path) -> None:
    folder = tmp_path / "Bilder"
    folder.mkdir()
    for number, picture in zip((2, 10, 1), pictures(), strict=True):
        picture.convert("RGB").save(folder / f"frame{number}.png")
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    video = open_video(folder, fps=Fraction(12))
    assert (video.num_frames, video.frame_rate) == (3, 12)
    assert torch.cat(list(video))[:, :, 3, 3].tolist() == [list(COLOURS[k]) for k in (2, 0, 1)]
    assert open_video(folder).frame_rate == 24
    assert open_video(folder, end_s=0.05).num_frames == 2


def test_a_still_is_a_clip_of_one_frame_upright_and_in_8_bits(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures()[0].convert("RGB").save(tmp_path / "phone.jpg", exif=exif)
    video = open_video(tmp_path / "phone.jpg", max_size=20)
    assert (video.num_frames, video.width, video.height) == (1, 13, 20)
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "deep.png")
    assert next(iter(open_video(tmp_path / "deep.png"))).unique().tolist() == [40000 >> 8]


def test_by_content_not_by_name(tmp_path: Path) -> None:
    first, *rest = [picture.convert("RGB") for picture in pictures()]
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=40)
    assert open_video((tmp_path / "a.gif").rename(tmp_path / "a.mp4")).num_frames == 3


def test_bad_folders_and_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zero frames.*give an MP4"):
        open_video(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    Image.new("RGB", (9, 8)).save(tmp_path / "2.png")
    with pytest.raises(ValueError, match="resize the pictures"):
        open_video(tmp_path)
    (tmp_path / "2.png").write_bytes(b"\x89PNG and no more")
    with pytest.raises(ValueError, match="copy or download it again"):
        open_video(tmp_path)
    with pytest.raises(ValueError, match="copy or download it again"):
        open_video(tmp_path / "2.png")
