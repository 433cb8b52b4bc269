"""Clips side by side, and frames on one sheet: how a result is looked at."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from ..tensors import Bytes
from ..whole import whole
from .clip import rechunk

LABEL_HEIGHT_PX = 22


def label_strip(text: str, width: int) -> Bytes:
    """White text on black, ``[1 3 22 width]``; cut off where it does not fit."""
    strip = Image.new("RGB", (width, LABEL_HEIGHT_PX))
    ImageDraw.Draw(strip).text((6, 4), text, fill=(235, 235, 235), font=ImageFont.load_default(13))
    return from_picture(strip)


def from_picture(picture: Image.Image) -> Bytes:
    """A Pillow picture as one frame ``[1 3 h w]``."""
    data = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    return rearrange(data, "(h w c) -> 1 c h w", h=picture.height, w=picture.width, c=3)


def to_picture(frame: UInt8[Tensor, "3 h w"]) -> Image.Image:
    """One frame ``[3 h w]`` as a Pillow picture."""
    return Image.fromarray(rearrange(frame.cpu(), "c h w -> h w c").numpy())


def beside(
    streams: Sequence[Iterable[Bytes]], labels: Sequence[str], *, columns: int, length: int = 8
) -> Iterator[Bytes]:
    """Streams of one size in a grid, each under its label, in chunks; empty places stay black."""
    for chunks in zip(*(rechunk(stream, length) for stream in streams), strict=True):
        yield grid(chunks, labels, columns=columns)


def grid(chunks: Sequence[Bytes], labels: Sequence[str], *, columns: int) -> UInt8[Tensor, "n 3 height width"]:
    """One chunk of every stream as a grid of ``columns``.

    Black at the right and at the bottom makes both sides even: only then does H.264 with halved colour hold it, which
    is what every player plays.
    """
    frames, width = chunks[0].shape[0], chunks[0].shape[-1]
    cells = [
        torch.cat([label_strip(label, width).expand(frames, -1, -1, -1), chunk], dim=2)
        for label, chunk in zip(labels, chunks, strict=True)
    ]
    cells += [torch.zeros_like(cells[0])] * (-len(cells) % columns)
    whole = rearrange(torch.stack(cells), "(r k) n c h w -> n c (r h) (k w)", k=columns)
    return F.pad(whole, (0, whole.shape[-1] % 2, 0, whole.shape[-2] % 2))


def contact_sheet(rows: Sequence[tuple[str, Bytes]], path: Path) -> None:
    """Rows of frames with a label above each, as one PNG; whole or not at all."""
    parts = []
    for label, frames in rows:
        strip = rearrange(frames, "n c h w -> 1 c h (n w)")
        parts += [label_strip(label, strip.shape[-1]), strip]
    picture = to_picture(torch.cat(parts, dim=2)[0])
    with whole(path) as part:
        picture.save(part, format="PNG")
