"""What training may see of the world, what evaluation keeps for itself, and that edits can be predicted from depth."""

import json
import re
from dataclasses import replace

import pytest
import torch

from gen1_core.training.bank import BankConfig, draw_style, render_clip
from gen1_core.training.world import (
    FAMILIES,
    HELD_OUT_FAMILIES,
    PRESETS,
    TRAINED_FAMILIES,
    Camera,
    Scene,
    Solid,
    caption,
    is_held_out,
    is_held_out_pair,
    known_words,
    random_scene,
    random_style,
    render,
    render_styles,
)
from gen1_core.training.world.captions import NOUNS
from gen1_core.training.world.media import MEDIA
from gen1_core.training.world.shade import nearness
from gen1_core.training.world.substances import MATERIALS, PALETTES
from gen1_core.training.world.surface import trace
from gen1_core.training.world.surroundings import SKIES

CPU = torch.device("cpu")
SMALL = {"height": 32, "width": 32, "supersample": 1, "device": CPU}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_bank(split: str, **changes: object) -> BankConfig:
    config = BankConfig(name="t", seed=5, shards=1, frames=1, size=32, supersample=1, captions=3)
    return replace(config, split=split, **changes)  # pyright: ignore[reportArgumentType]


def test_there_are_enough_styles_and_families():
    assert len(PRESETS) >= 40
    assert len(TRAINED_FAMILIES) >= 12
    assert 2 <= len(HELD_OUT_FAMILIES) <= 3
    assert set(TRAINED_FAMILIES) | set(HELD_OUT_FAMILIES) == set(FAMILIES)
    assert not set(TRAINED_FAMILIES) & set(HELD_OUT_FAMILIES)


def test_every_named_style_has_synonyms_and_held_out_paraphrases():
    titles = [title for style in PRESETS.values() for title in style.titles]
    paraphrases = [text for style in PRESETS.values() for text in style.paraphrases]
    assert all(len(style.titles) >= 4 and len(style.paraphrases) >= 2 for style in PRESETS.values())
    texts = titles + paraphrases
    assert len(set(texts)) == len(texts), "a description names two styles"
    assert not any(said in other for said in paraphrases for other in titles)


def test_paraphrases_and_nouns_of_held_out_families_can_be_understood():
    known = known_words()
    long = [word for word in known if len(word) >= 4]
    texts = [text for style in PRESETS.values() for text in style.paraphrases]
    for text in texts + [noun for family in HELD_OUT_FAMILIES for noun in NOUNS[family]]:
        for word in re.findall(r"[a-z]+", text):
            assert word in known or any(part in word for part in long), f"{word} in {text!r}"


def test_training_captions_hold_no_paraphrase_and_paraphrased_ones_do():
    generator = seeded(1)
    for name, style in PRESETS.items():
        for family in ("car", "books"):
            shown = caption(style, family, generator)
            asked = caption(style, family, generator, paraphrase=True)
            assert any(title in shown for title in style.titles), name
            assert not any(text in shown for text in style.paraphrases)
            assert any(text in asked for text in style.paraphrases), name


def test_training_draws_no_held_out_look_or_pair():
    generator, seen = seeded(3), set()
    for number in range(1500):
        family = TRAINED_FAMILIES[number % len(TRAINED_FAMILIES)]
        style = draw_style(generator, 0.5, family=family)
        seen.add(style.look)
        if style.look == "composed":
            assert not is_held_out(style)
        else:
            assert not is_held_out_pair(style.look, family)
    assert seen == {*PRESETS, "composed"}


def test_held_out_draws_are_held_out():
    generator = seeded(4)
    for _ in range(40):
        assert is_held_out(draw_style(generator, 0.5, family="car", split="looks"))
        assert is_held_out_pair(draw_style(generator, 0.5, family="car", split="pairs").look, "car")
    assert {draw_style(generator, 1.0, family="castle", split="families").look for _ in range(900)} == set(PRESETS)


def test_about_an_eighth_of_the_combinations_is_held_out():
    style = random_style(seeded(0))
    held = [
        is_held_out(replace(style, palette=palette, material=material, sky=sky))
        for palette in PALETTES.values()
        for material in MATERIALS.values()
        for sky in SKIES.values()
    ]
    assert 0.11 < sum(held) / len(held) < 0.14
    assert not any(is_held_out(preset) for preset in PRESETS.values())


def test_every_trained_family_and_most_styles_keep_pairs_for_evaluation():
    pairs = [(name, family) for name in PRESETS for family in TRAINED_FAMILIES if is_held_out_pair(name, family)]
    share = len(pairs) / len(PRESETS) / len(TRAINED_FAMILIES)
    assert 0.07 < share < 0.14
    assert {family for _, family in pairs} == set(TRAINED_FAMILIES)
    assert len({name for name, _ in pairs}) > 0.75 * len(PRESETS)


