"""The recipe of the embedded model: about two hours on two CPU cores, from a seed alone.

``python -m gen1_core.recipes.tiny all --folder runs/tiny`` makes all of it. A part may also be named alone,
stopped by ``--minutes`` and resumed by the same command.

The U-Net's stages deviate from the paper's (3.5). The paper starts from a pretrained image model and adds temporal
layers (75k steps), then structure (25k), then t_s (10k). Here nothing is pretrained, and structure is given from the
first step: images with depth, then clips with depth, then clips with t_s in 0..7.
"""

import argparse
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..models.autoencoder import AutoencoderConfig
from ..models.clip import CLIPConfig
from ..models.depth import DepthNetConfig
from ..models.prior import PriorConfig
from ..models.unet import UNetConfig
from ..presets import TINY_DIFFUSION, TINY_OPTIONS
from ..progress import progress
from ..training.autoencoder import AutoencoderPlan
from ..training.bank import BankConfig
from ..training.clip import CLIPPlan
from ..training.depth import DepthPlan
from ..training.prior import PriorPlan
from ..training.recipe import PARTS, Part, Recipe, Work, recipe_with_steps, run
from ..training.stages import Fit, Rate, Stage
from ..training.unet import UNetPlan, with_steps

STAGES = (
    Stage(
        name="images",
        steps=3600,
        batch=32,
        image_fraction=1.0,
        structure="detail",
        rate=Rate(peak=1.2e-3, final=7e-4),
    ),
    Stage(
        name="clips",
        steps=1600,
        batch=32,
        image_fraction=0.125,
        structure="detail",
        rate=Rate(peak=7e-4, final=3e-4, warmup=0),
    ),
    Stage(
        name="levels",
        steps=800,
        batch=32,
        image_fraction=0.125,
        structure="levels",
        rate=Rate(peak=3e-4, final=2e-5, warmup=0),
    ),
)
"""Images, temporal layers, t_s as in the paper, but structure from step 0 (a deviation; see the top of this file)."""

TINY = Recipe(
    name="tiny",
    seed=0,
    bank=BankConfig(name="train", seed=1, shards=32, preset_share=0.6),
    held_out=BankConfig(name="held_out", seed=2, shards=2),
    autoencoder=AutoencoderConfig(
        block_out_channels=(24, 48, 96, 96), layers_per_block=1, norm_num_groups=8, latent_scale=1.0
    ),
    autoencoder_plan=AutoencoderPlan(
        fit=Fit(steps=2400, batch=8, rate=Rate(peak=1.5e-3), betas=(0.9, 0.95), weight_decay=1e-4, ema_decay=0.995)
    ),
    decoder_plan=AutoencoderPlan(
        fit=Fit(steps=600, batch=8, rate=Rate(peak=1e-3), betas=(0.9, 0.95), weight_decay=1e-4, ema_decay=0.99),
        pooled_weight=2.0,
    ),
    clip=CLIPConfig(),
    clip_plan=CLIPPlan(
        fit=Fit(
            steps=700,
            batch=64,
            rate=Rate(peak=1e-3),
            betas=(0.9, 0.98),
            weight_decay=0.05,
            ema_decay=0.99,
            evaluate_every=100,
        )
    ),
    depth=DepthNetConfig(),
    depth_plan=DepthPlan(
        fit=Fit(
            steps=1400,
            batch=12,
            rate=Rate(peak=1.5e-3),
            weight_decay=1e-3,
            ema_decay=0.995,
            evaluate_every=200,
        )
    ),
    prior=PriorConfig(depth=2),
    prior_plan=PriorPlan(
        fit=Fit(steps=1500, batch=256, rate=Rate(peak=1e-3), ema_decay=0.995, log_every=50, evaluate_every=250)
    ),
    unet=UNetConfig(
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        attention=(False, True, True),
        num_attention_heads=(2, 3, 4),
        cross_attention_dim=128,
        norm_num_groups=16,
        frames=8,
    ),
    unet_plan=UNetPlan(
        fit=Fit(
            steps=sum(stage.steps for stage in STAGES),
            batch=32,
            rate=Rate(peak=1.2e-3),
            ema_decay=0.997,
            log_every=50,
            evaluate_every=600,
        ),
        stages=STAGES,
    ),
    diffusion=TINY_DIFFUSION,
    options=TINY_OPTIONS,
)


