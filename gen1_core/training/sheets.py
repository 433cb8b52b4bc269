"""Sample sheets: rows of pictures in one PNG, to look at while training."""

import os
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..tensors import to_bytes
from ..video.sheet import to_picture

Row = Float[Tensor, "n _ h w"]
"""Pictures 0..1 side by side; one channel shows as grey."""


def write_sheet(path: Path, columns: list[Row]) -> None:
    """Row ``i`` shows the ``i``-th picture of every column; written whole or not at all."""
    cells = torch.stack([to_bytes(column.float().cpu().expand(-1, 3, -1, -1)) for column in columns])
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            to_picture(rearrange(cells, "k n c h w -> c (n h) (k w)")).save(file, format="PNG")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
