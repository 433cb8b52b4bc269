"""eps, v and clean into each other, and the network as a denoiser."""

import math
from dataclasses import replace

import pytest
import torch
from exact import as_users_run_it, condition_of
from torch import Tensor
from torch.testing import assert_close

from gen1_core.conditioning import muted
from gen1_core.diffusion.condition import Condition, Hint
from gen1_core.diffusion.guidance import guided
from gen1_core.diffusion.prediction import as_denoiser, from_clean, noised, target, to_clean
from gen1_core.diffusion.schedule import Schedule, sigma_of

PREDICTIONS = ["eps", "v", "clean"]


def clip(seed: int, batch: int = 1, frames: int = 3) -> Tensor:
    return torch.randn(batch, 4, frames, 2, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sigma", [0.03, 0.7, 14.6])
def test_round_trip(prediction: str, sigma: float) -> None:
    clean, noise = clip(1), clip(2)
    x = clean + sigma * noise
    out = from_clean(clean, x, sigma, prediction)
    assert_close(out, target(clean, noise, torch.tensor([sigma]), prediction), atol=1e-4, rtol=1e-4)
    back = to_clean(out, x, sigma, prediction)
    assert (back - clean).norm() <= 1e-5 * clean.norm()


@pytest.mark.parametrize("sigma", [0.03, 0.7, 14.6])
def test_v_is_the_velocity_of_the_variance_preserving_process(sigma: float) -> None:
    """v = alpha_t eps - sigma_t x0 with alpha_t^2 + sigma_t^2 = 1 (Salimans and Ho, appendix D)."""
    clean, noise = clip(1), clip(2)
    angle = math.atan(sigma)
    z = math.cos(angle) * clean + math.sin(angle) * noise
    v = math.cos(angle) * noise - math.sin(angle) * clean
    level = torch.tensor([sigma])
    assert_close(noised(clean, noise, level), z)
    assert_close(target(clean, noise, level, "v"), v)
    assert_close(to_clean(v, z / math.cos(angle), sigma, "v"), clean, atol=1e-4, rtol=1e-4)


def test_each_clip_of_a_batch_has_its_noise_level() -> None:
    clean, noise = clip(1, batch=2), clip(2, batch=2)
    both = noised(clean, noise, torch.tensor([0.1, 5.0]))
    assert_close(both[1:], noised(clean[1:], noise[1:], torch.tensor([5.0])))
    assert (both[0] - noised(clean[1:], noise[1:], torch.tensor([5.0]))).norm() > 0.1


class Counting:
    """A network that writes down how it was called and answers from all it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, bool, Tensor]] = []

    def __call__(self, x: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        self.calls.append((x.shape[0], condition.image, timestep))
        across = x if condition.image else x + x.mean(dim=2, keepdim=True)
        said = condition.structure.mean(dim=1, keepdim=True) + condition.content.mean(dim=(1, 2, 3))[
            :, None, None, None, None
        ].to(x)
        return torch.tanh(across + said) + 0.001 * timestep.mean()


@pytest.mark.parametrize(
    ("content_scale", "temporal_scale", "calls", "passes"),
    [
        (7.5, 1.5, 2, 3),
        (7.5, 1.0, 1, 2),
        (1.0, 1.0, 1, 1),
        (0.0, 0.0, 1, 1),
        (0.0, 1.0, 1, 1),
        (2.0, 2.0, 2, 2),
    ],
)
def test_eq8_costs_at_most_two_calls(content_scale: float, temporal_scale: float, calls: int, passes: int) -> None:
    network, x = Counting(), clip(1)
    denoise = guided(
        as_denoiser(network, Schedule(), "v", batch=2),
        content_scale=content_scale,
        temporal_scale=temporal_scale,
    )
    denoise(x, 3.0, [condition_of(x)])
    assert len(network.calls) == calls
    assert sum(batch for batch, _, _ in network.calls) == passes


def test_what_is_batched_does_not_change_the_answer() -> None:
    x = clip(1, batch=2)
    conditions = [
        condition_of(x, seed=1),
        condition_of(x, seed=2).as_images(),
        condition_of(x, seed=3),
        condition_of(x, seed=4, tokens=3),
        condition_of(x, seed=5),
    ]
    networks = [Counting(), Counting()]
    answers = [
        as_denoiser(network, Schedule(), "v", batch=batch)(x, 2.0, conditions)
        for network, batch in zip(networks, (1, 8), strict=True)
    ]
    assert [len(network.calls) for network in networks] == [5, 3]
    for alone, together in zip(*answers, strict=True):
        assert_close(alone, together)
    assert (answers[0][0] - answers[0][2]).norm() > 0.01 * answers[0][0].norm()


def test_conditions_with_other_shares_of_control_networks_are_not_batched() -> None:
    """A batch has one strength for each hint, and guidance by structure silences them in some passes."""
    x = clip(1)
    strengths: list[list[float]] = []

    def network(x: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        strengths.append([hint.strength for hint in condition.hints] * len(x))
        share = sum(hint.strength * hint.image.mean() for hint in condition.hints)
        return torch.tanh(x + share + condition.content.mean(dim=(1, 2, 3))[:, None, None, None, None])

    shown = replace(condition_of(x, seed=1), hints=(Hint(image=torch.ones(1, 3, x.shape[2], 8, 8), strength=0.7),))
    conditions = [shown, muted(shown, index=0), shown.dropped(), muted(shown.dropped(), index=0)]
    alone, together = (as_denoiser(network, Schedule(), "v", batch=n)(x, 2.0, conditions) for n in (1, 8))
    assert strengths == [[0.7], [0.7], [0.0], [0.0], [0.7, 0.7], [0.0, 0.0]]
    for one, other in zip(alone, together, strict=True):
        assert_close(one, other)


def test_the_network_gets_its_timestep_scale_and_dtype() -> None:
    seen = []

    def network(x: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        seen.append((x, timestep))
        return x

    x = clip(1)
    condition = condition_of(x)
    sigma = sigma_of(Schedule(), 640)
    (clean,) = as_denoiser(network, Schedule(), "clean", batch=1)(x, sigma, [condition])
    assert_close(seen[0][0], x / math.sqrt(1 + sigma**2))
    assert_close(seen[0][1], torch.tensor([640.0]))
    half = Condition(structure=condition.structure.bfloat16(), content=condition.content, null=condition.null)
    (clean,) = as_denoiser(network, Schedule(), "clean", batch=1)(x, sigma, [half])
    assert seen[1][0].dtype == torch.bfloat16
    assert clean.dtype == torch.float32


def test_eps_with_zero_terminal_snr_is_refused() -> None:
    with pytest.raises(ValueError, match="use prediction='v' or 'clean'"):
        as_denoiser(Counting(), Schedule(zero_terminal_snr=True), "eps", batch=1)


def test_no_batch_and_no_prediction_are_refused() -> None:
    with pytest.raises(ValueError, match="use at least 1"):
        as_denoiser(Counting(), Schedule(), "v", batch=0)
    with as_users_run_it(), pytest.raises(ValueError, match="use one of"):
        as_denoiser(Counting(), Schedule(), "flow", batch=1)


def test_v_at_the_terminal_sigma_is_minus_clean() -> None:
    clean, noise = clip(1), clip(2)
    sigma = sigma_of(Schedule(zero_terminal_snr=True), 999)
    assert_close(target(clean, noise, torch.tensor([sigma]), "v"), -clean, atol=1e-3, rtol=0)
    assert_close(to_clean(-clean, clean + sigma * noise, sigma, "v"), clean, atol=1e-3, rtol=0)
