"""``prepare``: scan the sources, divide their clips into shards, and have workers make those that are not there yet."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from einops import repeat
from safetensors.torch import save

from ...checkpoints.files import config_from_plain
from ...models.autoencoder import encode_clip
from ...structure.blur import NO_STRUCTURE_DEPTH
from ...tensors import OnStep, ignore_progress
from ...video.read import Video, open_video
from ..shards import FORMAT, index_path, shard_path
from .encode import Clock, encode_scene, levels_of, read_scene, render_scene, with_reliefs
from .files import ShardWriter, clean, finish_index, finished, require_webdataset, whole, write_json, write_lines
from .networks import NetworkFiles, Networks, load_networks
from .sources import PrepareConfig, Unit, World, expand, identity, scan, stamp, units_of, units_of_world

logger = logging.getLogger(__name__)

Plain = dict[str, Any]
Work = Callable[[Plain], Plain]
Runner = Callable[[Callable[[Plain], Work], Sequence[Plain], Sequence[Plain]], Iterator[tuple[int, Plain]]]
"""Does jobs and gives their numbers and results in any order: ``run_processes`` or ``run_on_ray`` of ``distributed``.

Its arguments are a function that makes a worker of a setup, a setup for each worker, and the jobs; all plain data.
"""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run did. ``frames`` are those encoded now; ``seconds`` of all workers together, by part of the work."""

    samples: int
    shards: int
    kept: int
    frames: int
    errors: list[dict[str, str]]
    seconds: dict[str, float] = field(default_factory=dict)


def in_turn(
    make: Callable[[Plain], Work], setups: Sequence[Plain], jobs: Sequence[Plain]
) -> Iterator[tuple[int, Plain]]:
    """The Runner without workers: one job after another, here."""
    work = make(setups[0]) if jobs else None
    for number, job in enumerate(jobs):
        if work is not None:
            yield number, work(job)


def prepare(
    sources: Sequence[str],
    out: Path,
    config: PrepareConfig,
    files: NetworkFiles,
    *,
    match: str = "*",
    devices: Sequence[str] = ("cpu",),
    remove: bool = False,
    run: Runner = in_turn,
    on_step: OnStep = ignore_progress,
) -> Summary:
    """Make the shards of ``sources`` in ``out`` (docs/data.md says what is in them); call again to go on.

    There is a worker for each of ``devices``. What cannot be used is listed in ``errors.jsonl`` with the reason.
    Finished samples of other sources are only removed where ``remove`` says so.
    Raises ValueError for sources that are not there, for a folder that was prepared in another way or would lose
    finished samples, where the disk is full, and where not a single sample could be made.
    """
    found = expand(sources, match=match)
    require_webdataset()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{out} cannot be a folder ({error}); name another one.") from error
    weights = load_networks(files, device=torch.device("cpu")).weights
    claim(out, config, weights)
    setups = [{"out": str(out), "config": asdict(config), "files": asdict(files), "device": name} for name in devices]
    units, errors = plan(found, out, config, setups, run=run, on_step=on_step)
    if not units:
        write_lines(out / "errors.jsonl", errors)
        reason = errors[0]["reason"] if errors else "nothing was found"
        raise ValueError(f"none of {len(found)} sources can be prepared; the first one: {reason}")
    count = -(-len(units) // config.shard)
    clean(out, count, {(unit.source, unit.first) for unit in units}, remove=remove)
    return make_shards(units, errors, out, config, weights, setups, run=run, on_step=on_step)


def claim(out: Path, config: PrepareConfig, weights: dict[str, str]) -> None:
    """Write down what the folder is made with; refuse one that was made with something else."""
    path = out / "prepare.json"
    about = json.loads(json.dumps({"format": FORMAT, "config": settings(config), "weights": weights}))
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))
        if there.get("format") != FORMAT:
            raise ValueError(
                f"{out} was prepared by another version (format {there.get('format')}, and this one writes {FORMAT}); "
                "give another --out."
            )
        different = sorted(
            name for part in ("config", "weights") for name in about[part] if there[part].get(name) != about[part][name]
        )
        if different:
            raise ValueError(
                f"{out} was prepared with other settings or weights ({', '.join(different)} differ), and samples of "
                "both must not be mixed; give another --out, or the same settings to go on."
            )
        return
    write_json(path, about)


