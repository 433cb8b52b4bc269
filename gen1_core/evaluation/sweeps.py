"""One slider at a time: what it does to consistency, warp error, sharpness, motion, PSNR and depth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from ..gen1 import EditOptions
from ..structure.estimator import MAX_BLUR_LEVEL

SHOWN = ("frame_consistency", "prompt_consistency", "warp_error", "sharpness", "motion", "psnr", "depth_error")
"""The figures of a sweep, in the order of its plots."""

TRENDS = {
    "temporal_scale": ("frame_consistency", "rises"),
    "blur_level": ("frame_consistency", "rises"),
    "structure_scale": ("depth_error", "falls"),
}
"""What each slider is to do; the first two are the paper's ablations."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """How many of the edits are swept, and in how many steps each is sampled (0: as the model's default)."""

    edits: int = 8
    steps: int = 6
    temporal_scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5)
    blur_levels: tuple[int, ...] = tuple(range(MAX_BLUR_LEVEL + 1))
    structure_scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0)

    def __post_init__(self) -> None:
        if self.edits < 0 or self.steps < 0:
            raise ValueError(f"edits={self.edits}, steps={self.steps} cannot be negative; give 0 edits for no sweep.")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One value of one slider."""

    slider: str
    value: float | int
    options: EditOptions


def points(config: SweepConfig, options: EditOptions) -> list[Point]:
    """Every point of all sweeps, from the model's own options."""
    base = replace(options, steps=config.steps or options.steps)
    sliders: dict[str, tuple[float, ...]] = {
        "temporal_scale": config.temporal_scales,
        "blur_level": config.blur_levels,
        "structure_scale": config.structure_scales,
    }
    return [
        Point(slider=slider, value=value, options=replace(base, **{slider: value}))
        for slider, values in sliders.items()
        for value in values
    ]


def summarised(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Mean and standard error of each figure at each value: ``{slider: [{value, figure: [mean, error], ...}]}``."""
    found: dict[str, list[dict[str, Any]]] = {}
    for slider, rows in records.items():
        values = sorted({row["value"] for row in rows})
        found[slider] = [
            {"value": value}
            | {name: mean_error([row["figures"][name] for row in rows if row["value"] == value]) for name in SHOWN}
            for value in values
        ]
    return found


def mean_error(values: Sequence[float]) -> list[float]:
    """The mean and its standard error (0 for a single value)."""
    error = stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0
    return [fmean(values), error]


def follows(slider: str, series: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """In how many steps from value to value the mean goes where it is to (``TRENDS``), and how many steps there are."""
    name, where = TRENDS[slider]
    means = [row[name][0] for row in series]
    steps = list(zip(means, means[1:], strict=False))
    return sum(b > a if where == "rises" else b < a for a, b in steps), len(steps)


def trend(slider: str) -> str:
    """What a slider is to do, in words."""
    name, where = TRENDS[slider]
    return f"{name.replace('_', ' ')} {where} with {slider}"
