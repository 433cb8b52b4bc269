"""Data whose best denoiser is known in closed form, to test samplers without a network.

Every latent value is drawn alone from one mixture of Gaussians. Its posterior mean is exact, and as the
probability flow keeps the quantile of every value, so is the answer of a deterministic sampler.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import jaxtyping
import torch
from torch import Tensor

from gen1_core.diffusion.condition import Condition, Denoiser


@dataclass(frozen=True, kw_only=True)
class Mixture:
    weights: tuple[float, ...] = (0.35, 0.45, 0.2)
    means: tuple[float, ...] = (-1.5, 0.4, 2.0)
    stds: tuple[float, ...] = (0.3, 0.2, 0.5)

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        picked = torch.multinomial(
            torch.tensor(self.weights), torch.Size(shape).numel(), replacement=True, generator=generator
        )
        means, stds = (torch.tensor(v, dtype=torch.float64)[picked] for v in (self.means, self.stds))
        noise = torch.randn(picked.shape, dtype=torch.float64, generator=generator)
        return (means + stds * noise).reshape(shape)

    def clean(self, x: Tensor, sigma: float) -> Tensor:
        """The posterior mean of ``clean`` given ``x = clean + sigma * noise``."""
        weights, means, stds = (v.to(x) for v in self._tables())
        variances = stds**2 + sigma**2
        away = x[..., None] - means
        odds = (weights.log() - variances.log() / 2 - away**2 / (2 * variances)).softmax(dim=-1)
        return (odds * (means + away * stds**2 / variances)).sum(dim=-1)

    def cdf(self, x: Tensor, sigma: float) -> Tensor:
        """How much of the noisy data lies below x."""
        weights, means, stds = (v.to(x) for v in self._tables())
        z = (x[..., None] - means) / (stds**2 + sigma**2).sqrt()
        return (weights * torch.special.ndtr(z)).sum(dim=-1)

    def transport(self, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """Where the probability flow takes x: the same quantile at another noise level, by bisection."""
        quantile = self.cdf(x, sigma)
        reach = 10 * (max(self.stds) + sigma_next) + max(abs(mean) for mean in self.means)
        low, high = torch.full_like(x, -reach), torch.full_like(x, reach)
        for _ in range(60):
            middle = (low + high) / 2
            below = self.cdf(middle, sigma_next) < quantile
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def denoiser(self) -> Denoiser:
        """The best possible Denoiser of this data, whatever the condition."""
        return lambda x, sigma, conditions: [self.clean(x, sigma) for _ in conditions]

    def consistent(self) -> Denoiser:
        """The best possible consistency function: all the way down the probability flow at once."""
        return lambda x, sigma, conditions: [self.transport(x, sigma, 0.0) for _ in conditions]

    def _tables(self) -> Sequence[Tensor]:
        return [torch.tensor(v, dtype=torch.float64) for v in (self.weights, self.means, self.stds)]


def condition_of(x: Tensor, *, seed: int = 0, tokens: int = 1, per_frame: bool = False) -> Condition:
    """A random condition that fits x: two structure channels, tokens of width 3."""
    generator = torch.Generator().manual_seed(seed)
    batch, _, frames, height, width = x.shape
    shape = (batch, frames if per_frame else 1, tokens, 3)
    return Condition(
        structure=torch.randn(batch, 2, frames, height, width, generator=generator),
        content=torch.randn(shape, generator=generator),
        null=torch.randn(shape, generator=generator),
    )


def no_noise(step: int) -> Tensor:
    """The step noise of samplers that must not ask for any."""
    raise AssertionError(f"a deterministic sampler asked for the noise of step {step}")


def last(steps) -> Tensor:
    """The end of what a sampler yields."""
    *_, x = steps
    return x


@contextmanager
def as_users_run_it() -> Iterator[None]:
    """Without the type checker of the tests, which would refuse a wrong word before our own message does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
