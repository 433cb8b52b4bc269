"""Samplers: from noise to clean latents along falling noise levels, one evaluation a step (Heun: two).

All work in ``x = clean + sigma * noise`` and yield ``x`` after each step, so the caller can show progress or
stop. Each step is written around the clean estimate, ``clean + ratio * (x - clean)``: this form stays
accurate in float32 from the sigma of 4519 that zero terminal SNR begins with, and where sigma becomes 0 it
ends on the clean estimate exactly. Noise levels are python floats, so no step waits for the device.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Protocol, runtime_checkable

from ..tensors import Latents
from .condition import Condition, Denoiser

HEUN_REACH = 20.0
"""The longest step Heun corrects, as a ratio of noise levels.

The correction grows with that ratio, and so do the network's errors in it. Longer is the first step from the
sigma of 4519 of zero terminal SNR (about a hundred times); it stays Euler's.
"""

StepNoise = Callable[[int], Latents]
"""The fresh noise of step i, on the device and in the dtype of x; only stochastic samplers call it."""


@runtime_checkable
class Sampler(Protocol):
    """What every sampler looks like; ``sigmas`` fall and end with 0."""

    def __call__(
        self,
        denoise: Denoiser,
        x: Latents,
        sigmas: Sequence[float],
        condition: Condition,
        *,
        noise: StepNoise,
    ) -> Iterator[Latents]:
        """Yield x after each step."""
        ...


def euler(
    denoise: Denoiser, x: Latents, sigmas: Sequence[float], condition: Condition, *, noise: StepNoise
) -> Iterator[Latents]:
    """Algorithm 2 of Karras et al. (2022) without second half and churn; DDIM written in sigma."""
    for sigma, sigma_next in pairwise(sigmas):
        (clean,) = denoise(x, sigma, [condition])
        x = clean + (sigma_next / sigma) * (x - clean)
        yield x


def ddim(
    denoise: Denoiser,
    x: Latents,
    sigmas: Sequence[float],
    condition: Condition,
    *,
    noise: StepNoise,
    eta: float = 0.0,
) -> Iterator[Latents]:
    """Equation 12 of Song et al. (2021); ``eta`` 0 is deterministic (and Euler), 1 is ancestral sampling."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        (clean,) = denoise(x, sigma, [condition])
        fresh = eta * sigma_next * math.sqrt(max(0.0, 1 - (sigma_next / sigma) ** 2))
        kept = math.sqrt(max(0.0, sigma_next**2 - fresh**2))
        x = clean + (kept / sigma) * (x - clean)
        if fresh > 0:
            x = x + fresh * noise(i)
        yield x


def euler_ancestral(
    denoise: Denoiser, x: Latents, sigmas: Sequence[float], condition: Condition, *, noise: StepNoise
) -> Iterator[Latents]:
    """Euler below the next noise level, then fresh noise up to it (k-diffusion); DDIM with eta 1."""
    return ddim(denoise, x, sigmas, condition, noise=noise, eta=1.0)


def heun(
    denoise: Denoiser, x: Latents, sigmas: Sequence[float], condition: Condition, *, noise: StepNoise
) -> Iterator[Latents]:
    """Algorithm 2 of Karras et al. (2022) without churn: Euler, then the mean of both ends' slopes."""
    for sigma, sigma_next in pairwise(sigmas):
        (clean,) = denoise(x, sigma, [condition])
        x = clean + (sigma_next / sigma) * (x - clean)
        if sigma_next * HEUN_REACH > sigma:
            (clean_next,) = denoise(x, sigma_next, [condition])
            x = x + (sigma - sigma_next) / (2 * sigma_next) * (clean_next - clean)
        yield x


def dpmpp_2m(
    denoise: Denoiser, x: Latents, sigmas: Sequence[float], condition: Condition, *, noise: StepNoise
) -> Iterator[Latents]:
    """DPM-Solver++(2M), algorithm 2 of Lu et al. (2022b): the clean estimate, extrapolated.

    As there, the first step and one that ends at 0 are of first order.
    """
    return _dpmpp(denoise, x, sigmas, condition, noise=noise, eta=0.0)


def dpmpp_2m_sde(
    denoise: Denoiser, x: Latents, sigmas: Sequence[float], condition: Condition, *, noise: StepNoise
) -> Iterator[Latents]:
    """SDE-DPM-Solver++(2M), the midpoint form of k-diffusion and diffusers."""
    return _dpmpp(denoise, x, sigmas, condition, noise=noise, eta=1.0)


def _dpmpp(
    denoise: Denoiser,
    x: Latents,
    sigmas: Sequence[float],
    condition: Condition,
    *,
    noise: StepNoise,
    eta: float,
) -> Iterator[Latents]:
    """Both DPM-Solver++(2M): ``eta`` 0 follows the ODE, 1 the reverse SDE. Steps count in log sigma."""
    previous, last_length = x, 0.0
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        (clean,) = denoise(x, sigma, [condition])
        if sigma_next == 0:
            x = clean
        else:
            length = math.log(sigma / sigma_next)
            slope = length / (2 * last_length) if last_length > 0 else 0.0
            towards = clean + slope * (clean - previous)
            x = towards + (sigma_next / sigma) ** (1 + eta) * (x - towards)
            if eta > 0:
                x = x + sigma_next * math.sqrt(1 - (sigma_next / sigma) ** (2 * eta)) * noise(i)
            previous, last_length = clean, length
        yield x


def lcm(
    denoise: Denoiser, x: Latents, sigmas: Sequence[float], condition: Condition, *, noise: StepNoise
) -> Iterator[Latents]:
    """Multistep consistency sampling, algorithm 3 of Luo et al. (2023): jump to clean, add fresh noise.

    The boundary scalings of that paper are left out: at the timesteps in use c_skip is below 1e-5.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        (x,) = denoise(x, sigma, [condition])
        if sigma_next > 0:
            x = x + sigma_next * noise(i)
        yield x


SAMPLERS: Mapping[str, Sampler] = {
    "ddim": ddim,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "lcm": lcm,
}
