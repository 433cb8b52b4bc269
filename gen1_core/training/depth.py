"""Fitting the small depth network: rendered clips, composed anew and recoloured until only shape and shading remain."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ..models.depth import DepthNet, DepthNetConfig
from .bank import Bank, pictures
from .compose import Composition, Maps, compose
from .draws import WHOLE, Share
from .loop import Losses, Task, seeded
from .sheets import write_sheet
from .stages import Fit


@dataclass(frozen=True, kw_only=True)
class DepthPlan:
    """How the depth network is fitted: L1, and L1 of the gradients at three scales (as MiDaS).

    Without a ``composition`` it sees the bank's pictures whole and at their size.
    """

    fit: Fit
    gradient_weight: float = 0.7
    recolour: float = 0.25
    composition: Composition | None = None


def depth_task(
    config: DepthNetConfig,
    plan: DepthPlan,
    bank: Bank,
    held_out: Bank,
    *,
    seed: int,
    folder: Path,
    device: torch.device,
) -> Task:
    """The training of the depth network on clip-normalised inverse depth."""
    model = seeded(lambda: DepthNet(config), seed).to(device)
    clips, styles, frames = bank.rgb.shape[:3]

    def losses(step: int, generator: torch.Generator, share: Share = WHOLE) -> Losses:
        draw = [torch.randint(0, most, (plan.fit.batch,), generator=generator) for most in (clips, styles, frames)]
        clip, style, frame = draw
        images = pictures(bank.rgb[clip, style, frame], device)
        depth = bank.depth[clip, frame].to(device, torch.float32) / 255
        flip = (torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5).to(device)
        images, depth = (torch.where(flip, part.flip(-1), part) for part in (images, depth))
        if plan.composition:
            images, depth = compose(images, depth, plan.composition, generator)
        images = augment(images, plan, generator)
        return depth_losses(model(share.of(images)), share.of(depth), plan)

    return Task(
        name="depth",
        model=model,
        losses=losses,
        rate=lambda step: plan.fit.rate.at(step, plan.fit.steps),
        evaluate=evaluation(held_out, folder),
        divides=True,
    )


def depth_losses(output: Maps, depth: Maps, plan: DepthPlan) -> Losses:
    """L1, and L1 of horizontal and vertical differences at full, half and quarter size."""
    level = F.l1_loss(output, depth)
    edges = torch.zeros_like(level)
    for factor in (1, 2, 4):
        error = F.avg_pool2d(output - depth, factor)
        edges = edges + (error[..., 1:] - error[..., :-1]).abs().mean()
        edges = edges + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return {"loss": level + plan.gradient_weight * edges, "l1": level}


def augment(images: Float[Tensor, "n 3 h w"], plan: DepthPlan, generator: torch.Generator) -> Float[Tensor, "n 3 h w"]:
    """Other colours, grey, negatives, smooth stains, noise and blur: textures of the world are few, photos
    are not."""
    count, device = len(images), images.device
    uniform = lambda: torch.rand(count, 1, 1, 1, generator=generator).to(device)  # noqa: E731
    normal = lambda *shape: torch.randn(shape, generator=generator).to(device)  # noqa: E731
    strength = plan.recolour * (rearrange(uniform(), "n 1 1 1 -> n 1 1") < 0.7)
    mix = torch.eye(3, device=device) + strength * normal(count, 3, 3)
    centred = torch.einsum("nij,njhw->nihw", mix, images - 0.5)
    images = centred * (0.6 + 0.8 * uniform()) + 0.5 + 0.15 * normal(count, 1, 1, 1)
    images = torch.where(uniform() < 0.15, images.mean(dim=1, keepdim=True), images)
    images = torch.where(uniform() < 0.1, 1 - images, images)
    rows, columns = torch.randint(2, 40, (2,), generator=generator).tolist()
    stains = F.interpolate(normal(count, 3, rows, columns), images.shape[-2:], mode="bilinear", align_corners=False)
    images = images * (1 + 0.3 * stains * (uniform() < 0.5))
    images = images + 0.06 * uniform() * (uniform() < 0.5) * normal(*images.shape)
    soft = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    return torch.where(uniform() < 0.3, soft, images).clamp(0, 1)


def aligned(output: Maps, depth: Maps) -> Maps:
    """The output under the scale and shift that fit it best to the truth, picture by picture."""
    axes = (1, 2, 3)
    centred = output - output.mean(dim=axes, keepdim=True)
    centre = depth.mean(dim=axes, keepdim=True)
    covariance = (centred * (depth - centre)).mean(dim=axes, keepdim=True)
    spread = centred.square().mean(dim=axes, keepdim=True).clamp(min=1e-6)
    return covariance / spread * centred + centre


def evaluation(held_out: Bank, folder: Path) -> Callable[[DepthNet, int], dict[str, float]]:
    """Mean absolute error on clips that were not trained on, a constant map's for comparison, and a sheet."""
    middle = held_out.rgb.shape[2] // 2
    frames, maps = held_out.rgb[:48, 0, middle], held_out.depth[:48, middle]

    @torch.no_grad()
    def evaluate(model: DepthNet, step: int) -> dict[str, float]:
        device = next(model.parameters()).device
        images, depth = pictures(frames, device), maps.to(device, torch.float32) / 255
        output = torch.cat([model(part) for part in images.split(8)])
        write_sheet(folder / f"sheet-{step:06d}.png", [images[:8], depth[:8], output[:8]])
        constant = depth.mean(dim=(1, 2, 3), keepdim=True).expand_as(depth)
        errors = {"mae": output, "mae_aligned": aligned(output, depth), "mae_constant": constant}
        return {name: float(F.l1_loss(guess, depth)) for name, guess in errors.items()}

    return evaluate
