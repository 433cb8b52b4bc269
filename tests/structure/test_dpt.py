"""Depth networks as estimators: any size in, raw depth of that size out, prepared as each was trained."""

from pathlib import Path

import pytest
import torch
from models.dpt_references import depth_anything, published, randomised, tiny_dpt
from torch.testing import assert_close
from torchvision.transforms.functional import normalize

from gen1_core.checkpoints.depth import depth_network
from gen1_core.models.dpt import DPT, DPTConfig
from gen1_core.models.vit import ViTConfig
from gen1_core.structure.dpt import IMAGENET_MEAN, IMAGENET_STD, dpt_estimator, normalised
from gen1_core.structure.estimator import DepthEstimator, near_size


@pytest.fixture(scope="module", params=[tiny_dpt, depth_anything])
def model(request: pytest.FixtureRequest) -> DPT:
    reference = randomised(request.param())
    return depth_network(published(reference), path=Path("tiny"), device=torch.device("cpu"), dtype=torch.float32)


def test_it_is_a_depth_estimator(model: DPT) -> None:
    assert isinstance(dpt_estimator(model), DepthEstimator)


@pytest.mark.parametrize("size", [(64, 64), (45, 81), (200, 120)])
def test_any_size_comes_back(model: DPT, size: tuple[int, int]) -> None:
    depth = dpt_estimator(model)(torch.rand(2, 3, *size))
    assert depth.shape == (2, 1, *size)
    assert depth.dtype == torch.float32
    assert not depth.requires_grad


def test_a_fitting_size_goes_through_untouched(model: DPT) -> None:
    """The short side is the training size, the long one a multiple: nothing is squeezed to a square."""
    side = model.config.vit.image_size
    images = torch.rand(2, 3, side, side + model.config.multiple)
    with torch.no_grad():
        assert_close(dpt_estimator(model)(images), model(normalised(images, model.config)))


def test_each_frame_is_estimated_alone(model: DPT) -> None:
    images = torch.rand(3, 3, 50, 90)
    assert_close(dpt_estimator(model)(images)[1:2], dpt_estimator(model)(images[1:2]), rtol=1e-4, atol=1e-4)


def test_colours_are_normalised_as_each_was_trained() -> None:
    images = torch.rand(1, 3, 8, 8)
    assert_close(normalised(images, DPTConfig()), images * 2 - 1)
    dino = DPTConfig(vit=ViTConfig(image_size=518, patch_size=14, dino=True))
    assert_close(normalised(images, dino), normalize(images, list(IMAGENET_MEAN), list(IMAGENET_STD)))


@pytest.mark.parametrize(
    ("frame", "dino", "expected"),
    [
        ((720, 1280), True, (518, 924)),  # Depth Anything: the short side 518, multiples of 14
        ((1280, 720), True, (924, 518)),
        ((518, 518), True, (518, 518)),
        ((720, 1280), False, (384, 672)),  # MiDaS: the short side 384, multiples of 32
        ((480, 640), False, (384, 512)),
    ],
)
def test_sizes_are_those_of_the_authors(frame: tuple[int, int], dino: bool, expected: tuple[int, int]) -> None:
    config = DPTConfig(vit=ViTConfig(image_size=518, patch_size=14, dino=True) if dino else ViTConfig())
    size = near_size(*frame, short_side=config.vit.image_size, multiple=config.multiple)
    assert size == expected
