"""The whole pipeline on random weights: every wire, every slider, every refusal."""

from dataclasses import replace

import pytest
import torch
from parts import tiny_gen1

from gen1_core.conditioning import during
from gen1_core.diffusion.condition import Condition
from gen1_core.editing import MaskOptions
from gen1_core.frames import decode, depth_frames, encode_source, read_depth
from gen1_core.gen1 import EditOptions, Gen1
from gen1_core.pipeline import describe, edit, generate
from gen1_core.structure.estimator import Structure
from gen1_core.tensors import Bytes
from gen1_core.video.clip import MemoryClip


@pytest.fixture(scope="module")
def gen1() -> Gen1:
    return tiny_gen1()


def moving_square(frames: int = 6, height: int = 41, width: int = 53, seed: int = 0) -> MemoryClip:
    """A bright square that moves over noise; odd on both sides."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 80, (frames, 3, height, width), generator=generator, dtype=torch.uint8)
    for frame in range(frames):
        pixels[frame, :, 8:24, 4 + 3 * frame : 20 + 3 * frame] = 220
    return MemoryClip(pixels, chunk=4)


def result(gen1: Gen1, clip: MemoryClip, prompt: str = "gold", **changes) -> Bytes:
    """All frames of one edit; mask and depth go to ``edit``, the rest are sliders."""
    extra = {key: changes.pop(key) for key in ("mask", "mask_options", "depth", "on_step") if key in changes}
    options = replace(gen1.defaults, **changes)
    return torch.cat(list(edit(gen1, clip, describe(gen1, prompt=prompt), options, **extra)))


def distance(a: Bytes, b: Bytes) -> float:
    return (a.float() - b.float()).abs().mean().item()


@pytest.mark.parametrize("shape", [(1, 40, 40), (3, 33, 47), (9, 41, 53)])
def test_every_frame_comes_out_at_its_size(gen1, shape):
    frames, height, width = shape
    out = result(gen1, moving_square(frames, height, width))
    assert out.shape == (frames, 3, height, width)
    assert out.float().std() > 1


def test_same_seed_same_bytes_and_chunks_do_not_matter(gen1):
    clip = moving_square()
    first = result(gen1, clip)
    torch.testing.assert_close(first, result(gen1, clip), rtol=0, atol=0)
    again = result(gen1, MemoryClip(clip.frames, chunk=5), chunk=3)
    # The same picture for every chunk size: at most one level, from sums in another order.
    assert (first.int() - again.int()).abs().max() <= 1


def test_two_prompts_differ_and_a_seed_differs(gen1):
    clip = moving_square()
    base = result(gen1, clip, "gold")
    assert distance(base, result(gen1, clip, "deep blue sea")) > 0.1
    assert distance(base, result(gen1, clip, "gold", seed=1)) > 0.1


def test_at_full_strength_the_source_reaches_the_result_through_depth_alone(gen1):
    clip, other = moving_square(seed=0), moving_square(seed=5)
    assert distance(clip.frames, other.frames) > 10
    depth, _ = read_depth(gen1, clip)
    torch.testing.assert_close(result(gen1, clip, depth=depth), result(gen1, other, depth=depth), rtol=0, atol=0)
    assert distance(result(gen1, clip, depth=depth), result(gen1, clip, depth=1 - depth)) > 0.1


def test_strength_below_one_uses_the_source(gen1):
    clip, other = moving_square(seed=0), moving_square(seed=5)
    depth, _ = read_depth(gen1, clip)
    kept = [result(gen1, c, depth=depth, strength=0.5, steps=4) for c in (clip, other)]
    assert distance(*kept) > 0.1


def test_low_strength_stays_nearer_to_the_source(gen1):
    """Against what the autoencoder makes of the source: the random one here is no good at rebuilding it."""
    clip = moving_square()
    reconstruction = result(gen1, clip, strength=0.05, steps=20, mask=MemoryClip(torch.zeros_like(clip.frames[:1])))
    torch.testing.assert_close(reconstruction, clip.frames, rtol=0, atol=0)
    rebuilt = torch.cat(list(decode(gen1, encode_source(gen1, clip), clip)))
    gently = result(gen1, clip, strength=0.1, steps=10)
    fully = result(gen1, clip, strength=1.0, steps=10)
    assert distance(gently, rebuilt) < distance(fully, rebuilt)


@pytest.mark.parametrize(
    "slider",
    [
        {"blur_level": 6},
        {"structure_strength": 0.0},
        {"structure_end": 0.5},
        {"content_scale": 4.0},
        {"temporal_scale": 0.0},
        {"temporal_scale": 2.0},
        {"structure_scale": 3.0},
        {"sampler": "ddim", "steps": 4},
        {"sampler": "euler_ancestral"},
        {"window": 3, "overlap": 1},
    ],
    ids=str,
)
def test_every_slider_moves_the_picture(gen1, slider):
    clip = moving_square()
    assert distance(result(gen1, clip), result(gen1, clip, **slider)) > 0.05


def test_blurring_the_structure_forgets_the_shape(gen1):
    """The help says: a higher level gives up detail. So two shapes must look more alike the higher it is."""
    clip = moving_square()
    depth, _ = read_depth(gen1, clip)
    moved = depth.roll(6, dims=-1)
    gaps = [
        distance(*(result(gen1, clip, depth=d, blur_level=level, steps=4) for d in (depth, moved))) for level in (0, 7)
    ]
    assert gaps[0] > 1.5 * gaps[1]


def test_mask_keeps_the_source_bytes_outside_and_edits_inside(gen1):
    clip = moving_square(6, 40, 48)
    mask = torch.zeros(1, 3, 40, 48, dtype=torch.uint8)
    mask[..., :24] = 255
    hard = MaskOptions(feather_px=0.0)
    out = result(gen1, clip, mask=MemoryClip(mask), mask_options=hard)
    torch.testing.assert_close(out[..., 24:], clip.frames[..., 24:], rtol=0, atol=0)
    assert distance(out[..., :24], clip.frames[..., :24]) > 5


def test_a_mask_of_the_wrong_length_says_what_to_give(gen1):
    clip = moving_square(6)
    with pytest.raises(ValueError, match="give one mask picture"):
        result(gen1, clip, mask=MemoryClip(clip.frames[:2]))


def test_progress_counts_every_stage_and_cancel_stops_at_once(gen1):
    seen = []
    result(gen1, moving_square(), on_step=lambda *step: seen.append(step))
    assert {stage for stage, _, _ in seen} == {"depth", "structure", "sample", "decode"}
    for stage in ("depth", "structure", "sample", "decode"):
        done, total = [step[1:] for step in seen if step[0] == stage][-1]
        assert done == total

    class Cancelled(Exception):
        pass

    def cancel(stage, done, total):
        if stage == "sample" and done == 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        result(gen1, moving_square(), on_step=cancel)


def test_the_clean_estimate_is_seen_at_every_step_and_the_last_is_the_result(gen1):
    """With euler, which asks once a step and ends on the estimate; the look changes nothing."""
    seen = []
    clip, content = moving_square(), describe(gen1, prompt="gold")
    options = replace(gen1.defaults, sampler="euler", steps=3)
    frames = torch.cat(list(edit(gen1, clip, content, options, on_latents=lambda clean: seen.append(clean.clone()))))
    assert len(seen) == 3
    assert torch.equal(torch.cat(list(decode(gen1, seen[-1], clip))), frames)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(frames, torch.cat(list(edit(gen1, clip, content, options))))


def test_depth_is_one_range_per_clip_and_near_is_white(gen1):
    clip = moving_square()
    depth, depth_range = read_depth(gen1, clip)
    assert depth.shape[:3] == (1, 1, 6)
    assert 0 <= depth.min() and depth.max() <= 1 and depth_range.low < depth_range.high
    frames = torch.cat(list(depth_frames(gen1, depth, clip)))
    assert frames.shape == clip.frames.shape


def test_nan_in_the_network_is_reported(gen1):
    broken = tiny_gen1()
    with torch.no_grad():
        broken.unet.conv_out.bias[0] = float("nan")
    with pytest.raises(ValueError, match="run in float32"):
        result(broken, moving_square())


def test_content_comes_from_exactly_one_source(gen1):
    picture = torch.rand(1, 3, 40, 40)
    with pytest.raises(ValueError, match="give a prompt or an image"):
        describe(gen1)
    with pytest.raises(ValueError, match="give a prompt or an image"):
        describe(gen1, prompt="gold", image=picture)
    with pytest.raises(ValueError, match="prompt"):
        describe(gen1, prompt="  ")
    assert describe(gen1, image=picture).tokens.shape == (1, 1, 1, 16)


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"sampler": "magic"}, "choose from"),
        ({"strength": 0.0}, "give 1 for a full edit"),
        ({"steps": 0}, "at least 1"),
        ({"content_scale": -1.0}, "0 or more"),
        ({"temporal_scale": -0.5}, "0 or more"),
        ({"structure_scale": -0.5}, "0 or more"),
    ],
)
def test_impossible_sliders_say_what_to_give(change, advice):
    with pytest.raises(ValueError, match=advice):
        EditOptions(**change)


def test_a_clip_too_small_or_empty_is_refused_before_work(gen1):
    content = describe(gen1, prompt="gold")
    with pytest.raises(ValueError, match="larger"):
        edit(gen1, MemoryClip(torch.zeros(2, 3, 4, 40, dtype=torch.uint8)), content)
    with pytest.raises(ValueError, match="check start, end and stride"):
        edit(gen1, MemoryClip(torch.zeros(0, 3, 40, 40, dtype=torch.uint8)), content)


def test_window_must_move(gen1):
    with pytest.raises(ValueError, match="overlap"):
        result(gen1, moving_square(), window=2, overlap=2)


@pytest.mark.parametrize("steps", [1, 2, 10, 12])
@pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (0.5, 1.0), (0.9, 1.0), (0.25, 0.75)])
def test_structure_is_shown_at_the_steps_that_were_asked_for(steps, start, end):
    sigmas = [float(steps - number) for number in range(steps + 1)]
    shown = []

    def denoise(x, sigma, conditions):
        shown.append(bool((conditions[0].structure == 1).all()))
        return [x for _ in conditions]

    structure = Structure(depth=torch.zeros(1, 1, 1, 2, 2), start=start, end=end)
    ones, content = torch.ones(1, 8, 1, 1, 1), torch.zeros(1, 1, 1, 4)
    ranged = during(denoise, structure, sigmas, without=lambda c: replace(c, structure=torch.zeros_like(ones)))
    for sigma in sigmas[:-1]:
        ranged(torch.zeros(1, 4, 1, 1, 1), sigma, [Condition(structure=ones, content=content, null=content)])
    first = min(round(start * steps), steps - 1)
    last = max(round(end * steps), first + 1)
    assert shown == [first <= number < last for number in range(steps)]


def test_what_does_not_belong_to_the_clip_is_refused_before_work(gen1):
    clip, content = moving_square(), describe(gen1, prompt="gold")

    def work(*_):
        raise AssertionError("work was done for an edit that cannot be")

    def refuse(advice: str, content=content, depth=None, **sliders):
        with pytest.raises(ValueError, match=advice):
            edit(gen1, clip, content, replace(gen1.defaults, **sliders), depth=depth, on_step=work)

    refuse("read_depth", depth=torch.zeros(1, 1, 3, 32, 48))
    refuse("or 0 for that many", window=9)
    refuse("steps", steps=2000)
    wide = replace(content, tokens=torch.zeros(1, 1, 1, 8), null=torch.zeros(1, 1, 1, 8))
    refuse("describe", content=wide)


def test_a_start_from_the_source_needs_the_source(gen1):
    depth, _ = read_depth(gen1, moving_square())
    options = replace(gen1.defaults, strength=0.5)
    with pytest.raises(ValueError, match="encode_source"):
        generate(gen1, Structure(depth=depth), describe(gen1, prompt="gold"), options)


@pytest.mark.parametrize("slider", [{"blur_level": 8}, {"structure_start": 0.6, "structure_end": 0.5}])
def test_structure_sliders_are_checked_with_the_others(slider):
    with pytest.raises(ValueError, match="give"):
        EditOptions(**slider)


def test_temporal_scale_means_nothing_for_one_frame(gen1):
    clip = moving_square(1)
    torch.testing.assert_close(
        result(gen1, clip, temporal_scale=1.0), result(gen1, clip, temporal_scale=2.0), rtol=0, atol=0
    )


def test_masks_work_across_windows(gen1):
    clip = moving_square(9, 40, 48)
    black = MemoryClip(torch.zeros(9, 3, 40, 48, dtype=torch.uint8))
    torch.testing.assert_close(result(gen1, clip, mask=black), clip.frames, rtol=0, atol=0)
    inverted = result(gen1, clip, mask=black, mask_options=MaskOptions(invert=True))
    assert distance(inverted, clip.frames) > 5
