"""One structure, as a control network and as SD2-depth read it."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionDepth2ImgPipeline
from torch.testing import assert_close

from gen1_core.structure.blur import blur
from gen1_core.structure.estimator import Structure
from gen1_core.structure.feeds import depth_channel, hint_of


def clip(frames: int = 20, *, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 1, frames, 24, 40, generator=torch.Generator().manual_seed(seed))


def diffusers_depth(depth: torch.Tensor) -> torch.Tensor:
    """What depth2img makes of the depth of one picture."""
    pipeline = SimpleNamespace(vae_scale_factor=8)
    picture = torch.zeros(1, 3, *depth.shape[-2:])
    return StableDiffusionDepth2ImgPipeline.prepare_depth_map(
        pipeline,  # pyright: ignore[reportArgumentType]
        picture,
        depth,
        1,
        False,
        torch.float32,
        torch.device("cpu"),
    )


@pytest.mark.parametrize("level", [0, 3])
def test_a_hint_is_the_blurred_depth_with_its_strength(level: int) -> None:
    depth = clip()
    hint = hint_of(Structure(depth=depth, blur_level=level, strength=0.3))
    assert hint.strength == 0.3
    assert_close(hint.image, blur(depth, level))
    assert (level == 0) == torch.equal(hint.image, depth)


def test_the_channel_of_one_frame_is_that_of_depth2img() -> None:
    rough = clip(1)[:1]
    small = torch.nn.functional.interpolate(rough[:, 0], size=(3, 5), mode="bicubic", align_corners=False)
    full = (rough - small.min()) / (small.max() - small.min())  # a range that fits after bicubic, as diffusers scales
    expected = diffusers_depth(full[:, 0, 0])
    assert_close(depth_channel(Structure(depth=full))[:, :, 0], expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1


def test_a_clip_keeps_one_range_where_depth2img_stretches_each_frame() -> None:
    depth = torch.cat([torch.full((1, 1, 1, 16, 16), 0.25), torch.full((1, 1, 1, 16, 16), 0.75)], dim=2)
    channel = depth_channel(Structure(depth=depth))
    assert_close(channel, torch.tensor([-0.5, 0.5])[:, None, None].expand(1, 1, 2, 2, 2))


def test_the_channel_stays_in_its_range() -> None:
    steep = (clip() > 0.5).float()
    channel = depth_channel(Structure(depth=steep))
    assert channel.shape == (2, 1, 20, 3, 5)
    assert channel.min() == -1 and channel.max() == 1


def test_strength_and_blur_reach_the_channel() -> None:
    depth = clip()
    whole = depth_channel(Structure(depth=depth))
    half = depth_channel(Structure(depth=depth, strength=0.5))
    soft = depth_channel(Structure(depth=depth, blur_level=2))
    flat = depth_channel(Structure(depth=depth, strength=0.0))
    assert whole.std() > half.std() > flat.std()
    assert whole.std() > soft.std()
    assert_close(flat, (2 * depth.mean((1, 2, 3, 4), keepdim=True) - 1).expand_as(flat))


def test_frames_do_not_depend_on_their_neighbours() -> None:
    structure = Structure(depth=clip(40), blur_level=1)
    part = Structure(depth=structure.depth[:, :, 15:18], blur_level=1)
    assert_close(depth_channel(structure)[:, :, 15:18], depth_channel(part))
    assert_close(hint_of(structure).image[:, :, 15:18], hint_of(part).image)
