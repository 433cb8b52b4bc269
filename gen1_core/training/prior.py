"""Fitting the prior: the text embedding of a caption to the image embedding of a frame it describes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional as F

from ..content.prior import prior_loss, sample_prior
from ..models.prior import Prior, PriorConfig
from .latents import LatentBank
from .loop import Losses, Task, seeded
from .stages import Fit


@dataclass(frozen=True, kw_only=True)
class PriorPlan:
    """How the prior is fitted. ``text_noise`` blurs the text embeddings, or few captions are learnt by
    heart."""

    fit: Fit
    dropout: float = 0.1
    text_noise: float = 0.1


def prior_task(
    config: PriorConfig,
    plan: PriorPlan,
    latents: LatentBank,
    held_out: LatentBank,
    *,
    seed: int,
    device: torch.device,
) -> Task:
    """The prior's training, as in unCLIP: predict the clean image embedding at a random noise level."""
    model = seeded(lambda: Prior(config), seed).to(device)
    clips, styles, frames, _ = latents.images.shape
    texts = latents.texts.shape[2]

    def losses(step: int, generator: torch.Generator) -> Losses:
        draw = [
            torch.randint(0, most, (plan.fit.batch,), generator=generator) for most in (clips, styles, frames, texts)
        ]
        clip, style, frame, text = draw
        image = latents.images[clip, style, frame].to(device, torch.float32)
        told = latents.texts[clip, style, text].to(device, torch.float32)
        told = told + plan.text_noise * torch.randn(told.shape, generator=generator).to(device)
        return {"loss": prior_loss(model, image, told, generator=generator, dropout=plan.dropout).mean()}

    return Task(
        name="prior",
        model=model,
        losses=losses,
        rate=lambda step: plan.fit.rate.at(step, plan.fit.steps),
        evaluate=evaluation(held_out),
    )


def evaluation(held_out: LatentBank) -> Callable[[Prior, int], dict[str, float]]:
    """Cosine of drawn and true image embeddings on held-out captions, beside the text embedding's own."""
    middle = held_out.images.shape[2] // 2
    image = rearrange(held_out.images[:, :, middle], "m k d -> (m k) d").float()
    text = rearrange(held_out.texts[:, :, 0], "m k d -> (m k) d").float()

    @torch.no_grad()
    def evaluate(model: Prior, step: int) -> dict[str, float]:
        generator = torch.Generator().manual_seed(0)
        told = text.to(model.null_text.device)
        drawn = sample_prior(model, told, generator=generator, steps=10, scale=1.0).cpu()
        return {
            "cosine": float(F.cosine_similarity(drawn, image).mean()),
            "cosine_of_text": float(F.cosine_similarity(text, image).mean()),
            "cosine_of_mean": float(F.cosine_similarity(_mean_like(image), image).mean()),
        }

    return evaluate


def _mean_like(embeddings: Tensor) -> Tensor:
    """The mean embedding for each row: what knows nothing of the text."""
    return repeat(embeddings.mean(dim=0), "d -> n d", n=len(embeddings))
