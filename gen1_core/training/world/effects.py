"""Effects on the finished picture: fixed to the screen, and soft enough to survive the autoencoder."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .parts import Colour, Medium
from .surface import Surface, screen
from .textures import noise

Picture = Float[Tensor, "f 3 h w"]
Plane = Float[Tensor, "f 1 h w"]


def colour(value: Colour, like: Tensor) -> Float[Tensor, "1 3 1 1"]:
    """A colour that broadcasts over a picture."""
    return torch.tensor(value, dtype=like.dtype, device=like.device)[None, :, None, None]


def edges(surface: Surface, *, supersample: int) -> Plane:
    """Lines between solids and along creases, 0..1, about 3 pixels wide at 128; they fade with distance."""
    reach = surface.distance / surface.nearness
    strength = torch.zeros_like(reach)
    for axis in (-1, -2):
        length = reach.shape[axis] - 1
        here, there = (slice(0, length), slice(1, None))
        a, b = ((..., here), (..., there)) if axis == -1 else ((..., here, slice(None)), (..., there, slice(None)))
        crease = (surface.normal[a] * surface.normal[b]).sum(dim=0) < 0.72
        line = (surface.solid[a] != surface.solid[b]) | (crease & (surface.solid[a] >= 0))
        nearest = torch.minimum(reach[a], reach[b])
        strength[a] = torch.maximum(strength[a], line * (1 - (nearest - 1.8) / 1.5).clamp(0, 1))
    scale = max(1, round(reach.shape[-2] / supersample / 128))
    small = (F.avg_pool2d(strength[:, None], supersample) * supersample).clamp(max=1)
    return (blurred(small, scale) * 2.6).clamp(max=1)


def pixels(like: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates of pixels in units of 1/128 of the height."""
    height, width = like.shape[-2:]
    x = (screen(width, device=like.device) + 1) * 64 * width / height
    y = (screen(height, device=like.device) + 1) * 64
    return x[None, :], y[:, None]


def paper_grain(like: Tensor) -> Float[Tensor, "h w"]:
    """The structure of paper, -1..1."""
    x, y = pixels(like)
    flat = torch.zeros_like(x + y)
    return 0.6 * noise((x * 0.5 + flat, flat, y * 0.5 + flat)) + 0.5 * noise(
        (x * 0.17 + flat, flat + 1, y * 0.17 + flat)
    )


def wobbled(picture: Float[Tensor, "f c h w"], amount: float) -> Float[Tensor, "f c h w"]:
    """Moves pixels a little in a fixed pattern, as a brush does."""
    height, width = picture.shape[-2:]
    x, y = pixels(picture)
    flat = torch.zeros_like(x + y)
    shift = [noise((x * 0.3 + flat, flat + k, y * 0.3 + flat)) * 1.4 * amount / 64 for k in (0.0, 3.0)]
    place = torch.stack(
        (
            screen(width, device=picture.device) + shift[0] * height / width,
            screen(height, device=picture.device)[:, None] + shift[1],
        ),
        dim=-1,
    )
    grid = place[None].expand(len(picture), -1, -1, -1)
    return F.grid_sample(picture, grid, mode="bilinear", padding_mode="border", align_corners=False)


def blurred(picture: Tensor, radius: int) -> Tensor:
    """A box blur applied twice."""
    for _ in range(2):
        picture = F.avg_pool2d(picture, 2 * radius + 1, 1, radius, count_include_pad=False)
    return picture


def hatched(brightness: Plane) -> Plane:
    """Soft strokes where it is dark, crossed where it is darker; 1 is clean paper."""
    x, y = pixels(brightness)
    strokes = 0.5 + 0.5 * torch.sin((x + y) * 0.55)
    crossed = 0.5 + 0.5 * torch.sin((x - y) * 0.55)
    first = strokes * ((0.72 - brightness) * 2.2).clamp(0, 1)
    second = crossed * ((0.42 - brightness) * 2.6).clamp(0, 1)
    return 1 - 0.65 * first - 0.45 * second * (1 - 0.5 * first)


