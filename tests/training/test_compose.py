"""Composed pictures for the depth network: whatever is done to a scene, its depth stays true of it."""

import pytest
import torch
from torch import Tensor

from gen1_core.training.compose import Composition, compose
from gen1_core.training.loop import generator_at

UNCHANGED = Composition(sizes=(32,), before=0.0, close_up=0.0, surfaces=0.0, defocus=0.0)


def scene(*, count: int = 16, side: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random smooth depth over a ground that comes nearer downwards, and random pictures."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 4, 4, generator=generator)
    depth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)
    return torch.rand(count, 3, side, side, generator=generator), (depth + torch.linspace(0, 1, side)[:, None]) / 2


def test_without_a_change_the_pictures_are_the_same() -> None:
    images, depth = scene()
    same, same_depth = compose(images, depth, UNCHANGED, generator_at(0, "c", 0))
    torch.testing.assert_close(same, images, atol=1e-6, rtol=0)
    torch.testing.assert_close(same_depth, depth, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [32, 48])
def test_all_changes_at_once_keep_size_and_range_and_follow_from_the_generator(size: int) -> None:
    how = Composition(sizes=(size,), before=1.0, close_up=1.0, surfaces=1.0, defocus=1.0)
    images, depth = scene()
    made, made_depth = compose(images, depth, how, generator_at(0, "c", 1))
    assert made.shape == (16, 3, size, size) and made_depth.shape == (16, 1, size, size)
    for values in (made, made_depth):
        assert 0 <= float(values.min()) and float(values.max()) <= 1
    again = compose(images, depth, how, generator_at(0, "c", 1))
    assert torch.equal(again[0], made) and torch.equal(again[1], made_depth)
    assert not torch.equal(compose(images, depth, how, generator_at(0, "c", 2))[0], made)


def test_every_size_is_drawn() -> None:
    images, depth = scene(count=1)
    how = Composition(sizes=(16, 24), before=0.0, close_up=0.0, surfaces=0.0, defocus=0.0)
    drawn = {compose(images, depth, how, generator_at(0, "c", step))[0].shape[-1] for step in range(20)}
    assert drawn == {16, 24}


def test_a_close_up_of_a_picture_and_of_its_depth_show_the_same_place() -> None:
    _, depth = scene(side=64)
    how = Composition(sizes=(64,), before=0.0, close_up=1.0, surfaces=0.0, defocus=0.0)
    seen, seen_depth = compose(depth.expand(-1, 3, -1, -1), depth, how, generator_at(0, "c", 3))
    low, high = seen.amin(dim=(1, 2, 3)), seen.amax(dim=(1, 2, 3))
    whole = depth.amax(dim=(1, 2, 3)) - depth.amin(dim=(1, 2, 3))
    assert bool((high - low < whole - 0.01).all())  # a part of it, and no border from outside
    for picture, map_ in zip(seen[:, :1], seen_depth, strict=True):
        between = (map_ > 0) & (map_ < 1)  # the percentiles cut the rest
        pair = torch.stack([picture[between], map_[between]])
        assert float(torch.corrcoef(pair)[0, 1]) > 0.9999
        assert float(map_.min()) == 0 and float(map_.max()) == 1


def test_a_body_before_another_scene_is_nearer_than_what_it_hides_and_brings_no_ground() -> None:
    wall, body = torch.full((1, 1, 64, 64), 0.2), torch.full((1, 1, 64, 64), 0.2)
    body[..., 20:44, 24:40] = 0.7
    depth = torch.cat([wall, body])
    images = torch.zeros(2, 3, 64, 64)
    images[0, 2], images[1, 0] = 1, 1  # a blue wall; everything red where the body is
    how = Composition(sizes=(64,), before=1.0, close_up=0.0, surfaces=0.0, defocus=0.0)
    shares = []
    for step in range(20):
        made, made_depth = compose(images, depth, how, generator_at(0, "c", step))
        hidden = made[0, 2] < 1
        shares.append(float(hidden.float().mean()))
        if 0 < shares[-1] < 1:
            assert float(made_depth[0, 0][hidden].min()) > float(made_depth[0, 0][~hidden].max())
    assert sum(share > 0 for share in shares) > 15
    assert max(shares) < 0.5  # the body alone, not the red around it, which would fill the picture


def test_other_surfaces_leave_the_depth_and_end_where_it_jumps() -> None:
    images = torch.full((16, 3, 32, 32), 0.5)
    depth = torch.zeros(16, 1, 32, 32)
    depth[..., 16:] = 1.0
    how = Composition(sizes=(32,), before=0.0, close_up=0.0, surfaces=1.0, defocus=0.0)
    made, same = compose(images, depth, how, generator_at(0, "c", 0))
    torch.testing.assert_close(same, depth, atol=1e-6, rtol=0)
    steps = (made[..., 1:] - made[..., :-1]).abs().mean(dim=(0, 1, 2))
    assert float(steps[15]) > 3 * float(steps.mean()) > 0.03


def test_defocus_leaves_what_is_near_and_softens_what_is_far() -> None:
    images, _ = scene()
    near_left = torch.ones(16, 1, 32, 32)
    near_left[..., 16:] = 0
    how = Composition(sizes=(32,), before=0.0, close_up=0.0, surfaces=0.0, defocus=1.0)
    made, _ = compose(images, near_left, how, generator_at(0, "c", 0))
    torch.testing.assert_close(made[..., :15], images[..., :15], atol=1e-6, rtol=0)
    assert float(made[..., 17:].std()) < 0.2 * float(images[..., 17:].std())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sizes": ()}, "leaves no picture"),
        ({"sizes": (128, 0)}, "leaves no picture"),
        ({"before": 1.5}, "before=1.5 is a probability"),
        ({"defocus": -0.1}, "defocus=-0.1 is a probability"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Composition(**{"sizes": (32,), **change})  # pyright: ignore[reportArgumentType]
