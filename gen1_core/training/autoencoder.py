"""Fitting the autoencoder: crops of frames and depth maps, L1 at two scales, and latents that begin as colours."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ..metrics import psnr
from ..models.autoencoder import Autoencoder, AutoencoderConfig, ResBlock
from .bank import Bank, pictures
from .draws import WHOLE, Share, draw_seeds, normal_rows
from .loop import Losses, Task, seeded
from .sheets import write_sheet
from .stages import Fit


@dataclass(frozen=True, kw_only=True)
class AutoencoderPlan:
    """How the autoencoder is fitted.

    Small networks learn shape first and colour late; the cure is to anchor the first three latent channels to the
    picture averaged over 8x8 pixels. The anchor's weight falls over the run. The last ``full_share`` of the steps
    shows whole frames, since group norms see other statistics there.

    ``latent_noise`` is for the decoder alone: noise of a level from 0 to this is added to each latent, so that it
    learns to smooth over what a diffusion model leaves there (noise-augmented decoding, Zheng et al., 2510.11690).
    """

    fit: Fit
    crop: int = 64
    full_share: float = 0.1
    full_batch: int = 3
    depth_share: float = 0.2
    pooled_weight: float = 1.0
    anchor_weight: float = 0.5
    final_anchor_weight: float = 0.1
    anchor_gain: float = 2.0
    kl_weight: float = 2e-4
    latent_noise: float = 0.0


def autoencoder_task(
    config: AutoencoderConfig,
    plan: AutoencoderPlan,
    bank: Bank,
    held_out: Bank,
    *,
    seed: int,
    folder: Path,
    device: torch.device,
) -> Task:
    """The autoencoder's training; its config says mean 0 and scale 1 until ``normalised`` has measured them."""
    raw = replace(config, latent_scale=1.0, latent_mean=(0.0,) * config.latent_channels)
    model = seeded(lambda: Autoencoder(raw), seed).to(device)

    def losses(step: int, generator: torch.Generator, share: Share = WHOLE) -> Losses:
        images, noise, _ = draw_batch(bank, plan, config, step, generator, share, device)
        return reconstruction_losses(model, images, noise, plan, progress=step / plan.fit.steps)

    return Task(
        name="autoencoder",
        model=model,
        losses=losses,
        rate=lambda step: plan.fit.rate.at(step, plan.fit.steps),
        evaluate=evaluation(held_out, folder),
        divides=True,
        blocks=(ResBlock,),
    )


def decoder_task(
    model: Autoencoder, plan: AutoencoderPlan, bank: Bank, held_out: Bank, *, folder: Path, device: torch.device
) -> Task:
    """More training of the decoder alone, as Stable Diffusion's was: latents made before stay what they are."""
    model.requires_grad_(False)
    model.decoder.requires_grad_(True)
    if not model.config.patch_encoder:
        model.post_quant_conv.requires_grad_(True)

    def losses(step: int, generator: torch.Generator, share: Share = WHOLE) -> Losses:
        images, noise, level = draw_batch(bank, plan, model.config, step, generator, share, device)
        output, _, _ = model(images, noise, level)
        return decoded_losses(output, images, model.config.factor, plan)

    return Task(
        name="decoder",
        model=model,
        losses=losses,
        rate=lambda step: plan.fit.rate.at(step, plan.fit.steps),
        evaluate=evaluation(held_out, folder),
        divides=True,
        blocks=(ResBlock,),
    )


def draw_batch(
    bank: Bank,
    plan: AutoencoderPlan,
    config: AutoencoderConfig,
    step: int,
    generator: torch.Generator,
    share: Share,
    device: torch.device,
) -> tuple[Float[Tensor, "n 3 h w"], Float[Tensor, "n c h8 w8"], Float[Tensor, " n"]]:
    """A share of a step's pictures, the noise of their latents, and how much of it a decoder gets (latent_noise)."""
    images = draw_images(bank, plan, step, generator)
    seeds = draw_seeds(len(images), generator)
    side = images.shape[-1] // config.factor
    level = share.of(plan.latent_noise * torch.rand(len(images), generator=generator))
    noise = normal_rows(share.of(seeds), (config.latent_channels, side, side), device)
    return share.of(images).to(device), noise, level.to(device)


