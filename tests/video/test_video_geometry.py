import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from gen1_core.video.geometry import crop, fit_within, from_working, pad, resize, to_working, working_size


@given(st.integers(8, 2000), st.integers(8, 2000), st.sampled_from([(128, 32), (512, 64), (100, 8)]))
def test_working_size_has_its_short_side_and_divides(width: int, height: int, kind: tuple[int, int]) -> None:
    short_side, multiple = kind
    assume(max(width, height) <= 8 * min(width, height))
    size = working_size(width, height, short_side=short_side, multiple=multiple)
    assert min(size.width, size.height) == short_side
    assert abs(size.width / size.height - width / height) <= 0.51 * width / height * (1 / size.width + 1 / size.height)
    assert size.padded_width % multiple == size.padded_height % multiple == 0
    assert 0 <= size.padded_width - size.width < multiple and 0 <= size.padded_height - size.height < multiple


@pytest.mark.parametrize(("width", "height"), [(127, 95), (95, 127), (64, 64), (31, 200)])
def test_there_and_back_is_the_source_size_and_nearly_its_picture(width: int, height: int) -> None:
    size = working_size(width, height, short_side=128, multiple=32)
    across = torch.linspace(0, 1, width).expand(1, 3, height, width)
    inner = to_working(across, size)
    assert inner.shape[-2:] == (size.padded_height, size.padded_width)
    back = from_working(inner, size, width=width, height=height)
    assert back.shape == across.shape
    torch.testing.assert_close(back, across, atol=0.01, rtol=0)


def test_padding_repeats_the_edge_and_crop_undoes_it() -> None:
    images = torch.rand(2, 3, 5, 7)
    padded = pad(images, width=16, height=8)
    torch.testing.assert_close(padded[..., :5, 7:], images[..., -1:].expand(2, 3, 5, 9))
    torch.testing.assert_close(crop(padded, width=7, height=5), images, rtol=0, atol=0)


def test_resize_is_antialiased_and_stays_in_range() -> None:
    stripes = (torch.arange(64) % 2).float().expand(1, 1, 64, 64)
    small = resize(stripes, width=8, height=8)
    torch.testing.assert_close(small, torch.full_like(small, 0.5), atol=0.05, rtol=0)
    assert resize((torch.rand(1, 3, 9, 9) > 0.5).float(), width=40, height=40).aminmax() == (0, 1)


def test_fit_within_bounds_the_longer_side_and_never_enlarges() -> None:
    assert fit_within(1920, 1080, 640) == (640, 360)
    assert fit_within(1080, 1920, 640) == (360, 640)
    assert fit_within(320, 240, 640) == fit_within(320, 240, 0) == (320, 240)


@pytest.mark.parametrize(("width", "height"), [(4000, 8), (8, 4000), (129, 16)])
def test_a_strip_is_refused_before_it_fills_the_memory(width: int, height: int) -> None:
    with pytest.raises(ValueError, match="crop the clip to 8:1 or less first"):
        working_size(width, height, short_side=128, multiple=32)
    assert working_size(128, 16, short_side=128, multiple=32).width == 1024


def test_too_small() -> None:
    with pytest.raises(ValueError, match="enlarge it first"):
        working_size(7, 100, short_side=128, multiple=32)
    with pytest.raises(ValueError, match="raise short_side to 32"):
        working_size(70, 100, short_side=16, multiple=32)
