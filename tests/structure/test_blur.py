from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from gen1_core.models.autoencoder import Autoencoder, AutoencoderConfig
from gen1_core.structure.blur import (
    blur,
    encode_depth,
    encode_structure,
    flat_structure,
    level_channels,
    weakened,
)
from gen1_core.structure.estimator import Structure


def gradient_energy(depth: torch.Tensor) -> float:
    return float(depth.diff(dim=-1).square().mean() + depth.diff(dim=-2).square().mean())


def blobs(seed: int, cells: int, height: int, width: int) -> torch.Tensor:
    """Random depth with detail of a random scale: noise where there are as many cells as pixels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 1, cells, cells + 1, generator=generator)
    return F.interpolate(coarse, (height, width), mode="nearest")[None, :, 0].unsqueeze(1)


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    config = AutoencoderConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4)
    return Autoencoder(config).eval().requires_grad_(False)


@settings(max_examples=25)
@given(seed=st.integers(0, 99), cells=st.integers(2, 40), height=st.integers(16, 80), width=st.integers(16, 80))
def test_detail_falls_with_every_level(seed: int, cells: int, height: int, width: int) -> None:
    depth = blobs(seed, cells, height, width)
    energy = [gradient_energy(blur(depth, level)) for level in range(8)]
    # Below 1e-9 only rounding is left: nothing but one or two pixels remain.
    assert all(finer > coarser or finer < 1e-9 for finer, coarser in pairwise(energy))


@settings(max_examples=25)
@given(seed=st.integers(0, 99), level=st.integers(1, 7))
def test_blur_stays_within_the_range(seed: int, level: int) -> None:
    depth = blobs(seed, 9, 40, 56)
    blurred = blur(depth, level)
    assert blurred.shape == depth.shape
    assert depth.min() - 1e-6 <= blurred.min() and blurred.max() <= depth.max() + 1e-6


def test_level_0_is_the_depth_itself() -> None:
    depth = torch.rand(1, 1, 2, 24, 40)
    assert_close(blur(depth, 0), depth, rtol=0, atol=0)


def test_level_1_is_pyrdown_inside_the_borders() -> None:
    from kornia.geometry.transform import pyrdown

    depth = torch.rand(1, 1, 1, 32, 48)
    small = pyrdown(depth[:, 0], border_type="replicate")
    expected = F.interpolate(small, (32, 48), mode="bilinear", align_corners=False)
    assert_close(blur(depth, 1)[:, 0], expected)


def test_level_7_leaves_3_by_2_pixels_at_the_papers_size() -> None:
    """Bilinear from 3 columns: the picture bends in three places only."""
    blurred = blur(torch.rand(1, 1, 1, 256, 448, dtype=torch.float64), 7)[0, 0, 0]
    bends = blurred.diff(n=2, dim=-1).abs().amax(0) > 1e-9
    runs = int((bends[1:] & ~bends[:-1]).sum() + bends[0])
    assert runs == 3


def test_a_frame_is_blurred_by_itself() -> None:
    depth = torch.rand(2, 1, 3, 32, 32)
    assert_close(blur(depth, 3)[:, :, 1:2], blur(depth[:, :, 1:2], 3), rtol=0, atol=0)


@pytest.mark.parametrize("level", [-1, 8])
def test_levels_outside_the_range_are_refused(level: int) -> None:
    with pytest.raises(ValueError, match="a whole number from 0 to 7"):
        blur(torch.rand(1, 1, 1, 16, 16), level)


def test_level_channels_tell_all_levels_apart() -> None:
    like = torch.zeros(1, 4, 1, 1, 1)
    codes = torch.cat([level_channels(level, like).flatten(1) for level in range(8)])
    distance = torch.cdist(codes, codes) + 9 * torch.eye(8)
    assert distance.min() > 0.5
    assert codes.abs().max() <= 1


def test_level_channels_take_one_level_per_clip() -> None:
    like = torch.zeros(2, 4, 3, 4, 5, dtype=torch.bfloat16)
    codes = level_channels(torch.tensor([0, 5]), like)
    assert codes.dtype == torch.bfloat16 and codes.shape == like.shape
    assert_close(codes[1:], level_channels(5, like[:1]), rtol=0, atol=0)
    assert not torch.equal(codes[0], codes[1])


def test_strength_mixes_with_the_mean_of_the_clip() -> None:
    depth = torch.rand(2, 1, 3, 8, 8)

    def mixed(strength: float) -> torch.Tensor:
        parts = list(weakened(depth, strength, chunk=2))
        assert [part.shape[2] for part in parts] == [2, 1]
        return torch.cat(parts, dim=2)

    assert_close(mixed(1.0), depth, rtol=0, atol=0)
    flat = mixed(0.0)
    assert flat.flatten(1).std(dim=1).max() < 1e-6
    assert_close(flat[:, 0, 0, 0, 0], depth.mean((1, 2, 3, 4)))
    assert_close(mixed(0.25), 0.25 * depth + 0.75 * flat)


def test_encoding_is_the_blurred_depth_and_its_level(autoencoder: Autoencoder) -> None:
    depth = torch.rand(2, 1, 3, 32, 40)
    encoded = encode_depth(autoencoder, depth, 2, 4)
    assert encoded.shape == (2, 8, 3, 4, 5)
    picture = (blur(depth, 2)[1, :, 2] * 2 - 1).expand(3, -1, -1)
    assert_close(encoded[1:, :4, 2], autoencoder.encode(picture[None]), rtol=1e-5, atol=1e-6)
    assert_close(encoded[:, 4:], level_channels(2, encoded[:, :4]), rtol=0, atol=0)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_chunks_do_not_change_the_encoding(autoencoder: Autoencoder, strength: float) -> None:
    structure = Structure(depth=torch.rand(2, 1, 5, 16, 24), blur_level=1, strength=strength)
    whole = encode_structure(autoencoder, structure, 5)
    assert whole.shape == (2, 8, 5, 2, 3)
    for chunk in (1, 2, 3, 4, 9):
        assert_close(encode_structure(autoencoder, structure, chunk), whole)


def test_encoding_reports_frames(autoencoder: Autoencoder) -> None:
    steps = []
    structure = Structure(depth=torch.rand(1, 1, 5, 16, 16))
    encode_structure(autoencoder, structure, 2, on_step=lambda *step: steps.append(step))
    assert steps == [("structure", 2, 5), ("structure", 4, 5), ("structure", 5, 5)]


def test_structure_is_weakened_then_blurred(autoencoder: Autoencoder) -> None:
    depth = torch.rand(1, 1, 2, 16, 16)
    encoded = encode_structure(autoencoder, Structure(depth=depth, blur_level=1, strength=0.5), 2)
    (weak,) = weakened(depth, 0.5, chunk=2)
    assert_close(encoded, encode_depth(autoencoder, weak, 1, 2))
    assert (encoded - encode_depth(autoencoder, depth, 1, 2))[:, :4].norm() > 1e-2 * encoded[:, :4].norm()


def test_encoding_takes_the_precision_of_the_autoencoder(autoencoder: Autoencoder) -> None:
    half = Autoencoder(autoencoder.config).eval().requires_grad_(False).to(torch.bfloat16)
    depth = torch.rand(1, 1, 1, 16, 16) * 0.01 + 0.495  # scaled in bfloat16 this would be three greys
    encoded = encode_depth(half, depth, 0, 1)
    assert encoded.dtype == torch.bfloat16
    picture = (depth[:, 0] * 2 - 1).expand(-1, 3, -1, -1)
    assert_close(encoded[:, :4, 0], half.encode(picture.to(torch.bfloat16)), rtol=0, atol=0)


def test_flat_structure_is_a_flat_map_at_the_last_level(autoencoder: Autoencoder) -> None:
    like = encode_depth(autoencoder, torch.rand(2, 1, 3, 16, 24), 0, 3)
    expected = encode_depth(autoencoder, torch.full((2, 1, 3, 16, 24), 0.5), 7, 3)
    assert_close(flat_structure(autoencoder, like=like), expected)


def test_flat_structure_says_nothing_of_the_clip(autoencoder: Autoencoder) -> None:
    first, second = (encode_depth(autoencoder, torch.rand(1, 1, 2, 16, 16), 0, 2) for _ in range(2))
    assert not torch.equal(first, second)
    flats = [flat_structure(autoencoder, like=encoded) for encoded in (first, second)]
    assert_close(*flats, rtol=0, atol=0)
