"""Reliefs of depth maps: forms of known surfaces, and nothing that the map does not show."""

import pytest
import torch
from einops import rearrange, reduce, repeat
from torch import Tensor
from torch.testing import assert_close

from gen1_core.training.world import PRESETS, caption, known_words, random_style, render_reliefs
from gen1_core.training.world.effects import edges
from gen1_core.training.world.geometry import GROUND_SLOT, PAINT_SLOTS
from gen1_core.training.world.relief import NEAREST, SPREAD, relief
from gen1_core.training.world.surface import screen

SIZE = 96


def rays() -> Tensor:
    """Directions ``[3 h w]`` (right, up, towards the camera) of a square picture."""
    x, y = screen(SIZE, device=torch.device("cpu")) * SPREAD, -screen(SIZE, device=torch.device("cpu")) * SPREAD
    return torch.stack([repeat(x, "w -> h w", h=SIZE), repeat(y, "h -> h w", w=SIZE), -torch.ones(SIZE, SIZE)])


def ball() -> tuple[Tensor, Tensor, Tensor]:
    """A ball before nothing: depth ``[1 h w]``, true normals ``[3 h w]``, and where it is."""
    directions, centre, radius = rays(), torch.tensor([0.0, 0.0, -1.2]), 0.35
    a = (directions**2).sum(dim=0)
    b = torch.einsum("chw,c->hw", directions, centre)
    inside = b * b - a * (centre @ centre - radius**2)
    distance = (b - inside.clamp(min=0).sqrt()) / a
    normal = (directions * distance - centre[:, None, None]) / radius
    depth = torch.where(inside > 0, NEAREST / distance, 0.0)
    return rearrange(depth, "h w -> 1 h w"), normal, inside > 0


def shrunk(mask: Tensor, by: int) -> Tensor:
    """A mask without a border of ``by`` pixels."""
    outside = rearrange((~mask).float(), "h w -> 1 1 h w")
    return rearrange(torch.nn.functional.max_pool2d(outside, 2 * by + 1, 1, by), "1 1 h w -> h w") == 0


def test_a_ball_has_the_normals_of_a_ball() -> None:
    depth, truth, inside = ball()
    found = relief(depth)
    middle = shrunk(inside, 5)
    cosine = (found.outward[:, 0] * truth).sum(dim=0)[middle]
    assert middle.sum() > 500 and cosine.min() > 0.97 and cosine.mean() > 0.995
    assert (found.sky[0] == inside).float().mean() < 0.05  # but for a border that is softened
    assert (found.slot[0][middle] < PAINT_SLOTS).all()


def test_the_line_around_a_body_is_closed_and_nowhere_else() -> None:
    depth, _, inside = ball()
    found = relief(depth)
    line = found.solid[0].bool()
    drawn = edges(found, supersample=1)[0, 0]
    ys, xs = torch.nonzero(line, as_tuple=True)
    centre = (SIZE - 1) / 2
    radius = (inside.sum() / torch.pi).sqrt()
    reached = ((ys - centre) ** 2 + (xs - centre) ** 2).sqrt()
    assert (reached - radius).abs().max() < 4
    angle = torch.atan2(ys - centre, xs - centre)
    sectors = torch.histc(angle, bins=36, min=-torch.pi, max=torch.pi)
    assert (sectors > 0).all()  # in every direction
    assert drawn[line].min() > 0.3
    assert drawn[shrunk(inside, 8)].max() == 0 and drawn[shrunk(~inside, 8)].max() == 0


def test_a_plane_below_the_camera_is_ground_without_lines() -> None:
    below = (-rays()[1]).clamp(min=0)  # 1 / distance of a plane falls linearly towards the horizon
    found = relief(rearrange(below * 1.9, "h w -> 1 h w"))
    bottom = found.slot[0, 3 * SIZE // 4 :, 4:-4]
    assert (bottom == GROUND_SLOT).all()
    assert found.outward[1, 0, 3 * SIZE // 4 : -4].min() > 0.95
    assert not edges(found, supersample=1)[0, 0, 3 * SIZE // 4 :].any()
    assert found.sky[0, : SIZE // 2 - 2].all()


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_flat_map_has_no_forms(value: float) -> None:
    found = relief(torch.full((2, 32, 48), value))
    facing = repeat(torch.tensor([0.0, 0.0, 1.0]), "c -> c f h w", f=2, h=32, w=48)
    assert_close(found.normal, facing, rtol=0, atol=1e-4)
    assert not edges(found, supersample=1).any() and (found.openness == 1).all()
    assert found.sky.all() == found.sky.any() == (value == 0)


@pytest.mark.parametrize("seed", range(6))
def test_every_style_gives_a_picture_that_shows_the_body(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    named = list(PRESETS.values())[seed::6]
    styles = [*named, *(random_style(generator) for _ in range(4))]
    depth = repeat(ball()[0], "1 h w -> f h w", f=2)
    made = render_reliefs(depth, styles)
    assert made.shape == (len(styles), 2, 3, SIZE, SIZE) and made.dtype == torch.uint8
    assert torch.equal(made, render_reliefs(depth, styles))
    assert torch.equal(made[:, 0], made[:, 1])  # a still map, a still picture
    empty = render_reliefs(torch.zeros_like(depth), styles)
    change = reduce((made.float() - empty.float()).abs(), "k f c h w -> k", "mean")
    assert (change > 2).all(), change
    assert len({tuple(picture.flatten().tolist()) for picture in made}) == len(styles)


def test_captions_of_a_real_clip_name_no_family() -> None:
    generator = torch.Generator().manual_seed(0)
    said = " ".join(caption(PRESETS["clay"], None, generator) for _ in range(40)).split()
    assert set(said) <= set(known_words()) and not {"person", "car", "balls", "face", "forest"} & set(said)
