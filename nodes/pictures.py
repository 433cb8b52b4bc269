"""Content from a picture for each frame, and from what the core's CLIP vision saw: what no describer takes alone."""

from dataclasses import replace
from typing import Any

import torch
from einops import rearrange

from ..gen1_core.content.clip import EmbeddedClip
from ..gen1_core.content.describe import PriorDescriber, PublicDescriber
from ..gen1_core.content.encoder import Content, ContentEncoder, beside, scale_embeddings
from ..gen1_core.content.picture import PictureEncoder, UnclipEncoder, noised
from ..gen1_core.content.prior import content_from_text, content_per_frame
from ..gen1_core.models.clip import VisionTransformer
from ..gen1_core.pipeline import check_content
from ..gen1_core.tensors import Images
from . import host


@torch.inference_mode()
def from_frames(
    encoder: host.ContentReader, images: Images, *, prompt: str | None, negative: str, seed: int
) -> Content:
    """Content of each frame from a picture 0..1 of its own."""
    check_content(prompt, images, describer=encoder.describer)
    host.load(*encoder.networks)
    if isinstance(encoder.describer, PriorDescriber):
        prior, clip = encoder.describer.prior, encoder.describer.encoder
        content = content_per_frame(clip, images.to(prior.null_text.device))
        return away_from(encoder.describer, content, negative, seed)
    public = require_public(encoder)
    pictures = [adapter.per_frame(images) for adapter in public.adapters]
    pictures += [unclip.per_frame(images, seed=seed) for unclip in public.unclip]
    return beside(public.text(prompt or "", negative=negative), *pictures)


@torch.inference_mode()
def from_vision(
    encoder: host.ContentReader, vision: Any, *, per_frame: bool, prompt: str | None, negative: str, seed: int
) -> Content:
    """Content from what the core's CLIP vision saw in one picture, or in one for each frame."""
    check_content(prompt, vision, describer=encoder.describer)
    count = len(vision.image_embeds)
    if count != 1 and not per_frame:
        raise ValueError(
            f"clip_vision holds {count} pictures, but a clip takes its content from one; switch per_frame on, or make "
            "a content of each and blend them."
        )
    host.load(*encoder.networks)
    if isinstance(encoder.describer, PriorDescriber):
        return away_from(encoder.describer, embedding_of(encoder.describer.encoder, vision), negative, seed)
    public = require_public(encoder)
    pictures = [tokens_of(adapter, vision) for adapter in public.adapters]
    pictures += [told_by(unclip, vision, seed=seed) for unclip in public.unclip]
    return beside(public.text(prompt or "", negative=negative), *pictures)


def require_public(encoder: host.ContentReader) -> PublicDescriber:
    """The describer of public weights. Raises ValueError for a kind that this node does not know."""
    if isinstance(encoder.describer, PublicDescriber):
        return encoder.describer
    raise ValueError(
        f"{type(encoder.describer).__name__} reads pictures in a way of its own, one at a time; wire one picture into "
        "image and switch per_frame off."
    )


def away_from(describer: PriorDescriber, content: Content, negative: str, seed: int) -> Content:
    """The content with the picture of the negative prompt as its null."""
    if not negative.strip():
        return content
    away = content_from_text(describer.prior, describer.encoder, negative, seed=seed)
    return replace(content, null=away.tokens.expand_as(content.tokens))


def embedding_of(encoder: ContentEncoder, vision: Any) -> Content:
    """CLIP's embeddings as content of the paper's kind, a frame each."""
    require_same_tower(encoder.clip.visual if isinstance(encoder, EmbeddedClip) else None, vision, width=encoder.dim)
    tokens = rearrange(scale_embeddings(vision.image_embeds, encoder.scaling), "f d -> 1 f 1 d")
    return Content(tokens=tokens, null=torch.zeros_like(tokens), kind=encoder.kind)


def tokens_of(adapter: PictureEncoder, vision: Any) -> Content:
    """CLIP's states through an IP-Adapter's projection, a frame each."""
    require_same_tower(adapter.visual, vision, width=adapter.visual.proj.shape[1])
    hidden = adapter.projection.config.reads == "hidden"
    states = vision.penultimate_hidden_states if hidden else vision.image_embeds
    projected = adapter.projection(states.to(next(adapter.projection.parameters()))).float()
    tokens = rearrange(projected, "f k e -> 1 f k e")
    other = adapter.per_frame(torch.zeros(1, 3, 8, 8))  # of any picture: its null is that of all
    return replace(other, pictures=(replace(p := other.pictures[0], tokens=tokens, null=p.null.expand_as(tokens)),))


def told_by(unclip: UnclipEncoder, vision: Any, *, seed: int) -> Content:
    """CLIP's embeddings as unCLIP is told them, a frame each; the noise is the same in all."""
    require_same_tower(unclip.visual, vision, width=len(unclip.mean))
    embeds = vision.image_embeds.to(unclip.visual.proj.device, torch.float32)
    noise = torch.randn(1, embeds.shape[-1], generator=torch.Generator().manual_seed(seed)).to(embeds)
    told = noised(embeds, noise, level=unclip.noise_level, mean=unclip.mean, std=unclip.std)
    embedding = rearrange(told, "f e -> 1 f e")
    return replace(unclip.nothing(), embedding=embedding, embedding_null=torch.zeros_like(embedding))


def require_same_tower(tower: VisionTransformer | None, vision: Any, *, width: int) -> None:
    """Refuses what another CLIP saw: sizes tell the public ones apart."""
    seen = (vision.image_embeds.shape[-1], *vision.penultimate_hidden_states.shape[1:])
    wanted = (width, *(tower.positional_embedding.shape if tower is not None else seen[1:]))
    if seen != wanted:
        raise ValueError(
            f"clip_vision has an embedding of {seen[0]} and {seen[1]} states of {seen[2]}, but this model's pictures "
            f"are read by a CLIP with {wanted[0]}, {wanted[1]} and {wanted[2]}; wire the picture into image instead."
        )
