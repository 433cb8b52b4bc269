"""The recipe of the embedded model: about five hours on two CPU cores, from a seed alone.

``python -m gen1_core.recipes.tiny all --folder runs/tiny`` makes all of it. A part may also be named alone,
stopped by ``--minutes`` and resumed by the same command.

The U-Net's stages are the paper's (3.5): images, temporal layers, structure at t_s = 0, t_s in 0..7. The paper starts
from a pretrained image model; here nothing is pretrained, so images and structure get a larger share of the steps.
"""

import argparse
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..devices import device_from
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
from ..training.compose import Composition
from ..training.depth import DepthPlan
from ..training.engine import Engine
from ..training.prior import PriorPlan
from ..training.recipe import PARTS, Part, Recipe, Work, recipe_with_batch, recipe_with_steps, run
from ..training.stages import Fit, Rate, Stage
from ..training.unet import UNetPlan, from_stage, until_stage, with_steps

STAGES = (
    Stage(
        name="images",
        steps=800,
        batch=64,
        image_fraction=1.0,
        structure="none",
        rate=Rate(peak=3e-3, final=2.6e-3),
    ),
    Stage(
        name="temporal",
        steps=500,
        batch=64,
        image_fraction=0.25,
        structure="none",
        rate=Rate(peak=1.6e-3, final=1.6e-3, warmup=100),
        keep=True,
    ),
    Stage(
        name="structure",
        steps=2200,
        batch=64,
        image_fraction=0.75,
        structure="detail",
        rate=Rate(peak=1.6e-3, final=8e-4, warmup=0),
    ),
    Stage(
        name="levels",
        steps=1500,
        batch=64,
        image_fraction=0.5,
        structure="levels",
        rate=Rate(peak=8e-4, final=2e-5, warmup=0),
    ),
)
"""The paper's stages; the weights before structure is shown are kept as ``unet/stage-temporal.safetensors``.

Single frames have a larger share than the paper's 12.5 %: a batch of 64 frames holds 64 looks as images, 4 as clips.
"""

