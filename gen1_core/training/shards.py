"""Prepared shards as training reads them: any sample by its number, straight from the tar files, buckets of one size.

The order is a pure function of seed and epoch, and the batch of a step one of seed and step, so that a run which was
stopped and resumed sees the same data. ``docs/data.md`` describes the files.
"""

import json
import logging
import zlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from .loop import generator_at

logger = logging.getLogger(__name__)

FORMAT = 2

Bucket = tuple[int, int, int]
"""Frames (0: any number), height and width in pixels."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One clip, or one picture (f = 1), in float16: latents of its k looks, of its depth at ``levels`` (t_s), and CLIP
    embeddings of its frames and of its captions (j of each look, 0 where there are none).

    ``looks`` are texts that are equal for equal styles, ``""`` where the look has no name; ``family`` is ``""`` but in
    the procedural world. ``first`` and ``stride`` say which frames of ``source`` these are.
    """

    number: int
    key: str
    rgb: Float[Tensor, "k c f h w"]
    depth: Float[Tensor, "v c f h w"]
    images: Float[Tensor, "k f d"]
    texts: Float[Tensor, "k j d"]
    levels: tuple[int, ...]
    captions: list[list[str]]
    looks: list[str]
    family: str
    kind: str
    source: str
    first: int
    stride: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the index says of a sample: enough to draw batches without opening a shard."""

    shard: Path
    key: str
    kind: str
    source: str
    first: int
    family: str
    frames: int
    height: int
    width: int
    looks: int
    texts: int
    levels: tuple[int, ...]
    json: tuple[int, int, int]
    safetensors: tuple[int, int, int]


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"part-{number:06d}.tar"


def index_path(folder: Path, number: int) -> Path:
    """Where its index lies."""
    return shard_path(folder, number).with_suffix(".json")


def open_shards(*folders: Path) -> "Shards":
    """The finished shards of one folder of ``gen1 prepare`` or of several, as one row of samples.

    Raises ValueError where there are none, where an index and its shard disagree, and where folders were encoded with
    different weights.
    """
    entries: list[Entry] = []
    weights: dict[str, Any] = {}
    flat: dict[tuple[int, int], Tensor] = {}
    for folder in folders:
        about = _read_about(folder)
        if weights and about["weights"] != weights:
            raise ValueError(
                f"{folder} was encoded with other weights ({about['weights']}) than {folders[0]} ({weights}), and "
                "their latents do not mean the same; prepare one of them again."
            )
        weights = about["weights"]
        for path in sorted(folder.glob("part-*.json")):
            entries += _read_index(path)
        if not (folder / "flat.safetensors").is_file():
            raise ValueError(
                f"{folder} has shards, but not flat.safetensors, which `gen1 prepare` makes last; give its command "
                "again, and it goes on to its end."
            )
        with safe_open(folder / "flat.safetensors", framework="pt") as file:
            flat |= {_sides(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if not entries:
        raise ValueError(
            f"{', '.join(map(str, folders)) or 'no folder'} holds no finished shard; run `gen1 prepare` to its end, or "
            "name another folder."
        )
    return Shards(entries, weights=weights, flats=flat)


class Shards:
    """Samples by number. ``weights`` are the hashes of the networks they were encoded with."""

    def __init__(
        self, entries: Sequence[Entry], *, weights: dict[str, Any], flats: dict[tuple[int, int], Tensor]
    ) -> None:
        self.entries, self.weights, self.flats = tuple(entries), weights, flats
        self._buckets: dict[int, dict[Bucket, list[int]]] = {}
        self._plan: tuple[tuple[int, ...], list[list[int]]] = ((), [])
        self._alike: dict[Bucket, list[int]] = {}
        for number, entry in enumerate(self.entries):
            self._alike.setdefault(_bucket(entry, exact=True), []).append(number)

    def __len__(self) -> int:
        return len(self.entries)

    def flat(self, height: int, width: int) -> Float[Tensor, "c h w"]:
        """The encoding of a flat depth map for frames of so many pixels: no structure."""
        return self.flats[height, width]

    def read(self, number: int) -> Sample:
        """A sample; one that is damaged is reported with its shard and key, and the next of its bucket is returned.

        Raises ValueError for a number that is not there, and where no sample of the bucket is whole.
        """
        if not 0 <= number < len(self):
            raise ValueError(f"number={number} is not among the {len(self)} samples; give 0 to {len(self) - 1}.")
        entry = self.entries[number]
        alike = self._alike[_bucket(entry, exact=True)]
        at = bisect_left(alike, number)
        for candidate in alike[at:] + alike[:at]:
            try:
                return self.read_exactly(candidate)
            except ValueError as error:
                logger.warning("%s", error)
        raise ValueError(
            f"none of the {len(alike)} samples of {entry.width}x{entry.height} pixels can be read; "
            "run the same `gen1 prepare` again after removing the shards that were named."
        )

    def read_exactly(self, number: int) -> Sample:
        """This sample and no other.

        Raises ValueError, with shard and key, where it is damaged.
        """
        entry = self.entries[number]
        try:
            about = json.loads(_member(entry.shard, entry.json))
            tensors = load(_member(entry.shard, entry.safetensors))
            told = {name: about[name] for name in ("captions", "looks", "family", "kind", "source", "first", "stride")}
            parts = {name: tensors[name] for name in ("rgb", "depth", "images", "texts")}
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ValueError(
                f"{entry.shard}: sample {entry.key} is damaged ({error}), so it is left out; remove this shard and its "
                "index and run the same `gen1 prepare` again to make it anew."
            ) from error
        size = {"height": entry.height, "width": entry.width}
        return Sample(number=number, key=entry.key, levels=entry.levels, **size, **parts, **told)

    def checksums(self) -> list[int]:
        """What is in the samples, wherever they lie: the CRC-32 of each one's tensors."""
        return [entry.safetensors[2] for entry in self.entries]

    def longest(self) -> int:
        """Frames of the longest sample."""
        return max(entry.frames for entry in self.entries)

    def buckets(self, *, least_frames: int = 1) -> dict[Bucket, list[int]]:
        """Numbers by size, of samples with at least so many frames.

        Where one frame is enough clips and pictures of a size share a bucket; else their length tells them apart too.

        Raises ValueError where no sample has so many frames.
        """
        if least_frames not in self._buckets:
            found: dict[Bucket, list[int]] = {}
            for number, entry in enumerate(self.entries):
                if entry.frames >= least_frames:
                    found.setdefault(_bucket(entry, exact=least_frames > 1), []).append(number)
            if not found:
                raise ValueError(
                    f"least_frames={least_frames}, but the longest of {len(self)} samples has "
                    f"{self.longest()} frames; prepare longer clips, or ask for fewer."
                )
            self._buckets[least_frames] = found
        return self._buckets[least_frames]

    def batch_numbers(self, step: int, *, batch: int, seed: int, least_frames: int = 1) -> list[int]:
        """The samples of a step, all of one bucket: a pure function of its arguments and of what is in the shards.

        An epoch is about as many steps as there are batches of samples; see ``epoch_batches``.
        """
        if batch < 1 or step < 0:
            raise ValueError(f"step={step}, batch={batch} draws nothing; give a step from 0 and a batch from 1.")
        buckets = self.buckets(least_frames=least_frames)
        steps = max(1, round(sum(map(len, buckets.values())) / batch))
        epoch, at = divmod(step, steps)
        wanted = (epoch, batch, seed, least_frames)
        if self._plan[0] != wanted:
            numbers = [buckets[name] for name in sorted(buckets)]
            self._plan = (wanted, epoch_batches(numbers, steps=steps, batch=batch, seed=seed, epoch=epoch))
        return self._plan[1][at]


