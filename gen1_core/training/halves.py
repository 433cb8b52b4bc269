"""The task of customisation: half of each batch are a few pictures, half is original data (the paper's customisation).

The second half keeps the model from forgetting the rest. Pictures go through the image path, original data mostly as
clips: what changes in the layers for pictures has to go on working with those for time. All t_s are shown, since a
subject of another shape than the clip's wants a high one. What is trained is the whole U-Net, or a LoRA beside it.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..conditioning import network
from ..gen1 import Diffusion
from ..models.unet import SpaceTimeUNet
from .draws import WHOLE, Share
from .loop import Losses, Task, generator_at
from .lora import LoraConfig, adapters_for, attach, holding
from .sources import LatentSource
from .stages import Fit, Stage
from .unet import BLOCKS, Batch, batch_loss

Method = Literal["lora", "full"]


@dataclass(frozen=True, kw_only=True)
class CustomPlan:
    """How a model is customised. ``fit.batch`` counts frames; half of them are the pictures.

    ``image_fraction`` of the steps take the original half as single frames (the paper's share in all joint stages), the
    others as whole clips. ``lora`` says how large a LoRA is, and nothing where all weights are trained.
    """

    method: Method
    fit: Fit
    lora: LoraConfig = LoraConfig()
    image_fraction: float = 0.125
    content_dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.fit.batch % 2:
            raise ValueError(
                f"batch={self.fit.batch} has no half for the pictures and half for original data; give an even number."
            )
        if not 0 <= self.image_fraction <= 1:
            raise ValueError(
                f"image_fraction={self.image_fraction} is a share of the steps; give a number from 0 to 1."
            )

    @property
    def half(self) -> int:
        """Frames of one half of a batch."""
        return self.fit.batch // 2

    @property
    def stage(self) -> Stage:
        """The whole of it as a stage of the U-Net's training: all t_s."""
        return Stage(
            name="customize",
            steps=self.fit.steps,
            batch=self.fit.batch,
            image_fraction=self.image_fraction,
            structure="levels",
            rate=self.fit.rate,
        )


@dataclass(frozen=True, kw_only=True)
class Halves:
    """A step's whole batch before anything is read: pictures, and as many frames of original data."""

    pictures: Batch
    original: Batch


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What is trained (all of the U-Net, or the adapters beside it), and how its average is looked at.

    ``using(averaged)`` gives the U-Net with averaged weights for as long as its block lasts.
    """

    model: nn.Module
    unet: SpaceTimeUNet
    using: Callable[[Any], AbstractContextManager[SpaceTimeUNet]]


def learner_of(unet: SpaceTimeUNet, plan: CustomPlan, *, seed: int) -> Learner:
    """The U-Net made ready in place: with adapters and fixed itself, or all of it to be trained."""
    if plan.method == "full":
        return Learner(model=unet.requires_grad_(True), unet=unet, using=nullcontext)
    adapters = adapters_for(unet.requires_grad_(False), plan.lora, seed=seed)
    attach(unet, adapters)

    @contextmanager
    def using(averaged: nn.Module) -> Iterator[SpaceTimeUNet]:
        with holding(adapters, averaged):
            yield unet

    return Learner(model=adapters, unet=unet, using=using)


def clip_frames(plan: CustomPlan, *, longest: int, available: int) -> int:
    """Frames of the clips of the original half: as many as the network joins and original clips have.

    Raises ValueError where half a batch is no whole number of such clips.
    """
    frames = min(longest, available)
    if plan.image_fraction < 1 and plan.half % frames:
        raise ValueError(
            f"half a batch of {plan.fit.batch} frames is no whole number of clips of {frames} frames, so it would not "
            f"be half; give a batch of {2 * frames}, or a multiple of it."
        )
    return frames


def customize_task(
    learner: Learner,
    plan: CustomPlan,
    diffusion: Diffusion,
    pictures: LatentSource,
    original: LatentSource,
    *,
    evaluate: Callable[[nn.Module, int], dict[str, float]],
    device: torch.device,
) -> Task:
    """The training of a customised model. Its losses are those of both halves, and ``loss`` is their mean.

    Raises ValueError where half a batch is no whole number of clips.
    """
    frames = clip_frames(plan, longest=learner.unet.config.longest, available=original.longest())
    call = network(learner.unet)

    def losses(step: int, generator: torch.Generator, share: Share = WHOLE) -> Losses:
        halves = draw_halves(pictures, original, plan, step, generator, frames=frames)
        shown, kept = (
            batch_loss(call, batch, diffusion, generator, share, device) for batch in (halves.pictures, halves.original)
        )
        # As many frames in each half, so this is the mean over the frames of the batch.
        return {"loss": (shown + kept) / 2, "pictures_loss": shown, "original_loss": kept}

    def names(step: int, generator: torch.Generator) -> list[str]:
        halves = draw_halves(pictures, original, plan, step, generator, frames=frames)
        return [name for part in (halves.pictures, halves.original) for name in part.source.names(part.picks)]

    return Task(
        name="customize",
        model=learner.model,
        losses=losses,
        rate=lambda step: plan.fit.rate.at(step, plan.fit.steps),
        evaluate=evaluate,
        divides=True,
        batches=tuple({plan.half, plan.half // frames if plan.image_fraction < 1 else plan.half}),
        names=names,
        blocks=BLOCKS if plan.method == "full" else (),
    )


def draw_halves(
    pictures: LatentSource,
    original: LatentSource,
    plan: CustomPlan,
    step: int,
    generator: torch.Generator,
    *,
    frames: int,
) -> Halves:
    """Half of the frames from the pictures, half from original data: single ones, or clips of ``frames``."""
    image = frames == 1 or float(torch.rand(1, generator=generator)) < plan.image_fraction
    length = 1 if image else frames
    return Halves(
        pictures=draw(pictures, plan, step, generator, count=plan.half, frames=1),
        original=draw(original, plan, step, generator, count=plan.half // length, frames=length),
    )


def draw(
    source: LatentSource, plan: CustomPlan, step: int, generator: torch.Generator, *, count: int, frames: int
) -> Batch:
    """``count`` clips of so many frames; 1 is the image path."""
    picks = source.draw(step, count=count, frames=frames, generator=generator)
    dropped = torch.rand(count, generator=generator) < plan.content_dropout
    return Batch(source=source, picks=picks, dropped=dropped, image=frames == 1, stage=plan.stage)


@torch.no_grad()
def measure(
    unet: SpaceTimeUNet,
    plan: CustomPlan,
    diffusion: Diffusion,
    source: LatentSource,
    *,
    frames: int,
    seed: int,
    device: torch.device,
    batches: int = 8,
) -> float:
    """The loss on a source, always at the same draws of clips, levels and noise, so that two models can be compared."""
    call = network(unet)
    total = 0.0
    for number in range(batches):
        generator = generator_at(seed, "measure", number)
        batch = draw(source, plan, number, generator, count=max(1, plan.half // frames), frames=frames)
        total += float(batch_loss(call, batch, diffusion, generator, WHOLE, device))
    return total / batches