def draw_images(bank: Bank, plan: AutoencoderPlan, step: int, generator: torch.Generator) -> Float[Tensor, "n 3 h w"]:
    """A batch -1..1: random crops of frames and of depth maps; whole frames in the last steps."""
    whole = step >= (1 - plan.full_share) * plan.fit.steps
    count = plan.full_batch if whole else plan.fit.batch
    clips, styles, frames, _, height, width = bank.rgb.shape
    side = min(height, width) if whole else plan.crop
    pick = lambda most: torch.randint(0, most, (count,), generator=generator).tolist()  # noqa: E731
    rows = zip(pick(clips), pick(styles), pick(frames), pick(height - side + 1), pick(width - side + 1), strict=True)
    is_depth = (torch.rand(count, generator=generator) < plan.depth_share).tolist()
    flips = (torch.rand(count, generator=generator) < 0.5).tolist()
    images = []
    for (clip, style, frame, top, left), depth, flip in zip(rows, is_depth, flips, strict=True):
        source = bank.depth[clip, frame] if depth else bank.rgb[clip, style, frame]
        image = source[:, top : top + side, left : left + side].expand(3, -1, -1)
        images.append(image.flip(-1) if flip else image)
    return torch.stack(images).float() / 127.5 - 1


def reconstruction_losses(
    model: Autoencoder, images: Tensor, noise: Tensor, plan: AutoencoderPlan, *, progress: float
) -> Losses:
    """Those of the picture, the colour anchor, and a small KL term."""
    output, mean, logvar = model(images, noise)
    decoded = decoded_losses(output, images, model.config.factor, plan)
    anchor = F.l1_loss(mean[:, :3], plan.anchor_gain * F.avg_pool2d(images, model.config.factor))
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    weight = plan.anchor_weight + (plan.final_anchor_weight - plan.anchor_weight) * progress
    loss = decoded["loss"] + weight * anchor + plan.kl_weight * kl
    return {"loss": loss, "l1": decoded["l1"], "anchor": anchor, "kl": kl}


def decoded_losses(output: Tensor, images: Tensor, factor: int, plan: AutoencoderPlan) -> Losses:
    """L1, and L1 of the picture averaged over latent cells."""
    fine = F.l1_loss(output, images)
    coarse = F.l1_loss(F.avg_pool2d(output, factor), F.avg_pool2d(images, factor))
    return {"loss": fine + plan.pooled_weight * coarse, "l1": fine}


def evaluation(held_out: Bank, folder: Path) -> Callable[[Autoencoder, int], dict[str, float]]:
    """PSNR of frames and depth maps that were not trained on, and a sheet: truth and reconstruction."""
    middle = held_out.rgb.shape[2] // 2
    frames, depth = held_out.rgb[:32, 0, middle], held_out.depth[:32, middle]

    @torch.no_grad()
    def evaluate(model: Autoencoder, step: int) -> dict[str, float]:
        device = next(model.parameters()).device
        truths = [pictures(frames, device), pictures(depth, device)]
        outputs = [torch.cat([restore(model, part) for part in truth.split(8)]) for truth in truths]
        columns = [image[:8] for pair in zip(truths, outputs, strict=True) for image in pair]
        write_sheet(folder / f"sheet-{step:06d}.png", columns)
        return {"psnr": psnr(outputs[0], truths[0]), "depth_psnr": psnr(outputs[1], truths[1])}

    return evaluate


def restore(model: Autoencoder, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Images 0..1 through the autoencoder and back."""
    return ((model.decode(model.encode(images * 2 - 1)) + 1) / 2).clamp(0, 1)


@torch.no_grad()
def normalised(model: Autoencoder, bank: Bank, *, frames: int, seed: int) -> AutoencoderConfig:
    """The config with the latents' mean (per channel) and scale (1 / standard deviation) over random frames."""
    generator = torch.Generator().manual_seed(seed)
    clips, styles, length = bank.rgb.shape[:3]
    index = [torch.randint(0, most, (frames,), generator=generator) for most in (clips, styles, length)]
    device = next(model.parameters()).device
    parts = [model.moments(pictures(part, device) * 2 - 1)[0] for part in bank.rgb[tuple(index)].split(8)]
    latents = torch.cat(parts).double().cpu()
    mean = reduce(latents, "n c h w -> c", "mean")
    spread = (latents - rearrange(mean, "c -> 1 c 1 1")).square().mean().sqrt()
    return replace(
        model.config,
        latent_mean=tuple(round(value, 5) for value in mean.tolist()),
        latent_scale=round(1 / float(spread), 5),
    )