def settings(config: PrepareConfig) -> Plain:
    """What is written down of a config: no reliefs are not, so that folders go on that are older than these."""
    return {name: value for name, value in asdict(config).items() if name != "reliefs" or value}


def plan(
    found: Sequence[Path | World],
    out: Path,
    config: PrepareConfig,
    setups: Sequence[Plain],
    *,
    run: Runner,
    on_step: OnStep,
) -> tuple[list[Unit], list[dict[str, str]]]:
    """All units in the order of the sources, and what cannot be used.

    Files that were scanned before are not scanned again; ``scan.jsonl`` grows by a line for every file.
    """
    scans = out / "scan.jsonl"
    known = _read_scans(scans)
    paths = [path for path in found if isinstance(path, Path)]
    now = {path: stamp(path, config.cuts) for path in paths}
    missing = [path for path in paths if _stamp_of(known.get(path.as_posix(), {})) != now[path]]
    jobs = [{"path": str(path)} for path in missing]
    try:
        with scans.open("ab") as log:
            for done, (_, result) in enumerate(run(make_scanner, setups, jobs)):
                known[result["path"]] = result
                log.write((json.dumps(result) + "\n").encode())
                log.flush()
                on_step("scan", done + 1, len(jobs))
    except OSError as error:
        raise ValueError(
            f"{scans} could not be written ({error}); free some space and give the command again."
        ) from error
    units: list[Unit] = []
    errors: list[dict[str, str]] = []
    for source in found:
        try:
            new = (
                units_of_world(source, config)
                if isinstance(source, World)
                else units_of(known[source.as_posix()], config)
            )
            units += new
        except (ValueError, OSError) as error:
            errors.append({"path": str(source), "reason": str(error)})
    return units, errors


