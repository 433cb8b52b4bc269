"""Where the U-Net's batches come from: rendered and encoded clips in memory, or prepared shards, or both.

A source draws which clips a step shows, for the whole batch and from the step's randomness alone, and reads those that
a process asks for. A batch holds one size.
"""

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor

from ..structure.estimator import MAX_BLUR_LEVEL
from .draws import Share
from .shards import Sample, Shards

Numbers = Int[Tensor, " n"]


@dataclass(frozen=True, kw_only=True)
class Picks:
    """Which clips a step shows: number, look, first of so many ``frames``, frame that gives the content, wanted t_s."""

    clip: Numbers
    look: Numbers
    first: Numbers
    shown: Numbers
    level: Numbers
    frames: int

    def of(self, share: Share) -> "Picks":
        """The picks of one share of the batch."""
        rows = {name: share.of(value) for name, value in vars(self).items() if name != "frames"}
        return replace(self, **rows)


@dataclass(frozen=True, kw_only=True)
class Clips:
    """What was picked, on the device: latents, encoded depth and its t_s, the image embedding of one frame."""

    rgb: Float[Tensor, "n c f h w"]
    depth: Float[Tensor, "n c f h w"]
    level: Numbers
    content: Float[Tensor, "n d"]
    flat: Float[Tensor, "c h w"]


@runtime_checkable
class LatentSource(Protocol):
    """Clips by number."""

    def draw(self, step: int, *, count: int, frames: int, generator: torch.Generator) -> Picks:
        """A whole batch; ``frames`` 1 is single frames of any clip."""
        ...

    def read(self, picks: Picks, device: torch.device) -> Clips:
        """The clips that were picked."""
        ...

    def names(self, picks: Picks) -> list[str]:
        """What a person may look for when one of them is broken."""
        ...

    def longest(self) -> int:
        """Frames of the longest clip."""
        ...


def draw_source(sources: Sequence[LatentSource], shares: Sequence[float], generator: torch.Generator) -> LatentSource:
    """The source of a step: each is used for its share of the steps."""
    ends = torch.tensor(shares, dtype=torch.float64).cumsum(0)
    drawn = float(torch.rand(1, generator=generator)) * float(ends[-1])
    return sources[min(int((ends <= drawn).sum()), len(sources) - 1)]


def below(most: Numbers, uniform: Float[Tensor, " n"]) -> Numbers:
    """Whole numbers from 0, each below its own bound, from numbers 0..1."""
    return (uniform * most).long().minimum(most - 1)


class ShardSource:
    """Samples of ``gen1 prepare``, kept in memory up to ``memory_gb`` once they were read."""

    def __init__(self, shards: Shards, *, seed: int, memory_gb: float = 4.0, readers: int = 4) -> None:
        # Two views, since each keeps the plan of its epoch: images and clips have different ones.
        self.shards = {True: copy.copy(shards), False: copy.copy(shards)}
        self.seed, self.left = seed, memory_gb * 1e9
        self.kept: dict[int, Sample] = {}
        self.pool = ThreadPoolExecutor(readers)

    def draw(self, step: int, *, count: int, frames: int, generator: torch.Generator) -> Picks:
        """The numbers follow from seed and step; looks, frames and levels from the generator."""
        shards = self.shards[frames == 1]
        numbers = shards.batch_numbers(step, batch=count, seed=self.seed, least_frames=frames)
        entries = [shards.entries[number] for number in numbers]
        looks, lengths = (torch.tensor([getattr(entry, name) for entry in entries]) for name in ("looks", "frames"))
        uniform = torch.rand(3, count, generator=generator)
        return Picks(
            clip=torch.tensor(numbers),
            look=below(looks, uniform[0]),
            first=below(lengths - frames + 1, uniform[1]),
            shown=below(lengths, uniform[2]),
            level=torch.randint(0, MAX_BLUR_LEVEL + 1, (count,), generator=generator),
            frames=frames,
        )

    def read(self, picks: Picks, device: torch.device) -> Clips:
        """Reads what is not in memory; a damaged sample was reported, and another of its size is returned for it."""
        samples = list(self.pool.map(self._sample, picks.clip.tolist()))
        rows = zip(samples, *(vars(picks)[name].tolist() for name in ("look", "first", "shown", "level")), strict=True)
        rgb, depth, levels, content = [], [], [], []
        for sample, look, first, shown, level in rows:
            # The sample that stands in for a damaged one may have fewer looks or frames.
            look, shown = min(look, len(sample.rgb) - 1), min(shown, sample.images.shape[1] - 1)
            first = min(first, sample.rgb.shape[2] - picks.frames)
            at = nearest_level(sample.levels, level)
            frames = slice(first, first + picks.frames)
            rgb.append(sample.rgb[look][:, frames])
            depth.append(sample.depth[at][:, frames])
            levels.append(sample.levels[at])
            content.append(sample.images[look, shown])
        size = samples[0].height, samples[0].width
        on = lambda parts: torch.stack(parts).to(device, torch.float32)  # noqa: E731
        flat = self.shards[True].flat(*size).to(device, torch.float32)
        return Clips(rgb=on(rgb), depth=on(depth), level=torch.tensor(levels), content=on(content), flat=flat)

    def names(self, picks: Picks) -> list[str]:
        """Shard and key of each sample."""
        entries = [self.shards[True].entries[number] for number in picks.clip.tolist()]
        return [f"{entry.shard.name}:{entry.key}" for entry in entries]

    def longest(self) -> int:
        """Frames of the longest sample."""
        return self.shards[True].longest()

    def _sample(self, number: int) -> Sample:
        if number in self.kept:
            return self.kept[number]
        sample = self.shards[True].read(number)
        size = sum(tensor.nbytes for tensor in (sample.rgb, sample.depth, sample.images, sample.texts))
        if size <= self.left:
            self.left -= size
            self.kept[number] = sample
        return sample


def nearest_level(levels: Sequence[int], wanted: int) -> int:
    """Where among the encoded levels to look for a t_s: 0 itself, or one of the others, each as often."""
    blurred = [at for at, level in enumerate(levels) if level]
    if not wanted or not blurred:
        return levels.index(0)
    return blurred[(wanted - 1) % len(blurred)]


def with_flat(clips: Clips) -> Clips:
    """The same clips without structure: the flat map, which says nothing, at the last t_s."""
    flat = repeat(clips.flat, "c h w -> b c f h w", b=len(clips.rgb), f=clips.rgb.shape[2])
    return replace(clips, depth=flat, level=torch.full_like(clips.level, MAX_BLUR_LEVEL))
