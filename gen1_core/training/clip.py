"""Fitting the CLIP pair: images and captions of the bank into one space, equal looks as equals.

Contrastive as in Radford et al. (2021), with several positives a row: clips of one style and family, or of
one caption, would otherwise be pushed apart though nothing tells them from each other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..content.encoder import content_words
from ..content.tokenizer import Tokenizer
from ..models.clip import CLIP, CLIPConfig, preprocess
from .bank import Bank, pictures
from .loop import Losses, Task, seeded
from .stages import Fit


@dataclass(frozen=True, kw_only=True)
class CLIPPlan:
    """How the pair is fitted. ``foreign_share`` of the captions get up to ``foreign_pieces`` pieces that no
    caption of the bank uses, so that words outside the world do not steer; ``largest_scale`` bounds the
    logits."""

    fit: Fit
    smallest_crop: float = 0.65
    noise: float = 0.06
    brightness: float = 0.15
    foreign_share: float = 0.4
    foreign_pieces: int = 4
    largest_scale: float = 50.0


@dataclass(frozen=True, kw_only=True)
class Captions:
    """All captions of a bank as tokens, and numbers that are equal where two things are the same.

    ``looks`` numbers (style, family), ``texts`` numbers captions by their wording.
    """

    tokens: Int[Tensor, "m k j n"]
    texts: Int[Tensor, "m k j"]
    looks: Int[Tensor, "m k"]
    foreign: Int[Tensor, " v"]


def read_captions(bank: Bank, tokenizer: Tokenizer) -> Captions:
    """Captions once and for all as tokens; ``foreign`` are the pieces that occur in none of them."""
    clips, styles = bank.rgb.shape[:2]
    flat = [text for clip in bank.captions for texts in clip for text in texts]
    tokens = tokenizer(flat)
    shape = {"m": clips, "k": styles}
    unused = torch.ones(tokenizer.vocab_size, dtype=torch.bool)
    unused[tokens.unique()] = False
    unused[[tokenizer.start_token, tokenizer.end_token]] = False
    looks = [f"{family} {look}" for family, clip in zip(bank.families, bank.looks, strict=True) for look in clip]
    return Captions(
        tokens=rearrange(tokens, "(m k j) n -> m k j n", **shape),
        texts=rearrange(_numbered(flat), "(m k j) -> m k j", **shape),
        looks=rearrange(_numbered(looks), "(m k) -> m k", **shape),
        foreign=unused.nonzero()[:, 0],
    )


def caption_words(bank: Bank) -> str:
    """The content words of all captions, for the weights' metadata: prompts without any of them warn."""
    texts = {text for clip in bank.captions for captions in clip for text in captions}
    return " ".join(sorted({word for text in texts for word in content_words(text)}))


def clip_task(
    config: CLIPConfig,
    plan: CLIPPlan,
    bank: Bank,
    held_out: Bank,
    tokenizer: Tokenizer,
    *,
    seed: int,
    device: torch.device,
) -> Task:
    """The training of both towers."""
    model = seeded(lambda: CLIP(config), seed).to(device)
    captions = read_captions(bank, tokenizer)
    clips, styles, frames = bank.rgb.shape[:3]
    texts = captions.tokens.shape[2]

    def losses(step: int, generator: torch.Generator) -> Losses:
        draw = [
            torch.randint(0, most, (plan.fit.batch,), generator=generator) for most in (clips, styles, frames, texts)
        ]
        clip, style, frame, text = draw
        images = augment(pictures(bank.rgb[clip, style, frame], device), plan, generator)
        tokens = add_foreign(captions.tokens[clip, style, text], captions.foreign, plan, generator)
        looks, wording = captions.looks[clip, style], captions.texts[clip, style, text]
        same = (looks[:, None] == looks[None]) | (wording[:, None] == wording[None])
        return contrastive_losses(
            model.encode_image(preprocess(images, config.image_size)),
            model.encode_text(tokens.to(device)),
            same.to(device),
            scale=model.logit_scale.exp().clamp(max=plan.largest_scale),
        )

    return Task(
        name="clip",
        model=model,
        losses=losses,
        rate=lambda step: plan.fit.rate.at(step, plan.fit.steps),
        evaluate=evaluation(held_out, tokenizer),
    )


