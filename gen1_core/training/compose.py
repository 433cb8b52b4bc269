"""Pictures for the depth network that the world does not render: one scene before another, close-ups, other surfaces.

Photographs differ from rendered scenes less in their shapes than in what surrounds them: bodies cut by the frame, no
ground in sight, a subject lit unlike its background, detail that means nothing, a lens in focus at one depth.
Depth follows each change exactly, so nothing has to be labelled.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from ..structure.estimator import HIGH_PERCENTILE, LOW_PERCENTILE
from ..tensors import Images
from .world.relief import STANDS_OUT, stands_out

Maps = Float[Tensor, "n 1 h w"]

OCTAVES = (2, 4, 8, 16, 32, 64)
"""Cells along a side of the noise that surfaces are made of."""

SURFACES = 4
"""Different surfaces in one picture."""


@dataclass(frozen=True, kw_only=True)
class Composition:
    """How often each change is made, 0..1, and at which sizes in pixels the network sees the results."""

    sizes: tuple[int, ...]
    before: float = 0.5
    close_up: float = 0.6
    surfaces: float = 0.5
    defocus: float = 0.3

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"sizes={self.sizes} leaves no picture; give at least one side in pixels.")
        for name in ("before", "close_up", "surfaces", "defocus"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is a probability; give a number from 0 to 1.")


def compose(
    images: Images, depth: Maps, how: Composition, generator: torch.Generator
) -> tuple[Float[Tensor, "n 3 s s"], Float[Tensor, "n 1 s s"]]:
    """Square pictures 0..1 and their inverse depth 0..1 to others, at one of the sizes.

    Where the scene itself changed, its depth has the range 0..1 again, as a clip of it would have.
    """
    count = len(images)
    size = how.sizes[int(torch.randint(len(how.sizes), (), generator=generator))]
    close, merged = (_chance(count, p, images, generator) for p in (how.close_up, how.before))
    window = torch.where(close, 0.5 + 0.45 * _uniform(count, images, generator), 1.0)
    shift = (1 - window) * (2 * _uniform(count, images, generator, 2) - 1)
    behind, behind_depth = _viewed(images, depth, window, shift, size)
    front, front_depth, body = _body(images.roll(1, 0), depth.roll(1, 0), size, generator)
    body = body & (front_depth > behind_depth) & merged
    light = 0.15 + 1.2 * _uniform(count, images, generator)
    images = torch.where(body, (front * light).clamp(0, 1), behind)
    depth = torch.where(body, front_depth, behind_depth)
    depth = torch.where(close | merged, _whole_range(depth), depth)
    images = torch.where(
        _chance(count, how.surfaces, images, generator), _other_surfaces(images, depth, generator), images
    )
    return torch.where(_chance(count, how.defocus, images, generator), _defocused(images, depth), images), depth


def _uniform(count: int, like: Tensor, generator: torch.Generator, columns: int = 1) -> Float[Tensor, "n columns 1 1"]:
    return torch.rand(count, columns, 1, 1, generator=generator).to(like.device)


def _chance(count: int, p: float, like: Tensor, generator: torch.Generator) -> Bool[Tensor, "n 1 1 1"]:
    return _uniform(count, like, generator) < p


def _viewed(
    images: Images, depth: Maps, window: Float[Tensor, "n 1 1 1"], shift: Float[Tensor, "n 2 1 1"], size: int
) -> tuple[Float[Tensor, "n 3 s s"], Float[Tensor, "n 1 s s"]]:
    """What a window shows: its side in the picture's, its middle in half sides from the middle; black outside."""
    count = len(images)
    scale = torch.eye(2, device=images.device) * rearrange(window, "n 1 1 1 -> n 1 1")
    grid = F.affine_grid(
        torch.cat([scale, rearrange(shift, "n two 1 1 -> n two 1")], dim=2), [count, 4, size, size], align_corners=False
    )
    seen = F.grid_sample(torch.cat([images, depth], dim=1), grid, align_corners=False)
    return seen[:, :3], seen[:, 3:]


def _body(
    images: Images, depth: Maps, size: int, generator: torch.Generator
) -> tuple[Float[Tensor, "n 3 s s"], Float[Tensor, "n 1 s s"], Bool[Tensor, "n 1 s s"]]:
    """The bodies of a scene without its ground, at another place, size and distance."""
    alone = torch.where(stands_out(depth), depth, 0)
    count = len(images)
    window = 0.5 + 1.2 * _uniform(count, images, generator)
    shift = 0.5 * (2 * _uniform(count, images, generator, 2) - 1)
    seen, far = _viewed(images, alone, window, shift, size)
    present = far > STANDS_OUT
    nearer = (0.3 + 0.7 * _uniform(count, images, generator)) * far + 0.7 * _uniform(count, images, generator)
    return seen, nearer, present


def _whole_range(depth: Maps) -> Maps:
    """The depth from 0 to 1 again, by the percentiles that a clip's are scaled by; a flat one as it is."""
    flat = rearrange(depth, "n 1 h w -> n (h w)")
    low, high = (rearrange(flat.quantile(q, dim=1), "n -> n 1 1 1") for q in (LOW_PERCENTILE, HIGH_PERCENTILE))
    scaled = ((depth - low) / (high - low).clamp(min=1e-3)).clamp(0, 1)
    return torch.where(high - low > STANDS_OUT, scaled, depth.clamp(0, 1))


def _other_surfaces(images: Images, depth: Maps, generator: torch.Generator) -> Images:
    """Each range of depth in a surface of its own, under the light that was there: edges that mean nothing too."""
    count = len(images)
    bands = depth * (1 + 3 * _uniform(count, images, generator)) + _uniform(count, images, generator)
    band = bands.long() % SURFACES
    made = images
    for number in range(SURFACES):
        borrowed = images.roll(number + 1, 0)
        surface = torch.where(
            _chance(count, 0.4, images, generator), borrowed, _noise(count, images.shape[-1], images, generator)
        )
        made = torch.where(band == number, surface, made)
    light = 0.4 + 1.2 * images.mean(dim=1, keepdim=True)
    share = 0.3 + 0.7 * _uniform(count, images, generator)
    return (images + share * (made * light - images)).clamp(0, 1)


def _noise(count: int, size: int, like: Tensor, generator: torch.Generator) -> Float[Tensor, "n 3 s s"]:
    """Coloured noise whose fine detail is weaker or stronger: clouds to gravel."""
    roughness = 0.4 + 0.6 * _uniform(count, like, generator)
    total = torch.rand(count, 3, 1, 1, generator=generator).to(like.device)
    for octave, cells in enumerate(OCTAVES):
        grid = torch.randn(count, 3, cells, cells, generator=generator).to(like.device)
        grid = 0.3 * grid + 0.7 * grid[:, :1]  # surfaces vary in brightness more than in hue
        layer = F.interpolate(grid, (size, size), mode="bilinear", align_corners=False)
        total = total + 0.15 * roughness**octave * layer
    return total.clamp(0, 1)


def _defocused(images: Images, depth: Maps) -> Images:
    """Sharp where it is near, soft where it is far."""
    soft = images
    for _ in range(2):
        soft = F.avg_pool2d(soft, 7, stride=1, padding=3, count_include_pad=False)
    return images + (1 - depth).clamp(0, 1) * (soft - images)