def drawn(picture: Picture, medium: Medium) -> Picture:
    """Replaces colours by paper and ink, keeping some of the light and dark."""
    brightness = picture.mean(dim=1, keepdim=True)
    ink, paper = colour(medium.ink, picture), colour(medium.paper, picture)
    dark_paper = sum(medium.paper) < 1.5
    shade = brightness if dark_paper else 1 - (brightness * 1.15).clamp(max=1)
    amount = shade * medium.tone
    if medium.hatching:
        strokes = 1 - hatched(1 - brightness if dark_paper else brightness)
        amount = amount * (1 - 0.4 * medium.hatching) + strokes * 0.75 * medium.hatching
    if medium.lattice:
        x, y = pixels(picture)
        lines = torch.maximum(torch.cos(x * 0.3927), torch.cos(y * 0.3927))
        amount = torch.maximum(amount, ((lines - 0.8) * 5).clamp(0, 1) * 0.3 * medium.lattice)
    if medium.carved:
        x, y = pixels(picture)
        strokes = (0.5 + 0.5 * torch.sin((x * 0.35 + y) * 0.62) - 1.25 * brightness + 0.25) * 4
        amount = torch.lerp(amount, strokes.clamp(0, 1), medium.carved)
    return torch.lerp(picture, torch.lerp(paper, ink, amount.clamp(0, 1)), medium.drawing)


def washed(picture: Picture, amount: float) -> Picture:
    """Watercolour: thin bright washes, pigment that gathers at edges and in the grain."""
    soft = blurred(picture, 2)
    gathered = (picture - soft).abs().mean(dim=1, keepdim=True)
    height = screen(picture.shape[-2], device=picture.device)[:, None].abs()
    width = screen(picture.shape[-1], device=picture.device)[None].abs()
    sheet = ((1.05 - torch.maximum(height, width) + 0.06 * paper_grain(picture)) * 7).clamp(0, 1)
    pigment = (0.74 - 0.08 * paper_grain(picture) + gathered * 1.5) * sheet
    wash = 1 - (1 - torch.lerp(picture, soft, 0.4)) * pigment
    return torch.lerp(picture, wash, amount)


def ramped(amount: Plane, stops: tuple[Colour, ...]) -> Picture:
    """Colours of a ramp, at 0..1 along it."""
    place = amount.clamp(0, 1) * (len(stops) - 1)
    table = torch.tensor(stops, dtype=amount.dtype, device=amount.device)
    low = place.floor().clamp(max=len(stops) - 2)
    index = rearrange(low.long(), "f 1 h w -> f h w")
    first, second = (rearrange(table[index + step], "f h w c -> f c h w") for step in (0, 1))
    return torch.lerp(first, second, place - low)


def banded(near: Plane, medium: Medium) -> Picture:
    """Flat bands of depth; with contours, lines of even width where one band meets the next."""
    # The square root gives the far half of a scene as many bands as the near one.
    level = near.clamp(min=0).sqrt() * medium.layers
    picture = ramped(level.floor().clamp(max=medium.layers - 1) / (medium.layers - 1), medium.ramp)
    if medium.contours:
        band = level.floor()
        line = torch.zeros_like(level)
        line[..., :-1, :] = (band[..., :-1, :] != band[..., 1:, :]).float()
        line[..., :-1] = torch.maximum(line[..., :-1], (band[..., :-1] != band[..., 1:]).float())
        line = (blurred(line, max(1, round(line.shape[-2] / 128))) * 2.4).clamp(max=1)
        picture = torch.lerp(picture, colour(medium.ink, picture), line * medium.contours)
    return picture


def blocks(picture: Picture) -> Picture:
    """Squares of one colour, 16 in the height: the grid of the latents at 128 pixels."""
    height, width = picture.shape[-2:]
    coarse = F.adaptive_avg_pool2d(picture, (min(16, height), min(max(1, round(16 * width / height)), width)))
    return F.interpolate(coarse, size=(height, width), mode="nearest")