def contrastive_losses(
    images: Float[Tensor, "n d"], texts: Float[Tensor, "n d"], same: Bool[Tensor, "n n"], *, scale: Tensor
) -> Losses:
    """Cross-entropy both ways, the target spread evenly over all that are the same."""
    logits = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    wanted = same.float() / same.sum(dim=1, keepdim=True)
    both = [-(wanted * F.log_softmax(part, dim=1)).sum(dim=1).mean() for part in (logits, logits.T)]
    hits = (same.gather(1, logits.argmax(dim=1, keepdim=True))).float().mean()
    return {"loss": (both[0] + both[1]) / 2, "hits": hits}


def augment(images: Float[Tensor, "n 3 h w"], plan: CLIPPlan, generator: torch.Generator) -> Float[Tensor, "n 3 h w"]:
    """Crops (one size a batch), flips, brightness and noise: what a look must not depend on."""
    count, _, height, width = images.shape
    uniform = lambda *shape: torch.rand(shape, generator=generator).to(images)  # noqa: E731
    share = plan.smallest_crop + (1 - plan.smallest_crop) * float(uniform(1))
    size = (round(share * height), round(share * width))
    tops, lefts = (
        (uniform(count) * (full - part + 1)).long().tolist() for full, part in zip((height, width), size, strict=True)
    )
    crops = [image[:, t : t + size[0], x : x + size[1]] for image, t, x in zip(images, tops, lefts, strict=True)]
    images = F.interpolate(torch.stack(crops), (height, width), mode="bilinear", align_corners=False)
    images = torch.where(uniform(count, 1, 1, 1) < 0.5, images.flip(-1), images)
    gain = 1 + plan.brightness * (2 * uniform(count, 1, 1, 1) - 1)
    noise = torch.randn(images.shape, generator=generator).to(images)
    return (gain * images + plan.noise * uniform(count, 1, 1, 1) * noise).clamp(0, 1)


def add_foreign(
    tokens: Int[Tensor, "n k"], foreign: Int[Tensor, " v"], plan: CLIPPlan, generator: torch.Generator
) -> Int[Tensor, "n k"]:
    """Pieces that mean nothing here, at random places of some captions; the end token stays in the row."""
    tokens = tokens.clone()
    if not len(foreign):
        return tokens
    length = tokens.shape[1]
    drawn = torch.rand(len(tokens), generator=generator) < plan.foreign_share
    for row in drawn.nonzero()[:, 0].tolist():
        used = int(tokens[row].argmax()) + 1
        room = min(int(torch.randint(1, plan.foreign_pieces + 1, (1,), generator=generator)), length - used)
        place = int(torch.randint(1, used, (1,), generator=generator))
        pieces = foreign[torch.randint(0, len(foreign), (room,), generator=generator)]
        tokens[row, : used + room] = torch.cat([tokens[row, :place], pieces, tokens[row, place:used]])
    return tokens


def evaluation(held_out: Bank, tokenizer: Tokenizer) -> Callable[[CLIP, int], dict[str, float]]:
    """Which of the held-out captions fits a held-out picture: share of hits, and of hits among its ten
    nearest."""
    clips, styles, frames = held_out.rgb.shape[:3]
    pairs = list(product(range(clips), range(styles)))[:64]
    texts = [held_out.captions[clip][style][0] for clip, style in pairs]
    shown = torch.stack([held_out.rgb[clip, style, frames // 2] for clip, style in pairs])

    @torch.no_grad()
    def evaluate(model: CLIP, step: int) -> dict[str, float]:
        device = model.logit_scale.device
        images = preprocess(pictures(shown, device), model.config.image_size)
        found = torch.cat([model.encode_image(part) for part in images.split(16)])
        wanted = model.encode_text(tokenizer(texts).to(device))
        cosines = F.normalize(found, dim=-1) @ F.normalize(wanted, dim=-1).T
        rank = (cosines > cosines.diagonal()[:, None]).sum(dim=1)
        return {
            "top1": float((rank < 1).float().mean()),
            "top10": float((rank < 10).float().mean()),
            "matched_cosine": float(cosines.diagonal().mean()),
        }

    return evaluate


def _numbered(texts: Sequence[str]) -> Int[Tensor, " n"]:
    """One number for each different text."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(text, len(numbers)) for text in texts])