def make_shards(
    units: Sequence[Unit],
    errors: list[dict[str, str]],
    out: Path,
    config: PrepareConfig,
    weights: dict[str, str],
    setups: Sequence[Plain],
    *,
    run: Runner,
    on_step: OnStep,
) -> Summary:
    """Have the shards made that are not there, and list what failed."""
    jobs: list[Plain] = []
    indices: dict[int, Plain] = {}
    count = -(-len(units) // config.shard)
    for number in range(count):
        part = [asdict(unit) for unit in units[number * config.shard : (number + 1) * config.shard]]
        told = identity(settings(config), weights, number, part)
        index = finished(out, number, told)
        if index is None:
            jobs.append({"shard": number, "units": part, "identity": told})
        else:
            indices[number] = index
    sizes = sorted({(unit.height, unit.width) for unit in units})
    jobs.append({"flat": sizes})
    kept, frames, seconds = len(indices), 0, Clock()
    for done, (job, result) in enumerate(run(make_encoder, setups, jobs)):
        frames += result["frames"]
        for name, value in result["seconds"].items():
            seconds.seconds[name] = seconds.seconds.get(name, 0.0) + value
        if "shard" in jobs[job]:
            indices[jobs[job]["shard"]] = json.loads(index_path(out, jobs[job]["shard"]).read_text(encoding="utf-8"))
        on_step("shards", done + 1, len(jobs))
    errors = [*errors, *(error for number in sorted(indices) for error in indices[number]["errors"])]
    write_lines(out / "errors.jsonl", errors)
    samples = sum(len(index["samples"]) for index in indices.values())
    if not samples:
        raise ValueError(f"none of {len(units)} clips could be prepared; the first one: {errors[0]['reason']}")
    return Summary(samples=samples, shards=count, kept=kept, frames=frames, errors=errors, seconds=seconds.seconds)


def make_scanner(setup: Plain) -> Work:
    """A worker that looks through files."""
    config = config_from_plain(PrepareConfig, setup["config"])
    return lambda job: scan(Path(job["path"]), config.cuts)


def make_encoder(setup: Plain) -> Work:
    """A worker that makes shards; it loads its networks once."""
    out, config, device = (
        Path(setup["out"]),
        config_from_plain(PrepareConfig, setup["config"]),
        torch.device(setup["device"]),
    )
    networks = load_networks(config_from_plain(NetworkFiles, setup["files"]), device=device)

    def work(job: Plain) -> Plain:
        if "flat" in job:
            write_flat(out / "flat.safetensors", job["flat"], networks, device=device)
            return {"frames": 0, "seconds": {}}
        units = [config_from_plain(Unit, unit) for unit in job["units"]]
        return write_shard(out, job["shard"], units, config, networks, identity=job["identity"], device=device)

    return work


def write_shard(
    out: Path,
    number: int,
    units: Sequence[Unit],
    config: PrepareConfig,
    networks: Networks,
    *,
    identity: str,
    device: torch.device,
) -> Plain:
    """One shard with its index; returns how many frames were encoded and how long each part took.

    A unit that fails is listed in the index, and its key is left out.
    """
    clock = Clock()
    errors: list[dict[str, str]] = []
    frames = 0
    path = shard_path(out, number)
    with whole(path) as stream:
        writer = ShardWriter(stream)
        video: Video | None = None
        for key, unit in enumerate(units, number * config.shard):
            try:
                with clock.part("render" if unit.kind == "world" else "read"):
                    if unit.kind == "world":
                        scene = render_scene(unit, config, device=device)
                    else:
                        # Clips of a video follow one another: it is looked through once for all of them.
                        if video is None or video.path != Path(unit.source):
                            video = open_video(unit.source)
                        scene = read_scene(video, unit)
            except Exception as error:  # whatever a decoder raises: one bad file must not end the run
                errors.append(_error(unit, error))
                continue
            levels = levels_of(unit, config)
            try:
                if config.reliefs and unit.kind != "world":
                    scene = with_reliefs(scene, unit, config, networks, clock, device=device)
                tensors = encode_scene(scene, levels, networks, clock, device=device, chunk=config.chunk)
            except ValueError as error:
                errors.append(_error(unit, error))
                continue
            about = {**asdict(unit), "levels": levels, "captions": scene.captions}
            about |= {"looks": scene.looks, "family": scene.family, "size": config.size}
            with clock.part("write"):
                writer.add(f"{key:08d}", tensors, about)
            frames += scene.rgb.shape[0] * scene.rgb.shape[1]
        writer.close()
    with clock.part("write"):
        finish_index(path, writer.samples, errors, identity=identity)
    return {"frames": frames, "seconds": clock.seconds}


@torch.inference_mode()
def write_flat(path: Path, sizes: Sequence[Sequence[int]], networks: Networks, *, device: torch.device) -> None:
    """The encoding of a flat depth map at every size: what stands for "no structure"."""
    flats = {}
    for height, width in sizes:
        pixels = repeat(torch.tensor(NO_STRUCTURE_DEPTH, device=device), " -> 1 3 h w", h=height, w=width)
        flats[f"{height}x{width}"] = encode_clip(networks.autoencoder, pixels, chunk=1)[0].float().cpu().half()
    with whole(path) as file:
        file.write(save(flats))


def _error(unit: Unit, error: Exception) -> dict[str, str]:
    """A line of errors.jsonl."""
    reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return {"path": unit.source, "reason": f"from frame {unit.first}: {reason}"}


def _stamp_of(found: Plain) -> Plain:
    """The part of a scan that says what it was made of; nothing of one that failed, which is tried again."""
    return (
        {}
        if "error" in found
        else {name: found[name] for name in ("path", "bytes", "mtime_ns", "cuts") if name in found}
    )


def _read_scans(path: Path) -> dict[str, Plain]:
    """The scans of earlier runs by path; a line that a kill cut short is left out."""
    known: dict[str, Plain] = {}
    if not path.exists():
        return known
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        known[found["path"]] = found
    return known
