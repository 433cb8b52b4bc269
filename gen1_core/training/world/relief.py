"""Reliefs: what a depth map shows, as a surface that any style of the world can be put on.

Depth of real clips holds shapes that no scene here has: faces, limbs, cloth, leaves. Shaded as a relief they show, in
every style, what an edit of such a clip shall look like. A map says neither what is one body nor how far anything is,
so all of this is read from the map itself, and a network that sees the map can predict it.
"""

from collections.abc import Sequence

import torch
from einops import repeat
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from ...tensors import to_bytes
from .effects import blurred
from .geometry import FAR, GROUND_SLOT, WALL_SLOT
from .looks import Style
from .shade import shade
from .surface import TEXTURE_SPAN, Surface, screen

Planes = Float[Tensor, "f h w"]

SKY = 0.03
"""Depth below which there is nothing but sky."""

NEAREST = 0.55
"""Distance of depth 1, in that of the subject; depth is proportional to one over distance."""

SPREAD = 0.5
"""Tangent of half the vertical field of view that the relief is seen with."""

BACKGROUND = 0.3
"""Of the depths in a row of pixels, the fraction that is taken for what is behind: what stands out of it is a body."""

STANDS_OUT = 0.08
"""How much nearer than what is behind it a body is, in 0..1."""

STEEP = 0.16
"""Change of the logarithm of distance, over 1/64 of the height, from which on it is an outline."""

FLAT = 0.75
"""How far up a normal points on what is taken for ground."""

NEAR_SLOT, FAR_SLOT = 0, 4
"""Colours of bodies in the near and in the far half of the depths."""


def render_reliefs(depth: Planes, styles: Sequence[Style]) -> UInt8[Tensor, "k f 3 h w"]:
    """A clip's depth, 0..1 with 1 near, as a surface in each of k styles; on the depth's device."""
    surface = relief(depth)
    shaded = torch.zeros_like(surface.sky)
    return torch.stack([to_bytes(shade(surface, style, shaded, supersample=1)) for style in styles])


def relief(depth: Planes) -> Surface:
    """The surface of a depth map, seen by a camera that stands still and looks straight ahead."""
    height, width = depth.shape[-2:]
    # Depth that a network estimates has ripples, which a light from the side would show as crumpled foil.
    near = blurred(depth.float(), max(1, height // 128))
    sky = near < SKY
    distance = NEAREST / near.clamp(min=SKY)
    x = repeat(screen(width, device=depth.device) * (SPREAD * width / height), "w -> f h w", f=len(depth), h=height)
    y = repeat(-screen(height, device=depth.device) * SPREAD, "h -> f h w", f=len(depth), w=width)
    rays = torch.stack([x, y, -torch.ones_like(x)])
    position = rays * distance
    normal = normals(position)
    # Bodies, ground and what is behind, each by what the map shows of it.
    body = stands_out(near)
    around = max(1, height // 16)
    body_depth = blurred(near * body, around) / blurred(body.float(), around).clamp(min=1e-3)
    colour = torch.where(body_depth > 0.5, NEAR_SLOT, FAR_SLOT)
    ground = ~body & ~sky & (blurred(normal[1], max(1, height // 64)) > FLAT)
    grain = TEXTURE_SPAN / SPREAD
    return Surface(
        distance=torch.where(sky, FAR, distance),
        normal=normal,
        outward=normal,
        texture=position * grain,
        position=position,
        view=F.normalize(rays, dim=0),
        slot=torch.where(body, colour, torch.where(ground, GROUND_SLOT, WALL_SLOT)),
        # Two solids, outlines and all the rest: so lines come along outlines, and along creases as on any solid.
        solid=outlined(distance).long(),
        openness=openness(near),
        ground=ground,
        sky=sky,
        nearness=1.0,
        footprint=2 * SPREAD / height,
        grain=grain,
    )


def stands_out(depth: Float[Tensor, "*axes h w"]) -> Bool[Tensor, "*axes h w"]:
    """Bodies: what is nearer than most of its row of pixels, of each frame."""
    # Frame by frame, as older releases of torch refuse quantiles of more than 16 million numbers.
    behind = torch.stack([frame.quantile(BACKGROUND, dim=-1, keepdim=True) for frame in depth])
    return depth > behind + STANDS_OUT


def normals(position: Float[Tensor, "3 f h w"]) -> Float[Tensor, "3 f h w"]:
    """Unit normals (right, up, towards the camera) of a surface given by the position of each pixel."""
    padded = F.pad(position, (1, 1, 1, 1, 0, 0), mode="replicate")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    upwards = padded[..., :-2, 1:-1] - padded[..., 2:, 1:-1]
    return F.normalize(torch.linalg.cross(across, upwards, dim=0), dim=0, eps=1e-12)


def outlined(distance: Planes) -> Planes:
    """1 on thin lines where distance changes steeply, else 0: outlines of bodies.

    The lines are the zero crossings of the second derivative (Marr and Hildreth 1980), in the middle of a slope.
    """
    logarithm = distance.log()
    reach = max(1, distance.shape[-2] // 64)
    step = F.max_pool2d(logarithm, 2 * reach + 1, 1, reach) + F.max_pool2d(-logarithm, 2 * reach + 1, 1, reach)
    bend = logarithm - blurred(logarithm, reach)
    beside = F.max_pool2d((bend > 0).float(), 3, 1, 1)
    return (step > STEEP) * (bend < 0) * beside


def openness(depth: Planes) -> Planes:
    """1 in the open, less where what is around is nearer: the darkening of a blurred depth buffer."""
    hidden = blurred(depth, max(1, depth.shape[-2] // 24)) - depth
    return 1 - (4 * hidden).clamp(0, 0.6)
