"""CLIP (Radford et al., 2021): an image and a text transformer into one space, named as in open_clip.

Plain torch, so neither the embedded model's pair nor public weights need another package. Gen-1 takes its content from
the image embedding (section 3 of the paper); the text tower serves the prior and the prompt consistency metric. Stable
Diffusion reads the text tower's hidden states, IP-Adapters look through the image tower.
"""

import math
from dataclasses import dataclass
from itertools import islice

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ..tensors import Images

Colour = tuple[float, float, float]

CLIP_MEAN: Colour = (0.48145466, 0.4578275, 0.40821073)
"""Mean colour that CLIP's own weights were trained with."""

CLIP_STD: Colour = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation to go with CLIP_MEAN."""


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """Sizes of both towers, or of one (the other's then say nothing); the defaults are the embedded model's.

    ``quick_gelu`` is the sigmoid approximation that OpenAI's own weights were trained with; others use the
    exact GELU.
    """

    embed_dim: int = 128
    image_size: int = 128
    patch_size: int = 16
    vision_width: int = 192
    vision_layers: int = 4
    vision_heads: int = 6
    text_width: int = 192
    text_layers: int = 3
    text_heads: int = 6
    context_length: int = 32
    vocab_size: int = 4610
    mlp_ratio: float = 3.0
    quick_gelu: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        for tower, width, heads in (
            ("vision", self.vision_width, self.vision_heads),
            ("text", self.text_width, self.text_heads),
        ):
            if heads < 1 or width % heads:
                raise ValueError(
                    f"{tower}_width={width} cannot be split into {tower}_heads={heads} equal heads; "
                    f"make {tower}_width a multiple of {tower}_heads."
                )
        if self.patch_size < 1 or self.image_size % self.patch_size:
            raise ValueError(
                f"image_size={self.image_size} is not a whole number of patches of "
                f"patch_size={self.patch_size}; make image_size a multiple of patch_size."
            )
        if self.context_length < 3:
            raise ValueError(
                f"context_length={self.context_length} leaves no room between the start and the end token; "
                "set it to 3 or more."
            )


def preprocess(
    images: Images,
    image_size: int,
    *,
    mean: Colour = CLIP_MEAN,
    std: Colour = CLIP_STD,
) -> Float[Tensor, "n 3 size size"]:
    """Images 0..1 of any size as a tower wants them: short side to image_size, centre crop, normalised.

    Antialiased bicubic as in CLIP's own preprocessing, clipped because bicubic overshoots.
    """
    height, width = images.shape[-2:]
    short = min(height, width)
    size = (image_size * height // short, image_size * width // short)
    if size != (height, width):
        images = F.interpolate(images.float(), size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = round((size[0] - image_size) / 2), round((size[1] - image_size) / 2)
    images = images[..., top : top + image_size, left : left + image_size]
    centre, spread = (rearrange(images.new_tensor(v), "c -> 1 c 1 1") for v in (mean, std))
    return (images - centre) / spread


class QuickGELU(nn.Module):
    """OpenAI's approximation of GELU."""

    def forward(self, x: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """x times the logistic function of 1.702 x."""
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head self-attention with one joint projection, named as in torch's MultiheadAttention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n d"], *, causal: bool) -> Float[Tensor, "b n d"]:
        """Each token looks at all tokens, or with ``causal`` at itself and those before it."""
        joint = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = rearrange(joint, "b n (three heads d) -> three b heads n d", three=3, heads=self.heads)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out_proj(rearrange(mixed, "b heads n d -> b n (heads d)"))


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int, *, quick_gelu: bool) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.gelu = QuickGELU() if quick_gelu else nn.GELU()
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Each token alone."""
        return self.c_proj(self.gelu(self.c_fc(x)))


class Block(nn.Module):
    """Attention and a two-layer network, each normalised before and added after."""

    def __init__(self, width: int, heads: int, *, mlp_ratio: float, quick_gelu: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, round(width * mlp_ratio), quick_gelu=quick_gelu)

    def forward(self, x: Float[Tensor, "b n d"], *, causal: bool) -> Float[Tensor, "b n d"]:
        """One residual step of each part."""
        x = x + self.attn(self.ln_1(x), causal=causal)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks, initialised as CLIP's text tower is: the deeper, the smaller each branch."""

    def __init__(self, width: int, layers: int, heads: int, *, mlp_ratio: float, quick_gelu: bool) -> None:
        super().__init__()
        blocks = [Block(width, heads, mlp_ratio=mlp_ratio, quick_gelu=quick_gelu) for _ in range(layers)]
        self.resblocks = nn.ModuleList(blocks)
        residual_std = width**-0.5 * (2 * max(layers, 1)) ** -0.5
        for block in blocks:
            nn.init.normal_(block.attn.out_proj.weight, std=residual_std)
            nn.init.zeros_(block.attn.out_proj.bias)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=residual_std)

    def forward(self, x: Float[Tensor, "b n d"], *, causal: bool = False, skip: int = 0) -> Float[Tensor, "b n d"]:
        """All blocks in turn, the last ``skip`` of them left out.

        Raises ValueError for more blocks than there are.
        """
        if not 0 <= skip <= len(self.resblocks):
            raise ValueError(
                f"skip={skip} of {len(self.resblocks)} blocks cannot be left out; give 0 for all blocks, "
                "1 for the penultimate states."
            )
        for block in islice(self.resblocks, len(self.resblocks) - skip):
            x = block(x, causal=causal)
        return x


