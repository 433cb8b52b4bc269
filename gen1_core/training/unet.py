"""Fitting the space-time U-Net in stages like the paper's (3.5): images, clips, structure, blurred structure.

Structure and content come from the training clip itself: its own depth, and the image embedding of one of its frames.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..conditioning import network
from ..diffusion.condition import Condition
from ..diffusion.loss import diffusion_loss
from ..diffusion.prediction import Network
from ..gen1 import Diffusion
from ..models.attention import SpatialTransformer
from ..models.layers import ResBlock
from ..models.motion import MotionModule
from ..models.temporal import TemporalTransformer
from ..models.unet import SpaceTimeUNet, UNetConfig
from ..structure.blur import level_channels
from ..tensors import Latents
from .draws import WHOLE, Share, draw_seeds, normal_rows
from .loop import Losses, Task, seeded
from .sources import LatentSource, Picks, draw_source, with_flat
from .stages import Fit, Stage, kept_stages, scale_stages, stage_at

BLOCKS = (ResBlock, SpatialTransformer, TemporalTransformer, MotionModule)
"""The layers that are computed twice (checkpointing) and divided among processes (FSDP) one by one."""


WARMUP = 100
"""Steps over which the learning rate rises where a training begins in the middle of its stages."""


@dataclass(frozen=True, kw_only=True)
class UNetPlan:
    """How the U-Net is fitted. ``fit`` says everything but batch and learning rate, which belong to the stages.

    ``shares`` are the parts of the steps that each source of clips gets, in the order of the sources.
    """

    fit: Fit
    stages: tuple[Stage, ...]
    content_dropout: float = 0.1
    shares: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        total = sum(stage.steps for stage in self.stages)
        if total != self.fit.steps:
            raise ValueError(
                f"the stages have {total} steps, but fit.steps={self.fit.steps}; give the sum, or use `with_steps`."
            )
        if not self.shares or min(self.shares) < 0 or not sum(self.shares):
            raise ValueError(f"shares={self.shares} leave no clips to train on; give each source a share above 0.")


def with_steps(plan: UNetPlan, steps: int) -> UNetPlan:
    """The same plan for another number of steps: every stage keeps its share."""
    shares = scale_stages(plan.stages, steps)
    stages = tuple(replace(stage, steps=share) for stage, share in zip(plan.stages, shares, strict=True))
    return replace(plan, fit=replace(plan.fit, steps=steps), stages=stages)


def from_stage(plan: UNetPlan, name: str) -> UNetPlan:
    """The plan without the stages before ``name``, for weights that have been through them.

    Its first stage warms up, whatever it did in the middle of a run, since the optimiser begins without memory.
    Raises ValueError for a stage that the plan does not have.
    """
    first, *rest = plan.stages[place_of(plan, name) :]
    first = replace(first, rate=replace(first.rate, warmup=max(first.rate.warmup, WARMUP)))
    return with_stages(plan, (first, *rest))


def until_stage(plan: UNetPlan, name: str) -> UNetPlan:
    """The plan without the stages after ``name``: with ``"temporal"``, the video model without structure.

    Raises ValueError for a stage that the plan does not have.
    """
    return with_stages(plan, plan.stages[: place_of(plan, name) + 1])


def place_of(plan: UNetPlan, name: str) -> int:
    """Which of the plan's stages ``name`` is, from 0; raises ValueError where it is none."""
    names = [stage.name for stage in plan.stages]
    if name not in names:
        raise ValueError(f"The stage {name!r} is none of those to be trained; choose one of {', '.join(names)}.")
    return names.index(name)


def with_stages(plan: UNetPlan, stages: tuple[Stage, ...]) -> UNetPlan:
    """The plan with these stages and their steps."""
    return replace(plan, fit=replace(plan.fit, steps=sum(stage.steps for stage in stages)), stages=stages)


