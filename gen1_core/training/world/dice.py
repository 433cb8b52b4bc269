"""Draws from a CPU generator, one number at a time, so that scenes and styles follow from a seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")

Number = float | int


@dataclass(frozen=True, kw_only=True, eq=False)
class Dice:
    """Uniform draws from ``generator``."""

    generator: torch.Generator

    def uniform(self, low: Number, high: Number) -> float:
        """A number in low..high."""
        return low + (high - low) * torch.rand((), generator=self.generator, dtype=torch.float64).item()

    def integer(self, low: int, high: int) -> int:
        """A whole number in low..high, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator).item())

    def chance(self, probability: Number) -> bool:
        """True with the given probability."""
        return self.uniform(0, 1) < probability

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.integer(0, len(options) - 1)]

    def sign(self) -> int:
        """-1 or 1."""
        return self.pick((-1, 1))
