from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from gen1_core.models.depth import DepthNet, DepthNetConfig
from gen1_core.structure.estimator import (
    DepthRange,
    Structure,
    load_depth,
    near_size,
    network_estimator,
    range_of,
    refine,
    save_depth,
    scale_depth,
)


def test_range_is_percentiles_1_and_99_of_all_frames() -> None:
    raw = torch.arange(1000.0)[torch.randperm(1000)].reshape(10, 1, 10, 10)
    found = range_of(raw)
    assert found.low == pytest.approx(999 * 0.01, rel=1e-5)
    assert found.high == pytest.approx(999 * 0.99, rel=1e-5)


def test_a_few_wild_pixels_do_not_squeeze_the_rest() -> None:
    raw = torch.rand(4, 1, 50, 50)
    wild = raw.clone()
    wild[0, 0, 0, :5] = 1e6
    assert range_of(wild).high == pytest.approx(range_of(raw).high, abs=0.01)


def test_a_huge_clip_is_sampled_over_all_columns() -> None:
    """More values than torch.quantile takes, and every column with its own depth."""
    ramp = torch.linspace(0, 1, 2048).expand(5, 1, 2048, 2048)
    found = range_of(ramp)
    assert found.low == pytest.approx(0.01, abs=2e-3)
    assert found.high == pytest.approx(0.99, abs=2e-3)


def test_scaled_depth_is_clipped_to_0_and_1() -> None:
    raw = torch.rand(3, 1, 40, 40) * 500
    depth = scale_depth(raw, range_of(raw))
    assert depth.min() == 0 and depth.max() == 1
    assert 0.005 < (depth == 1).float().mean() < 0.02
    order = raw.flatten().argsort()
    assert (depth.flatten()[order].diff() >= 0).all()


def test_a_flat_clip_becomes_zeros() -> None:
    raw = torch.full((2, 1, 8, 8), 3.5)
    assert_close(scale_depth(raw, range_of(raw)), torch.zeros(2, 1, 8, 8), rtol=0, atol=0)


def test_scaling_follows_shift_and_scale_of_the_estimate() -> None:
    raw = torch.rand(2, 1, 16, 16, dtype=torch.float64)
    other = raw * 37 + 11
    assert_close(scale_depth(raw, range_of(raw)), scale_depth(other, range_of(other)), rtol=0, atol=1e-5)


def test_a_chunk_with_the_saved_range_is_the_part_of_the_whole(tmp_path: Path) -> None:
    raw = torch.rand(6, 1, 24, 32) * 90 + 7
    whole = scale_depth(raw, range_of(raw))
    save_depth(tmp_path / "tiefe.safetensors", whole[:, 0][None, None], range_of(raw))
    depth, depth_range = load_depth(tmp_path / "tiefe.safetensors")
    assert_close(depth[0].movedim(0, 1), whole, rtol=0, atol=0)
    assert_close(scale_depth(raw[2:5], depth_range), whole[2:5], rtol=0, atol=0)
    assert not torch.equal(scale_depth(raw[2:5], range_of(raw[2:5])), whole[2:5])


def test_saving_leaves_no_half_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose a folder that exists"):
        save_depth(tmp_path / "missing" / "d.safetensors", torch.rand(1, 1, 1, 4, 4), DepthRange(low=0.0, high=1.0))
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_not_depth_maps(tmp_path: Path) -> None:
    save_file({"depth": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text").write_text("depth", encoding="utf-8")
    for name in ("other.safetensors", "text", "missing"):
        with pytest.raises(ValueError, match="give a file that save_depth wrote"):
            load_depth(tmp_path / name)


def test_nan_has_no_range() -> None:
    raw = torch.rand(1, 1, 4, 4)
    raw[0, 0, 1, 1] = float("nan")
    with pytest.raises(ValueError, match="run the depth estimator in float32"):
        range_of(raw)


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (0.0, float("nan")), (float("-inf"), 0.0)])
def test_ranges_that_are_none_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="two finite numbers, low first"):
        DepthRange(low=low, high=high)


@pytest.mark.parametrize(
    ("fields", "advice"),
    [
        ({"blur_level": 8}, "a whole number from 0"),
        ({"blur_level": -1}, "a whole number from 0"),
        ({"strength": 1.5}, r"give 0 \(flat\) to 1"),
        ({"strength": float("nan")}, r"give 0 \(flat\) to 1"),
        ({"start": 0.5, "end": 0.5}, "0 <= start < end <= 1"),
        ({"end": 1.1}, "0 <= start < end <= 1"),
        ({"start": -0.1}, "0 <= start < end <= 1"),
    ],
)
def test_structure_outside_its_sliders_is_refused(fields: dict, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        Structure(depth=torch.rand(1, 1, 1, 8, 8), **fields)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((256, 448), (128, 224)), ((1080, 1920), (128, 224)), ((1920, 1080), (224, 128)), ((1, 9), (128, 1152))],
)
def test_near_size_keeps_the_aspect(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert near_size(*size, short_side=128, multiple=32) == expected


def small_net() -> DepthNet:
    torch.manual_seed(0)
    return DepthNet(DepthNetConfig(channels=(8, 16), norm_num_groups=4, train_size=32)).eval()


@pytest.mark.parametrize("size", [(37, 53), (32, 32), (17, 90)])
def test_network_estimator_keeps_any_size(size: tuple[int, int]) -> None:
    assert network_estimator(small_net())(torch.rand(2, 3, *size)).shape == (2, 1, *size)


def test_network_estimator_is_the_refined_network_at_its_size() -> None:
    net, images = small_net(), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert_close(network_estimator(net)(images), refine(net(images), images, short_side=32))
    assert not network_estimator(net)(images).requires_grad


def test_refine_gives_a_blurred_step_the_edge_of_the_picture() -> None:
    images = torch.full((1, 3, 160, 160), 0.3)
    images[..., 80:] = torch.tensor([0.8, 0.3, 0.1])[:, None, None]
    blurred = torch.linspace(-8, 8, 160).sigmoid().expand(1, 1, 160, 160)
    refined = refine(blurred, images, short_side=160)
    step = lambda depth: float((depth[..., 80] - depth[..., 79]).mean())  # noqa: E731
    assert step(refined) > 4 * step(blurred)
    assert_close(refined[..., [0, -1]], blurred[..., [0, -1]], atol=0.02, rtol=0)


def test_refine_adds_no_edge_to_flat_depth_and_takes_no_level_from_it() -> None:
    images = torch.rand(2, 3, 64, 96)
    flat = torch.full((2, 1, 64, 96), 0.4)
    assert_close(refine(flat, images, short_side=64), flat, atol=1e-4, rtol=0)


def test_refine_only_smooths_where_the_picture_is_even() -> None:
    raw = torch.rand(1, 1, 64, 64)
    refined = refine(raw, torch.full((1, 3, 64, 64), 0.5), short_side=64)
    assert float(refined.std()) < 0.25 * float(raw.std())
    assert abs(float(refined.mean()) - float(raw.mean())) < 0.01


def test_network_estimator_returns_float32_from_any_precision() -> None:
    estimate = network_estimator(small_net().to(torch.bfloat16))
    assert estimate(torch.rand(1, 3, 40, 40)).dtype == torch.float32
