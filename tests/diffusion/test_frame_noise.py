"""Noise belongs to a frame, however the clip is cut."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from gen1_core.diffusion.noise import FrameNoise

WHOLE = FrameNoise(seed=11, channels=4, height=3, width=5, first=0, count=9)


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    assert_close(a, b, atol=0, rtol=0)


def test_frame_k_is_the_kth_draw_of_one_generator() -> None:
    generator = torch.Generator().manual_seed(11)
    draws = [torch.randn([1, 4, 3, 5], generator=generator) for _ in range(9)]
    same(WHOLE.initial(), torch.stack(draws, dim=2))


@pytest.mark.parametrize(("first", "count"), [(0, 4), (3, 4), (8, 1), (2, 20)])
def test_chunks_windows_and_longer_clips_agree_with_the_whole(first: int, count: int) -> None:
    part = replace(WHOLE, first=first, count=count)
    shared = min(count, 9 - first)
    same(part.initial()[:, :, :shared], WHOLE.initial()[:, :, first : first + shared])
    same(part.step(6)[:, :, :shared], WHOLE.step(6)[:, :, first : first + shared])
    assert part.initial().shape == (1, 4, count, 3, 5)


def test_step_noise_is_keyed_by_seed_frame_and_step() -> None:
    noise = WHOLE.step(2)
    same(noise, WHOLE.step(2))
    others = [
        replace(WHOLE, seed=12).step(2),
        WHOLE.step(3),
        replace(WHOLE, first=1).step(2),
        WHOLE.initial(),
    ]
    for other in others:
        assert (noise - other).flatten(3).norm(dim=-1).min() > 0.1


def test_neighbouring_keys_are_independent() -> None:
    """Keys added up would repeat: seed 11 at step 3 would be seed 12 at step 2."""
    draws = [replace(WHOLE, seed=seed).step(step) for seed in range(4) for step in range(4)]
    frames = torch.cat(draws, dim=2)[0].movedim(1, 0).flatten(1)
    assert len(torch.unique(frames, dim=0)) == len(frames)
    assert frames.mean().abs() < 0.05
    assert (frames.std() - 1).abs() < 0.05


def test_no_stretch_of_a_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="ask for at least one"):
        replace(WHOLE, count=0)
    with pytest.raises(ValueError, match="count frames from 0"):
        replace(WHOLE, first=-1)
