"""What a denoiser is told besides the noisy latents, and the contract every denoiser keeps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..tensors import Latents


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Structure and content as the network gets them.

    ``content`` has one frame (``g`` = 1: the same for the whole clip) or one per frame; ``null`` has the same
    shape and stands for "no content" in guidance. ``image`` switches the temporal layers off: the network
    then is mu^pi of the paper's Eq. 8, which sees each frame alone.
    """

    structure: Float[Tensor, "b s f h w"]
    content: Float[Tensor, "b g n d"]
    null: Float[Tensor, "b g n d"]
    image: bool = False

    def dropped(self) -> "Condition":
        """The same without content: the unconditional pass of classifier-free guidance (structure stays)."""
        return replace(self, content=self.null)

    def as_images(self) -> "Condition":
        """The same with temporal layers off."""
        return replace(self, image=True)

    def frames(self, index: Int[Tensor, " k"]) -> "Condition":
        """The condition of some frames only: what a context window needs."""
        at = index.to(self.structure.device)
        pick = (lambda c: c) if self.content.shape[1] == 1 else (lambda c: c.index_select(1, at))
        return replace(
            self,
            structure=self.structure.index_select(2, at),
            content=pick(self.content),
            null=pick(self.null),
        )


def stack(conditions: Sequence[Condition]) -> Condition:
    """Conditions of one mode (all images or all video) along the batch axis, for one call of the network."""
    return replace(
        conditions[0],
        structure=torch.cat([c.structure for c in conditions]),
        content=torch.cat([c.content for c in conditions]),
        null=torch.cat([c.null for c in conditions]),
    )


Denoiser = Callable[[Latents, float, Sequence[Condition]], list[Latents]]
"""``(x, sigma, conditions) -> clean latents, one per condition``, where ``x = clean + sigma * noise``.

Guidance, windows and masks take a Denoiser and return one. Samplers call it with a single condition.
"""
