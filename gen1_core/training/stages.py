"""What a training run is told: learning rates, how one part is fitted, the paper's stages of the U-Net (3.5)."""

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

StructureLevel = Literal["none", "detail", "levels"]
"""What structure a stage shows: a flat map, full detail (t_s = 0), or t_s drawn from 0..7 for every clip."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A learning rate that warms up linearly to ``peak`` and then falls to ``final`` (a line or half a cosine)."""

    peak: float
    final: float = 2e-5
    warmup: int = 50
    shape: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        if not 0 <= self.final <= self.peak:
            raise ValueError(
                f"final={self.final} must lie in 0..peak={self.peak}, since the rate falls; lower final or raise peak."
            )
        if self.warmup < 0:
            raise ValueError(f"warmup={self.warmup} steps cannot be negative; use 0 for no warm-up.")

    def at(self, step: int, steps: int) -> float:
        """The learning rate of one step of a run of ``steps``."""
        left = 1 - min(step / max(steps, 1), 1.0)
        if self.shape == "cosine":
            left = (1 - math.cos(math.pi * left)) / 2
        return min(1.0, (step + 1) / (self.warmup + 1)) * (self.final + (self.peak - self.final) * left)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How one network is fitted: AdamW, clipped gradients, an exponential average of the weights."""

    steps: int
    batch: int
    rate: Rate
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    log_every: int = 20
    evaluate_every: int = 500
    save_every_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "log_every", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} would train nothing; give a number of at least 1.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(
                f"ema_decay={self.ema_decay} must lie in 0..1 (1 excluded), or the average never moves; try 0.999."
            )


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the U-Net's training.

    ``image_fraction`` of the steps show single frames to the image path (the paper: 12.5 %), the others whole clips to
    the video path. ``batch`` counts frames, so both kinds of step cost about the same, as in the paper. With ``keep``
    the averaged weights at its end are kept in a file of their own, named after the stage.
    """

    name: str
    steps: int
    batch: int
    image_fraction: float
    structure: StructureLevel
    rate: Rate
    keep: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise ValueError(
                f"steps={self.steps}, batch={self.batch} would train nothing; leave the stage out of the list instead."
            )
        if not 0 <= self.image_fraction <= 1:
            raise ValueError(
                f"image_fraction={self.image_fraction} is a share of the steps; give a number from 0 to 1."
            )


def stage_at(stages: tuple[Stage, ...], step: int) -> tuple[Stage, int]:
    """The stage a step of the whole run falls into, and the step within that stage."""
    for stage in stages:
        if step < stage.steps:
            return stage, step
        step -= stage.steps
    return stages[-1], stages[-1].steps


def kept_stages(stages: tuple[Stage, ...]) -> dict[int, str]:
    """The steps after which averaged weights are kept, and the names of the stages that end there."""
    ends = accumulate(stage.steps for stage in stages)
    return {end: stage.name for end, stage in zip(ends, stages, strict=True) if stage.keep}


def scale_stages(stages: tuple[Stage, ...], steps: int) -> tuple[int, ...]:
    """Steps of each stage when the whole run is given ``steps``: the same shares, at least one step each."""
    total = sum(stage.steps for stage in stages)
    if steps < len(stages):
        raise ValueError(f"steps={steps} cannot hold {len(stages)} stages; give at least {len(stages)} steps.")
    shares = [max(1, round(stage.steps * steps / total)) for stage in stages]
    longest = shares.index(max(shares))
    shares[longest] += steps - sum(shares)
    return tuple(shares)
