"""What is trained, and what all of it shares: the randomness of a step, first weights, what weights are made from."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .engine import Blocks

Module = TypeVar("Module", bound=nn.Module)

Losses = dict[str, Tensor]
"""What a step measures: ``loss`` is minimised, the rest is logged."""

CHANGEABLE = ("steps", "rate", "log_every", "evaluate_every", "save_every_s")
"""Settings that may be changed while a part is trained: how long, how fast, and how often it reports."""


Keep = Callable[[nn.Module, str, int], None]
"""Takes averaged weights that are to be kept, their name, and the step."""


def no_names(step: int, generator: torch.Generator) -> list[str]:
    """Samples without names."""
    return []


def keep_nothing(averaged: nn.Module, name: str, step: int) -> None:
    """For runs that keep only their end."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained: a network, the losses of a step, the learning rate, an evaluation of the averaged weights.

    ``losses(step, generator)`` measures the batch of a step: means over it. Where the task ``divides``, it takes a
    ``Share`` as well and measures that share alone; each of ``batches``, the sizes it draws, must then divide evenly.
    A task that does not (contrastive losses need the whole batch) is computed whole by every process.
    ``names(step, generator)`` says which samples a step shows; ``blocks`` are the layers that are checkpointed and
    sharded one by one; ``kept`` names the averaged weights that are kept after a step.
    """

    name: str
    model: nn.Module
    losses: Callable[..., Losses]
    rate: Callable[[int], float]
    evaluate: Callable[[Any, int], dict[str, float]]
    divides: bool = False
    batches: tuple[int, ...] = ()
    names: Callable[[int, torch.Generator], list[str]] = no_names
    blocks: Blocks = ()
    kept: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where a call of ``train`` ended."""

    step: int
    finished: bool
    hours: float
    record: dict[str, float]
    averaged: nn.Module


def seeded(build: Callable[[], Module], seed: int) -> Module:
    """A network whose first weights follow from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def generator_at(seed: int, name: str, step: int) -> torch.Generator:
    """The randomness of one step; a hash, since neighbouring seeds of one generator are not independent enough."""
    digest = hashlib.blake2b(f"{seed}/{name}/{step}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def identity_of(*made_from: Any) -> str:
    """A short hash of what weights are made from (configs, names, fingerprints), but for ``CHANGEABLE`` settings."""
    return hashlib.sha256(json.dumps(_lasting(made_from), sort_keys=True).encode()).hexdigest()[:16]


def _lasting(value: Any) -> Any:
    """Plain data without the settings that may be changed."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: _lasting(part) for key, part in value.items() if key not in CHANGEABLE}
    return [_lasting(part) for part in value] if isinstance(value, (list, tuple)) else value