def epoch_batches(
    buckets: Sequence[Sequence[int]], *, steps: int, batch: int, seed: int, epoch: int
) -> list[list[int]]:
    """All batches of an epoch, shuffled: each of one bucket, and each bucket as often as its share of the samples.

    The share is exact on average: what is left over of a bucket gets a batch in as many epochs as its size is worth
    (systematic sampling), so a bucket smaller than a batch is not seen more often than the others. Within a bucket
    nothing repeats before all of it was drawn.
    """
    offset = float(torch.rand(1, generator=generator_at(seed, "buckets", epoch), dtype=torch.float64))
    total = sum(map(len, buckets))
    ends = [int(steps * end / total + offset) for end in accumulate(map(len, buckets))]
    batches: list[list[int]] = []
    for name, (bucket, first, end) in enumerate(zip(buckets, [0, *ends], ends, strict=False)):
        rounds = -(-(end - first) * batch // len(bucket))
        generator = generator_at(seed, f"bucket {name}", epoch)
        drawn = [bucket[i] for _ in range(rounds) for i in torch.randperm(len(bucket), generator=generator).tolist()]
        batches += [drawn[at * batch : (at + 1) * batch] for at in range(end - first)]
    shuffled = torch.randperm(len(batches), generator=generator_at(seed, "batches", epoch)).tolist()
    return [batches[i] for i in shuffled]


def _bucket(entry: Entry, *, exact: bool) -> Bucket:
    return entry.frames if exact else 0, entry.height, entry.width


def _member(shard: Path, place: tuple[int, int, int]) -> bytes:
    """The bytes of a file in a shard, checked."""
    offset, size, checksum = place
    with shard.open("rb") as file:
        file.seek(offset)
        content = file.read(size)
    if zlib.crc32(content) != checksum:
        raise ValueError(f"its checksum is {zlib.crc32(content):08x}, not {checksum:08x}")
    return content


def _read_about(folder: Path) -> dict[str, Any]:
    """The settings and weights of a prepared folder."""
    path = folder / "prepare.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} is no folder of prepared data ({error}); give one that `gen1 prepare --out` wrote."
        ) from error
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {about.get('format')}, and this version reads {FORMAT}; prepare the data again."
        )
    return about


def _read_index(path: Path) -> list[Entry]:
    """The samples of one shard.

    Raises ValueError where the shard is not the file that the index describes.
    """
    shard = path.with_suffix(".tar")
    index = json.loads(path.read_text(encoding="utf-8"))
    size = shard.stat().st_size if shard.exists() else 0
    if size != index["bytes"]:
        raise ValueError(
            f"{shard} has {size} bytes and its index says {index['bytes']}, so it was cut short or replaced; copy it "
            "again, or remove both and run the same `gen1 prepare` again."
        )
    lists = ("levels", "json", "safetensors")
    samples: list[dict[str, Any]] = index["samples"]
    return [Entry(shard=shard, **{**sample, **{name: tuple(sample[name]) for name in lists}}) for sample in samples]


def _sides(name: str) -> tuple[int, int]:
    height, width = name.split("x")
    return int(height), int(width)
