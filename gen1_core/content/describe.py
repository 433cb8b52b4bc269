"""From a prompt and a picture to content: the one thing that the pipeline asks of a model's text and image side."""

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from ..models.prior import Prior
from ..tensors import Images
from .encoder import Content, ContentEncoder, beside
from .picture import PictureEncoder, UnclipEncoder
from .prior import content_from_images, content_from_text
from .text import TextEncoder


@runtime_checkable
class Describer(Protocol):
    """A prompt, a picture, or both, as the content that its U-Net reads."""

    @property
    def reads_both(self) -> bool:
        """Whether a prompt and a picture can go together."""
        ...

    @property
    def reads_pictures(self) -> bool:
        """Whether it takes a picture at all."""
        ...

    def __call__(self, *, prompt: str, image: Images | None, negative: str, seed: int) -> Content:
        """Content ``[1 1 n d]`` and its null; an empty prompt stands for none."""
        ...


@dataclass(frozen=True, kw_only=True)
class PriorDescriber:
    """The paper's way: one CLIP image embedding, of a picture or drawn by the prior from a text (section 3.2)."""

    encoder: ContentEncoder
    prior: Prior
    reads_both: bool = False
    reads_pictures: bool = True

    def __call__(self, *, prompt: str, image: Images | None, negative: str, seed: int) -> Content:
        """``negative`` takes the place of the zeros that guidance otherwise moves away from."""
        if image is not None:
            content = content_from_images(self.encoder, image.to(self.prior.null_text.device))
        else:
            content = content_from_text(self.prior, self.encoder, prompt, seed=seed)
        if not negative.strip():
            return content
        away = content_from_text(self.prior, self.encoder, negative, seed=seed)
        return replace(content, null=away.tokens)


@dataclass(frozen=True, kw_only=True)
class PublicDescriber:
    """Stable Diffusion's way: the prompt as text tokens, a picture through IP-Adapters or unCLIP beside them.

    Every IP-Adapter sees the same picture. ``pipeline.check_content`` refuses one that nothing reads.
    """

    text: TextEncoder
    adapters: tuple[PictureEncoder, ...] = ()
    unclip: tuple[UnclipEncoder, ...] = ()

    @property
    def reads_both(self) -> bool:
        """A prompt goes beside every picture."""
        return self.reads_pictures

    @property
    def reads_pictures(self) -> bool:
        """With an IP-Adapter, or an unCLIP checkpoint."""
        return bool(self.adapters or self.unclip)

    def __call__(self, *, prompt: str, image: Images | None, negative: str, seed: int) -> Content:
        """Without a picture the adapters are silent; unCLIP then gets zeros, as where its content is dropped."""
        text = self.text(prompt, negative=negative)
        if image is None:
            return beside(text, *(encoder.nothing() for encoder in (*self.adapters, *self.unclip)))
        contents = [adapter(image) for adapter in self.adapters]
        contents += [unclip(image, seed=seed) for unclip in self.unclip]
        return beside(text, *contents)
