"""How much noise there is when: Stable Diffusion's training schedule, and the noise levels a sampler visits.

Tables are float64 on the CPU; what leaves them for a loop leaves as floats, so no step waits for a device.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float64
from torch import Tensor

from ..tensors import Latents

Betas = Literal["scaled_linear", "linear"]
Spacing = Literal["trailing", "leading", "linspace", "karras", "lcm"]

TERMINAL_ALPHAS_CUMPROD = 4.8973451890853435e-08
"""The signal left at the last timestep under zero terminal SNR: ComfyUI's value (sigma about 4519)."""

KARRAS_RHO = 7.0
LCM_TRAINING_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The forward process the network was trained on; the defaults are Stable Diffusion's.

    ``zero_terminal_snr`` rescales it so that the last timestep is pure noise (Lin et al. 2024, algorithm 1).
    """

    betas: Betas = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    timesteps: int = 1000
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no schedule."""
        if self.betas not in get_args(Betas):
            raise ValueError(f"betas={self.betas!r} is no known kind of schedule; use one of {get_args(Betas)}.")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"beta_start={self.beta_start} and beta_end={self.beta_end} must be 0 < start <= end < 1, or "
                "noise would not grow; give them in that order."
            )
        if self.timesteps < 2:
            raise ValueError(f"timesteps={self.timesteps} leaves nothing to interpolate between; use at least 2.")


def alphas_cumprod(schedule: Schedule) -> Float64[Tensor, " t"]:
    """The share of signal variance left at each timestep (alpha-bar of DDPM), falling."""
    start, end, count = schedule.beta_start, schedule.beta_end, schedule.timesteps
    if schedule.betas == "linear":
        betas = torch.linspace(start, end, count, dtype=torch.float64)
    else:
        betas = torch.linspace(math.sqrt(start), math.sqrt(end), count, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, dim=0)
    return _rescaled(alphas) if schedule.zero_terminal_snr else alphas


def _rescaled(alphas: Float64[Tensor, " t"]) -> Float64[Tensor, " t"]:
    """Algorithm 1 of Lin et al. (2024): the first stays, the last becomes 0 (clamped for a finite sigma)."""
    root = alphas.sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return (root**2).clamp(min=TERMINAL_ALPHAS_CUMPROD)


def sigma_table(schedule: Schedule) -> Float64[Tensor, " t"]:
    """The noise level of each timestep in ``x = clean + sigma * noise``, rising."""
    alphas = alphas_cumprod(schedule)
    return ((1 - alphas) / alphas).sqrt()


def log_sigma_table(schedule: Schedule) -> list[float]:
    """The table that timesteps are interpolated in."""
    return sigma_table(schedule).log().tolist()


def timestep_at(log_sigmas: Sequence[float], sigma: float) -> float:
    """The timestep of a noise level, linear in log sigma between the table's entries, clamped to its ends."""
    if sigma <= 0:
        return 0.0
    log_sigma = math.log(sigma)
    low = min(max(bisect_right(log_sigmas, log_sigma) - 1, 0), len(log_sigmas) - 2)
    part = (log_sigma - log_sigmas[low]) / (log_sigmas[low + 1] - log_sigmas[low])
    return low + min(max(part, 0.0), 1.0)


def timestep_of(schedule: Schedule, sigma: float) -> float:
    """The (fractional) timestep a network expects at this noise level, as k-diffusion interpolates it."""
    return timestep_at(log_sigma_table(schedule), sigma)


def sigma_of(schedule: Schedule, timestep: int | float) -> float:
    """The noise level of a (fractional) timestep; the inverse of timestep_of."""
    log_sigmas = log_sigma_table(schedule)
    at = min(max(timestep, 0.0), len(log_sigmas) - 1.0)
    low = min(int(at), len(log_sigmas) - 2)
    return math.exp(log_sigmas[low] + (at - low) * (log_sigmas[low + 1] - log_sigmas[low]))


def spaced_timesteps(schedule: Schedule, steps: int, spacing: Spacing) -> list[int]:
    """The timesteps of ``steps`` steps, falling, as diffusers places them.

    "trailing" begins at the last timestep (for zero terminal SNR), "leading" is DDIM's original one with
    Stable Diffusion's offset of 1, "linspace" goes from the last timestep to the first (as AnimateDiff is used), "lcm"
    picks from the 50 steps consistency models were distilled on.
    """
    count = schedule.timesteps
    if spacing == "trailing":
        return [round(count - i * count / steps) - 1 for i in range(steps)]
    if spacing == "leading":
        stride = count // steps
        offset = 1 if (steps - 1) * stride + 1 < count else 0
        return [i * stride + offset for i in reversed(range(steps))]
    if spacing == "linspace":
        return [round(i * (count - 1) / max(steps - 1, 1)) for i in reversed(range(steps))]
    if spacing != "lcm":
        raise ValueError(f"spacing={spacing!r} names no timesteps; use trailing, leading, linspace or lcm.")
    if steps > LCM_TRAINING_STEPS:
        raise ValueError(
            f"steps={steps} is more than the {LCM_TRAINING_STEPS} steps lcm spacing picks from; "
            "use fewer, usually 4 to 8."
        )
    stride = count // LCM_TRAINING_STEPS
    return [(LCM_TRAINING_STEPS - i * LCM_TRAINING_STEPS // steps) * stride - 1 for i in range(steps)]


def spaced_sigmas(schedule: Schedule, steps: int, spacing: Spacing, *, strength: float = 1.0) -> Float64[Tensor, " k"]:
    """The noise levels a sampler visits, falling, with a final 0; samplers take them as floats.

    ``strength`` below 1 keeps that share of the steps, the last ones, as image-to-image does.
    """
    if spacing not in get_args(Spacing):
        raise ValueError(f"spacing={spacing!r} is no known way to place steps; use one of {get_args(Spacing)}.")
    if not 1 <= steps <= schedule.timesteps:
        raise ValueError(
            f"steps={steps} does not fit a schedule of {schedule.timesteps} timesteps; use 1 to {schedule.timesteps}."
        )
    if not 0 < strength <= 1:
        raise ValueError(f"strength={strength} is no share of the steps; use more than 0 and at most 1.")
    table = sigma_table(schedule)
    if spacing == "karras":
        sigmas = _karras(table[-1].item(), table[0].item(), steps)
    else:
        sigmas = table[spaced_timesteps(schedule, steps, spacing)]
    kept = max(1, round(steps * strength))
    return torch.cat([sigmas[steps - kept :], torch.zeros(1, dtype=torch.float64)])


def _karras(highest: float, lowest: float, steps: int) -> Float64[Tensor, " k"]:
    """Equation 5 of Karras et al. (2022): evenly spaced in sigma to the power 1/7."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = highest ** (1 / KARRAS_RHO), lowest ** (1 / KARRAS_RHO)
    return (high + ramp * (low - high)) ** KARRAS_RHO


def start(clean: Latents | None, noise: Latents, sigma: float) -> Latents:
    """What a sampler starts from: the source under noise, or noise alone where there is no source (``None``).

    Noise alone is scaled to what the network saw as its noisiest input, ``sqrt(1 + sigma^2)`` (as in
    diffusers and ComfyUI); at strength 1 pass ``None``, so that nothing of the source's colours leaks
    through.
    """
    if clean is None:
        return noise * math.sqrt(1 + sigma**2)
    return clean + sigma * noise
