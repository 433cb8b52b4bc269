"""The benchmark: what is held out, what follows from the seed, and the exact motion."""

from collections import Counter

import pytest
import torch

from gen1_core.evaluation.benchmark import HELD_OUT, BenchmarkConfig, draw_cases, render_case
from gen1_core.evaluation.distances import motion, warp_error
from gen1_core.evaluation.flow import exact_flow
from gen1_core.tensors import to_float
from gen1_core.training.world import PRESETS, random_scene, render_styles
from gen1_core.training.world.geometry import Camera, Scene, Solid
from gen1_core.training.world.styles import is_held_out_pair

CONFIG = BenchmarkConfig()
SMALL = BenchmarkConfig(seeds=(1,), clips=4, frames=3, size=64, supersample=1)


def test_35_edits_of_what_training_never_saw():
    cases = draw_cases(CONFIG)
    assert len(cases) == 35 and Counter(case.wording for case in cases) == {"title": 18, "paraphrase": 17}
    for case in cases:
        style = PRESETS[case.target]
        words = style.paraphrases if case.wording == "paraphrase" else style.titles
        assert case.prompt in words and case.source != case.target and case.other != case.family
        held_out = case.family in HELD_OUT
        assert held_out if case.held_out == "family" else is_held_out_pair(case.target, case.family) and not held_out
    assert len({case.target for case in cases}) == min(35, len(PRESETS))


def test_edits_follow_from_the_seed_and_validation_is_another_draw():
    assert draw_cases(CONFIG) == draw_cases(CONFIG)
    assert draw_cases(CONFIG) != draw_cases(BenchmarkConfig(seeds=(8,)))
    assert draw_cases(CONFIG) != draw_cases(CONFIG, name="validation")
    case = draw_cases(SMALL)[0]
    first, second, other = (render_case(case, SMALL, name=name) for name in ("benchmark", "benchmark", "validation"))
    torch.testing.assert_close(first.truth, second.truth, rtol=0, atol=0)
    assert not torch.equal(first.depth, other.depth)
    assert not torch.equal(first.truth, first.source)


@pytest.mark.parametrize(
    ("wrong", "cure"),
    [
        ({"clips": 0}, "at least 1"),
        ({"frames": 1}, "at least 2"),
        ({"size": 100}, "multiple of 32"),
        ({"seeds": (1, 1)}, "name each once"),
    ],
)
def test_a_benchmark_that_cannot_be_is_refused(wrong: dict, cure: str):
    with pytest.raises(ValueError, match=cure):
        BenchmarkConfig(**wrong)


def test_motion_of_a_sphere_before_a_still_camera():
    still = lambda *point: torch.tensor(point, dtype=torch.float64).expand(2, 3)  # noqa: E731
    camera = Camera(position=still(0, 0, 4), target=still(0, 0, 0), roll=torch.zeros(2).double(), spread=0.5)
    centre = torch.tensor([[0.0, 0.0, 0.0], [0.25, 0.0, 0.0]], dtype=torch.float64)
    turn = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    ball = Solid(kind="ellipsoid", centre=centre, size=(0.8, 0.8, 0.8), turn=turn)
    flow, seen = exact_flow(Scene(family="balls", solids=(ball,), camera=camera, ground=False), height=64, width=64)
    # The front of the ball is 3.2 away: 0.25 to the right is 0.25 / (0.5 * 3.2) of half the screen.
    row, column = 32, 32 + round(0.25 / 1.6 * 32)
    assert float(flow[0, 0, row, column]) == pytest.approx(-0.25 / 1.6 * 32, abs=0.05)
    assert float(flow[0, 1, row, column]) == pytest.approx(0, abs=0.05)
    assert bool(seen[0, 0, row, column])
    # The sky rests, and where the ball was a frame before, it could not be seen.
    assert float(flow[0, :, 2, 2].abs().max()) == pytest.approx(0, abs=1e-3) and bool(seen[0, 0, 2, 2])
    left_edge = 32 - round(0.78 / 2 * 32)
    assert not bool(seen[0, 0, row, left_edge])


@pytest.mark.parametrize("family", ["books", "castle", "corridor"])
def test_the_exact_motion_explains_a_rendered_clip(family: str):
    scene = random_scene(family, torch.Generator().manual_seed(5), frames=4)
    sizes = {"height": 96, "width": 96, "supersample": 2, "device": torch.device("cpu")}
    rgb, _ = render_styles([scene], [[PRESETS["wood"]]], **sizes)
    clip = to_float(rgb[0, 0])
    flow, seen = exact_flow(scene, height=96, width=96)
    assert seen.float().mean() > 0.5
    assert warp_error(clip, flow, seen) < 0.6 * warp_error(clip, torch.zeros_like(flow), seen) <= motion(clip)
