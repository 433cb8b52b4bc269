"""The full-size U-Net: Stable Diffusion 1.5 made a Gen-1 by the paper's stages (3.5), on prepared shards.

``gen1 inflate`` makes the U-Net to start from, ``gen1 prepare`` the shards; ``gen1 train --preset sd15 --dry-run`` says
what it takes. Steps and batches are the paper's; rates, warm-up and average are not in it and are the usual ones for
fine-tuning a latent diffusion model. docs/training.md has the plan.
"""

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import nn

from ..checkpoints.files import Weights, config_from_plain, dtype_of, read_file, save_file
from ..conditioning import network
from ..diffusion.loss import diffusion_loss
from ..gen1 import Diffusion, EditOptions
from ..loading import as_metadata, config_of
from ..models.unet import SpaceTimeUNet, UNetConfig
from ..progress import progress
from ..training.draws import WHOLE, normal_rows
from ..training.engine import Engine, open_accelerator
from ..training.estimate import plan_lines
from ..training.loop import train
from ..training.recipe import check_length, data_identity
from ..training.restart import start_from
from ..training.samples import sample
from ..training.shards import open_shards
from ..training.sheets import write_sheet
from ..training.sources import LatentSource, ShardSource
from ..training.stages import Fit, Rate, Stage, stage_at
from ..training.task import generator_at, identity_of
from ..training.unet import UNetPlan, draw_batch, from_stage, read_batch, unet_task, until_stage, with_steps
from .tiny import hardware_from

logger = logging.getLogger(__name__)

FRAMES = 8
HEIGHT, WIDTH = 256, 448
"""Clips of the paper."""

BATCH = 9216
"""Images of a step, or 1152 clips of 8 frames (paper)."""


def paper_stage(name: str, steps: int, **settings: Any) -> Stage:
    """A stage at the paper's batch; a joint one where nothing else is said: 12.5 % of its steps are images."""
    return Stage(**{"name": name, "steps": steps, "batch": BATCH, "image_fraction": 0.125, **settings})


STAGES = (
    paper_stage("images", 15_000, image_fraction=1.0, structure="none", rate=Rate(peak=1e-4, final=1e-4, warmup=1000)),
    paper_stage("temporal", 75_000, structure="none", rate=Rate(peak=1e-4, final=5e-5, warmup=1000), keep=True),
    paper_stage("structure", 25_000, structure="detail", rate=Rate(peak=5e-5, final=3e-5, warmup=500)),
    paper_stage("levels", 10_000, structure="levels", rate=Rate(peak=3e-5, final=1e-6, warmup=0)),
)
"""The paper's stages with the paper's steps; its learning rates are not known."""


@dataclass(frozen=True, kw_only=True)
class FullRecipe:
    """Everything but weights and data. ``gpu_tflops`` and ``use`` are what the plan counts GPU-hours with."""

    name: str = "sd15"
    seed: int = 0
    unet: UNetConfig = UNetConfig(frames=FRAMES)
    plan: UNetPlan = UNetPlan(
        fit=Fit(
            steps=sum(stage.steps for stage in STAGES),
            batch=BATCH,
            rate=Rate(peak=1e-4),
            betas=(0.9, 0.999),
            ema_decay=0.9999,
            log_every=50,
            evaluate_every=2500,
            save_every_s=1800.0,
        ),
        stages=STAGES,
    )
    gpu_tflops: float = 989.0
    use: float = 0.35


