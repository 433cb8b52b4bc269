"""What a CONDITIONING of ours says beside its tokens: structure, pictures and hints of a whole clip, frame by frame.

The core's own condition objects repeat or cut a tensor to the batch, which here would pair frames with the wrong depth.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from ..gen1_core.conditioning import condition_of, without_structure
from ..gen1_core.content.encoder import Content
from ..gen1_core.diffusion.condition import Condition, PictureTokens, stack
from ..gen1_core.gen1 import Gen1, beside_channels
from ..gen1_core.models.unet import UNetConfig
from ..gen1_core.structure.estimator import Structure
from ..gen1_core.tensors import OnStep, ignore_progress

PIXELS_PER_LATENT = 8


@dataclass(frozen=True, kw_only=True)
class Told:
    """Structure, hints, pictures and embedding of a clip; the tokens are the CONDITIONING's own.

    The network is told ``shown`` between ``start`` and ``end``, fractions of the sampling steps, and else ``hidden``,
    the same without the structure. ``window`` frames are denoised together, neighbours share ``overlap``; 0 frames are
    as the model prefers, with its own overlap.
    """

    shown: Condition
    hidden: Condition
    start: float = 0.0
    end: float = 1.0
    window: int = 0
    overlap: int = 0

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width in latent pixels."""
        frames, height, width = self.shown.structure.shape[2:]
        return frames, height, width

    def at(self, sigma: Tensor, sigmas: Tensor | None) -> Condition:
        """What the network is told at a noise level, of those that the sampler visits: as ``gen1_core.generate``."""
        if (self.start, self.end) == (0.0, 1.0) or sigmas is None or len(sigmas) < 2:
            return self.shown
        steps = len(sigmas) - 1
        first = min(round(self.start * steps), steps - 1)
        after = max(round(self.end * steps), first + 1)
        return self.shown if sigmas[first] >= sigma > sigmas[after] else self.hidden

    def as_images(self) -> "Told":
        """The same with temporal layers off."""
        return self.each(Condition.as_images)

    def free(self) -> "Told":
        """The same without the structure, at every step."""
        return replace(self, shown=self.hidden)

    def to(self, device: torch.device) -> "Told":
        """The same on another device."""
        return self.each(lambda condition: condition.to(device))

    def cut(self, area: Sequence[int]) -> "Told":
        """An area (height, width, top, left, in latent pixels) of every frame."""
        return self.each(lambda condition: _cut(condition, area))

    def each(self, change: Callable[[Condition], Condition]) -> "Told":
        """The same with both conditions changed; what was one object stays one, as it may hold a long clip's hints."""
        shown = change(self.shown)
        return replace(self, shown=shown, hidden=shown if self.hidden is self.shown else change(self.hidden))

    def joins(self, other: "Told") -> bool:
        """Whether both can go through the network in one call."""
        return _likeness(self) == _likeness(other)


def window_of(passes: Sequence[Condition], window: range, frames: int, like: Tensor) -> Condition:
    """What passes that join are told of a window's frames, along the batch axis, where ``like`` is and in its dtype.

    The whole clip stays on the CPU: hints are as large as its pictures.
    """
    if len(window) < frames:
        passes = [condition.frames(torch.arange(window.start, window.stop)) for condition in passes]
    joined = passes[0] if len(passes) == 1 else stack(passes)
    return joined.to(like.device).to(like.dtype)


def told_of(gen1: Gen1, structure: Structure, content: Content, *, on_step: OnStep = ignore_progress) -> Told:
    """What a model is told of a structure, and of a content beside its tokens; whether they fit is the caller's."""
    condition = condition_of(gen1, structure, content, (), chunk=8, on_step=on_step)
    shown = replace(condition, content=_no_tokens(condition.content), null=_no_tokens(condition.content))
    hidden = without_structure(gen1, shown, ())(shown)
    return Told(shown=shown, hidden=hidden, start=structure.start, end=structure.end)


