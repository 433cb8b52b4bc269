"""Content from a text prompt, through the prior, and from images; and what the prior is trained on.

unCLIP (Ramesh et al., 2022, section 2.2): the noise schedule is the cosine one, the network predicts the clean image
embedding, and sampling is DDIM with the prior's own classifier-free guidance.
"""

import logging
import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..models.prior import Prior
from ..tensors import Images
from .encoder import Content, ContentEncoder, content_of, content_words, scale_embeddings

logger = logging.getLogger(__name__)


def signal_and_noise(time: Float[Tensor, "*axes"]) -> tuple[Float[Tensor, "*axes"], Float[Tensor, "*axes"]]:
    """Weights of clean embedding and noise at times 0 (clean) to 1; cosine, Nichol & Dhariwal (2021)."""
    angle = (time + 0.008) / 1.008 * math.pi / 2
    signal = angle.cos() / math.cos(0.008 / 1.008 * math.pi / 2)
    return signal.clamp(0, 1), (1 - signal.square()).clamp(min=0).sqrt()


def prior_loss(
    prior: Prior,
    image_embedding: Float[Tensor, "b d"],
    text_embedding: Float[Tensor, "b d"],
    *,
    generator: torch.Generator,
    dropout: float = 0.1,
) -> Float[Tensor, " b"]:
    """Squared error of the predicted clean embedding at random times; a share of texts is the null text."""
    count = len(image_embedding)
    time = torch.rand(count, generator=generator).to(image_embedding)
    noise = torch.randn(image_embedding.shape, generator=generator).to(image_embedding)
    dropped = (torch.rand(count, 1, generator=generator) < dropout).to(image_embedding.device)
    signal, spread = signal_and_noise(time)
    noisy = signal[:, None] * image_embedding + spread[:, None] * noise
    clean = prior(noisy, 1000 * time, torch.where(dropped, prior.null_text, text_embedding))
    return (clean - image_embedding).square().mean(dim=-1)


def sample_prior(
    prior: Prior,
    text_embedding: Float[Tensor, "b d"],
    *,
    generator: torch.Generator,
    steps: int = 25,
    scale: float = 2.0,
) -> Float[Tensor, "b d"]:
    """An image embedding for each text by deterministic DDIM; ``scale`` 1 is the conditional pass alone."""
    if steps < 1:
        raise ValueError(f"steps={steps} would leave pure noise; give at least 1 step.")
    null = prior.null_text.expand_as(text_embedding)
    times = torch.linspace(1, 0, steps + 1)
    weights = [(float(clean), float(noise)) for clean, noise in zip(*signal_and_noise(times), strict=True)]
    x = torch.randn(text_embedding.shape, generator=generator).to(text_embedding)
    for step in range(steps):
        (signal, spread), (signal_next, spread_next) = weights[step], weights[step + 1]
        timestep = torch.full((len(x),), 1000 * float(times[step]), device=x.device)
        clean = prior(x, timestep, text_embedding)
        if scale != 1:
            empty = prior(x, timestep, null)
            clean = empty + scale * (clean - empty)
        x = signal_next * clean + spread_next * (x - signal * clean) / spread
    return x


@torch.no_grad()
def content_from_text(
    prior: Prior, encoder: ContentEncoder, prompt: str, *, seed: int = 0, steps: int = 25, scale: float = 2.0
) -> Content:
    """Content for a prompt: text embedding, prior, image embedding; one token, zeros as null.

    Logs a warning where half of the prompt's content words or more were not in the encoder's training captions.
    """
    if not prompt.strip():
        raise ValueError(
            "The prompt is empty, so it describes no content; write what the clip should look like, or give an image."
        )
    if encoder.dim != prior.config.dim:
        raise ValueError(
            f"A prior for embeddings of width {prior.config.dim} does not fit an encoder of width "
            f"{encoder.dim}; use the prior that was trained with this encoder."
        )
    unknown = encoder.unfamiliar(prompt)
    if unknown and 2 * len(unknown) >= len(content_words(prompt)):
        logger.warning(
            "The prompt %r has words that are not in the captions this model learnt from (%s), so the look is a guess; "
            "name materials, colours, light or places, or use an image.",
            prompt,
            ", ".join(unknown),
        )
    text = encoder.encode_texts([prompt]).to(prior.null_text)
    drawn = sample_prior(prior, text, generator=torch.Generator().manual_seed(seed), steps=steps, scale=scale)
    return content_of(scale_embeddings(drawn, encoder.scaling), kind=encoder.kind)


def content_from_images(encoder: ContentEncoder, images: Images) -> Content:
    """Content ``[1 1 1 d]`` of one image 0..1, the same for every frame of a clip.

    Raises ValueError for any other number of images.
    """
    if len(images) != 1:
        raise ValueError(
            f"{len(images)} pictures were given, but a clip takes its content from one; give one picture, "
            "or make a content of each and mix them with blend()."
        )
    return content_of(encoder.encode_images(images), kind=encoder.kind)


def content_per_frame(encoder: ContentEncoder, images: Images) -> Content:
    """Content ``[1 f 1 d]`` of as many images 0..1 as the clip has frames: each frame follows its own."""
    each = encoder.encode_images(images)
    tokens = rearrange(each, "f d -> 1 f 1 d")
    return Content(tokens=tokens, null=torch.zeros_like(tokens), kind=encoder.kind)
