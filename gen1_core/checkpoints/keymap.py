"""Key tables: how another program names the tensors of one of our networks, read in both directions.

A table is a list of rows, each a few of their tensors and the few of ours that they become. What a table does is pure:
the same table renames a file for loading, renames a network for saving, and tells which keys of a file are its own.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Change = Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Names on both sides, and how the values change on the way; most often one name, and nothing changes."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    read: Change = list
    write: Change = list


Table = Sequence[Row]


def same(theirs: str, ours: str) -> Row:
    """The tensor as it is, under another name."""
    return Row(theirs=(theirs,), ours=(ours,))


def pointwise(theirs: str, ours: str) -> Row:
    """Their 1 x 1 convolution ``[o i 1 1]`` is our linear layer ``[o i]``."""
    return Row(
        theirs=(theirs,),
        ours=(ours,),
        read=lambda parts: [part[:, :, 0, 0] if part.ndim == 4 else part for part in parts],
        write=lambda parts: [part[:, :, None, None] for part in parts],
    )


def transposed(theirs: str, ours: str) -> Row:
    """Their matrix is ours with its axes swapped."""
    return Row(theirs=(theirs,), ours=(ours,), read=_swapped, write=_swapped)


def apart(theirs: str, ours: Sequence[str]) -> Row:
    """Their one tensor holds ours one after the other along the first axis (fused query, key and value)."""
    return Row(theirs=(theirs,), ours=tuple(ours), read=_split(len(ours)), write=_joined)


def together(theirs: Sequence[str], ours: str) -> Row:
    """Their tensors, one after the other along the first axis, are our one."""
    return Row(theirs=tuple(theirs), ours=(ours,), read=_joined, write=_split(len(theirs)))


def _split(count: int) -> Change:
    return lambda parts: [piece.contiguous() for piece in parts[0].chunk(count)]


def _swapped(parts: Sequence[Tensor]) -> list[Tensor]:
    return [part.T.contiguous() for part in parts]


def _joined(parts: Sequence[Tensor]) -> list[Tensor]:
    return [torch.cat(list(parts))]


def prefixed(table: Table, *, theirs: str = "", ours: str = "") -> list[Row]:
    """The same table one level up on either side: for a network inside a larger file or a larger network."""
    return [
        Row(
            theirs=tuple(theirs + name for name in row.theirs),
            ours=tuple(ours + name for name in row.ours),
            read=row.read,
            write=row.write,
        )
        for row in table
    ]


def from_theirs(
    tensors: Mapping[str, Tensor], table: Table, *, path: Path, dropped: Sequence[str] = ()
) -> dict[str, Tensor]:
    """A file's tensors under our names. ``dropped`` are patterns (whole keys) of what is known and not needed.

    Every key is used, or dropped by name (logged), or an error; a row that the file lacks altogether is left to
    load_module, which names what is missing. ``path`` is only named in errors.

    Raises ValueError for keys that neither the table nor ``dropped`` knows, and for rows of which only a part is there.
    """
    renamed: dict[str, Tensor] = {}
    known: set[str] = set()
    for row in table:
        there = [name for name in row.theirs if name in tensors]
        known.update(there)
        if len(there) == len(row.theirs):
            renamed.update(zip(row.ours, row.read([tensors[name] for name in row.theirs]), strict=True))
        elif there:
            raise ValueError(
                f"{path} has {', '.join(there)} without {', '.join(set(row.theirs) - set(there))}, which only make "
                "sense together; download the file again, or convert it again with the program that made it."
            )
    rest = [name for name in tensors if name not in known]
    unknown = [name for name in rest if not any(re.fullmatch(pattern, name) for pattern in dropped)]
    if unknown:
        raise ValueError(
            f"{path} holds {len(unknown)} tensors that have no place in this network ({_some(unknown)}); "
            "look what the file is with `gen1 info`, and give it where it belongs."
        )
    if rest:
        logger.debug("%s: %d tensors are not needed: %s", path, len(rest), ", ".join(rest))
    return renamed


def to_theirs(tensors: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """The inverse of from_theirs: our tensors under their names.

    Raises ValueError for a tensor of ours that the table does not know, so nothing is lost by saving.
    """
    named: dict[str, Tensor] = {}
    known: set[str] = set()
    for row in table:
        there = [name for name in row.ours if name in tensors]
        known.update(there)
        if len(there) == len(row.ours):
            named.update(zip(row.theirs, row.write([tensors[name] for name in row.ours]), strict=True))
    if unknown := [name for name in tensors if name not in known]:
        raise ValueError(
            f"{len(unknown)} tensors have no name in that format ({_some(unknown)}); save in our own format, "
            "or leave out the parts that the format does not know."
        )
    return named


def names(table: Table) -> Iterator[str]:
    """All of their names."""
    return (name for row in table for name in row.theirs)


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")
