"""A clip that can be read more than once: what the pipeline takes, whether it lies in a file or in memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor

from ..tensors import Bytes


@runtime_checkable
class Clip(Protocol):
    """Frames in chunks, as often as asked. ``open_video`` gives one that streams; ``MemoryClip`` wraps a tensor."""

    @property
    def num_frames(self) -> int:
        """Exact."""
        ...

    @property
    def width(self) -> int:
        """Pixels."""
        ...

    @property
    def height(self) -> int:
        """Pixels."""
        ...

    def __iter__(self) -> Iterator[Bytes]: ...


@dataclass(frozen=True)
class MemoryClip:
    """Frames that are in memory already, handed out ``chunk`` at a time."""

    frames: Bytes
    chunk: int = 8

    @property
    def num_frames(self) -> int:
        """Exact."""
        return self.frames.shape[0]

    @property
    def height(self) -> int:
        """Pixels."""
        return self.frames.shape[2]

    @property
    def width(self) -> int:
        """Pixels."""
        return self.frames.shape[3]

    def __iter__(self) -> Iterator[Bytes]:
        yield from self.frames.split(self.chunk)


def each_frame(chunks: Iterable[Bytes]) -> Iterator[UInt8[Tensor, "3 h w"]]:
    """The frames of a stream of chunks, one at a time."""
    for chunk in chunks:
        yield from chunk


def rechunk(chunks: Iterable[Bytes], length: int) -> Iterator[Bytes]:
    """The same frames in chunks of ``length`` (the last may be shorter), so that two streams can be zipped."""
    held: list[Tensor] = []
    for frame in each_frame(chunks):
        held.append(frame)
        if len(held) == length:
            yield torch.stack(held)
            held = []
    if held:
        yield torch.stack(held)
