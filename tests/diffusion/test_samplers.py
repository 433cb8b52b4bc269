"""Samplers against data with a closed-form denoiser, and what every one of them must do."""

import math

import pytest
import torch
from exact import Mixture, condition_of, last, no_noise
from torch.testing import assert_close

from gen1_core.diffusion.samplers import SAMPLERS, ddim, lcm
from gen1_core.diffusion.schedule import Schedule, spaced_sigmas

MIXTURE = Mixture()
DETERMINISTIC = ["ddim", "euler", "heun", "dpmpp_2m"]
STOCHASTIC = ["euler_ancestral", "dpmpp_2m_sde", "lcm"]


def geometric(high: float, low: float, steps: int) -> list[float]:
    return torch.logspace(math.log10(high), math.log10(low), steps + 1, dtype=torch.float64).tolist()


def spread(sigma: float, count: int = 101) -> torch.Tensor:
    """Noisy values at evenly spread quantiles."""
    x = torch.linspace(-2, 2, count, dtype=torch.float64) * math.sqrt(sigma**2 + 1.5)
    return x.reshape(1, 1, 1, 1, count)


def fresh(shape: tuple[int, ...], dtype: torch.dtype = torch.float64):
    return lambda i: torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1000 + i))


def error(name: str, steps: int, low: float = 0.1) -> float:
    x = spread(10.0)
    end = last(SAMPLERS[name](MIXTURE.denoiser(), x, geometric(10.0, low, steps), condition_of(x), noise=no_noise))
    return (end - MIXTURE.transport(x, 10.0, low)).abs().mean().item()


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_error_falls_with_the_order_of_accuracy(name: str, order: int) -> None:
    errors = [error(name, steps) for steps in (20, 40, 80)]
    measured = [math.log2(coarse / fine) for coarse, fine in zip(errors, errors[1:], strict=False)]
    assert errors[-1] < (0.02 if order == 1 else 0.002)
    assert measured == pytest.approx([order, order], abs=0.15)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_all_the_way_down_is_the_probability_flow(name: str) -> None:
    x = spread(14.0)
    sigmas = [*geometric(14.0, 0.01, 400), 0.0]
    end = last(SAMPLERS[name](MIXTURE.denoiser(), x, sigmas, condition_of(x), noise=no_noise))
    assert_close(end, MIXTURE.transport(x, 14.0, 0.0), atol=0.05, rtol=0)


@pytest.mark.parametrize("name", ["ddim eta 1", *STOCHASTIC])
def test_stochastic_samplers_by_moments(name: str) -> None:
    generator = torch.Generator().manual_seed(5)
    shape = (1, 1, 1, 100, 150)
    x = 10 * torch.randn(shape, dtype=torch.float64, generator=generator) + MIXTURE.sample(shape, generator)
    sampler = (lambda *args, noise: ddim(*args, noise=noise, eta=1.0)) if name == "ddim eta 1" else SAMPLERS[name]
    denoise, steps = (MIXTURE.consistent(), 4) if name == "lcm" else (MIXTURE.denoiser(), 300)
    end = last(sampler(denoise, x, [*geometric(10.0, 0.02, steps), 0.0], condition_of(x), noise=fresh(shape))).flatten()
    mean = sum(w * m for w, m in zip(MIXTURE.weights, MIXTURE.means, strict=True))
    square = sum(w * (m**2 + s**2) for w, m, s in zip(MIXTURE.weights, MIXTURE.means, MIXTURE.stds, strict=True))
    assert end.mean().item() == pytest.approx(mean, abs=0.03)
    assert (end**2).mean().item() == pytest.approx(square, abs=0.05)
    for value in (-1.5, -0.5, 0.4, 1.0, 2.0):
        expected = MIXTURE.cdf(torch.tensor([value], dtype=torch.float64), 0.0).item()
        assert (end < value).double().mean().item() == pytest.approx(expected, abs=0.015)