TINY = Recipe(
    name="tiny",
    seed=0,
    bank=BankConfig(name="train", seed=1, shards=32, preset_share=0.6, frames=16),
    held_out=BankConfig(name="held_out", seed=2, shards=2, frames=16),
    autoencoder=AutoencoderConfig(
        block_out_channels=(24, 48, 96, 96),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        latent_scale=1.0,
        latent_mean=(0.0,) * 8,
        patch_encoder=True,
    ),
    autoencoder_plan=AutoencoderPlan(
        fit=Fit(steps=2400, batch=8, rate=Rate(peak=1.5e-3), betas=(0.9, 0.95), weight_decay=1e-4, ema_decay=0.995)
    ),
    decoder_plan=AutoencoderPlan(
        fit=Fit(steps=3000, batch=8, rate=Rate(peak=1e-3), betas=(0.9, 0.95), weight_decay=1e-4, ema_decay=0.99),
        pooled_weight=2.0,
        latent_noise=0.3,
    ),
    clip=CLIPConfig(),
    clip_plan=CLIPPlan(
        fit=Fit(
            steps=1500,
            batch=64,
            rate=Rate(peak=1e-3),
            betas=(0.9, 0.98),
            weight_decay=0.05,
            ema_decay=0.99,
            evaluate_every=250,
        )
    ),
    depth=DepthNetConfig(train_size=160),
    depth_plan=DepthPlan(
        fit=Fit(
            steps=6500,
            batch=12,
            rate=Rate(peak=1.5e-3),
            weight_decay=1e-3,
            ema_decay=0.995,
            evaluate_every=500,
        ),
        composition=Composition(sizes=(128, 160, 192)),
    ),
    prior=PriorConfig(depth=2),
    prior_plan=PriorPlan(
        fit=Fit(steps=1500, batch=256, rate=Rate(peak=1e-3), ema_decay=0.995, log_every=50, evaluate_every=250)
    ),
    unet=UNetConfig(
        in_channels=2 * 8 + 4,
        out_channels=8,
        block_out_channels=(80, 96, 112),
        layers_per_block=1,
        attention=(False, True, True),
        num_attention_heads=(2, 3, 4),
        cross_attention_dim=128,
        norm_num_groups=16,
        frames=16,
        content_embedding=True,
        scale_shift=True,
    ),
    unet_plan=UNetPlan(
        fit=Fit(
            steps=sum(stage.steps for stage in STAGES),
            batch=32,
            rate=Rate(peak=1.2e-3),
            ema_decay=0.997,
            log_every=50,
            evaluate_every=750,
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
    stages = tuple(replace(stage, batch=32) for stage in recipe.unet_plan.stages)
    small = {"shards": 1, "clips": 4, "supersample": 1}
    return replace(
        recipe,
        name=f"{recipe.name} smoke",
        bank=replace(recipe.bank, **small),
        held_out=replace(recipe.held_out, **small),
        unet_plan=with_steps(replace(recipe.unet_plan, stages=stages), 8),
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
    if options.stage:
        if options.part != "unet" or not options.start:
            raise ValueError(
                f"--stage {options.stage} leaves out what the stages before it teach, and only weights of a U-Net have "
                "learnt that; name the part unet, and give those weights by --from."
            )
        recipe = replace(recipe, unet_plan=from_stage(recipe.unet_plan, options.stage))
    if options.until:
        if options.part != "unet":
            raise ValueError(f"--until {options.until} is a stage of the U-Net's training; name the part unet.")
        recipe = replace(recipe, unet_plan=until_stage(recipe.unet_plan, options.until))
    for name, change in (("steps", recipe_with_steps), ("batch", recipe_with_batch)):
        value = getattr(options, name)
        if value and options.part == "all":
            raise ValueError(
                f"--{name} {value} is for one part, but all has several; name a part or leave --{name} out."
            )
        if value and options.part == "autoencoder" and recipe.autoencoder.patch_encoder:
            raise ValueError(
                f"--{name} {value} is for a part that is trained, and this autoencoder is computed; its decoder is "
                "trained by the part decoder."
            )
        if value:
            recipe = change(recipe, options.part, value)
    if not 0 <= options.data_share <= 1:
        raise ValueError(f"--data-share {options.data_share} is a share of the steps; give a number from 0 to 1.")
    shards = shards_from(options.shards, recipe.bank.shards)
    device, engine = hardware_from(options)
    with progress(every_s=5.0) as on_step:
        work = Work(
            folder=options.folder or Path("runs/tiny"),
            shards=shards,
            minutes=options.minutes,
            device=device,
            on_step=on_step,
            engine=engine,
            start=options.start,
            data=tuple(options.data),
            data_share=options.data_share,
        )
        run(recipe, parts, work)


def hardware_from(options: argparse.Namespace) -> tuple[torch.device, Engine]:
    """The device and how steps are computed on it: bfloat16 and channels last, but on the CPU, where both are slower.

    Raises ValueError for what this machine does not have.
    """
    if options.threads < 1:
        raise ValueError(f"--threads {options.threads} leaves nobody to work; give 1 or more.")
    device = device_from(options.device)
    torch.set_num_threads(options.threads)
    if options.deterministic:
        torch.use_deterministic_algorithms(True)
    automatic = "config" if device.type == "cpu" else "bf16"
    engine = Engine(
        precision=automatic if options.precision == "auto" else options.precision,
        accumulate=options.accumulate,
        checkpointing=options.checkpointing,
        channels_last=device.type != "cpu",
        shard=options.fsdp,
        compile=options.compile,
        rate_scale=options.rate_scale,
    )
    return device, engine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``gen1 train`` and of this module."""
    parser.add_argument(
        "part", nargs="?", default="all", choices=[*PARTS, "all"], help="what to make; parts resume where they stopped"
    )
    parser.add_argument("--folder", type=Path, help="where everything is kept; left out: runs/ and the preset's name")
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="stop each part that is trained after this time; the same command goes on",
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--steps", type=int, default=0, help="train this part for another number of steps")
    parser.add_argument("--shards", default=":", help="first:last of the bank (without the last), for instance 0:16")
    parser.add_argument("--device", default="cpu", help="a torch device")
    parser.add_argument("--batch", type=int, default=0, help="another batch for this part; the U-Net's in frames")
    parser.add_argument(
        "--from", dest="start", type=Path, metavar="FOLDER", help="begin at the finished weights there (a warm restart)"
    )
    parser.add_argument(
        "--stage", default="", metavar="NAME", help="with --from: the first stage of the U-Net's training"
    )
    parser.add_argument(
        "--until", default="", metavar="STAGE", help="the last one; temporal: a video model without structure"
    )
    parser.add_argument(
        "--data", type=Path, nargs="+", default=[], metavar="FOLDER", help="shards of `gen1 prepare`, for the U-Net"
    )
    parser.add_argument("--data-share", type=float, default=0.5, help="0..1: steps on --data, the others on the bank")
    add_engine(parser)
    parser.add_argument("--smoke", action="store_true", help="the same path in seconds, with worthless weights")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Options about how steps are computed; they may change from call to call."""
    parser.add_argument(
        "--precision",
        choices=("auto", "config", "no", "bf16"),
        default="auto",
        help="config: as accelerate's configuration says; auto: bf16, but on the CPU as config",
    )
    parser.add_argument("--rate-scale", type=float, default=1.0, metavar="FACTOR", help="times the learning rate")
    parser.add_argument("--accumulate", type=int, default=1, help="parts that each process computes its share in")
    parser.add_argument("--checkpointing", action="store_true", help="less memory, a third more computing")
    parser.add_argument("--fsdp", action="store_true", help="divide weights and optimiser among processes (FSDP2)")
    parser.add_argument(
        "--compile",
        choices=("no", "default", "reduce-overhead", "max-autotune"),
        default="no",
        help="torch.compile; reduce-overhead replays graphs of kernels. Resuming is then exact only to rounding",
    )
    parser.add_argument(
        "--deterministic", action="store_true", help="refuse operators that differ from run to run on a GPU"
    )


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


if __name__ == "__main__":
    main()
