"""The layouts of the public files: every key with its shape and type, and files made of them.

``layouts.json.gz`` holds no weights. The keys and shapes come from building the original implementations on the meta
device, and agree with the published sizes of the files. Layouts have names such as "sd15_single_file" (LAYOUTS).
"""

import gzip
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

TYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One file: shapes and types by key (types as safetensors names them), and what a pickle wraps the keys in."""

    name: str
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    wrap: str = ""

    def without(self, *beginnings: str) -> "Layout":
        """The same file without some of its keys."""
        return self._with({key: key for key in self.shapes if not key.startswith(beginnings)})

    def only(self, *beginnings: str) -> "Layout":
        """The keys that begin so, and no others."""
        return self._with({key: key for key in self.shapes if key.startswith(beginnings)})

    def renamed(self, old: str, new: str) -> "Layout":
        """The same file with other keys: each ``old`` in a key is ``new``; an empty ``old`` puts ``new`` in front."""
        return self._with({key: key.replace(old, new) if old else new + key for key in self.shapes})

    def _with(self, names: dict[str, str]) -> "Layout":
        return replace(
            self,
            shapes={name: self.shapes[key] for key, name in names.items()},
            dtypes={name: self.dtypes[key] for key, name in names.items()},
        )


@cache
def _all() -> dict[str, dict]:
    with gzip.open(Path(__file__).with_name("layouts.json.gz"), "rt", encoding="utf-8") as file:
        return json.load(file)


LAYOUTS = tuple(sorted(_all()))
"""The names of all layouts."""


def layout(name: str) -> Layout:
    """One layout, true in every key and shape."""
    entry = _all()[name]
    shapes = {key: tuple(shape) for key, shape in entry["shapes"].items()}
    dtypes = {key: entry["exceptions"].get(key, entry["dtype"]) for key in shapes}
    return Layout(name=name, shapes=shapes, dtypes=dtypes, wrap=entry["wrap"])


def scaled(layout: Layout) -> Layout:
    """The same keys with narrower layers, at 1/16 to 1/100 of the size.

    Multiples of 320 (the U-Net's widths) become a tenth, other multiples of 128 a quarter. A size depends on nothing
    but the size it had, and sums and multiples stay such, so what fitted fits; 32 groups still divide all.
    """
    return replace(layout, shapes={key: tuple(map(_narrow, shape)) for key, shape in layout.shapes.items()})


def fixture(name: str | Layout, *, seed: int = 0, small: bool = True) -> dict[str, Tensor]:
    """Random tensors in a layout, scaled down unless ``small`` is False (then up to 8 GB).

    Matrices have variance 1 / inputs, scales of norms lie around one, nothing is zero; positions are real sinusoids
    (two copies in a motion block are equal), ids count up, and the alpha of a LoRA is half its rank.
    """
    file = layout(name) if isinstance(name, str) else name
    file = scaled(file) if small else file
    generator = torch.Generator().manual_seed(seed)
    return {key: _values(key, file, generator) for key in file.shapes}


def nested(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Keys split at the first dot, as IP-Adapter's .bin files hold them."""
    tree: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        first, rest = key.split(".", 1)
        tree.setdefault(first, {})[rest] = tensor
    return tree


def write(path: Path, tensors: Mapping[str, Tensor], *, wrap: str = "", nest: bool = False) -> Path:
    """A file as its program writes it: safetensors by that name, else a pickle, wrapped or nested."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(dict(tensors), path, metadata={"format": "pt"})
    else:
        content = nested(tensors) if nest else dict(tensors)
        torch.save({wrap: content} if wrap else content, path)
    return path


def write_empty(path: Path, layout: Layout) -> Path:
    """A safetensors file of true size that holds a hole instead of data: it takes next to no disk."""
    header, end = {}, 0
    for key, shape in layout.shapes.items():
        begin, end = end, end + math.prod(shape) * TYPES[layout.dtypes[key]].itemsize
        header[key] = {"dtype": layout.dtypes[key], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def sinusoids(length: int, width: int) -> Tensor:
    """The positions of a motion module [1 length width]: sine and cosine side by side, as AnimateDiff's."""
    angles = torch.arange(length)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).reshape(1, length, width)


def _narrow(size: int) -> int:
    if size % 320 == 0:
        return size // 10
    return size // 4 if size % 128 == 0 else size


def _values(key: str, file: Layout, generator: torch.Generator) -> Tensor:
    shape, dtype = file.shapes[key], TYPES[file.dtypes[key]]
    if not dtype.is_floating_point:
        return torch.arange(math.prod(shape), dtype=dtype).reshape(shape)
    if key.endswith((".pe", ".positional_encoding")):
        return sinusoids(shape[1], shape[2]).to(dtype)
    if key.endswith(".alpha"):
        rank = file.shapes[key.removesuffix("alpha") + "lora_down.weight"][0]
        return torch.tensor(rank / 2, dtype=dtype)
    spread = math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.05
    centre = 1.0 if len(shape) == 1 and key.endswith("weight") else 0.0
    return (centre + spread * torch.randn(shape, generator=generator)).to(dtype)
