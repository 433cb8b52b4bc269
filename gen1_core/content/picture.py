"""Pictures as content beside a prompt: through an IP-Adapter as tokens, through unCLIP as one embedding."""

import math

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from ..diffusion.condition import PictureTokens
from ..models.adapter import Projection, require_tower
from ..models.clip import VisionTransformer
from ..models.layers import sinusoids
from ..tensors import Images
from .clip import Picture, encode_in_chunks
from .encoder import PICTURE, Content

NOISE_LEVELS = 1000


class PictureEncoder:
    """A CLIP vision tower and the projection of an IP-Adapter that was trained on it (Ye et al., 2023).

    ``scales`` say how much each cross-attention listens: one number for all, or one each (models.adapter.block_scales).
    """

    def __init__(
        self,
        visual: VisionTransformer,
        projection: Projection,
        *,
        scales: tuple[float, ...] = (1.0,),
        chunk: int = 16,
    ) -> None:
        """Raises ValueError where the tower is not the one that the projection was trained on."""
        width, embedding_width = visual.proj.shape
        require_tower(projection.config, embedding_width=embedding_width, hidden_width=width)
        self.visual = visual
        self.projection = projection
        self.scales = scales
        self.chunk = chunk

    def __call__(self, images: Images) -> Content:
        """One or several pictures 0..1 for the whole clip; the tokens of several follow one another."""
        tokens, null = self.encode(images)
        return _content(
            PictureTokens(
                tokens=rearrange(tokens, "n k e -> 1 1 (n k) e"),
                null=repeat(null, "1 k e -> 1 1 (n k) e", n=len(images)),
                scales=self.scales,
            )
        )

    def per_frame(self, images: Images) -> Content:
        """As many pictures 0..1 as the clip has frames: each frame follows its own."""
        tokens, null = self.encode(images)
        return _content(
            PictureTokens(
                tokens=rearrange(tokens, "f k e -> 1 f k e"),
                null=repeat(null, "1 k e -> 1 f k e", f=len(images)),
                scales=self.scales,
            )
        )

    @torch.no_grad()
    def encode(self, images: Images) -> tuple[Float[Tensor, "n k e"], Float[Tensor, "1 k e"]]:
        """The tokens of each picture, and their null.

        The null is what IP-Adapter was trained to take for no picture: the projection of a zero embedding, or of the
        hidden states of a picture whose normalised pixels are all zero (which is CLIP's mean colour, not black).
        """
        like = self.visual.proj
        picture = Picture(size=image_size(self.visual))
        hidden = self.projection.config.reads == "hidden"
        seen = encode_in_chunks(
            self._hidden if hidden else self.visual, images, picture=picture, like=like, chunk=self.chunk
        )
        blank = like.new_zeros(1, 3, picture.size, picture.size)
        nothing = self._hidden(blank) if hidden else torch.zeros_like(seen[:1])
        own = next(self.projection.parameters())
        tokens, null = (self.projection(states.to(own)).float() for states in (seen, nothing))
        return tokens, null

    def nothing(self) -> Content:
        """The absence of a picture: one token at scale 0, which no cross-attention listens to."""
        silent = self.visual.proj.new_zeros(1, 1, 1, self.projection.config.context_width).float()
        return _content(PictureTokens(tokens=silent, null=silent, scales=(0.0,)))

    def _hidden(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k d"]:
        return self.visual.hidden(pixels, skip=1)


class UnclipEncoder:
    """The picture's embedding, noised to a level that is told besides: what SD-unCLIP's U-Net takes (Ramesh et al.,
    2022, section 2.1; Stability's implementation and diffusers' StableUnCLIPImg2ImgPipeline).

    ``mean`` and ``std`` are of the embeddings in training: zeros and ones for ViT-H, a file of their own for ViT-L.
    ``noise_level`` 0..999 says how much of the picture's detail is given up.
    """

    def __init__(
        self,
        visual: VisionTransformer,
        *,
        mean: Float[Tensor, " d"],
        std: Float[Tensor, " d"],
        noise_level: int = 0,
        chunk: int = 16,
    ) -> None:
        """Raises ValueError for statistics of another width, and for a level that does not exist."""
        width = visual.proj.shape[1]
        if len(mean) != width:
            raise ValueError(
                f"statistics of width {len(mean)} do not fit a vision tower with embeddings of width {width}; "
                "give ViT-L-14_stats.th with SD-unCLIP L, and zeros and ones with SD-unCLIP H."
            )
        if not 0 <= noise_level < NOISE_LEVELS:
            raise ValueError(
                f"noise_level={noise_level} is not one that unCLIP was trained on; give 0 to {NOISE_LEVELS - 1}, "
                "0 for the picture as it is."
            )
        self.visual = visual
        self.mean = mean
        self.std = std
        self.noise_level = noise_level
        self.chunk = chunk

    def __call__(self, images: Images, *, seed: int) -> Content:
        """One picture 0..1 for the whole clip.

        Raises ValueError for any other number of pictures.
        """
        if len(images) != 1:
            raise ValueError(
                f"{len(images)} pictures were given, but unCLIP takes one; give one picture, or make a content of "
                "each and mix them with blend()."
            )
        return self.per_frame(images, seed=seed)

    @torch.no_grad()
    def per_frame(self, images: Images, *, seed: int) -> Content:
        """As many pictures 0..1 as the clip has frames; the noise is the same in all, or the clip would flicker."""
        picture = Picture(size=image_size(self.visual))
        seen = encode_in_chunks(self.visual, images, picture=picture, like=self.visual.proj, chunk=self.chunk)
        noise = torch.randn(1, seen.shape[-1], generator=torch.Generator().manual_seed(seed))
        told = noised(seen.float(), noise.to(seen.device), level=self.noise_level, mean=self.mean, std=self.std)
        return _beside_nothing(rearrange(told, "f e -> 1 f e"))

    def nothing(self) -> Content:
        """The absence of a picture: zeros, as in the unconditional pass."""
        return _beside_nothing(self.mean.new_zeros(1, 1, 2 * len(self.mean)))


def noised(
    embedding: Float[Tensor, "n d"],
    noise: Float[Tensor, "m d"],
    *,
    level: int,
    mean: Float[Tensor, " d"],
    std: Float[Tensor, " d"],
) -> Float[Tensor, "n e"]:
    """Embeddings with noise of this level, scaled to unit variance for it and back, and the sinusoids of the level."""
    kept = signal_share(level)
    mean, std = mean.to(embedding), std.to(embedding)
    mixed = math.sqrt(kept) * (embedding - mean) / std + math.sqrt(1 - kept) * noise
    sines = sinusoids(embedding.new_full((len(embedding),), level), embedding.shape[-1])
    return torch.cat([mixed * std + mean, sines.to(embedding)], dim=-1)


def signal_share(level: int) -> float:
    """The share of the embedding's variance that is left at a level 0..999: the cosine schedule of Nichol & Dhariwal
    (2021) in 1000 steps, each of at most 0.999 noise (``squaredcos_cap_v2``).
    """

    def cosine(step: int) -> float:
        return math.cos((step / NOISE_LEVELS + 0.008) / 1.008 * math.pi / 2) ** 2

    return math.prod(max(cosine(step + 1) / cosine(step), 1 - 0.999) for step in range(level + 1))


def image_size(visual: VisionTransformer) -> int:
    """The side of the square that a tower looks at, in pixels: its patches and their number tell."""
    patches = math.isqrt(len(visual.positional_embedding) - 1)
    return patches * visual.conv1.weight.shape[-1]


def _content(picture: PictureTokens) -> Content:
    nothing = picture.tokens[:, :1, :0]
    return Content(tokens=nothing, null=nothing, kind=PICTURE, pictures=(picture,))


def _beside_nothing(embedding: Float[Tensor, "b g e"]) -> Content:
    nothing = embedding.new_zeros(1, 1, 0, 0)
    return Content(
        tokens=nothing, null=nothing, kind=PICTURE, embedding=embedding, embedding_null=torch.zeros_like(embedding)
    )
