"""Masks: what grows, what stays, what blends."""

import pytest
import torch
from torch.nn import functional as F

from gen1_core.editing import (
    MaskOptions,
    check_mask,
    composite,
    feather,
    grow,
    keep_background,
    latent_mask,
    mask_chunks,
    mask_from_frames,
)
from gen1_core.video.clip import MemoryClip


def dot(size: int = 21) -> torch.Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[..., size // 2, size // 2] = 1
    return mask


def test_grow_by_n_makes_a_square_of_side_2n_plus_1_and_shrinking_undoes_it():
    grown = grow(dot(), 3)
    assert grown.sum() == 49
    torch.testing.assert_close(grow(grown, -3), dot())


@pytest.mark.parametrize("pixels", [1, 4, 30])
def test_rows_then_columns_equal_the_square(pixels):
    mask = torch.rand(2, 1, 13, 22, generator=torch.Generator().manual_seed(0))
    square = F.max_pool2d(mask, 2 * pixels + 1, stride=1, padding=pixels)
    torch.testing.assert_close(grow(mask, pixels), square, rtol=0, atol=0)
    eroded = -F.max_pool2d(-mask, 2 * pixels + 1, stride=1, padding=pixels)
    torch.testing.assert_close(grow(mask, -pixels), eroded, rtol=0, atol=0)


def test_feather_keeps_the_mass_and_softens_the_edge():
    soft = feather(dot(), 2.0)
    torch.testing.assert_close(soft.sum(), torch.tensor(1.0), atol=1e-3, rtol=0)
    assert 0 < soft[..., 10, 13] < soft[..., 10, 10] < 1
    torch.testing.assert_close(feather(dot(), 0.0), dot())


def test_white_edits_black_keeps_and_invert_swaps():
    white = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    assert mask_from_frames(white, MaskOptions(feather_px=0.0)).min() == 1
    assert mask_from_frames(white, MaskOptions(feather_px=0.0, invert=True)).max() == 0


def test_composite_returns_the_bytes_of_either_side():
    generator = torch.Generator().manual_seed(0)
    new, old = (torch.randint(0, 256, (2, 3, 9, 9), generator=generator, dtype=torch.uint8) for _ in range(2))
    ones, zeros = torch.ones(2, 1, 9, 9), torch.zeros(2, 1, 9, 9)
    torch.testing.assert_close(composite(new, old, ones), new, rtol=0, atol=0)
    torch.testing.assert_close(composite(new, old, zeros), old, rtol=0, atol=0)
    half = composite(new, old, ones / 2)
    torch.testing.assert_close(half.float(), (new.float() + old.float()) / 2, rtol=0, atol=0.51)


def test_keep_background_streams_and_resizes_the_mask():
    clip = MemoryClip(torch.full((5, 3, 16, 16), 10, dtype=torch.uint8), chunk=2)
    edited = [torch.full((5, 3, 16, 16), 200, dtype=torch.uint8)]
    small = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    small[..., :2] = 255
    options = MaskOptions(feather_px=0.0)
    out = torch.cat(list(keep_background(edited, clip, MemoryClip(small), options, length=3)))
    assert out.shape == clip.frames.shape
    assert (out[..., :5] == 200).all() and (out[..., 11:] == 10).all()


def test_a_single_picture_is_prepared_once_for_all_frames():
    clip = MemoryClip(torch.zeros(5, 3, 16, 20, dtype=torch.uint8))
    picture = torch.zeros(1, 3, 8, 10, dtype=torch.uint8)
    picture[..., 3:6, 2:7] = 255
    options = MaskOptions(grow_px=1, feather_px=1.0)
    single = list(mask_chunks(MemoryClip(picture), clip, 2, options))
    assert [len(part) for part in single] == [2, 2, 1]
    assert len({part.untyped_storage().data_ptr() for part in single}) == 1
    film = MemoryClip(picture.repeat(5, 1, 1, 1), chunk=3)
    every = list(mask_chunks(film, clip, 2, options))
    torch.testing.assert_close(torch.cat(single), torch.cat(every))
    assert 0 < every[0].mean() < 1


@pytest.mark.parametrize("frames", [2, 6])
def test_a_mask_of_another_length_says_what_to_give(frames):
    clip, mask = (MemoryClip(torch.zeros(n, 3, 8, 8, dtype=torch.uint8)) for n in (5, frames))
    check_mask(clip, 5)
    with pytest.raises(ValueError, match="give one mask picture, or a mask video of the same length"):
        check_mask(mask, 5)
    with pytest.raises(ValueError, match="give one mask picture"):
        next(mask_chunks(mask, clip, 2))


def test_a_latent_cell_is_edited_as_soon_as_one_of_its_pixels_is():
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 9, 1] = 1
    assert latent_mask(mask, (2, 2)).flatten().tolist() == [0, 0, 1, 0]


def test_a_negative_feather_says_what_to_give():
    with pytest.raises(ValueError, match="give 0 for a hard edge"):
        MaskOptions(feather_px=-1.0)
