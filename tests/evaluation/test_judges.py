"""Who wins: properties of the judges, on small networks."""

import math
from dataclasses import replace

import pytest
import torch
from parts import encoder_of, randomised, tiny_gen1

from gen1_core.evaluation.benchmark import BenchmarkConfig, draw_cases, render_case
from gen1_core.evaluation.judge_nets import (
    JudgeConfig,
    LookNet,
    confused,
    cropped,
    examine,
    fit,
    judge_identity,
    judge_networks,
    look_losses,
    moment,
    truth_set,
)
from gen1_core.evaluation.judges import (
    Judges,
    better,
    clip_distance,
    depth_fidelity,
    look_of,
    measure,
    nearer,
    perceptual_distance,
    win_rate,
)
from gen1_core.models.depth import DepthNet, DepthNetConfig
from gen1_core.tensors import to_float
from gen1_core.training.world import PRESETS, random_scene
from gen1_core.training.world.surface import trace

BENCHMARK = BenchmarkConfig(seeds=(1,), clips=3, frames=2, size=64, supersample=1)
SMALL = JudgeConfig(
    scenes=1,
    looks=3,
    size=32,
    supersample=1,
    look_steps=1,
    look_batch=2,
    depth_steps=1,
    depth_batch=2,
    widths=(8, 8),
    depth=DepthNetConfig(channels=(4, 8), norm_num_groups=2, train_size=32),
)


@pytest.fixture(scope="module")
def judges():
    looks = randomised(LookNet((8, 16), looks=len(PRESETS), families=3), 1)
    depth = randomised(DepthNet(SMALL.depth), 2)
    assert isinstance(looks, LookNet) and isinstance(depth, DepthNet)
    return Judges(looks=looks, depth=depth, names=tuple(PRESETS), encoder=encoder_of(tiny_gen1()))


@pytest.fixture(scope="module")
def clips():
    case = draw_cases(BENCHMARK)[0]
    return case, render_case(case, BENCHMARK)


def test_the_truth_is_at_no_distance_and_wins(judges, clips):
    case, made = clips
    truth, source = to_float(made.truth), to_float(made.source)
    zero, far = (perceptual_distance(judges.looks, images, truth) for images in (truth, source))
    assert zero == pytest.approx(0, abs=1e-5) and far > 0.02
    assert nearer(zero, far) == 1 and nearer(far, zero) == 0


def test_distance_is_symmetric_and_grows_with_damage(judges, clips):
    truth = to_float(clips[1].truth)
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    little, much = (truth + amount * noise for amount in (0.05, 0.3))
    forth, back = perceptual_distance(judges.looks, little, truth), perceptual_distance(judges.looks, truth, little)
    assert forth == pytest.approx(back, abs=1e-5)
    assert forth < perceptual_distance(judges.looks, much, truth)
    assert clip_distance(judges.encoder, truth, truth) == pytest.approx(0, abs=1e-5)
    assert clip_distance(judges.encoder, little, truth) < clip_distance(judges.encoder, much, truth)


@pytest.mark.parametrize(("ours", "theirs"), [(0.3, 0.5), (0.5, 0.3), (0.4, 0.4), (0.4, 0.403), (0.0, 0.0)])
def test_verdicts_of_both_sides_add_up(ours: float, theirs: float):
    assert nearer(ours, theirs) + nearer(theirs, ours) == 1
    assert better(ours, theirs) + better(theirs, ours) == 1


def test_ties_count_half():
    assert nearer(0.400, 0.403) == 0.5 and nearer(0.40, 0.45) == 1
    assert better(0.40, 0.43) == 0.5 and better(0.40, 0.30) == 1 and better(0.3, 0.4) == 0


def test_win_rate_and_its_binomial_error():
    found = win_rate([1.0, 1.0, 1.0, 0.5, 0.0])
    assert found.rate == pytest.approx(0.7) and found.pairs == 5
    assert found.error == pytest.approx(math.sqrt(0.7 * 0.3 / 5))
    with pytest.raises(ValueError, match="judge at least one pair"):
        win_rate([])


def test_depth_is_judged_under_scale_and_shift(clips):
    class Answer(DepthNet):
        def __init__(self, answer: torch.Tensor) -> None:
            super().__init__(SMALL.depth)
            self.answer = answer

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.answer[: len(images)]

    exact = clips[1].depth
    by_frame = exact[0].transpose(0, 1)
    images = to_float(clips[1].truth)
    same, flat = depth_fidelity(Answer(by_frame * 0.3 + 5), images, exact)
    assert same == pytest.approx(0, abs=1e-4) and flat > 0.02
    lost, _ = depth_fidelity(Answer(torch.randn_like(by_frame)), images, exact)
    assert lost > 0.5 * flat


def test_look_is_the_share_of_frames_named_right_and_the_clip_goes_by_its_mean(judges, clips):
    class Always(LookNet):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = torch.zeros(len(images), len(PRESETS))
            logits[0, 2], logits[1, 5] = 4.0, 3.0
            return logits, logits

    judge = replace(judges, looks=Always((8,), looks=2, families=2))
    names = tuple(PRESETS)
    share, chance, clip = look_of(judge, to_float(clips[1].truth), names[2])
    high, low = (math.exp(k) / (math.exp(k) + len(names) - 1) for k in (4, 3))
    assert share == 0.5 and chance == pytest.approx((high + (1 - low) / (len(names) - 1)) / 2, rel=1e-4)
    assert clip == 1 and look_of(judge, to_float(clips[1].truth), names[5])[::2] == (0.5, 0)


