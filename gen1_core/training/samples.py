"""Samples of the U-Net while it trains: held-out clips edited to another style, beside the renderer's own answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ..conditioning import network
from ..content.encoder import ContentEncoder
from ..diffusion.condition import Condition
from ..diffusion.guidance import guided
from ..diffusion.prediction import as_denoiser
from ..diffusion.samplers import SAMPLERS
from ..diffusion.schedule import spaced_sigmas, start
from ..gen1 import Diffusion, EditOptions
from ..metrics import psnr
from ..models.autoencoder import Autoencoder, decode_clip
from ..models.depth import DepthNet
from ..models.unet import SpaceTimeUNet
from ..structure.estimator import MAX_BLUR_LEVEL
from ..tensors import Latents
from .bank import Bank
from .depth import aligned
from .latents import LatentBank
from .sheets import write_sheet
from .stages import stage_at
from .unet import UNetPlan, with_level


@dataclass(frozen=True, kw_only=True)
class Judges:
    """The trained parts that look at samples of the U-Net."""

    autoencoder: Autoencoder
    depth: DepthNet
    encoder: ContentEncoder


@torch.no_grad()
def sample(
    model: SpaceTimeUNet,
    condition: Condition,
    diffusion: Diffusion,
    options: EditOptions,
    *,
    seed: int,
    flat: Float[Tensor, "b s f h w"] | None = None,
) -> Latents:
    """A few clips at once, from noise: the heart of the pipeline without files and windows.

    ``flat`` is what shows no structure; guidance by structure is left out where it is not given.
    """
    b, _, f, h, w = condition.structure.shape
    noise = torch.randn(b, model.config.out_channels, f, h, w, generator=torch.Generator().manual_seed(seed)).to(
        condition.structure
    )
    sigmas = [float(sigma) for sigma in spaced_sigmas(diffusion.schedule, options.steps, options.spacing)]
    denoise = as_denoiser(network(model), diffusion.schedule, diffusion.prediction, batch=1)
    denoise = guided(
        denoise,
        content_scale=options.content_scale,
        temporal_scale=options.temporal_scale,
        structure_scale=1.0 if flat is None else options.structure_scale,
        without=None if flat is None else partial(replace, structure=flat),
    )
    x = start(None, noise, sigmas[0])
    fresh = torch.Generator().manual_seed(seed + 1)
    steps = SAMPLERS[options.sampler](
        denoise, x, sigmas, condition, noise=lambda _: torch.randn(x.shape, generator=fresh).to(x)
    )
    return list(steps)[-1]


def evaluation(
    latents: LatentBank,
    bank: Bank,
    judges: Judges,
    plan: UNetPlan,
    diffusion: Diffusion,
    options: EditOptions,
    folder: Path,
    *,
    clips: int,
) -> Callable[[SpaceTimeUNet, int], dict[str, float]]:
    """Edits of held-out clips to their other style, against the clip as the renderer makes it in that style.

    For each figure there is the same of the truth, or of the source left as it is: alone they say little.
    """
    device = next(judges.autoencoder.parameters()).device
    content = latents.images[:clips, 1, 0].to(device, torch.float32)[:, None, None]
    encoded, level = latents.depth[:clips, 0].to(device, torch.float32), torch.zeros(clips, dtype=torch.long)
    condition = Condition(structure=with_level(encoded, level), content=content, null=torch.zeros_like(content))
    blank = repeat(latents.flat.to(device, torch.float32), "c h w -> b c f h w", b=clips, f=encoded.shape[2])
    flat = replace(condition, structure=with_level(blank, torch.full_like(level, MAX_BLUR_LEVEL)))
    source, truth = (frames_of(bank.rgb[:clips, style].to(device).float() / 255) for style in (0, 1))
    depth = frames_of(bank.depth[:clips].to(device).float() / 255)
    frames = bank.rgb.shape[2]

    @torch.no_grad()
    def evaluate(model: SpaceTimeUNet, step: int) -> dict[str, float]:
        image_only = step <= plan.stages[0].steps and plan.stages[0].image_fraction == 1
        # Structure is shown once the network has learnt what it is.
        told = flat if stage_at(plan.stages, step - 1)[0].structure == "none" else condition
        clean = sample(model, replace(told, image=image_only), diffusion, options, seed=1, flat=flat.structure)
        edited = decode_clip(judges.autoencoder, rearrange(clean, "b c f h w -> (b f) c h w"), chunk=8)
        columns = [part[frames // 2 :: frames] for part in (source, depth, edited, truth)]
        write_sheet(folder / f"sheet-{step:06d}.png", columns)
        write_sheet(folder / f"motion-{step:06d}.png", motion_columns([source, edited, truth], frames))
        return judge(edited, source, truth, depth, judges, frames)

    return evaluate


def judge(
    edited: Tensor, source: Tensor, truth: Tensor, depth: Tensor, judges: Judges, frames: int
) -> dict[str, float]:
    """PSNR, depth of the edit, likeness to the asked look, and change from frame to frame."""
    look = judges.encoder.encode_images(truth)
    look_of = {name: judges.encoder.encode_images(part) for name, part in (("edit", edited), ("source", source))}
    cosine = lambda a: float(F.cosine_similarity(a, look).mean())  # noqa: E731
    error = lambda images: float((aligned(judges.depth(images), depth) - depth).abs().mean())  # noqa: E731
    return {
        "psnr": psnr(edited, truth),
        "psnr_source": psnr(source, truth),
        "depth_mae": error(edited),
        "depth_mae_truth": error(truth),
        "look": cosine(look_of["edit"]),
        "look_source": cosine(look_of["source"]),
        "change": frame_change(edited, frames),
        "change_truth": frame_change(truth, frames),
    }


def frame_change(images: Float[Tensor, "n c h w"], frames: int) -> float:
    """Mean absolute difference of neighbouring frames of clips that lie one after the other."""
    clips = rearrange(images, "(b f) c h w -> b f c h w", f=frames)
    return float((clips[:, 1:] - clips[:, :-1]).abs().mean())


def motion_columns(parts: Sequence[Float[Tensor, "n c h w"]], frames: int) -> list[Tensor]:
    """Columns of a sheet whose rows are whole clips: each of ``parts`` for the first two clips."""
    rows = torch.stack(
        [part[clip * frames : (clip + 1) * frames] for clip in range(min(2, len(parts[0]) // frames)) for part in parts]
    )
    return list(rearrange(rows, "r f c h w -> f r c h w"))


def frames_of(clips: Float[Tensor, "m f c h w"]) -> Float[Tensor, "n c h w"]:
    """Clips as frames one after the other."""
    return rearrange(clips, "m f c h w -> (m f) c h w")
