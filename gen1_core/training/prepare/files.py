"""Shards on disk: webdataset's tar files with an index beside each; whole or not there at all."""

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from safetensors.torch import save
from torch import Tensor

from ..shards import FORMAT, index_path, shard_path

TEMPORARY = ".part.tmp"


def require_webdataset() -> None:
    """Raises ValueError where the package that writes shards is missing."""
    try:
        import webdataset  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"shards are written with the package webdataset, which cannot be imported ({error}); install it with "
            "`pip install -e '.[train]'`."
        ) from error


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its place once it is complete and on the disk.

    Raises ValueError where the disk is full or the folder cannot be written to; what was at ``path`` then stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ValueError(
            f"{path} could not be written ({error}), and what is finished beside it is unchanged; free some space or "
            "make the folder writable, then give the same command again: it goes on where it stopped."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Plain data as a file, with sorted keys, so that equal data are equal bytes."""
    with whole(path) as file:
        file.write((json.dumps(value, sort_keys=True, ensure_ascii=False) + "\n").encode())


def write_lines(path: Path, values: list[dict[str, Any]]) -> None:
    """Plain data, one line each."""
    with whole(path) as file:
        file.writelines((json.dumps(value, sort_keys=True, ensure_ascii=False) + "\n").encode() for value in values)


class ShardWriter:
    """A shard being written: samples go to the tar file one by one, and the index is made when all are there."""

    def __init__(self, stream: BinaryIO) -> None:
        from webdataset.writer import TarWriter

        # Fixed times and owners: the same samples are the same bytes, on any machine.
        self.tar = TarWriter(stream, encoder=False, mtime=0, user="gen1", group="gen1", mode=0o644)
        self.samples: list[dict[str, Any]] = []

    def add(self, key: str, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """One sample: ``KEY.json`` and ``KEY.safetensors``."""
        text = json.dumps(about, sort_keys=True, ensure_ascii=False).encode()
        self.tar.write({"__key__": key, "json": text, "safetensors": save(tensors)})
        known = ("kind", "source", "first", "frames", "height", "width", "levels", "family")
        entry = {name: about[name] for name in known}
        self.samples.append({"key": key, "looks": len(tensors["rgb"]), "texts": tensors["texts"].shape[1], **entry})

    def close(self) -> None:
        """Ends the tar file."""
        self.tar.close()


def finish_index(tar: Path, samples: list[dict[str, Any]], errors: list[dict[str, str]], *, identity: str) -> None:
    """The index of a shard that is complete: where each member lies, its size and its checksum."""
    places: dict[str, list[int]] = {}
    with tarfile.open(tar) as archive, tar.open("rb") as file:
        for member in archive:
            file.seek(member.offset_data)
            places[member.name] = [member.offset_data, member.size, zlib.crc32(file.read(member.size))]
    for sample in samples:
        for name in ("json", "safetensors"):
            sample[name] = places[f"{sample['key']}.{name}"]
    about = {"format": FORMAT, "identity": identity, "bytes": tar.stat().st_size}
    index = {**about, "samples": samples, "errors": errors}
    write_json(tar.with_suffix(".json"), index)


def finished(folder: Path, number: int, identity: str) -> dict[str, Any] | None:
    """The index of a shard that is there and was made of the same; None where it has to be made."""
    try:
        index = json.loads(index_path(folder, number).read_text(encoding="utf-8"))
        same = index["identity"] == identity and shard_path(folder, number).stat().st_size == index["bytes"]
    except (OSError, ValueError, KeyError):
        return None
    return index if same else None


def clean(folder: Path, shards: int, wanted: Collection[tuple[str, int]], *, remove: bool) -> None:
    """Remove what a killed run left half written, and shards beyond the last one.

    ``wanted`` are source and first frame (or number) of all samples to be. Raises ValueError where finished ones are
    not among them, since their source is not named or less comes of it than before; not with ``remove``.
    """
    found = [path for path in folder.glob("part-*.*") if path.stem.removeprefix("part-").isdigit()]
    beyond = [path for path in found if int(path.stem.removeprefix("part-")) >= shards]
    if not remove:
        indices = [json.loads(path.read_text(encoding="utf-8")) for path in found if path.suffix == ".json"]
        held = [(sample["source"], sample["first"]) for index in indices for sample in index["samples"]]
        lost = sorted(set(held) - set(wanted))
        if lost:
            raise ValueError(
                f"{folder} would lose finished samples ({len(lost)} of {len(held)}; the first is of {lost[0][0]}); "
                "name all of its sources again, readable and unchanged, or another --out, or give --remove to have no "
                "more than what comes of these."
            )
    for path in (*folder.glob(f".*{TEMPORARY}"), *beyond):
        path.unlink(missing_ok=True)


def hash_of(path: Path) -> str:
    """A hash of a file, or of all files of a folder."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]
