"""What several processes agree on without talking: each draws the whole batch of a step and computes its share of it.

Indices, noise levels and seeds are cheap, so every process draws all of them from the same generator. Noise is not: it
belongs to a sample, by a seed of its own, and only the samples of a share get theirs.
"""

from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

Rows = TypeVar("Rows", Tensor, list[str])

SEEDS = 1 << 62
"""Seeds of samples are below it."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Every ``count``-th row of a batch, beginning with ``index``."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"index={self.index} is none of count={self.count} shares; give a number from 0 to {self.count - 1}."
            )

    def of(self, rows: Rows) -> Rows:
        """The rows of this share. A batch that cannot be shared evenly is computed whole by everyone.

        The mean over the shares' means is so the mean over the batch, whatever its size.
        """
        return rows if len(rows) % self.count else rows[self.index :: self.count]


WHOLE = Share()
"""One process without accumulation."""


def draw_seeds(count: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """One seed for each sample of a batch."""
    return torch.randint(0, SEEDS, (count,), generator=generator)


def normal_rows(seeds: Int[Tensor, " n"], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Noise ``[n *shape]`` that belongs to a sample: the same whoever draws it, and beside whatever other samples.

    It is drawn on the device, for a step there would otherwise wait for the CPU; so another device has other noise.
    """
    generator = torch.Generator(device)
    rows = [torch.randn(shape, generator=generator.manual_seed(seed), device=device) for seed in seeds.tolist()]
    return torch.stack(rows)
