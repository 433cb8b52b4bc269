"""Headers: what they tell without the data, and what is said of those that cannot be true."""

import json
import struct
from pathlib import Path

import pytest
import torch
from checkpoints.layouts import layout, write, write_empty

from gen1_core.checkpoints.files import read_file
from gen1_core.checkpoints.header import read_header


def with_header(path: Path, entries: object, data: bytes = b"") -> Path:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(begin: int, end: int, dtype: str = "F32", shape: tuple[object, ...] = (2,)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


LIES = {
    "too short for its shape": ({"a": entry(0, 4)}, 4, r"a, F32 of \[2\], cannot lie in bytes 0 to 4"),
    "beyond the end": ({"a": entry(0, 8)}, 4, "is cut short: its tensors take 8 bytes, and 4 are there"),
    "overlapping": ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "b lies at byte 4 of the data.*ends at 8"),
    "with a hole": ({"a": entry(0, 8), "b": entry(12, 20)}, 20, "b lies at byte 12"),
    "with a tail": ({"a": entry(0, 8)}, 12, "longer than its header says"),
    "backwards": ({"a": entry(8, 0)}, 8, "cannot lie in bytes"),
    "negative": ({"a": entry(-8, 0)}, 8, "cannot lie in bytes"),
    "of a negative shape": ({"a": entry(0, 8, shape=(-1, -2))}, 8, "cannot lie in bytes"),
    "of a shape of words": ({"a": entry(0, 8, shape=("2",))}, 8, "cannot lie in bytes"),
    "of an unknown type": ({"a": entry(0, 8, dtype="F31")}, 8, "the entry of a is not one that"),
    "half an entry": ({"a": {"dtype": "F32"}}, 0, "the entry of a is not one that"),
    "metadata of numbers": ({"__metadata__": {"a": 1}, "a": entry(0, 8)}, 8, "its metadata is not text"),
    "not JSON": (b"{not json}", 0, "its header is not JSON"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_named(tmp_path: Path, lie: str) -> None:
    entries, data, what = LIES[lie]
    path = with_header(tmp_path / "w.safetensors", entries, bytes(data))
    for read in (read_header, read_file):
        with pytest.raises(ValueError, match=f"cut short or damaged.*{what}.*copy or download it again"):
            read(path)


def test_a_header_that_is_longer_than_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", 10**12) + b"{}")
    with pytest.raises(ValueError, match="its header should have 1000000000000 bytes.*download it again"):
        read_header(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_header_tells_names_shapes_and_types(tmp_path: Path, suffix: str) -> None:
    tensors = {
        "a": torch.zeros(2, 3, dtype=torch.float16),
        "b": torch.tensor(7),
        "c": torch.zeros(4).to(torch.float8_e4m3fn),
    }
    path = write(tmp_path / f"w{suffix}", tensors)
    header = read_header(path)
    assert header.shapes == {"a": (2, 3), "b": (), "c": (4,)}
    assert header.dtypes == {"a": "F16", "b": "I64", "c": "F8_E4M3"}
    assert (header.bytes, header.parameters) == (path.stat().st_size, 11)


def test_a_header_is_read_without_the_data(tmp_path: Path) -> None:
    path = write_empty(tmp_path / "w.safetensors", layout("sd21_unclip_h"))
    assert path.stat().st_size > 7e9 and len(read_header(path).shapes) == 1652
