"""Distances and statistics against closed forms and against kornia."""

import math

import pytest
import torch
from kornia.metrics import ssim as kornia_ssim
from torch.nn import functional as F

from gen1_core.evaluation.distances import (
    feature_distance,
    motion,
    multi_scale_ssim,
    sharpness,
    ssim,
    ssim_maps,
    warp,
    warp_error,
)
from gen1_core.metrics import psnr


def pictures(seed: int, *, frames: int = 2, size: int = 48) -> torch.Tensor:
    coarse = torch.rand(frames, 3, size // 8, size // 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (size, size), mode="bilinear")


def test_psnr_of_a_known_error():
    truth = pictures(0) * 0.5
    assert psnr(truth + 0.1, truth) == pytest.approx(20, abs=1e-3)
    assert psnr(truth, truth) == pytest.approx(100)


def test_ssim_is_kornias():
    a, b = pictures(1).double(), pictures(2).double()  # its differences of squares cancel in float32
    theirs = kornia_ssim(a, b, window_size=11, padding="valid")
    torch.testing.assert_close(ssim_maps(a, b)[0], theirs, rtol=1e-4, atol=1e-4)
    assert ssim(a, b) == pytest.approx(float(theirs.mean()), abs=1e-4)


def test_ssim_of_flat_pictures_is_its_luminance_part():
    a, b = torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), 0.6)
    assert ssim(a, b) == pytest.approx((2 * 0.2 * 0.6 + 1e-4) / (0.04 + 0.36 + 1e-4), abs=1e-4)


def test_ssim_needs_its_window():
    with pytest.raises(ValueError, match="give larger ones"):
        ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def test_multi_scale_ssim_is_one_for_equals_and_falls_with_noise_and_blur():
    truth = (pictures(3, size=64) > 0.5).float()
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    levels = [multi_scale_ssim((truth + amount * noise).clamp(0, 1), truth) for amount in (0.0, 0.1, 0.3)]
    assert levels[0] == pytest.approx(1, abs=1e-5)
    assert levels[0] > levels[1] > levels[2] > 0
    soft = F.avg_pool2d(truth, 9, stride=1, padding=4)
    assert multi_scale_ssim(soft, truth) < 0.9


def test_warp_moves_a_picture_by_whole_pixels():
    frame = pictures(4, frames=1)
    flow = torch.zeros(1, 2, 48, 48)
    flow[:, 0], flow[:, 1] = 3, -2
    torch.testing.assert_close(warp(frame, flow)[..., 2:, :-3], frame[..., :-2, 3:], rtol=0, atol=1e-5)


def test_warp_error_is_zero_along_the_motion_and_counts_only_what_is_seen():
    first = pictures(5, frames=1)
    clip = torch.cat([first, torch.roll(first, 2, dims=-1)])
    flow = torch.zeros(1, 2, 48, 48)
    flow[:, 0] = -2
    seen = torch.ones(1, 1, 48, 48, dtype=torch.bool)
    seen[..., :2] = False
    assert warp_error(clip, flow, seen) == pytest.approx(0, abs=1e-5)
    assert warp_error(clip, torch.zeros_like(flow), seen) > 0.01
    brighter = torch.cat([clip[:1], clip[1:] + 0.25])
    assert warp_error(brighter, flow, seen) == pytest.approx(0.25, abs=1e-4)
    brighter[1, :, :, :2] = 9
    assert warp_error(brighter, flow, seen) == pytest.approx(0.25, abs=1e-4)


def test_sharpness_and_motion_of_known_clips():
    ramp = torch.linspace(0, 1, 11).expand(2, 3, 11, 11)
    assert sharpness(ramp) == pytest.approx(0.05, abs=1e-6)
    assert motion(ramp) == 0
    assert motion(torch.stack([ramp[0], ramp[0] + 0.3])) == pytest.approx(0.3, abs=1e-6)


def test_feature_distance_is_one_minus_cosine():
    angle = 0.4
    a = torch.tensor([1.0, 0.0])[None, :, None, None] * 3
    b = torch.tensor([math.cos(angle), math.sin(angle)])[None, :, None, None]
    assert feature_distance([a, a], [b, a]) == pytest.approx((1 - math.cos(angle)) / 2, abs=1e-6)
