"""The procedural world: exact depth, reproducible scenes, looks that leave geometry alone, captions."""

import re

import pytest
import torch

from gen1_core.training.world import (
    FAMILIES,
    PRESETS,
    Camera,
    Scene,
    Solid,
    caption,
    known_words,
    random_scene,
    random_style,
    render,
    render_styles,
)
from gen1_core.training.world.captions import NOUNS
from gen1_core.training.world.surface import casters, shadow, trace

CPU = torch.device("cpu")
SMALL = {"height": 32, "width": 32, "supersample": 1, "device": CPU}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def still_scene(*solids: Solid, height: float = 0.0, ground: bool = False) -> Scene:
    """A camera at z = 5 that looks along -z."""
    place = torch.tensor([[0.0, height, 5.0]], dtype=torch.float64)
    camera = Camera(
        position=place,
        target=place - torch.tensor([[0.0, 0.0, 5.0]], dtype=torch.float64),
        roll=torch.zeros(1).double(),
        spread=0.5,
    )
    return Scene(family="balls", solids=solids, camera=camera, ground=ground)


def solid(
    kind: str,
    *,
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0),
    size: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Solid:
    return Solid(
        kind=kind,
        centre=torch.tensor([centre], dtype=torch.float64),
        size=size,
        turn=torch.eye(3).double()[None],
    )


