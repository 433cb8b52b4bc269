"""What a network returns (noise, velocity, clean latents) made into each other; a network made a Denoiser.

Everything is written in ``x = clean + sigma * noise``. Networks see the same divided by ``sqrt(1 +
sigma^2)``, which is Stable Diffusion's variance preserving ``sqrt(alpha_bar) * clean + sqrt(1 - alpha_bar) *
noise``.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ..tensors import Latents
from .condition import Condition, Denoiser, stack
from .schedule import Schedule, log_sigma_table, timestep_at

Prediction = Literal["eps", "v", "clean"]
"""What a network returns: the noise, the velocity of Salimans and Ho (2022), or the clean latents."""

Network = Callable[[Latents, Float[Tensor, " b"], Condition], Latents]
"""``(input, timestep, condition) -> prediction``; the input, ``x / sqrt(1 + sigma^2)``, has unit variance."""


def require_trainable(schedule: Schedule, prediction: Prediction) -> None:
    """Refuse a prediction that says nothing at the last noise level of the schedule (Lin et al. 2024)."""
    if prediction not in get_args(Prediction):
        raise ValueError(f"prediction={prediction!r} is nothing a network returns; use one of {get_args(Prediction)}.")
    if prediction == "eps" and schedule.zero_terminal_snr:
        raise ValueError(
            "prediction='eps' with zero_terminal_snr: at the last timestep the input is the noise itself, so "
            "the answer says nothing of the picture; use prediction='v' or 'clean'."
        )


def to_clean(out: Latents, x: Latents, sigma: float, prediction: Prediction) -> Latents:
    """The clean latents that a network's output means at ``x = clean + sigma * noise``."""
    if prediction == "clean":
        return out
    if prediction == "eps":
        return x - sigma * out
    variance = 1 + sigma**2
    return x / variance - out * (sigma / math.sqrt(variance))


def from_clean(clean: Latents, x: Latents, sigma: float, prediction: Prediction) -> Latents:
    """The output that means these clean latents; the inverse of to_clean."""
    if prediction == "clean":
        return clean
    if prediction == "eps":
        return (x - clean) / sigma
    variance = 1 + sigma**2
    return (x / variance - clean) * (math.sqrt(variance) / sigma)


def noised(clean: Latents, noise: Latents, sigma: Float[Tensor, " b"]) -> Latents:
    """The network's input during training: the forward process at unit variance, one noise level per clip."""
    level = sigma[:, None, None, None, None]
    return (clean + level * noise) / (1 + level**2).sqrt()


def target(clean: Latents, noise: Latents, sigma: Float[Tensor, " b"], prediction: Prediction) -> Latents:
    """What the network should return; "v" is ``alpha * noise - sigma * clean`` at unit variance."""
    if prediction == "clean":
        return clean
    if prediction == "eps":
        return noise
    level = sigma[:, None, None, None, None]
    return (noise - level * clean) / (1 + level**2).sqrt()


def as_denoiser(network: Network, schedule: Schedule, prediction: Prediction, *, batch: int) -> Denoiser:
    """The network as a Denoiser: scaled input, timestep for sigma, output turned into clean latents.

    Conditions of one mode (video, or images; control networks as strong) go through the network together, up to
    ``batch`` of them in a call, so Eq. 8 with its two video passes and one image pass costs two calls a step. The
    network's input takes the dtype of the condition; the answer has the dtype of ``x``.
    """
    require_trainable(schedule, prediction)
    if batch < 1:
        raise ValueError(f"batch={batch} leaves no condition for a call of the network; use at least 1.")
    log_sigmas = log_sigma_table(schedule)

    def together(x: Latents, sigma: float, conditions: Sequence[Condition]) -> list[Latents]:
        joined = stack(conditions) if len(conditions) > 1 else conditions[0]
        scaled = (x / math.sqrt(1 + sigma**2)).to(joined.structure.dtype)
        timestep = torch.full((joined.structure.shape[0],), timestep_at(log_sigmas, sigma), device=x.device)
        out = network(torch.cat([scaled] * len(conditions)), timestep, joined)
        return [to_clean(part.to(x.dtype), x, sigma, prediction) for part in out.chunk(len(conditions))]

    def denoise(x: Latents, sigma: float, conditions: Sequence[Condition]) -> list[Latents]:
        clean: dict[int, Latents] = {}
        for places in _alike(conditions):
            for first in range(0, len(places), batch):
                some = places[first : first + batch]
                clean.update(zip(some, together(x, sigma, [conditions[i] for i in some]), strict=True))
        return [clean[i] for i in range(len(conditions))]

    return denoise


def _alike(conditions: Sequence[Condition]) -> list[list[int]]:
    """Where conditions stand that fit into one call: the same mode, token shape and share of each control network."""
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for i, condition in enumerate(conditions):
        hints = tuple((hint.strength, hint.image.shape) for hint in condition.hints)
        groups[condition.image, condition.content.shape[1:], hints].append(i)
    return list(groups.values())
