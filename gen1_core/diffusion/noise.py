"""Noise that belongs to frames: how a clip is cut, padded or spread over machines does not change it."""

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FrameNoise:
    """The noise of ``count`` frames of a clip, beginning with frame ``first`` of it.

    Frame k of the clip gets the k-th ``randn([1, c, h, w])`` of one CPU generator with this seed. A part of
    the clip (a chunk, a window, a worker's share) draws and skips what comes before it, and so agrees with
    the whole.
    """

    seed: int
    channels: int
    height: int
    width: int
    first: int
    count: int

    def __post_init__(self) -> None:
        """Refuse a stretch of no frames."""
        if self.first < 0 or self.count < 1:
            raise ValueError(
                f"first={self.first} and count={self.count} are no stretch of a clip; "
                "count frames from 0 and ask for at least one."
            )

    def initial(self) -> Float[Tensor, "1 c f h w"]:
        """The noise a sampler starts from, float32 on the CPU."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (1, self.channels, self.height, self.width)
        for _ in range(self.first):
            torch.randn(shape, generator=generator)
        return torch.stack([torch.randn(shape, generator=generator) for _ in range(self.count)], dim=2)

    def step(self, index: int) -> Float[Tensor, "1 c f h w"]:
        """The fresh noise of one sampler step, keyed by (seed, frame, step); float32 on the CPU."""
        shape = (1, self.channels, self.height, self.width)
        frames = range(self.first, self.first + self.count)
        draws = [torch.randn(shape, generator=_generator(self.seed, frame, index)) for frame in frames]
        return torch.stack(draws, dim=2)


def _generator(seed: int, frame: int, step: int) -> torch.Generator:
    """A generator for one frame at one step; a hash, because sums of keys would collide."""
    digest = hashlib.blake2b(f"{seed} {frame} {step}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
