"""What content is, who makes it, and how its embeddings are scaled."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ..tensors import Images

Scaling = Literal["sphere", "raw"]
"""``sphere``: length sqrt(d), so that components have about unit variance (the embedded model, unCLIP's priors).
``raw``: as CLIP gives them (Stable Diffusion fine-tuned on image embeddings, the public twin of the paper's stage 1).
"""

CLIP_IMAGE = "clip_image"
"""Kind of content: one token, a CLIP image embedding (section 3 of the paper), whose null is zeros."""

STOP_WORDS = frozenset(
    """a about all an and any are as at be by for from has have he her his i if in into is it its like made me
    my no not of on or our out over she so some style than that the their them there these they this to up
    very was we were what where which who will with without you your
    """.split()
)


@dataclass(frozen=True, kw_only=True)
class Content:
    """Tokens for cross-attention and what stands for their absence in guidance, both ``[b g n d]``.

    ``g`` is 1 (the same for the whole clip) or the number of frames; ``n`` is 1 for the paper's kind. Content is what
    users hand from part to part, so its shape is checked outside tests too.
    """

    tokens: Float[Tensor, "..."]
    null: Float[Tensor, "..."]
    kind: str = CLIP_IMAGE

    def __post_init__(self) -> None:
        if self.tokens.ndim != 4:
            raise ValueError(
                f"tokens of shape {tuple(self.tokens.shape)} are not [batch, frames, tokens, width]; "
                "give four axes, with length 1 where there is only one."
            )
        if self.tokens.shape != self.null.shape:
            raise ValueError(
                f"null of shape {tuple(self.null.shape)} cannot stand in for tokens of shape "
                f"{tuple(self.tokens.shape)}; give both the same shape."
            )
        if not torch.isfinite(self.tokens).all():
            raise ValueError(
                f"The tokens of this {self.kind} content hold NaN or infinite values, which would spoil "
                "every frame; check the image and the encoder's weights, or encode in float32."
            )


@runtime_checkable
class ContentEncoder(Protocol):
    """Images and texts into one space, scaled as the U-Net and the prior want them."""

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        ...

    @property
    def kind(self) -> str:
        """Which kind of content the image embeddings are."""
        ...

    @property
    def scaling(self) -> Scaling:
        """How embeddings are scaled."""
        ...

    def encode_images(self, images: Images) -> Float[Tensor, "n d"]:
        """Images 0..1 of any size to embeddings, in float32."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Texts to embeddings, in float32; the prior makes image embeddings of them."""
        ...

    def unfamiliar(self, prompt: str) -> list[str]:
        """The content words of the prompt that the encoder was not trained on, as far as it knows."""
        ...


def scale_embeddings(embeddings: Float[Tensor, "n d"], scaling: Scaling) -> Float[Tensor, "n d"]:
    """Embeddings as CLIP gives them (or as the prior drew them) to the convention, in float32."""
    embeddings = embeddings.float()
    if scaling == "raw":
        return embeddings
    return F.normalize(embeddings, dim=-1) * embeddings.shape[-1] ** 0.5


def content_of(embedding: Float[Tensor, "b d"], *, kind: str = CLIP_IMAGE) -> Content:
    """Embeddings as content: one token for the whole clip, zeros as its null."""
    tokens = embedding[:, None, None]
    return Content(tokens=tokens, null=torch.zeros_like(tokens), kind=kind)


def blend(contents: Sequence[Content], weights: Sequence[float]) -> Content:
    """The weighted mean of contents of one kind and shape; weights are divided by their sum."""
    if len(contents) != len(weights) or not contents:
        raise ValueError(
            f"{len(contents)} contents and {len(weights)} weights do not pair up; give one weight for each content."
        )
    shapes = {(content.kind, tuple(content.tokens.shape)) for content in contents}
    if len(shapes) > 1:
        raise ValueError(
            f"Contents of different kinds or shapes cannot be blended: {sorted(shapes)}; "
            "make all of them with the same encoder and the same number of frames."
        )
    total = sum(weights)
    if total == 0:
        raise ValueError(f"The weights {list(weights)} sum to 0, so they have no mean; give weights with another sum.")
    shares = [weight / total for weight in weights]
    return Content(
        tokens=torch.stack([share * content.tokens for share, content in zip(shares, contents, strict=True)]).sum(0),
        null=torch.stack([share * content.null for share, content in zip(shares, contents, strict=True)]).sum(0),
        kind=contents[0].kind,
    )


def content_words(prompt: str) -> list[str]:
    """The words of a prompt that say something: lower case, without articles, prepositions and the like."""
    return [word for word in re.findall(r"[^\W\d_]+", prompt.lower()) if word not in STOP_WORDS]


def unfamiliar_words(prompt: str, known: frozenset[str]) -> list[str]:
    """The content words of a prompt that are not among the known ones, a plural s aside."""
    return [word for word in content_words(prompt) if not {word, word + "s", word.removesuffix("s")} & known]