def dotted(picture: Picture, medium: Medium) -> Picture:
    """Ink dots on paper whose size follows the dark, on a slanted lattice 8 pixels wide."""
    x, y = pixels(picture)
    lattice = torch.cos((x + y) * 0.5554) + torch.cos((x - y) * 0.5554)
    dark = ((1 - picture.mean(dim=1, keepdim=True)) * 1.35).clamp(max=1)
    amount = ((lattice / 4 + 0.5 + (dark - 1) * 1.15 + 0.08) * 4).clamp(0, 1)
    return torch.lerp(colour(medium.paper, picture), colour(medium.ink, picture), amount)


def leads(like: Tensor) -> Float[Tensor, "h w"]:
    """A net of crossing slanted lines fixed to the screen, 0..1."""
    x, y = pixels(like)
    first = torch.sin(x * 0.13 + 0.06 * y + 0.6).abs()
    second = torch.sin(y * 0.12 - 0.05 * x + 0.3).abs()
    return (1.3 - torch.minimum(first, second) * 5).clamp(0, 1)


def vignetted(picture: Picture, amount: float) -> Picture:
    """Darker towards the corners."""
    height, width = picture.shape[-2:]
    squared = screen(height, device=picture.device)[:, None] ** 2 + screen(width, device=picture.device)[None] ** 2
    return picture * (1 - amount * (squared * 0.55).clamp(max=0.95))


def finish(picture: Picture, lines: Plane, near: Plane, things: Plane, medium: Medium, *, bloom: float) -> Picture:
    """The effects of a medium on a rendered picture; ``near`` is the depth map, ``things`` covers the solids."""
    if bloom:
        bright = (picture - 0.55).clamp(min=0)
        picture = picture + bloom * blurred(bright, max(2, picture.shape[-2] // 32))
    picture = picture.clamp(0, 1) ** 0.88
    if medium.wobble:
        picture, lines = wobbled(picture, medium.wobble), wobbled(lines, medium.wobble * 0.5)
    if medium.wash:
        picture = washed(picture, medium.wash)
    if medium.drawing:
        picture = drawn(picture, medium)
    if medium.layers:
        picture = banded(near, medium)
    if medium.silhouette:
        lamp = torch.lerp(colour(medium.paper, picture), torch.ones_like(picture), 0.5 * (1 - near))
        shape = torch.lerp(lamp * (1 - 0.35 * near), colour(medium.ink, picture).expand_as(picture), things)
        picture = torch.lerp(picture, shape, medium.silhouette)
    if medium.leaded:
        lines = torch.maximum(lines, leads(picture) * medium.leaded)
    if medium.outline and not medium.ramp:
        picture = torch.lerp(picture, colour(medium.ink, picture), lines * medium.outline)
    return toned(picture, lines, near, medium)


def toned(picture: Picture, lines: Plane, near: Plane, medium: Medium) -> Picture:
    """Effects on the tones of the whole picture, and those of print and screen."""
    grey = picture.mean(dim=1, keepdim=True)
    if medium.grey:
        picture = torch.lerp(picture, (grey * 1.1).clamp(max=1) * colour(medium.paper, picture), medium.grey)
    if medium.ramp and not medium.layers:
        tone = torch.lerp(grey, 0.4 * grey + 0.6 * near, medium.heat)
        picture = ramped(tone, medium.ramp)
        if medium.outline:
            picture = torch.lerp(picture, colour(medium.ink, picture), lines * medium.outline)
    if medium.negative:
        picture = torch.lerp(picture, 1 - picture, medium.negative)
    if medium.saturation != 1:
        picture = grey + (picture - grey) * medium.saturation
    if medium.mosaic:
        picture = torch.lerp(picture, blocks(picture), medium.mosaic)
    if medium.halftone:
        picture = torch.lerp(picture, dotted(picture, medium), medium.halftone)
    if medium.scan:
        _, y = pixels(picture)
        picture = picture * (1 - medium.scan * 0.7 * (0.5 + 0.5 * torch.sin(y * 0.7854)))
    if medium.vignette:
        picture = vignetted(picture, medium.vignette)
    if medium.grain:
        picture = picture * (1 + 0.07 * medium.grain * paper_grain(picture))
    return picture.clamp(0, 1)
