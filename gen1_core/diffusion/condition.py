"""What a denoiser is told besides the noisy latents, and the contract every denoiser keeps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..tensors import Latents


@dataclass(frozen=True, kw_only=True)
class PictureTokens:
    """What an IP-Adapter reads beside the text: tokens of a picture, their null, and how much each layer listens.

    ``scales`` holds one number for all cross-attentions, or one for each (down, up, middle: the order in which
    IP-Adapter files number them).
    """

    tokens: Float[Tensor, "b g k d"]
    null: Float[Tensor, "b g k d"]
    scales: tuple[float, ...] = (1.0,)


@dataclass(frozen=True, kw_only=True)
class Hint:
    """What one control network looks at, at pixel size, and how strongly its answer counts."""

    image: Float[Tensor, "b c f hh ww"]
    strength: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Structure and content as the network gets them.

    ``structure`` lies beside the noisy latents, channel by channel (none: 0 channels); ``hints`` are for control
    networks, one each (none: no control this step). ``content`` has one frame (``g`` = 1: the same for the whole clip)
    or one per frame; ``null`` has the same shape and stands for "no content" in guidance. ``pictures`` are for
    IP-Adapters, one each, and ``embedding`` joins the time embedding (unCLIP). ``image`` switches the temporal layers
    off: the network then is mu^pi of the paper's Eq. 8, which sees each frame alone.
    """

    structure: Float[Tensor, "b s f h w"]
    content: Float[Tensor, "b g n d"]
    null: Float[Tensor, "b g n d"]
    image: bool = False
    hints: tuple[Hint, ...] = ()
    pictures: tuple[PictureTokens, ...] = ()
    embedding: Float[Tensor, "b g e"] | None = None
    embedding_null: Float[Tensor, "b g e"] | None = None

    def dropped(self) -> "Condition":
        """The same without content: the unconditional pass of classifier-free guidance (structure stays)."""
        return replace(
            self,
            content=self.null,
            pictures=tuple(replace(picture, tokens=picture.null) for picture in self.pictures),
            embedding=self.embedding_null,
        )

    def as_images(self) -> "Condition":
        """The same with temporal layers off."""
        return replace(self, image=True)

    def to(self, target: torch.device | torch.dtype) -> "Condition":
        """The same on another device, or in another dtype."""
        return replace(
            self,
            structure=self.structure.to(target),
            content=self.content.to(target),
            null=self.null.to(target),
            hints=tuple(replace(hint, image=hint.image.to(target)) for hint in self.hints),
            pictures=tuple(replace(p, tokens=p.tokens.to(target), null=p.null.to(target)) for p in self.pictures),
            embedding=None if self.embedding is None else self.embedding.to(target),
            embedding_null=None if self.embedding_null is None else self.embedding_null.to(target),
        )

    def frames(self, index: Int[Tensor, " k"]) -> "Condition":
        """The condition of some frames only: what a context window needs."""
        at = index.to(self.structure.device)

        def pick(content: Tensor) -> Tensor:
            return content if content.shape[1] == 1 else content.index_select(1, at)

        return replace(
            self,
            structure=self.structure.index_select(2, at),
            hints=tuple(replace(hint, image=hint.image.index_select(2, at)) for hint in self.hints),
            content=pick(self.content),
            null=pick(self.null),
            pictures=tuple(replace(p, tokens=pick(p.tokens), null=pick(p.null)) for p in self.pictures),
            embedding=None if self.embedding is None else pick(self.embedding),
            embedding_null=None if self.embedding_null is None else pick(self.embedding_null),
        )


def stack(conditions: Sequence[Condition]) -> Condition:
    """Conditions of one mode (all images or all video) along the batch axis, for one call of the network.

    They are passes of one clip: hints and picture tokens pair up, and their strengths and scales are the same.
    """

    def joined(parts: Sequence[Tensor | None]) -> Tensor | None:
        given = [part for part in parts if part is not None]
        return torch.cat(given) if given else None

    return replace(
        conditions[0],
        structure=torch.cat([c.structure for c in conditions]),
        content=torch.cat([c.content for c in conditions]),
        null=torch.cat([c.null for c in conditions]),
        hints=tuple(
            replace(each[0], image=torch.cat([hint.image for hint in each]))
            for each in zip(*(c.hints for c in conditions), strict=True)
        ),
        pictures=tuple(
            replace(each[0], tokens=torch.cat([p.tokens for p in each]), null=torch.cat([p.null for p in each]))
            for each in zip(*(c.pictures for c in conditions), strict=True)
        ),
        embedding=joined([c.embedding for c in conditions]),
        embedding_null=joined([c.embedding_null for c in conditions]),
    )


Denoiser = Callable[[Latents, float, Sequence[Condition]], list[Latents]]
"""``(x, sigma, conditions) -> clean latents, one per condition``, where ``x = clean + sigma * noise``.

Guidance, windows and masks take a Denoiser and return one. Samplers call it with a single condition.
"""
