"""Sample sheets: rows of pictures in one PNG, to look at while training."""

from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..tensors import to_bytes
from ..video.sheet import to_picture
from ..whole import whole

Row = Float[Tensor, "n _ h w"]
"""Pictures 0..1 side by side; one channel shows as grey."""


def write_sheet(path: Path, columns: list[Row]) -> None:
    """Row ``i`` shows the ``i``-th picture of every column; written whole or not at all.

    Raises ValueError where the disk is full or the folder cannot be written to.
    """
    cells = torch.stack([to_bytes(column.float().cpu().expand(-1, 3, -1, -1)) for column in columns])
    with whole(path) as part:
        to_picture(rearrange(cells, "k n c h w -> c (n h) (k w)")).save(part, format="PNG")
