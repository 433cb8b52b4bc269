"""What an evaluation keeps on disk, so that it can be stopped at any edit: frames as PNG, figures as JSON."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from ..tensors import Bytes
from ..video.sheet import from_picture, to_picture
from ..whole import whole


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """``write`` fills a file beside ``path``, which is then moved there: whole or not at all.

    Raises ValueError where the disk is full or the folder cannot be written to.
    """
    advice = "free some space or name another folder, then give the same command again: finished edits are kept"
    with whole(path, advice=advice) as part:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)


def write_json(path: Path, value: Any) -> None:
    """A value as JSON; keys keep their order, in which tables are shown."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8", newline="\n"))


def read_json(path: Path) -> Any:
    """A JSON file; None where it is missing or was not made by ``write_json``."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError):
        return None


def write_page(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8", newline="\n"))


def write_frames(path: Path, frames: Bytes) -> None:
    """Frames below each other as one PNG: exact, and a person can look at it."""
    picture = to_picture(rearrange(frames, "f c h w -> c (f h) w"))
    write_whole(path, lambda part: picture.save(part, format="PNG", compress_level=1))


def read_frames(path: Path, count: int) -> Bytes:
    """The frames of ``write_frames``, in memory as they were, so that figures of them are the same to the last bit."""
    with Image.open(path) as picture:
        return rearrange(from_picture(picture), "1 c (f h) w -> f c h w", f=count).contiguous()


def kept(path: Path, identity: str) -> Any:
    """What ``keep`` wrote for the same identity, else None."""
    found = read_json(path)
    return found["value"] if isinstance(found, dict) and found.get("identity") == identity else None


def keep(path: Path, identity: str, value: Any) -> None:
    """A value with what it follows from."""
    write_json(path, {"identity": identity, "value": value})


def identity_of(*made_from: Any) -> str:
    """A short hash of plain data and configs: what a result follows from."""
    plain = [asdict(part) if is_dataclass(part) and not isinstance(part, type) else part for part in made_from]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(paths: Sequence[Path]) -> str:
    """A short hash of files: which weights an edit was made with."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def stack_rows(rows: Sequence[UInt8[Tensor, "_ 3 _ _"]]) -> UInt8[Tensor, "1 3 _ _"]:
    """Rows of frames side by side, below each other: one picture ``[1 3 h w]``."""
    return torch.cat([rearrange(row, "n c h w -> 1 c h (n w)") for row in rows], dim=2)
