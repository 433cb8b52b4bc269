"""Context windows: which frames, how they blend, and what each window is told."""

from collections.abc import Sequence

import pytest
import torch
from exact import Mixture, condition_of, last
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from gen1_core.diffusion.condition import Condition
from gen1_core.diffusion.samplers import SAMPLERS
from gen1_core.diffusion.windows import blend_weights, plan, windowed

CPU = torch.device("cpu")


def clip(frames: int) -> Tensor:
    return torch.randn(1, 4, frames, 3, 5, generator=torch.Generator().manual_seed(frames))


@st.composite
def layouts(draw) -> tuple[int, int, int]:
    length = draw(st.integers(1, 16))
    return draw(st.integers(1, 90)), length, draw(st.integers(0, length - 1))


@given(layouts())
def test_windows_cover_every_frame_and_have_one_length(layout: tuple[int, int, int]) -> None:
    frames, length, overlap = layout
    windows = plan(frames, length, overlap)
    assert sorted({frame for window in windows for frame in window}) == list(range(frames))
    assert {len(window) for window in windows} == {min(length, frames)}
    for before, after in zip(windows, windows[1:], strict=False):
        assert before.start < after.start
        assert before.stop - after.start >= overlap


@given(layouts())
def test_weights_sum_to_1_and_none_is_0(layout: tuple[int, int, int]) -> None:
    frames, length, overlap = layout
    windows = plan(frames, length, overlap)
    weights = blend_weights(windows, frames, CPU)
    total = torch.zeros(frames)
    for window, weight in zip(windows, weights, strict=True):
        total[window.start : window.stop] += weight
        assert (weight > 0).all()
    assert_close(total, torch.ones(frames))


def test_seams_fade() -> None:
    first, second = blend_weights([range(0, 8), range(4, 12)], 12, CPU)
    assert_close(first, torch.tensor([1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]))
    assert_close(second, first.flip(0))


def test_a_longer_clip_keeps_the_windows_it_had() -> None:
    assert plan(40, 8, 3)[:5] == plan(60, 8, 3)[:5]


def recording(seen: list[tuple[Tensor, Condition]]):
    def denoise(x: Tensor, sigma: float, conditions: Sequence[Condition]) -> list[Tensor]:
        seen.extend((x, condition) for condition in conditions)
        return [x for _ in conditions]

    return denoise


@pytest.mark.parametrize("per_frame", [True, False])
def test_each_window_sees_its_own_frames(per_frame: bool) -> None:
    seen: list[tuple[Tensor, Condition]] = []
    x = clip(19)
    condition = condition_of(x, per_frame=per_frame)
    windowed(recording(seen), length=8, overlap=3)(x, 2.0, [condition, condition.dropped().as_images()])
    windows = plan(19, 8, 3)
    assert len(seen) == 2 * len(windows) == 8
    for i, (part, told) in enumerate(seen):
        frames = list(windows[i // 2])
        source = condition.dropped() if i % 2 else condition
        assert told.image == bool(i % 2)
        assert_close(part, x[:, :, frames], rtol=0, atol=0)
        assert_close(told.structure, source.structure[:, :, frames], rtol=0, atol=0)
        own = slice(None) if not per_frame else frames
        assert_close(told.content, source.content[:, own], rtol=0, atol=0)
        assert_close(told.null, source.null[:, own], rtol=0, atol=0)


def test_one_window_is_the_plain_call() -> None:
    x = clip(8)
    condition = condition_of(x)
    seen: list[tuple[Tensor, Condition]] = []
    (clean,) = windowed(recording(seen), length=8, overlap=3)(x, 2.0, [condition])
    assert seen[0][0] is x
    assert seen[0][1] is condition
    assert clean is x


@pytest.mark.parametrize("frames", [1, 8, 9, 30])
@pytest.mark.parametrize("name", list(SAMPLERS))
def test_a_denoiser_of_single_frames_does_not_notice(frames: int, name: str) -> None:
    x = clip(frames)

    def run(denoise) -> Tensor:
        noise = lambda i: torch.randn(x.shape, generator=torch.Generator().manual_seed(i))  # noqa: E731
        return last(SAMPLERS[name](denoise, x, [3.0, 1.0, 0.0], condition_of(x), noise=noise))

    plain = run(Mixture().denoiser())
    through = run(windowed(Mixture().denoiser(), length=8, overlap=3))
    assert (through - plain).norm() <= 1e-6 * plain.norm()


def test_a_denoiser_across_frames_does() -> None:
    x = clip(30)

    def denoise(x: Tensor, sigma: float, conditions: Sequence[Condition]) -> list[Tensor]:
        return [x.mean(dim=2, keepdim=True).expand_as(x) for _ in conditions]

    (through,) = windowed(denoise, length=8, overlap=3)(x, 2.0, [condition_of(x)])
    (plain,) = denoise(x, 2.0, [condition_of(x)])
    assert (through - plain).norm() > 0.01 * plain.norm()


def test_windows_that_would_not_move_are_refused() -> None:
    with pytest.raises(ValueError, match="use 0 to 7"):
        windowed(Mixture().denoiser(), length=8, overlap=8)
    with pytest.raises(ValueError, match="use 0 to 7"):
        plan(5, 8, -1)
    with pytest.raises(ValueError, match="use at least 1"):
        plan(5, 0, 0)