def dropped(told: Told) -> Told:
    """The same without content: what guidance moves away from."""
    return told.each(Condition.dropped)


def nothing_told(config: UNetConfig, size: tuple[int, int, int]) -> Told:
    """For a CONDITIONING of other nodes: silent control networks, IP-Adapters and unCLIP.

    Raises ValueError where the network cannot do without a structure.
    """
    if beside_channels(config) > 0:
        raise ValueError(
            "this CONDITIONING holds no structure, which the model reads beside the latents; take positive and "
            "negative from Gen-1 Condition, and change or combine those."
        )
    frames, height, width = size
    none = torch.zeros(1, 1, 0, config.cross_attention_dim)
    token = torch.zeros(1, 1, 1, config.cross_attention_dim)
    pictures = (PictureTokens(tokens=token, null=token, scales=(0.0,)),) * config.picture_adapters
    embedding = torch.zeros(1, 1, config.class_embedding_width) if config.class_embedding_width else None
    condition = Condition(
        structure=torch.zeros(1, 0, frames, height, width),
        content=none,
        null=none,
        pictures=pictures,
        embedding=embedding,
        embedding_null=embedding,
    )
    return Told(shown=condition, hidden=condition)


def check_told(told: Told, size: tuple[int, int, int]) -> None:
    """Refuses a structure of another clip, or for another working size, than the latents."""
    if told.size[0] != size[0]:
        raise ValueError(
            f"the structure has {told.size[0]} frames and the LATENT {size[0]}, so frames would be paired wrongly; "
            "give the sampler the LATENT of the same Gen-1 Condition, or of Gen-1 Encode of the same clip."
        )
    if told.size != size:
        structure, latents = ("{1} x {2}".format(*of) for of in (told.size, size))
        raise ValueError(
            f"the structure has {structure} latent pixels (height, width) and the LATENT {latents}, so they do not lie "
            "on each other; give the sampler the LATENT of the same Gen-1 Condition, and wire Gen-1 Encode and the "
            "structure to one loader, whose short_side sets the size."
        )


def check_tokens(tokens: Tensor, config: UNetConfig, frames: int) -> None:
    """Refuses tokens of another model, or for another number of frames: the core would repeat or cut them."""
    if tokens.shape[-1] != config.cross_attention_dim:
        raise ValueError(
            f"the CONDITIONING has tokens {tokens.shape[-1]} wide and this model reads {config.cross_attention_dim}; "
            "make the content with the GEN1_ENCODER of the loader that the MODEL came from."
        )
    if len(tokens) not in (1, frames):
        raise ValueError(
            f"the CONDITIONING has content for {len(tokens)} frames and the LATENT has {frames}; schedule the content "
            "over as many frames as the clip has."
        )


def _no_tokens(content: Tensor) -> Tensor:
    return content[:, :1, :0]


def _likeness(told: Told) -> tuple[object, ...]:
    """What passes of one call have in common."""
    each = (told.shown, told.hidden)
    return (
        (told.start, told.end, told.window, told.overlap),
        *((c.image, c.structure.shape, c.structure.device) for c in each),
        *(tuple((hint.image.shape, hint.strength) for hint in c.hints) for c in each),
        *(tuple((picture.tokens.shape, picture.scales) for picture in c.pictures) for c in each),
        *(None if c.embedding is None else c.embedding.shape for c in each),
    )


def _cut(condition: Condition, area: Sequence[int]) -> Condition:
    def part(maps: Tensor, scale: int) -> Tensor:
        height, width, top, left = (scale * side for side in area[-4:])
        return maps[..., top : top + height, left : left + width]

    hints = (replace(hint, image=part(hint.image, PIXELS_PER_LATENT)) for hint in condition.hints)
    return replace(condition, structure=part(condition.structure, 1), hints=tuple(hints))


def by_pass(tokens: Tensor, passes: int) -> Tensor:
    """Tokens of the core ``[passes * frames, n, d]`` as the network's."""
    return rearrange(tokens, "(b g) n d -> b g n d", b=passes)
