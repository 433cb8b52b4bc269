"""``gen1 customize``: a model learns a subject or a style from a few pictures."""

import argparse
import logging
import math
from pathlib import Path

import torch

from ..devices import device_from
from ..presets import MODELS
from ..progress import progress
from ..training.customize import CustomWork, customize
from ..training.engine import Engine
from ..training.halves import CustomPlan
from ..training.lora import LoraConfig
from ..training.stages import Fit, Rate

logger = logging.getLogger(__name__)

RATES = {"lora": 2e-3, "full": 2e-4}
"""What the embedded model learns at (docs/customize.md); larger models want less."""


def add_customize(command: argparse.ArgumentParser) -> None:
    """Options of ``gen1 customize``."""
    plan = CustomPlan(method="lora", fit=Fit(steps=1, batch=32, rate=Rate(peak=1e-3)))
    command.add_argument(
        "images", nargs="+", metavar="IMAGES", help="15 to 30 pictures: a folder, files, or a list of paths (.txt)"
    )
    command.add_argument(
        "-o", "--out", type=Path, required=True, metavar="OUT", help="the LoRA's file; with --method full a folder"
    )
    command.add_argument("--weights", default="tiny", help=f"{', '.join(MODELS)}, or a folder of weights")
    command.add_argument("--method", choices=sorted(RATES), default="lora", help="a LoRA, or all weights of the U-Net")
    command.add_argument("--rank", type=int, default=plan.lora.rank, help="how much a LoRA can change")
    command.add_argument("--steps", type=int, default=300)
    command.add_argument("--batch", type=int, default=plan.fit.batch, help="frames; half of them are the pictures")
    command.add_argument("--rate", type=float, help=f"learning rate; left out: {RATES}")
    command.add_argument(
        "--regularisation",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="original data of `gen1 prepare`; left out: clips of the procedural world, made here",
    )
    command.add_argument("--clips", type=int, default=32, help="so many of them")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--folder", type=Path, help="checkpoint, log, sheets; the same command goes on. Left out: OUT-training"
    )
    command.add_argument("--minutes", type=float, default=math.inf, help="stop cleanly after this time")
    command.add_argument("--device", default="cpu", help="a torch device")
    command.add_argument("--threads", type=int, default=2, help="CPU threads")
    command.set_defaults(command=customize_command)


def customize_command(options: argparse.Namespace) -> None:
    """``gen1 customize``: checks the settings, then works; what it did is logged."""
    if options.threads < 1:
        raise ValueError(f"--threads {options.threads} leaves nobody to work; give 1 or more.")
    peak = RATES[options.method] if options.rate is None else options.rate
    plan = CustomPlan(
        method=options.method,
        fit=Fit(
            steps=options.steps,
            batch=options.batch,
            rate=Rate(peak=peak, final=peak / 10, warmup=10),
            ema_decay=0.99,
            log_every=10,
            evaluate_every=100,
        ),
        lora=LoraConfig(rank=options.rank),
    )
    device = device_from(options.device)
    torch.set_num_threads(options.threads)
    with progress(every_s=5.0) as on_step:
        work = CustomWork(
            images=tuple(options.images),
            out=options.out,
            folder=options.folder or options.out.with_name(f"{options.out.name.removesuffix('.safetensors')}-training"),
            weights=options.weights,
            regularisation=tuple(options.regularisation),
            clips=options.clips,
            seed=options.seed,
            minutes=options.minutes,
            device=device,
            engine=Engine(precision="config" if device.type == "cpu" else "bf16"),
            on_step=on_step,
        )
        outcome = customize(plan, work)
    if not outcome.finished:
        logger.info("stopped at step %d of %d; the same command goes on", outcome.step, options.steps)