def test_a_moment_of_a_scene_is_its_frame():
    scene = random_scene("walker", torch.Generator().manual_seed(2), frames=3)
    sizes = {"height": 24, "width": 24, "device": torch.device("cpu")}
    whole, last = (trace(each, **sizes).distance for each in (scene, moment(scene, 2)))
    torch.testing.assert_close(last[0], whole[2], rtol=0, atol=0)
    assert not torch.equal(whole[0], whole[2])


def test_looks_take_turns_and_share_the_depth_of_their_scene():
    config = replace(SMALL, looks=len(PRESETS) // 2)
    truth = truth_set(config, ("balls", "car"), scenes=1, name="turns", frames=2)
    assert truth.look.bincount().tolist() == [2] * len(PRESETS)
    assert truth.family.bincount().tolist() == [len(PRESETS)] * 2 and len(truth.depth) == 4
    assert truth.of.tolist() == [0, 1] * config.looks + [2, 3] * config.looks
    # Two moments of one clip are alike, two scenes are not.
    frames = truth.rgb.float().mean(dim=1)
    near = (frames[0::2] - frames[1::2]).abs().mean()
    assert near < 0.5 * (frames[: 2 * config.looks] - frames[2 * config.looks :]).abs().mean()


def test_a_crop_is_a_window():
    images = torch.arange(2 * 3 * 16 * 16).float().reshape(2, 3, 16, 16)
    shapes = set()
    for seed in range(20):
        part = cropped(images, torch.Generator().manual_seed(seed))
        top, left = divmod(int(part[0, 0, 0, 0]), 16)
        high, wide = part.shape[-2:]
        assert high >= 12 and wide >= 12
        torch.testing.assert_close(part, images[..., top : top + high, left : left + wide], rtol=0, atol=0)
        shapes.add((top, left, high, wide))
    assert len(shapes) > 10


def test_what_is_mixed_up_is_named_worst_first():
    names = tuple(PRESETS)
    asked, named = torch.tensor([0, 0, 0, 0, 1, 1, 2]), torch.tensor([0, 3, 3, 3, 1, 2, 2])
    assert confused(named, asked) == [[names[0], names[3], 0.75], [names[1], names[2], 0.5]]
    assert confused(asked, asked) == []


def test_every_figure_of_the_source_against_itself(judges, clips):
    case, made = clips
    figures = measure(judges, case, replace(made, truth=made.source), made.source)
    assert figures["psnr"] == pytest.approx(100) and figures["ssim"] == pytest.approx(1, abs=1e-5)
    assert figures["sharpness"] == pytest.approx(1) and figures["motion"] == pytest.approx(1)
    assert figures["distance"] == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
def test_judges_are_kept_and_come_back_the_same(tmp_path):
    looks, depth, quality = judge_networks(SMALL, tmp_path)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    again, depth_again, quality_again = judge_networks(SMALL, tmp_path)
    assert path.stat().st_mtime_ns == written and quality == quality_again
    assert not looks.training and not again.training
    for one, two in ((looks, again), (depth, depth_again)):
        torch.testing.assert_close(dict(one.state_dict()), dict(two.state_dict()), rtol=0, atol=0)
    assert 0 <= quality["look_accuracy"] <= 1 and quality["depth_mae_constant"] > 0
    other = replace(SMALL, seed=SMALL.seed + 1)
    assert judge_identity(other) != judge_identity(SMALL)
    assert judge_identity(SMALL) in path.name  # so other judges may lie beside them


@pytest.mark.slow
def test_the_look_network_learns_to_tell_looks():
    config = replace(SMALL, looks=4, look_batch=16, widths=(8, 16, 16))
    truth = truth_set(config, ("balls",), scenes=1, name="learn")
    other = replace(truth, rgb=truth.rgb.flip(-1).roll(3, dims=-2))
    torch.manual_seed(0)
    looks, depth = LookNet(config.widths, looks=len(PRESETS), families=1), DepthNet(SMALL.depth)
    before = examine(looks.eval(), depth, other)["look_accuracy"]
    fit(
        looks,
        lambda model, generator: look_losses(model, truth, config, generator),
        steps=100,
        averaging=0.9,
        seed=0,
        name="learn",
        on_step=lambda *_: None,
    )
    found = examine(looks, depth, other)
    assert found["look_accuracy"] == found["clip_accuracy"] == 1 and found["confused"] == [] and before < 0.6
    assert not looks.training and not any(weight.requires_grad for weight in looks.parameters())


@pytest.mark.parametrize(("wrong", "cure"), [({"scenes": 0}, "at least 1"), ({"look_batch": 1}, "at least 2")])
def test_judges_of_nothing_are_refused(wrong: dict, cure: str):
    with pytest.raises(ValueError, match=cure):
        replace(SMALL, **wrong)
