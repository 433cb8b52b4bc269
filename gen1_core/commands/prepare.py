"""``gen1 prepare``: videos, pictures and the procedural world to shards that training reads."""

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..devices import device_from
from ..distributed.cluster import ray_cluster
from ..distributed.processes import run_processes
from ..progress import progress
from ..training.prepare.cuts import CutConfig
from ..training.prepare.networks import DTYPES, NetworkFiles
from ..training.prepare.run import Runner, Summary, prepare
from ..training.prepare.sources import PrepareConfig

logger = logging.getLogger(__name__)


def add_prepare(command: argparse.ArgumentParser) -> None:
    """Options of ``gen1 prepare``."""
    config, files = PrepareConfig(), NetworkFiles()
    command.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a folder, a list of paths (.txt), a video, a picture, or world:CLIPS[:SEED]",
    )
    command.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="where the shards go; resumes")
    command.add_argument("--match", default="*", help="take only files of this name from folders, e.g. 'video_*'")
    command.add_argument("--size", type=int, default=config.size, metavar="PX", help="short side")
    command.add_argument("--frames", type=int, default=config.frames, help="frames of a clip")
    command.add_argument("--stride", type=int, default=config.stride, help="take every n-th frame")
    command.add_argument(
        "--hop", type=int, help="frames from one clip of a scene to the next; left out: clips do not overlap"
    )
    command.add_argument(
        "--multiple", type=int, default=config.multiple, help="both sides become multiples of it; 64 for SD's U-Net"
    )
    command.add_argument(
        "--levels", choices=("one", "all"), default=config.levels, help="t_s besides 0: one drawn, or all"
    )
    command.add_argument("--looks", type=int, default=config.looks, help="styles of each scene of the world")
    command.add_argument("--captions", type=int, default=config.captions, help="captions of each of those styles")
    command.add_argument(
        "--reliefs", type=int, default=config.reliefs, help="styles of the world that the depth of each real clip gets"
    )
    command.add_argument("--shard", type=int, default=config.shard, help="samples of a shard")
    command.add_argument("--seed", type=int, default=config.seed, help="draws the levels, and the styles of reliefs")
    command.add_argument(
        "--cut", type=float, default=config.cuts.least, help="0..1: a change of the picture from which on it is a cut"
    )
    command.add_argument("--weights", default=files.model, help="the model whose networks encode: tiny, or a folder")
    command.add_argument("--vae", default="", metavar="FILE", help="Stable Diffusion's autoencoder instead of its own")
    command.add_argument("--clip", default="", metavar="FOLDER", help="transformers' CLIPModel instead of its own")
    command.add_argument("--depth", default="", metavar="FILE", help="a depth network instead of its own")
    command.add_argument("--dtype", choices=sorted(DTYPES), default=files.dtype, help="of the autoencoder")
    command.add_argument("--device", default="cpu", help="a torch device, or several with commas: workers take turns")
    command.add_argument("--workers", type=int, default=1, help="processes; with --ray HOST or auto, actors")
    command.add_argument(
        "--remove", action="store_true", help="samples in --out whose sources are not named now are removed"
    )
    command.add_argument("--threads", type=int, default=1, help="CPU threads of each worker")
    command.add_argument(
        "--ray", metavar="WHERE", help="auto (this machine's cluster), HOST:PORT, or local:N for N workers here"
    )
    command.set_defaults(command=prepare_command)


def prepare_command(options: argparse.Namespace) -> None:
    """``gen1 prepare``: checks the settings, then works; what it did is logged."""
    if options.workers < 1 or options.threads < 1:
        raise ValueError(
            f"--workers {options.workers} --threads {options.threads} leaves nobody to work; give 1 or more of each."
        )
    config = PrepareConfig(
        **{name: getattr(options, name) for name in ("size", "frames", "stride", "multiple", "levels", "looks")},
        **{name: getattr(options, name) for name in ("captions", "reliefs", "shard", "seed")},
        hop=(options.frames - 1) * options.stride + 1 if options.hop is None else options.hop,
        cuts=CutConfig(least=options.cut),
    )
    files = NetworkFiles(
        model=options.weights, autoencoder=options.vae, clip=options.clip, depth=options.depth, dtype=options.dtype
    )
    names = options.device.split(",")
    # What a cluster's machines have is not known here.
    names = [str(device_from(name)) for name in names] if options.ray is None else names
    if len(names) > options.workers:
        raise ValueError(
            f"--device {options.device} names {len(names)} devices for {options.workers} workers; give --workers "
            f"{len(names)}."
        )
    torch.set_num_threads(options.threads)
    with progress() as on_step, runner(options.ray, options.workers) as run:
        summary = prepare(
            options.sources,
            options.out,
            config,
            files,
            match=options.match,
            devices=[names[number % len(names)] for number in range(options.workers)],
            remove=options.remove,
            run=run,
            on_step=on_step,
        )
    for line in report(summary, options.out):
        logger.info(line)


@contextmanager
def runner(where: str | None, workers: int) -> Iterator[Runner]:
    """Processes of this machine, or the actors of a Ray cluster."""
    if where is None:
        yield run_processes
        return
    with ray_cluster(where, workers=workers if workers > 1 else 0) as run:
        yield run


def report(summary: Summary, out: Path) -> list[str]:
    """What was done, for a person."""
    lines = [
        f"{summary.samples} samples in {summary.shards} shards in {out} ({summary.kept} shards were there already)"
    ]
    total = sum(summary.seconds.values())
    if summary.frames and total:
        parts = ", ".join(f"{name} {100 * value / total:.0f} %" for name, value in sorted(summary.seconds.items()))
        lines.append(f"{summary.frames} frames, {summary.frames / total:.1f} frames/s for each worker: {parts}")
    if summary.errors:
        lines.append(f"{len(summary.errors)} sources or clips were left out; {out / 'errors.jsonl'} says which and why")
    return lines