def rays(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Slopes of the rays of still_scene."""
    x = ((torch.arange(count) + 0.5) / count * 2 - 1) * 0.5
    return x[None, :], -x[:, None]


def test_depth_of_a_sphere_is_exact():
    surface = trace(still_scene(solid("ellipsoid")), height=64, width=64, device=CPU)
    x, y = rays(64)
    # |(x t, y t, 5 - t)| = 1 solved for t.
    a, discriminant = x * x + y * y + 1, 25 - 24 * (x * x + y * y + 1)
    expected = (5 - discriminant.clamp(min=0).sqrt()) / a
    hit = discriminant > 1e-3
    assert hit.sum() > 300
    torch.testing.assert_close(surface.distance[0][hit], expected[hit], rtol=1e-4, atol=1e-4)
    assert surface.sky[0][discriminant < -1e-3].all()


def test_depth_of_the_ground_is_exact():
    behind = solid("box", centre=(0.0, 1.0, 20.0))
    surface = trace(still_scene(behind, height=2.0, ground=True), height=32, width=32, device=CPU)
    _, y = rays(32)
    below = (y < -0.05).expand(32, 32)
    torch.testing.assert_close(surface.distance[0][below], (2.0 / -y).expand(32, 32)[below], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["box", "cylinder", "cone", "ellipsoid"])
def test_solids_show_their_nearest_point_and_their_silhouette(kind: str):
    surface = trace(still_scene(solid(kind, size=(0.5, 0.8, 0.5))), height=65, width=65, device=CPU)
    bottom = surface.distance[0, 32, 32].item()
    assert bottom == pytest.approx({"cone": 4.75}.get(kind, 4.5), abs=1e-3)
    rows = torch.nonzero((~surface.sky[0]).any(dim=1))
    y = 0.5 * (1 - 2 * (rows + 0.5) / 65)
    assert float(y.max()) * 5 == pytest.approx(0.8, abs=0.16)


def test_depth_is_inverse_scaled_over_the_clip_and_near_is_one():
    _, depth = render([random_scene("castle", seeded(3), frames=3)], [PRESETS["clay"]], **SMALL)
    assert depth.shape == (1, 1, 3, 32, 32)
    assert depth.min().item() == 0 and depth.max().item() == pytest.approx(1)
    near, far = (
        solid("ellipsoid", centre=(-0.8, 0, 2), size=(0.5, 0.5, 0.5)),
        solid("ellipsoid", centre=(0.8, 0, 0), size=(0.5, 0.5, 0.5)),
    )
    _, depth = render([still_scene(near, far)], [PRESETS["clay"]], **SMALL)
    row = depth[0, 0, 0, 16]
    # Inverse depths of 1 / 2.5 and 1 / 4.5 keep their ratio because the sky is at 0.
    assert row[16:].max().item() == pytest.approx(2.5 / 4.5, rel=0.05)


def test_a_shadow_falls_away_from_the_light():
    scene = still_scene(solid("ellipsoid", centre=(0.0, 1.0, 0.0)), height=1.5, ground=True)
    surface = trace(scene, height=64, width=64, device=CPU)
    on_ground = shadow(surface, scene, (0.7, 0.7, 0.1))[0] & surface.ground[0]
    columns = torch.nonzero(on_ground)[:, 1].float()
    assert len(columns) > 20
    assert columns.mean() < 31


def test_culling_leaves_the_picture_of_shadows_unchanged():
    scene = random_scene("castle", seeded(8), frames=2)
    surface = trace(scene, height=48, width=48, device=CPU)
    light = PRESETS["desert"].sky.sun
    culled = shadow(surface, scene, light)
    for number, body in enumerate(casters(scene)):
        alone = shadow(surface, Scene(family="castle", solids=(body,), camera=scene.camera, ground=True), light)
        assert (culled | ~alone).all(), f"shadow of solid {number} is missing"


def test_scenes_styles_and_captions_follow_from_the_seed():
    def everything(seed: int) -> tuple[torch.Tensor, torch.Tensor, str]:
        generator = seeded(seed)
        scene, style = random_scene("animal", generator, frames=2), random_style(generator)
        rgb, depth = render([scene], [style], **SMALL)
        return rgb, depth, caption(style, "animal", generator)

    first, again, other = everything(5), everything(5), everything(6)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1]) and first[2] == again[2]
    assert not torch.equal(first[1], other[1])


def test_styles_change_the_pixels_and_not_the_depth():
    scene = random_scene("car", seeded(1), frames=2)
    clay, depth_clay = render([scene], [PRESETS["clay"]], **SMALL)
    lava, depth_lava = render([scene], [PRESETS["lava"]], **SMALL)
    assert torch.equal(depth_clay, depth_lava)
    assert (clay.float() - lava.float()).abs().mean() > 30


def test_styles_of_one_scene_are_those_of_single_renders():
    scenes = [random_scene(family, seeded(2), frames=2) for family in ("room", "balls")]
    looks = [[PRESETS["desert"], PRESETS["comic"]], [PRESETS["glass"], PRESETS["chalk"]]]
    clips, depth = render_styles(scenes, looks, **SMALL)
    assert clips.shape == (2, 2, 2, 3, 32, 32) and depth.shape == (2, 1, 2, 32, 32)
    single, _ = render([scenes[1]], [PRESETS["glass"]], **SMALL)
    assert torch.equal(clips[1, 0], single[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_shows_its_solids(family: str):
    for seed in range(3):
        scene = random_scene(family, seeded(seed), frames=2)
        surface = trace(scene, height=32, width=32, device=CPU)
        things = [number for number, body in enumerate(scene.solids) if not body.wall]
        covered = torch.isin(surface.solid, torch.tensor(things)).float().mean().item()
        assert covered > 0.08, f"seed {seed}"
        for plane in (surface.normal, surface.texture, surface.position, surface.view, surface.openness):
            assert torch.isfinite(plane).all()
        assert surface.openness.min() >= 0 and surface.openness.max() <= 1


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_neither_black_nor_white_nor_flat(name: str):
    rgb, _ = render([random_scene("totem", seeded(4), frames=1)], [PRESETS[name]], **SMALL)
    assert 12 < rgb.float().mean() < 245
    assert rgb.float().std() > 8


def test_wide_clips_keep_the_shape_of_things():
    scene = still_scene(solid("ellipsoid"))
    surface = trace(scene, height=32, width=64, device=CPU)
    seen = ~surface.sky[0]
    assert abs(int(seen.any(dim=0).sum()) - int(seen.any(dim=1).sum())) <= 1


def test_captions_use_known_words_only():
    known, generator = known_words(), seeded(0)
    styles = [random_style(generator) for _ in range(60)] + list(PRESETS.values())
    named = 0
    for number in range(600):
        family = FAMILIES[number % len(FAMILIES)]
        text = caption(styles[number % len(styles)], family, generator)
        assert text and text == text.strip() and "  " not in text
        assert set(re.findall(r"\S+", text)) <= known
        named += any(noun in text for noun in NOUNS[family])
    assert 200 < named < 450


def test_every_family_has_nouns():
    assert set(NOUNS) == set(FAMILIES)


def test_unknown_families_and_empty_clips_are_refused():
    with pytest.raises(ValueError, match="choose one of balls"):
        random_scene("zebra", seeded(0), frames=2)
    with pytest.raises(ValueError, match="at least 1"):
        random_scene("balls", seeded(0), frames=0)
    with pytest.raises(ValueError, match="its own list"):
        render_styles([random_scene("balls", seeded(0), frames=1)], [], **SMALL)