def test_a_single_gaussian_ends_with_its_variance_under_the_sde() -> None:
    gaussian = Mixture(weights=(1.0,), means=(0.7,), stds=(0.4,))
    shape = (1, 1, 1, 100, 400)
    x = 20 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 0.7
    sigmas = [*geometric(20.0, 0.01, 60), 0.0]
    end = last(SAMPLERS["dpmpp_2m_sde"](gaussian.denoiser(), x, sigmas, condition_of(x), noise=fresh(shape)))
    assert end.mean().item() == pytest.approx(0.7, abs=0.01)
    assert end.std().item() == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_the_step_to_zero_returns_the_clean_estimate_exactly(name: str) -> None:
    seen = []

    def denoise(x, sigma, conditions):
        seen.append(MIXTURE.clean(x, sigma))
        return [seen[-1]]

    x = spread(14.0).float()
    steps = list(
        SAMPLERS[name](denoise, x, [14.0, 3.0, 0.5, 0.0], condition_of(x), noise=fresh(x.shape, torch.float32))
    )
    assert len(steps) == 3
    assert_close(steps[-1], seen[-1], atol=0, rtol=0)
    assert steps[-1].dtype == torch.float32


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_evaluations_a_step(name: str) -> None:
    sigmas_seen = []

    def denoise(x, sigma, conditions):
        sigmas_seen.append(sigma)
        return [MIXTURE.clean(x, sigma)]

    x = spread(14.0).float()
    sigmas = [14.0, 3.0, 0.5, 0.0]
    last(SAMPLERS[name](denoise, x, sigmas, condition_of(x), noise=fresh(x.shape, torch.float32)))
    assert sigmas_seen == ([14.0, 3.0, 3.0, 0.5, 0.5] if name == "heun" else [14.0, 3.0, 0.5])
    assert all(type(sigma) is float for sigma in sigmas_seen)


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("steps", [4, 20])
def test_float32_from_zero_terminal_snr(name: str, steps: int) -> None:
    """Float32 keeps float64's answer from a sigma of 4519 down: a slope times sigma would lose digits."""
    sigmas = spaced_sigmas(Schedule(zero_terminal_snr=True), steps, "trailing").tolist()
    assert sigmas[0] > 4000
    first = sigmas[0] * fresh((1, 4, 1, 8, 8))(3)

    def run(dtype: torch.dtype) -> torch.Tensor:
        x, noise = first.to(dtype), (lambda i: fresh(first.shape)(i).to(dtype))
        return last(SAMPLERS[name](MIXTURE.denoiser(), x, sigmas, condition_of(x), noise=noise))

    end = run(torch.float32)
    assert end.isfinite().all()
    assert end.abs().max() < 5
    assert_close(end.double(), run(torch.float64), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m_sde", "lcm"])
def test_stochastic_samplers_ask_for_each_steps_noise_but_the_last(name: str) -> None:
    asked = []

    def noise(i: int) -> torch.Tensor:
        asked.append(i)
        return fresh(x.shape)(i)

    x = spread(14.0)
    last(SAMPLERS[name](MIXTURE.denoiser(), x, [14.0, 3.0, 0.5, 0.0], condition_of(x), noise=noise))
    assert asked == [0, 1]


def test_ddim_is_euler_in_sigma_and_eta_adds_noise() -> None:
    x = spread(14.0)
    run = dict(sigmas=[14.0, 3.0, 0.5, 0.0], condition=condition_of(x))
    plain = last(ddim(MIXTURE.denoiser(), x, noise=no_noise, **run))
    assert_close(plain, last(SAMPLERS["euler"](MIXTURE.denoiser(), x, noise=no_noise, **run)))
    noisy = last(ddim(MIXTURE.denoiser(), x, noise=fresh(x.shape), eta=0.5, **run))
    assert (noisy - plain).norm() > 0.01 * plain.norm()


def test_lcm_with_one_step_is_one_jump() -> None:
    x = spread(14.0)
    end = last(lcm(MIXTURE.consistent(), x, [14.0, 0.0], condition_of(x), noise=no_noise))
    assert_close(end, MIXTURE.transport(x, 14.0, 0.0))
