"""What content is, who makes it, how its embeddings are scaled, and how a prompt and pictures go together."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ..diffusion.condition import PictureTokens
from ..tensors import Images

Scaling = Literal["sphere", "raw"]
"""``sphere``: length sqrt(d), so that components have about unit variance (the embedded model, unCLIP's priors).
``raw``: as CLIP gives them (Stable Diffusion fine-tuned on image embeddings, the public twin of the paper's stage 1).
"""

CLIP_IMAGE = "clip_image"
"""Kind of content: one token, a CLIP image embedding (section 3 of the paper), whose null is zeros."""

PICTURE = "picture"
"""Kind of content: no tokens of its own; an IP-Adapter or unCLIP brings it in beside a prompt's."""

STOP_WORDS = frozenset(
    """a about all an and any are as at be by for from has have he her his i if in into is it its like made me
    my no not of on or our out over she so some style than that the their them there these they this to up
    very was we were what where which who will with without you your
    """.split()
)


@dataclass(frozen=True, kw_only=True)
class Content:
    """Tokens for cross-attention and what stands for their absence in guidance, both ``[b g n d]``.

    ``g`` is 1 (the same for the whole clip) or the number of frames; ``n`` is 1 for the paper's kind, 0 where all lies
    beside the tokens: ``pictures`` for the network's IP-Adapters, one each and in their order, and ``embedding``
    ``[b g e]`` with its null for unCLIP. Content is what users hand from part to part, so its shape is checked outside
    tests too.
    """

    tokens: Float[Tensor, "..."]
    null: Float[Tensor, "..."]
    kind: str = CLIP_IMAGE
    pictures: tuple[PictureTokens, ...] = ()
    embedding: Float[Tensor, "..."] | None = None
    embedding_null: Float[Tensor, "..."] | None = None

    def __post_init__(self) -> None:
        if self.tokens.ndim != 4:
            raise ValueError(
                f"tokens of shape {tuple(self.tokens.shape)} are not [batch, frames, tokens, width]; "
                "give four axes, with length 1 where there is only one."
            )
        pairs = [("null", self.null, self.tokens)]
        pairs += [("a picture's null", picture.null, picture.tokens) for picture in self.pictures]
        if self.embedding is not None and self.embedding_null is not None:
            pairs.append(("embedding_null", self.embedding_null, self.embedding))
        elif self.embedding is not None or self.embedding_null is not None:
            raise ValueError(
                "an embedding without its null, or the other way round, cannot be guided; "
                "give both the same shape, zeros as the null."
            )
        for name, null, tokens in pairs:
            if tokens.shape != null.shape:
                raise ValueError(
                    f"{name} of shape {tuple(null.shape)} cannot stand in for tokens of shape "
                    f"{tuple(tokens.shape)}; give both the same shape."
                )
        counts = {tokens.shape[1] for _, _, tokens in pairs} - {1}
        if len(counts) > 1:
            raise ValueError(
                f"parts of {sorted(counts)} frames cannot be of one clip; give each one frame, or as many as the clip."
            )
        if not all(torch.isfinite(tokens).all() for _, _, tokens in pairs):
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


def beside(first: Content, *others: Content) -> Content:
    """A prompt with the pictures that go beside it, as one content; it keeps the kind of what has tokens.

    Token rows follow one another; pictures belong to the network's IP-Adapters in this order.
    """
    contents = (first, *others)
    rows = [content for content in contents if content.tokens.shape[2]] or [first]
    widths = {content.tokens.shape[-1] for content in rows}
    embeddings = [content for content in contents if content.embedding is not None]
    if len(widths) > 1:
        raise ValueError(
            f"contents with tokens of width {sorted(widths)} cannot be read by one U-Net; "
            "make all of them with the encoders of the same model."
        )
    if len(embeddings) > 1:
        raise ValueError(
            f"{len(embeddings)} contents have an embedding for unCLIP, which takes one; mix them with blend() first."
        )
    frames = max(content.tokens.shape[1] for content in rows)
    return Content(
        tokens=torch.cat([content.tokens.expand(-1, frames, -1, -1) for content in rows], dim=2),
        null=torch.cat([content.null.expand(-1, frames, -1, -1) for content in rows], dim=2),
        kind=rows[0].kind,
        pictures=tuple(picture for content in contents for picture in content.pictures),
        embedding=embeddings[0].embedding if embeddings else None,
        embedding_null=embeddings[0].embedding_null if embeddings else None,
    )


def content_words(prompt: str) -> list[str]:
    """The words of a prompt that say something: lower case, without articles, prepositions and the like."""
    return [word for word in re.findall(r"[^\W\d_]+", prompt.lower()) if word not in STOP_WORDS]


def unfamiliar_words(prompt: str, known: frozenset[str]) -> list[str]:
    """The content words of a prompt that are not among the known ones, a plural s aside."""
    return [word for word in content_words(prompt) if not {word, word + "s", word.removesuffix("s")} & known]