SD15 = FullRecipe()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the full-size preset that tiny does not have."""
    parser.add_argument(
        "--held-out", type=Path, nargs="+", default=[], metavar="FOLDER", help="sd15: prepared shards to evaluate on"
    )
    parser.add_argument("--dry-run", action="store_true", help="sd15: print the plan, train nothing")
    parser.add_argument("--processes", type=int, default=64, help="sd15: GPUs that the plan counts with")


def run_from(options: argparse.Namespace) -> None:
    """``gen1 train --preset sd15``: the U-Net, from inflated weights and prepared shards.

    Raises ValueError, before anything is made, where something is missing.
    """
    recipe = recipe_from(options)
    if options.dry_run:
        for line in plan_of(recipe, processes=options.processes, accumulate=options.accumulate):
            logger.info(line)
        return
    if options.part not in ("unet", "all"):
        raise ValueError(
            f"the preset sd15 trains the U-Net alone, and {options.part} is public (docs/training.md); give unet."
        )
    if not options.data or not options.start:
        raise ValueError(
            "the preset sd15 needs shards (--data FOLDER, by `gen1 prepare`) and weights to begin at (--from FILE, by "
            "`gen1 inflate`); give both, or --dry-run for the plan."
        )
    device, engine = hardware_from(options)
    with progress(every_s=5.0) as on_step:
        train_full(
            recipe,
            options.start,
            options.data,
            options.held_out,
            options.folder or Path("runs/sd15"),
            minutes=options.minutes,
            device=device,
            engine=engine,
            on_step=on_step,
        )


def recipe_from(options: argparse.Namespace) -> FullRecipe:
    """The recipe with what the command line says of stage, steps and batch; two steps a stage with ``--smoke``."""
    recipe = SD15
    if options.smoke:
        stages = tuple(replace(stage, batch=2 * FRAMES, rate=replace(stage.rate, warmup=0)) for stage in STAGES)
        plan = with_steps(replace(recipe.plan, stages=stages), 2 * len(stages))
        fit = replace(plan.fit, log_every=1, evaluate_every=4)
        recipe = replace(recipe, name="sd15 smoke", plan=replace(plan, fit=fit))
    if options.stage:
        recipe = replace(recipe, plan=from_stage(recipe.plan, options.stage))
    if options.until:
        recipe = replace(recipe, plan=until_stage(recipe.plan, options.until))
    if options.batch:
        stages = tuple(replace(stage, batch=options.batch) for stage in recipe.plan.stages)
        recipe = replace(recipe, plan=replace(recipe.plan, stages=stages))
    return replace(recipe, plan=with_steps(recipe.plan, options.steps)) if options.steps else recipe


def plan_of(recipe: FullRecipe, *, processes: int, accumulate: int) -> list[str]:
    """What the training takes, counted on the meta device."""
    return plan_lines(
        recipe.unet,
        recipe.plan.stages,
        height=HEIGHT,
        width=WIDTH,
        processes=processes,
        accumulate=accumulate,
        tflops=recipe.gpu_tflops,
        use=recipe.use,
    )


def train_full(
    recipe: FullRecipe,
    start: Path,
    data: Sequence[Path],
    held_out: Sequence[Path],
    folder: Path,
    *,
    minutes: float,
    device: torch.device,
    engine: Engine,
    on_step: Callable[[str, int, int], None],
) -> bool:
    """Train, export and keep the stage before structure; returns whether it is finished.

    Raises ValueError where the weights are no Gen-1 U-Net, are where this training writes its own, or do not fit the
    data's content, and where held-out samples are among those trained on.
    """
    weights = folder / "weights"
    if start.resolve() in (weights.resolve(), (weights / "unet.safetensors").resolve()):
        raise ValueError(
            f"{start} is where this training writes its own weights, so its start would be lost; give another --folder."
        )
    accelerator = open_accelerator(engine, device)
    file = begun(start)
    config = replace(config_of(UNetConfig, file), frames=recipe.unet.frames)
    diffusion = config_from_plain(Diffusion, json.loads(file.metadata.get("diffusion", "{}")))
    source = ShardSource(open_shards(*data), seed=recipe.seed)
    judged = [ShardSource(open_shards(*held_out), seed=1)] if held_out else []
    for each in (source, *judged):
        check_content(each, config, start)
    check_held_out(source, judged)
    own = folder / "unet"
    task = unet_task(
        config,
        recipe.plan,
        diffusion,
        source,
        evaluate=evaluation(judged, recipe.plan, diffusion, own, device, frames=config.frames),
        seed=recipe.seed,
        device=device,
    )
    start_from(task.model, file.tensors, start)
    told = as_metadata(diffusion, EditOptions())

    def write(averaged: nn.Module, path: Path, about: dict[str, Any]) -> None:
        tensors = {name: tensor.half() for name, tensor in averaged.state_dict().items()}
        save_file(path, tensors, kind="unet", config=config, metadata={**told, "recipe": json.dumps(about)})

    def keep(averaged: nn.Module, name: str, step: int) -> None:
        write(averaged, own / f"stage-{name}.safetensors", {"name": recipe.name, "stage": name, "steps": step})

    made_from = identity_of(recipe.plan, config, diffusion, start_identity(file), *data_identity(data))
    outcome = train(
        task,
        recipe.plan.fit,
        own,
        seed=recipe.seed,
        identity=made_from,
        minutes=minutes,
        engine=engine,
        keep=keep,
        on_step=on_step,
    )
    if accelerator.is_main_process:
        weights.mkdir(parents=True, exist_ok=True)
        about = {"name": recipe.name, "steps": outcome.step, "finished": outcome.finished, "measured": outcome.record}
        write(outcome.averaged, weights / "unet.safetensors", about)
    accelerator.wait_for_everyone()
    return outcome.finished


def begun(start: Path) -> Weights:
    """The weights to begin at: a file, or the unet.safetensors of a folder.

    Raises ValueError for anything but a Gen-1 U-Net.
    """
    path = start / "unet.safetensors" if start.is_dir() else start
    if not path.is_file():
        raise ValueError(f"{path} is not there, and training begins at it; make it with `gen1 inflate`.")
    file = read_file(path)
    if file.kind != "unet":
        raise ValueError(
            f"{path} holds {file.kind or 'weights of another program'}, not a Gen-1 U-Net; "
            "make one with `gen1 inflate`."
        )
    return file


def start_identity(file: Weights) -> str:
    """A short word for the weights: their names, type and a few of their sums, since hashing gigabytes takes long."""
    sums = [round(float(file.tensors[name].double().sum()), 4) for name in sorted(file.tensors)[:16]]
    return f"{len(file.tensors)} {dtype_of(file.tensors)} {sums}"


def check_content(source: ShardSource, config: UNetConfig, start: Path) -> None:
    """Refuses data whose latents or embeddings the network cannot read, and clips that are too short."""
    sample = source.shards[True].read(0)
    channels, width = sample.rgb.shape[1], sample.images.shape[-1]
    if channels != config.out_channels:
        raise ValueError(
            f"the shards have latents of {channels} channels, and {start} draws {config.out_channels}; prepare the "
            "data with the autoencoder of those weights (gen1 prepare --vae)."
        )
    if width != config.cross_attention_dim:
        raise ValueError(
            f"the shards have embeddings of width {width}, and {start} reads {config.cross_attention_dim}; prepare the "
            "data with the CLIP of that width (--clip): ViT-L/14 for SD 1.x, ViT-H/14 for SD 2.x."
        )
    check_length(source.shards[True], config.frames)


def check_held_out(source: ShardSource, judged: Sequence[ShardSource]) -> None:
    """Refuses held-out data that was encoded in another way, and samples that are trained on."""
    for shards in (each.shards[True] for each in judged):
        if shards.weights != source.shards[True].weights:
            raise ValueError("--held-out was encoded with other weights than --data; prepare both in the same way.")
        if common := set(shards.checksums()) & set(source.shards[True].checksums()):
            raise ValueError(
                f"{len(common)} of {len(shards)} held-out samples are in --data too, and a loss on them says nothing; "
                "prepare --held-out of other videos (of the world: with another seed)."
            )


def evaluation(
    sources: Sequence[LatentSource],
    plan: UNetPlan,
    diffusion: Diffusion,
    folder: Path,
    device: torch.device,
    *,
    frames: int,
) -> Callable[[SpaceTimeUNet, int], dict[str, float]]:
    """The loss on the same held-out clips at the same noise, and a sheet: latents of a clip and its reconstruction.

    The shards hold no pictures, so the sheet shows three channels of the latents, which is enough to see shapes.
    """
    judged = replace(plan, content_dropout=0.0, shares=(1.0,) * max(1, len(sources)))

    @torch.no_grad()
    def evaluate(model: SpaceTimeUNet, step: int) -> dict[str, float]:
        if not sources:
            return {}
        stage, _ = stage_at(plan.stages, step - 1)
        stage = replace(stage, steps=plan.fit.steps, image_fraction=0.0, batch=4 * frames)
        once = replace(judged, stages=(stage,))
        batch = draw_batch(sources, once, 0, generator_at(0, "held out", 0), frames=frames)
        clean, condition = read_batch(batch, WHOLE, device)
        seeds = torch.arange(len(clean))
        noise = normal_rows(seeds, tuple(clean.shape[1:]), device)
        timestep = torch.linspace(100, 900, len(clean)).long().to(device)
        loss = diffusion_loss(
            network(model),
            clean,
            condition,
            schedule=diffusion.schedule,
            prediction=diffusion.prediction,
            timestep=timestep,
            noise=noise,
        ).mean()
        options = EditOptions(steps=10, content_scale=1.0)
        one = replace(
            condition,
            structure=condition.structure[:1],
            content=condition.content[:1],
            null=condition.null[:1],
        )
        made = sample(model, one, diffusion, options, seed=1)
        columns = [rearrange(part[0, :3], "c f h w -> f c h w") / 6 + 0.5 for part in (clean, made)]
        write_sheet(folder / f"sheet-{step:06d}.png", [column.clamp(0, 1) for column in columns])
        return {"held_out_loss": float(loss)}

    return evaluate