def test_banks_show_their_split():
    count = len(TRAINED_FAMILIES)
    for number in (0, 3, count - 1, count):
        shown = render_clip(tiny_bank("train"), number, device=CPU).families
        assert shown == [TRAINED_FAMILIES[number % count]]
    for number in range(6):
        bank = render_clip(tiny_bank("held_out"), number, device=CPU)
        looks = [json.loads(text) for text in bank.looks[0]]
        if number % 3 == 0:
            assert bank.families[0] in HELD_OUT_FAMILIES
        elif number % 3 == 1:
            assert all(is_held_out_pair(look["look"], bank.families[0]) for look in looks)
        else:
            assert all(look["look"] == "composed" for look in looks) and bank.families[0] in TRAINED_FAMILIES


def test_a_paraphrased_bank_asks_in_other_words():
    bank = render_clip(tiny_bank("pairs", paraphrases=True), 0, device=CPU)
    for captions, text in zip(bank.captions[0], bank.looks[0], strict=True):
        look = PRESETS[json.loads(text)["look"]]
        assert all(any(words in said for words in look.paraphrases) for said in captions)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="choose one of train, families"):
        tiny_bank("test")


def scaled(scene: Scene, factor: float) -> Scene:
    camera = replace(scene.camera, position=scene.camera.position * factor, target=scene.camera.target * factor)
    solids = [
        replace(solid, centre=solid.centre * factor, size=tuple(value * factor for value in solid.size))
        for solid in scene.solids
    ]
    return replace(scene, camera=camera, solids=tuple(solids))


@pytest.mark.parametrize("look", ["brick", "zebra", "desert", "neon night", "contour map", "moss"])
def test_a_scene_and_the_same_one_larger_look_alike(look: str):
    # A depth map is known up to its scale, so colours, textures, fog and light must not follow the scale.
    for family in ("car", "sea", "books"):
        scene = random_scene(family, seeded(9), frames=2)
        (small, depth), (large, again) = (
            render([sized], [PRESETS[look]], **SMALL) for sized in (scene, scaled(scene, 7.0))
        )
        # A ray along an edge may fall to either side.
        assert ((depth - again).abs() > 1e-3).float().mean() < 0.002
        assert ((small.float() - large.float()).abs() > 6).float().mean() < 0.01


@pytest.mark.parametrize("kind", ["ellipsoid", "cylinder", "cone", "box"])
def test_turns_that_depth_does_not_show_do_not_move_the_texture(kind: str):
    hidden = {"ellipsoid": 1.1, "box": torch.pi / 2}.get(kind, 0.7)

    def picture(angle: float) -> torch.Tensor:
        cos, sin = torch.cos(torch.tensor(angle).double()), torch.sin(torch.tensor(angle).double())
        turn = torch.eye(3).double()
        turn[0, 0], turn[0, 2], turn[2, 0], turn[2, 2] = cos, sin, -sin, cos
        body = Solid(kind=kind, centre=torch.zeros(1, 3).double(), size=(1.0, 1.0, 1.0), turn=turn[None])  # pyright: ignore[reportArgumentType]
        camera = Camera(
            position=torch.tensor([[1.0, 2.0, 5.0]]).double(),
            target=torch.zeros(1, 3).double(),
            roll=torch.zeros(1).double(),
            spread=0.4,
        )
        scene = Scene(family="balls", solids=(body,), camera=camera, ground=False)
        return render([scene], [PRESETS["zebra"]], **SMALL)[0].float()

    difference = (picture(0.2) - picture(0.2 + hidden)).abs()
    assert (difference > 12).float().mean() < 0.02
    assert picture(0.2).std() > 20


def test_hills_and_waves_look_as_the_ground_does():
    for family in ("hills", "sea"):
        scene = random_scene(family, seeded(2), frames=1)
        surface = trace(scene, height=48, width=48, device=CPU)
        earth = torch.tensor([body.earth for body in scene.solids] + [False])[surface.solid]
        assert earth.float().mean() > 0.05
        assert surface.ground[earth].all()


def test_bands_of_depth_follow_the_depth_map():
    scene = random_scene("city", seeded(3), frames=2)
    style = replace(PRESETS["paper layers"], tinge=(1.0, 1.0, 1.0))
    rgb, depth = render([scene], [style], **SMALL)
    medium = MEDIA["layers"]
    band = (depth[0, 0].sqrt() * medium.layers).floor().clamp(max=medium.layers - 1).long()
    expected = (torch.tensor(medium.ramp)[band] * 255).round()
    torch.testing.assert_close(rgb[0].float(), expected.movedim(-1, 1), atol=1.0, rtol=0)


def test_depth_does_not_depend_on_where_occlusion_is_found():
    scene = random_scene("walker", seeded(3), frames=1)
    fine, coarse = (trace(scene, height=64, width=64, device=CPU, coarse=step) for step in (1, 2))
    assert torch.equal(nearness(fine, 1), nearness(coarse, 1))
    assert (fine.openness - coarse.openness).abs().mean() < 0.02
    assert fine.openness.mean() < 0.99


def test_sixteen_frames_render_and_move():
    for family in ("plants", "sea", "flock"):
        scene = random_scene(family, seeded(6), frames=16)
        rgb, depth = render_styles([scene], [[PRESETS["clay"], PRESETS["hologram"]]], **SMALL)
        assert rgb.shape == (1, 2, 16, 3, 32, 32) and depth.shape == (1, 1, 16, 32, 32)
        assert (depth[:, :, 0] - depth[:, :, -1]).abs().mean() > 0.002