def unet_task(
    config: UNetConfig,
    plan: UNetPlan,
    diffusion: Diffusion,
    *sources: LatentSource,
    evaluate: Callable[[SpaceTimeUNet, int], dict[str, float]],
    seed: int,
    device: torch.device,
) -> Task:
    """The U-Net's training through all stages.

    Raises ValueError where sources and their shares do not match.
    """
    if len(sources) != len(plan.shares):
        raise ValueError(f"{len(sources)} sources came for shares={plan.shares}; give one share for each source.")
    model = seeded(lambda: SpaceTimeUNet(config), seed).to(device)
    call = network(model)

    def losses(step: int, generator: torch.Generator, share: Share = WHOLE) -> Losses:
        batch = draw_batch(sources, plan, step, generator, frames=config.frames)
        loss = batch_loss(call, batch, diffusion, generator, share, device)
        return {"loss": loss, ("image_loss" if batch.image else "video_loss"): loss}

    def rate(step: int) -> float:
        stage, within = stage_at(plan.stages, step)
        return stage.rate.at(within, stage.steps)

    def names(step: int, generator: torch.Generator) -> list[str]:
        batch = draw_batch(sources, plan, step, generator, frames=config.frames)
        return batch.source.names(batch.picks)

    return Task(
        name="unet",
        model=model,
        losses=losses,
        rate=rate,
        evaluate=evaluate,
        divides=True,
        batches=batch_sizes(plan.stages, config.frames),
        names=names,
        blocks=BLOCKS,
        kept=kept_stages(plan.stages),
    )


def batch_sizes(stages: Sequence[Stage], frames: int) -> tuple[int, ...]:
    """All numbers of samples that steps draw: single frames, or clips of ``frames``."""
    images = {stage.batch for stage in stages if stage.image_fraction > 0}
    clips = {max(1, stage.batch // frames) for stage in stages if stage.image_fraction < 1}
    return tuple(sorted(images | clips))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A step's whole batch before anything is read: which clips, whose content is dropped, and the stage's settings."""

    source: LatentSource
    picks: Picks
    dropped: Tensor
    image: bool
    stage: Stage


def draw_batch(
    sources: Sequence[LatentSource], plan: UNetPlan, step: int, generator: torch.Generator, *, frames: int
) -> Batch:
    """About ``batch`` frames of one source: single ones for the image path, or clips of ``frames``."""
    stage, _ = stage_at(plan.stages, step)
    image = float(torch.rand(1, generator=generator)) < stage.image_fraction
    count = stage.batch if image else max(1, stage.batch // frames)
    source = draw_source(sources, plan.shares, generator)
    picks = source.draw(step, count=count, frames=1 if image else frames, generator=generator)
    if stage.structure == "detail":
        picks = replace(picks, level=torch.zeros_like(picks.level))
    dropped = torch.rand(count, generator=generator) < plan.content_dropout
    return Batch(source=source, picks=picks, dropped=dropped, image=image, stage=stage)


def read_batch(batch: Batch, share: Share, device: torch.device) -> tuple[Latents, Condition]:
    """Clean latents of a share of the batch, and their condition."""
    clips = batch.source.read(batch.picks.of(share), device)
    if batch.stage.structure == "none":
        clips = with_flat(clips)
    content = rearrange(clips.content, "b d -> b 1 1 d")
    null = torch.zeros_like(content)
    dropped = rearrange(share.of(batch.dropped).to(device), "b -> b 1 1 1")
    condition = Condition(
        structure=with_level(clips.depth, clips.level),
        content=torch.where(dropped, null, content),
        null=null,
        image=batch.image,
    )
    return clips.rgb, condition


def batch_loss(
    call: Network, batch: Batch, diffusion: Diffusion, generator: torch.Generator, share: Share, device: torch.device
) -> Tensor:
    """The objective on a share of a batch, at noise levels and with noise from the generator."""
    clean, condition = read_batch(batch, share, device)
    timestep = torch.randint(0, diffusion.schedule.timesteps, (len(batch.dropped),), generator=generator)
    seeds = draw_seeds(len(batch.dropped), generator)
    return diffusion_loss(
        call,
        clean,
        condition,
        schedule=diffusion.schedule,
        prediction=diffusion.prediction,
        timestep=share.of(timestep).to(device),
        noise=normal_rows(share.of(seeds), tuple(clean.shape[1:]), device),
    ).mean()


def with_level(encoded: Float[Tensor, "b c f h w"], level: Int[Tensor, " b"]) -> Float[Tensor, "b c2 f h w"]:
    """Encoded depth and the channels that tell its t_s: the structure as the network gets it."""
    return torch.cat([encoded, level_channels(level.to(encoded.device), encoded)], dim=1)
