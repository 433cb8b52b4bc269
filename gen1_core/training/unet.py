"""Fitting the space-time U-Net in stages like the paper's (3.5): images first, then clips, then blurred structure.

Structure and content come from the training clip itself: its own depth, and the image embedding of one of its frames.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..conditioning import network
from ..diffusion.condition import Condition
from ..diffusion.loss import diffusion_loss
from ..gen1 import Diffusion
from ..models.unet import SpaceTimeUNet, UNetConfig
from ..structure.blur import level_channels
from ..structure.estimator import MAX_BLUR_LEVEL
from ..tensors import Latents
from .latents import LatentBank
from .loop import Losses, Task, seeded
from .stages import Fit, Stage, StructureLevel, scale_stages, stage_at


@dataclass(frozen=True, kw_only=True)
class UNetPlan:
    """How the U-Net is fitted. ``fit`` says everything but batch and learning rate, which belong to the stages."""

    fit: Fit
    stages: tuple[Stage, ...]
    content_dropout: float = 0.1

    def __post_init__(self) -> None:
        total = sum(stage.steps for stage in self.stages)
        if total != self.fit.steps:
            raise ValueError(
                f"the stages have {total} steps, but fit.steps={self.fit.steps}; give the sum, or use `with_steps`."
            )


def with_steps(plan: UNetPlan, steps: int) -> UNetPlan:
    """The same plan for another number of steps: every stage keeps its share."""
    shares = scale_stages(plan.stages, steps)
    stages = tuple(replace(stage, steps=share) for stage, share in zip(plan.stages, shares, strict=True))
    return replace(plan, fit=replace(plan.fit, steps=steps), stages=stages)


def unet_task(
    config: UNetConfig,
    plan: UNetPlan,
    diffusion: Diffusion,
    latents: LatentBank,
    *,
    evaluate: Callable[[SpaceTimeUNet, int], dict[str, float]],
    seed: int,
    device: torch.device,
) -> Task:
    """The U-Net's training through all stages."""
    model = seeded(lambda: SpaceTimeUNet(config), seed).to(device)
    call = network(model)

    def losses(step: int, generator: torch.Generator) -> Losses:
        stage, _ = stage_at(plan.stages, step)
        clean, condition = draw_batch(latents, stage, plan.content_dropout, generator, device)
        timestep = torch.randint(0, diffusion.schedule.timesteps, (len(clean),), generator=generator)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        loss = diffusion_loss(
            call,
            clean,
            condition,
            schedule=diffusion.schedule,
            prediction=diffusion.prediction,
            timestep=timestep.to(device),
            noise=noise,
        ).mean()
        return {"loss": loss, ("image_loss" if condition.image else "video_loss"): loss}

    def rate(step: int) -> float:
        stage, within = stage_at(plan.stages, step)
        return stage.rate.at(within, stage.steps)

    return Task(name="unet", model=model, losses=losses, rate=rate, evaluate=evaluate)


def draw_batch(
    latents: LatentBank,
    stage: Stage,
    content_dropout: float,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[Latents, Condition]:
    """Clean latents and their condition, about ``batch`` frames: single ones for the image path, or clips."""
    clips, styles, _, frames = latents.rgb.shape[:4]
    image = float(torch.rand(1, generator=generator)) < stage.image_fraction
    count = stage.batch if image else max(1, stage.batch // frames)
    draw = lambda most: torch.randint(0, most, (count,), generator=generator)  # noqa: E731
    clip, style, shown = draw(clips), draw(styles), draw(frames)
    clean = latents.rgb[clip, style]
    encoded, level = draw_structure(latents, clip, stage.structure, generator)
    if image:
        at = draw(frames)
        clean, encoded = (part[torch.arange(count), :, at][:, :, None] for part in (clean, encoded))
    content = latents.images[clip, style, shown].to(device, torch.float32)[:, None, None]
    dropped = (torch.rand(count, 1, 1, 1, generator=generator) < content_dropout).to(device)
    null = torch.zeros_like(content)
    condition = Condition(
        structure=with_level(encoded.to(device, torch.float32), level),
        content=torch.where(dropped, null, content),
        null=null,
        image=image,
    )
    return clean.to(device, torch.float32), condition


def draw_structure(
    latents: LatentBank, clip: Int[Tensor, " b"], structure: StructureLevel, generator: torch.Generator
) -> tuple[Float[Tensor, "b 4 f h w"], Int[Tensor, " b"]]:
    """Encoded depth of each clip and its t_s: none, always 0, or uniform in 0..7 (0 for one clip in eight)."""
    if structure == "none":
        flat = repeat(latents.flat, "c h w -> b c f h w", b=len(clip), f=latents.rgb.shape[3])
        return flat, torch.full_like(clip, MAX_BLUR_LEVEL)
    blurred: Bool[Tensor, " b"] = torch.rand(len(clip), generator=generator) < MAX_BLUR_LEVEL / (MAX_BLUR_LEVEL + 1)
    if structure == "detail":
        blurred = torch.zeros_like(blurred)
    return latents.depth[clip, blurred.long()], torch.where(blurred, latents.level[clip], 0)


def with_level(encoded: Float[Tensor, "b 4 f h w"], level: Int[Tensor, " b"]) -> Float[Tensor, "b 8 f h w"]:
    """Encoded depth and the channels that tell its t_s: the structure as the network gets it."""
    return torch.cat([encoded, level_channels(level.to(encoded.device), encoded)], dim=1)