def smoke(recipe: Recipe) -> Recipe:
    """The same path in seconds: a handful of clips and steps. Its weights are worth nothing."""
    for part, steps in (("autoencoder", 3), ("decoder", 3), ("clip", 3), ("depth", 3), ("prior", 3)):
        recipe = recipe_with_steps(recipe, part, steps)
        name = f"{part}_plan"
        plan = getattr(recipe, name)
        recipe = replace(recipe, **{name: replace(plan, fit=replace(plan.fit, batch=min(plan.fit.batch, 8)))})
    stages = tuple(replace(stage, batch=16) for stage in recipe.unet_plan.stages)
    small = {"shards": 1, "clips": 4, "supersample": 1}
    return replace(
        recipe,
        name=f"{recipe.name} smoke",
        bank=replace(recipe.bank, **small),
        held_out=replace(recipe.held_out, **small),
        unet_plan=with_steps(replace(recipe.unet_plan, stages=stages), 6),
        options=replace(recipe.options, steps=2),
        judged_clips=2,
    )


def main(arguments: list[str] | None = None) -> None:
    """``python -m gen1_core.recipes.tiny``: the same as ``gen1 train``."""
    parser = argparse.ArgumentParser(prog="gen1 train", description=__doc__)
    add_arguments(parser)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parser.parse_args(arguments)
    try:
        run_from(options)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def run_from(options: argparse.Namespace) -> None:
    """Runs what the options of ``add_arguments`` ask for.

    Raises ValueError, before anything is made, where they do not fit together.
    """
    recipe = smoke(TINY) if options.smoke else TINY
    parts: Sequence[Part] = PARTS if options.part == "all" else [options.part]
    if options.steps and options.part == "all":
        raise ValueError(
            f"--steps {options.steps} is the length of one part, but all has several; name a part or leave --steps out."
        )
    if options.steps:
        recipe = recipe_with_steps(recipe, options.part, options.steps)
    if options.threads < 1:
        raise ValueError(f"--threads {options.threads} leaves nobody to work; give 1 or more.")
    shards = shards_from(options.shards, recipe.bank.shards)
    device = device_from(options.device)
    torch.set_num_threads(options.threads)
    with progress(every_s=5.0) as on_step:
        work = Work(folder=options.folder, shards=shards, minutes=options.minutes, device=device, on_step=on_step)
        run(recipe, parts, work)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``gen1 train`` and of this module."""
    parser.add_argument("part", choices=[*PARTS, "all"], help="what to make; parts resume where they stopped")
    parser.add_argument("--folder", type=Path, default=Path("runs/tiny"), help="where everything is kept")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="stop a part cleanly after this time; the same command goes on"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--steps", type=int, default=0, help="train this part for another number of steps")
    parser.add_argument("--shards", default=":", help="first:last of the bank (without the last), for instance 0:16")
    parser.add_argument("--device", default="cpu", help="a torch device")
    parser.add_argument("--smoke", action="store_true", help="the same path in seconds, with worthless weights")


def shards_from(text: str, count: int) -> range:
    """``first:last`` as numbers of shards; an end left out is the bank's own.

    Raises ValueError where it names no shard of the bank.
    """
    ends = re.fullmatch(r"(\d*):(\d*)", text)
    first, last = (int(ends[1] or 0), int(ends[2] or count)) if ends else (0, 0)
    if not 0 <= first < last <= count:
        raise ValueError(
            f"--shards {text} names no range of the {count} shards that the bank has; "
            f"give first:last within 0:{count}, for instance 0:1 for the first one."
        )
    return range(first, last)


def device_from(name: str) -> torch.device:
    """A torch device that can be used.

    Raises ValueError for one that this machine does not have.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here ({reason}); give cpu or one that is there.") from error
    return device


if __name__ == "__main__":
    main()