class VisionTransformer(nn.Module):
    """Patches and a class token through a transformer; the class token is projected into the shared space."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        width, patch = config.vision_width, config.patch_size
        tokens = (config.image_size // patch) ** 2 + 1
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(tokens, width) * width**-0.5)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(
            width,
            config.vision_layers,
            config.vision_heads,
            mlp_ratio=config.mlp_ratio,
            quick_gelu=config.quick_gelu,
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, config.embed_dim) * width**-0.5)

    def hidden(self, pixels: Float[Tensor, "n 3 h w"], *, skip: int) -> Float[Tensor, "n k d"]:
        """Pixels from ``preprocess`` to the states before the last ``skip`` blocks, the class token first, not normed.

        1 gives the penultimate states, which IP-Adapter plus was trained on (transformers' ``hidden_states[-2]``).
        """
        patches = rearrange(self.conv1(pixels), "n d h w -> n (h w) d")
        first = repeat(self.class_embedding, "d -> n 1 d", n=len(pixels))
        x = torch.cat([first, patches], dim=1) + self.positional_embedding
        return self.transformer(self.ln_pre(x), skip=skip)

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Pixels from ``preprocess`` to embeddings, not normalised."""
        return self.ln_post(self.hidden(pixels, skip=0)[:, 0]) @ self.proj


class TextTower(nn.Module):
    """Token ids through a causal transformer: what Stable Diffusion reads, without the projection of CLIP."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        width = config.text_width
        self.config = config
        self.transformer = Transformer(
            width,
            config.text_layers,
            config.text_heads,
            mlp_ratio=config.mlp_ratio,
            quick_gelu=config.quick_gelu,
        )
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.randn(config.context_length, width) * 0.01)
        self.ln_final = nn.LayerNorm(width)

    def hidden(self, tokens: Int[Tensor, "n k"], *, skip: int) -> Float[Tensor, "n k d"]:
        """Token ids to the states before the last ``skip`` blocks, normed.

        Stable Diffusion 1.x reads those of ``skip`` 0, 2.x of 1; one more is what diffusers calls a clip_skip of 1.
        """
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        return self.ln_final(self.transformer(x, causal=True, skip=skip))


class CLIP(TextTower):
    """Both towers; equal to open_clip's CLIP with the same state dict."""

    def __init__(self, config: CLIPConfig) -> None:
        visual = VisionTransformer(config)  # before the text tower, so that a seed means the same weights as ever
        super().__init__(config)
        width = config.text_width
        self.visual = visual
        self.text_projection = nn.Parameter(torch.randn(width, config.embed_dim) * width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def encode_image(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Pixels from ``preprocess`` to embeddings, not normalised."""
        return self.visual(pixels)

    def encode_text(self, tokens: Int[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        """Token ids to embeddings, not normalised; taken at the first end token, which has the highest id.

        The mask is causal, so whatever pads a text after its end token changes nothing.
        """
        x = self.hidden(tokens, skip=0)
        ends = tokens.argmax(dim=-1)
        return x[torch.arange(len(x), device=x.device), ends] @ self.text_projection
