"""Eq. 8, masks and the range of structure, as functions from denoiser to denoiser."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from exact import Mixture, condition_of, last
from torch import Tensor
from torch.testing import assert_close

from gen1_core.diffusion.condition import Condition
from gen1_core.diffusion.guidance import guided, masked, structure_between
from gen1_core.diffusion.prediction import as_denoiser
from gen1_core.diffusion.samplers import SAMPLERS
from gen1_core.diffusion.schedule import Schedule, spaced_sigmas
from gen1_core.diffusion.windows import windowed

SIGMAS = [14.0, 3.0, 0.5, 0.0]


def clip(seed: int = 0, frames: int = 6, batch: int = 1) -> Tensor:
    return torch.randn(batch, 4, frames, 3, 5, generator=torch.Generator().manual_seed(seed))


def video_network(x: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
    """Answers from everything; frames see each other unless they are images."""
    said = condition.structure.mean(dim=1, keepdim=True) * 0.3
    said = said + 0.5 * condition.content.sum(dim=(1, 2, 3))[:, None, None, None, None]
    around = 0 if condition.image else 0.4 * x.roll(1, 2) - 0.2 * x.mean(dim=2, keepdim=True)
    return torch.sin(x + around + said + 0.002 * timestep[:, None, None, None, None])


def denoiser():
    return as_denoiser(video_network, Schedule(), "v", batch=4)


def fresh(x: Tensor):
    return lambda i: torch.randn(x.shape, generator=torch.Generator().manual_seed(500 + i))


def moved(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() > 0.01 * b.norm())


@pytest.mark.parametrize(("content_scale", "temporal_scale"), [(7.5, 1.5), (7.5, 0.5), (1.0, 0.3), (2.0, 0.0)])
def test_it_is_eq8(content_scale: float, temporal_scale: float) -> None:
    x, denoise = clip(), denoiser()
    condition = condition_of(x, seed=1)
    alone, null, content = denoise(x, 2.0, [condition.dropped().as_images(), condition.dropped(), condition])
    expected = alone + temporal_scale * (null - alone) + content_scale * (content - null)
    (clean,) = guided(denoise, content_scale=content_scale, temporal_scale=temporal_scale)(x, 2.0, [condition])
    assert_close(clean, expected, rtol=1e-5, atol=1e-5)
    assert moved(clean, content)


def test_temporal_scale_1_is_classifier_free_guidance() -> None:
    x, denoise = clip(), denoiser()
    condition = condition_of(x, seed=1)
    null, content = denoise(x, 2.0, [condition.dropped(), condition])
    (clean,) = guided(denoise, content_scale=7.5, temporal_scale=1.0)(x, 2.0, [condition])
    expected = null + 7.5 * (content - null)
    assert (clean - expected).norm() <= 1e-5 * expected.norm()
    assert moved(clean, content)


def unstructured(condition: Condition) -> Condition:
    return replace(condition, structure=torch.zeros_like(condition.structure))


@pytest.mark.parametrize(("content_scale", "structure_scale"), [(7.5, 1.5), (2.0, 2.0), (1.0, 3.0), (3.0, 0.0)])
def test_structure_scale_is_the_guidance_of_instruct_pix2pix(content_scale: float, structure_scale: float) -> None:
    """Eq. 3 of arXiv 2211.09800, with the structure in the place of their picture."""
    x, denoise = clip(), denoiser()
    condition = condition_of(x, seed=1)
    passes = [unstructured(condition.dropped()), condition.dropped(), condition]
    free, null, content = denoise(x, 2.0, passes)
    expected = free + structure_scale * (null - free) + content_scale * (content - null)
    scales = dict(content_scale=content_scale, temporal_scale=1.0, structure_scale=structure_scale)
    (clean,) = guided(denoise, **scales, without=unstructured)(x, 2.0, [condition])
    assert_close(clean, expected, rtol=1e-5, atol=1e-5)
    (without,) = guided(denoise, content_scale=content_scale, temporal_scale=1.0)(x, 2.0, [condition])
    assert moved(clean, without)


def test_structure_scale_needs_to_know_what_is_without() -> None:
    with pytest.raises(ValueError, match="give without, which takes the structure out"):
        guided(denoiser(), content_scale=2.0, temporal_scale=1.0, structure_scale=2.0)


def test_structure_scale_goes_beside_the_temporal_scale() -> None:
    x, denoise = clip(), denoiser()
    condition = condition_of(x, seed=1)
    null = condition.dropped()
    alone, free, null, content = denoise(x, 2.0, [null.as_images(), unstructured(null), null, condition])
    expected = alone + 1.5 * (null - alone) + 4.0 * (content - null) + (2.5 - 1) * (null - free)
    scales = dict(content_scale=4.0, temporal_scale=1.5, structure_scale=2.5)
    (clean,) = guided(denoise, **scales, without=unstructured)(x, 2.0, [condition])
    assert_close(clean, expected, rtol=1e-5, atol=1e-5)


def test_both_scales_1_is_the_network() -> None:
    x, denoise = clip(), denoiser()
    condition = condition_of(x, seed=1)
    (clean,) = guided(denoise, content_scale=1.0, temporal_scale=1.0)(x, 2.0, [condition])
    assert_close(clean, denoise(x, 2.0, [condition])[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_both_scales_0_do_not_see_other_frames(name: str) -> None:
    """To the last bit, through a whole loop and at the same batch."""
    x = clip() * 14
    other = x.clone()
    other[:, :, 3:] = clip(9)[:, :, 3:] * 14
    condition = condition_of(x, seed=1)
    ends = {}
    for scale in (0.0, 1.0):
        denoise = guided(denoiser(), content_scale=scale, temporal_scale=scale)
        ends[scale] = [last(SAMPLERS[name](denoise, start, SIGMAS, condition, noise=fresh(x))) for start in (x, other)]
    assert_close(ends[0.0][0][:, :, :3], ends[0.0][1][:, :, :3], rtol=0, atol=0)
    assert moved(ends[1.0][0][:, :, :3], ends[1.0][1][:, :, :3])


def test_passes_without_weight_are_not_run() -> None:
    asked: list[Sequence[Condition]] = []

    def denoise(x: Tensor, sigma: float, conditions: Sequence[Condition]) -> list[Tensor]:
        asked.append(conditions)
        return [x for _ in conditions]

    x = clip()
    condition = condition_of(x)
    for content_scale, temporal_scale in [
        (7.5, 1.5),
        (7.5, 1.0),
        (1.0, 1.0),
        (0.0, 0.0),
        (0.0, 1.0),
        (2.0, 2.0),
    ]:
        guided(denoise, content_scale=content_scale, temporal_scale=temporal_scale)(x, 2.0, [condition])
    is_null = [[c.content is condition.null for c in conditions] for conditions in asked]
    is_image = [[c.image for c in conditions] for conditions in asked]
    assert is_null == [[True, True, False], [True, False], [False], [True], [True], [True, False]]
    assert is_image == [[True, False, False], [False, False], [False], [True], [False], [True, False]]


@pytest.mark.parametrize(
    ("scales", "told"),
    [
        ((2.0, 1.0, 2.0), ["free", "content"]),  # away from neither: the pass between has no weight
        ((1.3, 1.0, 1.3), ["free", "content"]),
        ((2.0, 1.0, 3.0), ["null", "free", "content"]),
        ((1.0, 1.0, 2.0), ["null", "free", "content"]),
        ((2.0, 1.0, 1.0), ["null", "content"]),
        ((2.0, 1.5, 2.0), ["image", "null", "free", "content"]),
    ],
)
def test_passes_for_the_structure_are_run_where_they_count(scales: tuple[float, float, float], told: list[str]) -> None:
    x = clip()
    condition = condition_of(x, seed=1)
    asked: list[str] = []

    def denoise(x: Tensor, sigma: float, conditions: Sequence[Condition]) -> list[Tensor]:
        for one in conditions:
            free = "free" if one.structure.abs().max() == 0 else "null"
            asked.append("image" if one.image else free if one.content is condition.null else "content")
        return [x for _ in conditions]

    content_scale, temporal_scale, structure_scale = scales
    guide = guided(
        denoise,
        content_scale=content_scale,
        temporal_scale=temporal_scale,
        structure_scale=structure_scale,
        without=unstructured,
    )
    assert_close(guide(x, 2.0, [condition])[0], x, rtol=1e-5, atol=1e-5)  # the weights sum to 1
    assert asked == told


def test_several_conditions_are_guided_each() -> None:
    x = clip()
    conditions = [condition_of(x, seed=seed) for seed in (1, 2, 3)]
    denoise = guided(denoiser(), content_scale=5.0, temporal_scale=1.3)
    together = denoise(x, 2.0, conditions)
    for clean, condition in zip(together, conditions, strict=True):
        assert_close(clean, denoise(x, 2.0, [condition])[0])
    assert moved(together[0], together[1])


def test_windows_of_guidance_are_guidance_of_windows() -> None:
    x = clip(frames=11)
    condition = condition_of(x, seed=1, per_frame=True)
    scales = dict(content_scale=4.0, temporal_scale=1.4)
    inside = windowed(guided(denoiser(), **scales), length=4, overlap=2)
    outside = guided(windowed(denoiser(), length=4, overlap=2), **scales)
    (a,), (b,) = inside(x, 2.0, [condition]), outside(x, 2.0, [condition])
    assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_mask_0_keeps_and_mask_1_edits_exactly(name: str) -> None:
    x, known = clip() * 14, clip(3)
    mask = torch.ones(1, 1, 6, 3, 5)
    mask[:, :, 2:4, 1] = 0.0
    mask[:, :, 5] = 0.5

    def run(denoise):
        return last(SAMPLERS[name](denoise, x, SIGMAS, condition_of(x), noise=fresh(x)))

    end = run(masked(denoiser(), known=known, mask=mask))
    keep = mask.expand_as(x) == 0
    assert_close(end[keep], known[keep], rtol=0, atol=0)
    assert moved(end[~keep], known[~keep])
    plain = run(denoiser())
    everywhere = run(masked(denoiser(), known=known, mask=torch.ones_like(mask)))
    assert_close(everywhere, plain, rtol=0, atol=0)
    assert moved(end, plain)


def test_half_a_mask_is_half_way() -> None:
    x, known = clip(), clip(3)
    condition = condition_of(x)
    (clean,) = denoiser()(x, 2.0, [condition])
    (blended,) = masked(denoiser(), known, torch.full((1, 1, 6, 3, 5), 0.5))(x, 2.0, [condition])
    assert_close(blended, (clean + known) / 2)


def test_mask_over_windows_over_a_whole_loop_from_zero_terminal_snr() -> None:
    sigmas = spaced_sigmas(Schedule(zero_terminal_snr=True), 10, "trailing").tolist()
    x = clip(frames=9) * sigmas[0]
    known, mask = clip(4, frames=9), (torch.rand(1, 1, 9, 3, 5) > 0.5).float()
    denoise = masked(windowed(Mixture().denoiser(), length=4, overlap=1), known, mask)
    for sampler in SAMPLERS.values():
        end = last(sampler(denoise, x, sigmas, condition_of(x), noise=fresh(x)))
        keep = mask.expand_as(x) == 0
        assert_close(end[keep], known[keep], rtol=0, atol=0)
        assert end.isfinite().all()


def test_structure_only_between() -> None:
    seen = []

    def denoise(x: Tensor, sigma: float, conditions: Sequence[Condition]) -> list[Tensor]:
        seen.append((sigma, conditions[0].structure is condition.structure))
        return [x for _ in conditions]

    x = clip()
    condition = condition_of(x)
    limited = structure_between(denoise, lambda c: replace(c, structure=c.structure * 0), 5.0, 0.5)
    for sigma in (14.0, 5.0, 3.0, 0.5, 0.1):
        limited(x, sigma, [condition])
    assert seen == [(14.0, False), (5.0, True), (3.0, True), (0.5, False), (0.1, False)]


def test_flat_structure_is_what_the_network_sees_outside() -> None:
    x = clip()
    condition, flat = condition_of(x), torch.zeros(1, 2, 6, 3, 5)
    limited = structure_between(denoiser(), lambda c: replace(c, structure=flat), 5.0, 0.5)
    (clean,) = limited(x, 14.0, [condition])
    expected = Condition(structure=flat, content=condition.content, null=condition.null)
    assert_close(clean, denoiser()(x, 14.0, [expected])[0], rtol=0, atol=0)
    assert moved(clean, denoiser()(x, 14.0, [condition])[0])
