"""``gen1 eval``: one command that makes the table and the report, counts votes, or edits unseen clips."""

import argparse
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ..content.clip import load_transformers_clip
from ..content.describe import PriorDescriber
from ..devices import pick_device
from ..evaluation.benchmark import BenchmarkConfig
from ..evaluation.methods import Editor, load_unstructured
from ..evaluation.real import find_jobs, write_real_sheet
from ..evaluation.report import write_report
from ..evaluation.run import EvaluationConfig, evaluate
from ..evaluation.store import fingerprint, read_json
from ..evaluation.sweeps import SweepConfig
from ..evaluation.votes import tally
from ..gen1 import EditOptions, Gen1
from ..loading import PARTS, load_gen1, read_part
from ..presets import MODELS
from ..progress import progress

logger = logging.getLogger(__name__)

LONGEST = 16
"""Frames of a benchmark clip, as many as the model joins at once up to this."""


def add_eval(command: argparse.ArgumentParser) -> None:
    """Options of ``gen1 eval``."""
    command.add_argument("--weights", default="tiny", help=f"{', '.join(MODELS)}, or a folder of weights")
    command.add_argument("--out", type=Path, required=True, help="folder of the report; the same command goes on")
    command.add_argument("--clips", type=int, default=35, help="edits for each seed")
    command.add_argument("--seeds", type=int, nargs="+", default=[7], help="which draws of the benchmark")
    command.add_argument("--frames", type=int, default=0, help=f"0: what the model joins, at most {LONGEST}")
    command.add_argument("--size", type=int, default=0, help="pixels; 0: the size that the model was trained at")
    command.add_argument("--steps", type=int, default=0, help="sampling steps of all methods; 0: the model's default")
    command.add_argument("--validation", type=int, default=6, help="edits that the baselines are tuned on")
    command.add_argument("--sweep", type=int, default=8, help="edits of the sweeps; 0 leaves them out")
    command.add_argument(
        "--unstructured",
        type=Path,
        metavar="FILE",
        help="the U-Net of the training stage without structure (stage 2), for the baselines that see none",
    )
    command.add_argument(
        "--clip", type=Path, metavar="FOLDER", help="a transformers CLIP for the two consistencies; else the model's"
    )
    command.add_argument(
        "--judges", type=Path, metavar="FOLDER", help="where the judges are kept, for several reports; else in --out"
    )
    command.add_argument(
        "--real",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="edit unseen clips instead (single videos; of a folder those named in evaluation/real.py): one sheet",
    )
    command.add_argument("--prompts", nargs="+", default=[], metavar="TEXT", help="for --real, in turn")
    command.add_argument(
        "--votes", type=Path, nargs="+", metavar="FILE", help="count votes that blind.html saved; nothing else is made"
    )
    command.add_argument("--device", default="cpu", help="where the model runs; judges and renderer stay on the CPU")
    command.set_defaults(command=eval_command)


def eval_command(options: argparse.Namespace) -> None:
    """``gen1 eval``."""
    if options.votes:
        count_votes(options.out, options.votes)
        return
    if options.prompts and not options.real:
        raise ValueError("--prompts are for --real, and the benchmark has its own; leave them out, or name clips.")
    if options.size and options.real:
        raise ValueError(f"--size {options.size} is for the benchmark; clips of --real are edited at the model's own.")
    jobs = find_jobs(options.real, options.prompts) if options.real else []
    gen1 = load_gen1(options.weights, device=pick_device(options.device))
    frames = options.frames or min(LONGEST, gen1.unet.config.longest)
    defaults = gen1.defaults if options.steps == 0 else replace(gen1.defaults, steps=options.steps)
    defaults = replace(defaults, passes=1 if gen1.device.type == "cpu" else 2)
    with fewer_reports():
        if jobs:
            with progress() as on_step:
                sheet = write_real_sheet(gen1, jobs, options.out, frames=frames, options=defaults, on_step=on_step)
            logger.info("sheet of %d clips: %s", len(jobs), sheet)
        else:
            benchmark(options, gen1, defaults, frames)


@contextmanager
def fewer_reports() -> Iterator[None]:
    """The pipeline reports each edit, and here are hundreds, all under one bar; afterwards it does again."""
    pipeline = logging.getLogger("gen1_core.pipeline")
    before = pipeline.level
    pipeline.setLevel(logging.WARNING)
    try:
        yield
    finally:
        pipeline.setLevel(before)


def benchmark(options: argparse.Namespace, gen1: Gen1, defaults: EditOptions, frames: int) -> None:
    """The table and the report."""
    describer = gen1.describer
    if not isinstance(describer, PriorDescriber):
        raise ValueError(
            f"{options.weights} draws no content with a prior, as the benchmark asks; give our own weights."
        )
    config = EvaluationConfig(
        benchmark=BenchmarkConfig(
            seeds=tuple(options.seeds),
            clips=options.clips,
            frames=frames,
            size=options.size or gen1.diffusion.working_size,
        ),
        sweeps=SweepConfig(edits=options.sweep),
        validation=options.validation,
    )
    config = replace(config, judges=replace(config.judges, size=config.benchmark.size))
    folder = MODELS.get(options.weights, Path(options.weights))
    warn_of_split(folder)
    files = [folder / f"{part}.safetensors" for part in PARTS]
    files += [options.unstructured] if options.unstructured else []
    editor = Editor(
        gen1=gen1,
        unstructured=load_unstructured(gen1, options.unstructured) if options.unstructured else None,
        options=defaults,
    )
    encoder = load_transformers_clip(options.clip) if options.clip else describer.encoder
    with progress() as on_step:
        results = evaluate(
            editor,
            encoder,
            config,
            options.out,
            weights=fingerprint(files),
            encoder_name=str(options.clip or ""),
            judges_folder=options.judges,
            on_step=on_step,
        )
        page = write_report(options.out, results, on_step=on_step)
    for row in results["goals"]:
        logger.info("%s %s: %s", "reached    " if row["reached"] else "NOT REACHED", row["goal"], row["found"])
    logger.info("report: %s", page)


def warn_of_split(folder: Path) -> None:
    """Says where the U-Net's own recipe does not tell that held-out families were always kept from it."""
    recipe = json.loads(read_part(folder, "unet").metadata.get("recipe", "{}"))
    if recipe.get("splits") != ["train"]:
        logger.warning(
            "%s does not say that it was trained on the world's training split alone, so it may know what is held out "
            "here.",
            folder / "unet.safetensors",
        )


def count_votes(folder: Path, files: list[Path]) -> None:
    """The tally, also in the report if there is one."""
    table = tally(folder, files)
    for name, row in table.items():
        logger.info(
            "ours preferred to %s: %.1f %% +- %.1f of %d", name, 100 * row["rate"], 100 * row["error"], row["pairs"]
        )
    results = read_json(folder / "results.json")
    if results is not None:
        write_report(folder, results)
