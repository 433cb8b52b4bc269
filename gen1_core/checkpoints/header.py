"""What a weights file holds, without its data: names, shapes, types, and whether the file can be whole.

A safetensors file says all of it in front (https://github.com/huggingface/safetensors#format); of a pickle the tensors
are mapped, not read.
"""

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from .pickles import read_pickle

Shape = tuple[int, ...]
Container = Literal["safetensors", "zip", "pickle", "torchscript"]

BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32},
    **{"I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
"""Bits of one element, by the names that safetensors gives to types."""

LONGEST_HEADER = 100_000_000
"""The format's own limit, in bytes."""

_NAMES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
_MAGIC = (
    (b"PK\x03\x04", "a zip archive"),
    (b"GGUF", "a GGUF file"),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, a text that stands for the file (git lfs pull brings the file)",
    ),
    (b"<", "a web page or XML, as a failed download leaves it"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF"),
    (b"RIFF", "a WebP, WAV or AVI file"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (b"\x89HDF", "an HDF5 file"),
)


@dataclass(frozen=True, kw_only=True)
class Header:
    """Every tensor of a file by name: its shape, and its type as safetensors names it ("F16").

    ``metadata`` is the text that safetensors files carry, ``bytes`` the size of the file. A "torchscript" container is
    a program: nothing in it is read.
    """

    shapes: dict[str, Shape]
    dtypes: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    bytes: int = 0
    container: Container = "safetensors"

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def read_header(path: Path) -> Header:
    """Names, shapes and types of a weights file; its content decides what it is, not its name.

    Raises ValueError where it is no weights file, is cut short, or its header does not agree with its size.
    """
    path = Path(path)
    kind = container_of(path)
    if kind == "safetensors":
        return _safetensors_header(path)
    size = path.stat().st_size
    if kind == "torchscript":
        return Header(shapes={}, bytes=size, container=kind)
    tensors = read_pickle(path, mapped=kind == "zip")
    return header_of(tensors, bytes=size, container=kind)


def header_of(tensors: Mapping[str, Tensor], *, bytes: int = 0, container: Container = "safetensors") -> Header:
    """The header that a file of these tensors would have."""
    return Header(
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        dtypes={name: _dtype_name(tensor) for name, tensor in tensors.items()},
        bytes=bytes,
        container=container,
    )


def container_of(path: Path) -> Container:
    """How the file is packed, from its first bytes (a zip: from its list of names).

    Raises ValueError for anything that does not hold weights, and says what it is.
    """
    head = _head(path)
    if head[8:9] == b"{":
        return "safetensors"
    if head[:4] == b"PK\x03\x04":
        return "torchscript" if _is_torchscript(path) else "zip"
    if head[:1] == b"\x80":
        return "pickle"
    raise ValueError(
        f"{path} cannot be read as weights: it looks like {_looks_like(head)}; "
        "give a .safetensors file (or a .pt or .ckpt file that holds only tensors)."
    )


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False  # cut short: reading it names that


def _safetensors_header(path: Path) -> Header:
    size = path.stat().st_size
    entries = _parsed(path, size)
    metadata = entries.pop("__metadata__", {})
    if not (isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())):
        raise _damaged(path, size, "its metadata is not text")
    spans = sorted(_span(path, size, name, entry) for name, entry in entries.items())
    end = 0
    for begin, stop, name in spans:
        if begin != end:
            raise _damaged(path, size, f"{name} lies at byte {begin} of the data, and the one before ends at {end}")
        end = stop
    data = size - 8 - _header_bytes(path)
    if end != data:
        lack = "is cut short" if end > data else "is longer than its header says"
        raise _damaged(path, size, f"it {lack}: its tensors take {end} bytes, and {data} are there")
    return Header(
        shapes={name: tuple(entry["shape"]) for name, entry in entries.items()},
        dtypes={name: entry["dtype"] for name, entry in entries.items()},
        metadata=metadata,
        bytes=size,
    )


def _parsed(path: Path, size: int) -> dict[str, Any]:
    length = _header_bytes(path)
    if length > min(size - 8, LONGEST_HEADER):
        raise _damaged(path, size, f"its header should have {length} bytes")
    with path.open("rb") as file:
        file.seek(8)
        text = file.read(length)
    try:
        entries = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, size, f"its header is not JSON: {error}") from error
    if not isinstance(entries, dict):
        raise _damaged(path, size, "its header is not a list of tensors")
    return entries


def _span(path: Path, size: int, name: str, entry: Any) -> tuple[int, int, str]:
    """Where a tensor lies in the data, checked against its shape and type."""
    try:
        shape, dtype, (begin, end) = entry["shape"], entry["dtype"], entry["data_offsets"]
        whole = all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end))
        fits = whole and math.prod(shape) * BITS[dtype] == 8 * (end - begin)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, size, f"the entry of {name} is not one that this program knows") from error
    if not fits:
        raise _damaged(path, size, f"{name}, {dtype} of {shape}, cannot lie in bytes {begin} to {end}")
    return begin, end, name


def _damaged(path: Path, size: int, what: str) -> ValueError:
    return ValueError(
        f"{path} ({size} bytes) looks like a safetensors file that is cut short or damaged ({what}); "
        "copy or download it again."
    )


def _header_bytes(path: Path) -> int:
    return int.from_bytes(_head(path)[:8], "little")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise ValueError(f"{path} cannot be opened ({error.strerror}); give the path of a weights file.") from error


def _looks_like(head: bytes) -> str:
    if not head:
        return "an empty file"
    if head[4:8] == b"ftyp":
        return "an MP4 or QuickTime video"
    return next((name for magic, name in _MAGIC if head.startswith(magic)), "nothing known here")


def _dtype_name(tensor: Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    return _NAMES.get(name, name)
