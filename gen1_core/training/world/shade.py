"""Gives the surfaces of a clip the look of a style."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from .effects import edges, finish
from .geometry import FAR, PAINT_SLOTS
from .looks import Style
from .parts import Colour, Sky
from .surface import Surface
from .textures import TEXTURES, WAVELENGTHS, noise

Planes = Float[Tensor, "3 f h w"]
Plane = Float[Tensor, "f h w"]


def tint(value: Colour, like: Tensor) -> Float[Tensor, "3 1 1 1"]:
    """A colour that broadcasts over planes."""
    return torch.tensor(value, dtype=like.dtype, device=like.device)[:, None, None, None]


def mix(a: Colour, b: Colour, amount: float) -> Colour:
    """A colour between two."""
    x, y, z = ((1 - amount) * p + amount * q for p, q in zip(a, b, strict=True))
    return x, y, z


def sky_colours(style: Style) -> tuple[Colour, Colour]:
    """Top and horizon, as the weather lets them through."""
    weather = style.weather
    top = mix(style.sky.top, weather.tint, 0.8 * weather.tinted)
    # Coloured fog at night is dark: it takes the brightness of the light it hangs in.
    dim = min(1.0, 0.35 + sum(style.sky.horizon) / 3)
    fog = mix((0.0, 0.0, 0.0), weather.tint, dim)
    return mix(top, fog, 0.3 * weather.tinted), mix(style.sky.horizon, fog, weather.tinted)


def stars(view: Planes) -> Plane:
    """Soft round stars, one in a few cells of azimuth and height."""
    across, up = torch.atan2(view[0], -view[2]) * 7, view[1] * 8
    column, row = torch.floor(across), torch.floor(up)
    seed = torch.sin(column * 12.9 + row * 78.2) * 43.7
    centre_x, centre_y = 0.3 + 0.4 * torch.frac(seed).abs(), 0.3 + 0.4 * torch.frac(seed * 1.7).abs()
    squared = (across - column - centre_x) ** 2 + (up - row - centre_y) ** 2
    return torch.exp(-squared * 45) * (torch.frac(seed * 2.9).abs() > 0.5)


def sky_colour(style: Style, view: Planes, *, details: bool) -> Planes:
    """The sky in a direction; ``details`` are its stars, clouds and sun."""
    top, horizon = sky_colours(style)
    height = view[1]
    blend = (height.abs() * 1.5).clamp(0, 1) ** 0.85
    sky = torch.lerp(tint(horizon, view), tint(top, view), torch.where(height < 0, blend * 0.7, blend))
    if not details:
        return sky
    above = (height * 6 - 0.3).clamp(0, 1) * (1 - 0.8 * style.weather.tinted)
    if style.sky.clouds:
        lift = 0.6 / (height.clamp(min=0.0) + 0.22)
        puff = noise((view[0] * lift * 2.2, torch.full_like(lift, 0.6), view[2] * lift * 3.2))
        bright = tint(mix(horizon, (1.0, 1.0, 1.0), 0.6), view)
        sky = torch.lerp(sky, bright.expand_as(sky), ((puff - 0.05) * 1.6).clamp(0, 1) * above * style.sky.clouds)
    if style.sky.stars:
        sky = sky + stars(view) * above * style.sky.stars
    if style.sky.disc:
        facing = (view * tint(sun(style.sky), view)).sum(dim=0).clamp(min=0)
        sky = sky + style.sky.disc * facing**24 * tint(style.sky.sun_colour, view)
    return sky


def sun(sky: Sky) -> Colour:
    """Unit direction towards the light."""
    length = math.hypot(*sky.sun)
    x, y, z = (value / length for value in sky.sun)
    return x, y, z


def textured(name: str, surface: Surface, scale: float) -> Plane:
    """A texture at its scale, faded to its mean where its features would be smaller than a few pixels."""
    x, y, z = surface.texture * scale
    feature = WAVELENGTHS.get(name, 2.2) / scale
    width = surface.distance * (surface.footprint * surface.grain * 2)
    fade = (feature / width / 5 - 0.8).clamp(0, 1)
    return TEXTURES[name]((x, y, z)) * fade


def palette_of(style: Style) -> list[Colour]:
    """Colours of all slots: solids, ground, walls."""
    paint = list(style.palette.colours)
    own = style.material.own
    if own:
        paint = [mix(a, b, 0.8) for a, b in zip(paint, own, strict=True)]
    wall = mix(mix(style.ground.second, style.sky.horizon, 0.5), style.ground.first, 0.3)
    return [*paint, style.ground.first, wall]


def albedo(style: Style, surface: Surface) -> tuple[Planes, Plane]:
    """Colours before light, and the glow that comes out of textures."""
    colours = palette_of(style)
    table = torch.tensor(colours, device=surface.normal.device).T
    base = table[:, surface.slot]
    ground = surface.ground
    thing = surface.slot < PAINT_SLOTS
    material, pattern = style.material, style.pattern
    glow = torch.zeros_like(surface.distance)
    if material.amount:
        value = textured(material.texture, surface, material.scale)
        amount = material.amount * (0.5 + 0.5 * value)
        if material.molten:
            glow = torch.where(thing, material.molten * amount, glow)
        base = torch.lerp(base, tint(material.accent, base).expand_as(base), torch.where(thing, amount, 0.0))
    if pattern.amount:
        others = [contrast(colours[slot], colours[(slot + 2) % PAINT_SLOTS]) for slot in range(len(colours))]
        second = torch.tensor(others, device=base.device).T[:, surface.slot]
        value = textured(pattern.texture, surface, pattern.scale)
        base = torch.lerp(base, second, torch.where(thing, pattern.amount * (0.5 + 0.5 * value), 0.0))
    if material.cover:
        up = torch.sigmoid((surface.normal[1] - 0.15) * 9)
        base = torch.lerp(base, tint(material.covering, base).expand_as(base), up * thing * material.cover)
    value = 0.5 + 0.5 * textured(style.ground.texture, surface, style.ground.scale)
    base = torch.lerp(base, tint(style.ground.second, base).expand_as(base), torch.where(ground, value, 0.0))
    if style.ground.glow:
        glow = torch.where(ground, style.ground.glow * value, glow)
    return base * tint(style.tinge, base), glow


def contrast(first: Colour, second: Colour) -> Colour:
    """The second colour of a pattern, kept apart from the first in brightness: bold colours go with light ones."""
    if sum(first) > 1.6 and max(first) - min(first) < 0.4:
        darkest = min(second)
        x, y, z = (0.62 * value - 0.12 * darkest for value in second)
        return x, y, z
    return mix(second, (1.0, 1.0, 0.97), 0.6)


def lit(style: Style, surface: Surface, shaded: Bool[Tensor, "f h w"]) -> tuple[Planes, Plane]:
    """Light that falls on surfaces, and the direct part alone."""
    material, light, medium = style.material, style.light, style.medium
    normal = surface.outward
    facing = (normal * tint(sun(style.sky), normal)).sum(dim=0)
    wrap = 0.5 * material.soft
    direct = ((facing + wrap) / (1 + wrap)).clamp(min=0) * (1 - shaded.float() * (1 - 0.3 * material.soft))
    if medium.toon:
        steps = 0.12 + 0.45 * torch.sigmoid((direct - 0.15) * 30) + 0.43 * torch.sigmoid((direct - 0.6) * 30)
        direct = torch.lerp(direct, steps, medium.toon)
    hemisphere = 0.68 + 0.32 * normal[1]
    openness = torch.lerp(surface.openness, torch.ones_like(direct), 0.7 * medium.toon)
    fill = light.fill * hemisphere * openness
    total = direct * light.sun * tint(style.sky.sun_colour, normal) + fill * tint(style.sky.ambient, normal)
    total = total * tint(light.tint, normal)
    return torch.lerp(total, torch.full_like(total, 0.85), medium.flat), direct


def reflections(style: Style, surface: Surface, colours: Planes, direct: Plane) -> Planes:
    """Highlights, mirrors, clear bodies and rims of solids; water and polish of the ground."""
    material, view = style.material, surface.view
    normal = surface.outward
    cosine = (normal * view).sum(dim=0)
    mirrored = view - 2 * cosine * normal
    grazing = (1 + cosine).clamp(0, 1) ** 3
    thing = (surface.slot < PAINT_SLOTS).float() * (~surface.sky)
    ground = surface.ground.float()

    def surroundings(direction: Planes) -> Planes:
        above = (direction[1] * 8).clamp(-1, 1) * 0.5 + 0.5
        floor = tint(mix(style.ground.first, style.ground.second, 0.4), view) * (
            0.45 + 0.4 * (1 + direction[1].clamp(-1, 0))
        )
        lamp = ((direction * tint(sun(style.sky), view)).sum(dim=0).clamp(min=0)) ** 12
        return torch.lerp(floor, sky_colour(style, direction, details=False) * 1.1, above) + lamp * 0.8 * tint(
            style.sky.sun_colour, view
        )

    base = colours
    if material.clear:
        through = surroundings(view - 0.5 * cosine * normal)
        stained = through * (0.35 + 0.65 * base)
        colours = torch.lerp(colours, stained, thing * material.clear * (1 - 0.5 * grazing))
    if material.mirror:
        strength = thing * (material.mirror + (1 - material.mirror) * grazing * 0.5)
        metal = torch.lerp(
            torch.ones_like(base), palette_planes(style, surface), 0.75 if material.mirror > 0.3 else 0.0
        )
        colours = torch.lerp(colours, surroundings(mirrored) * metal * (0.45 + 0.55 * surface.openness), strength)
    if style.ground.mirror:
        colours = torch.lerp(
            colours,
            sky_colour(style, mirrored, details=False),
            ground * style.ground.mirror * (0.35 + 0.65 * grazing),
        )
    if material.gloss:
        glint = (mirrored * tint(sun(style.sky), view)).sum(dim=0).clamp(min=0) ** (material.sharpness / 2.5)
        colours = colours + material.gloss * thing * glint * (direct > 0.02) * style.light.sun * tint(
            style.sky.sun_colour, view
        )
    rim = material.rim + style.light.rim
    if rim:
        colours = colours + rim * thing * grazing * (0.5 * base + 0.35 * tint(sky_colours(style)[1], view))
    return colours


def palette_planes(style: Style, surface: Surface) -> Planes:
    """The flat colour of every pixel's slot."""
    return torch.tensor(palette_of(style), device=surface.normal.device).T[:, surface.slot]


def fogged(style: Style, surface: Surface, colours: Planes) -> Planes:
    """Fog, and the horizon that swallows the far ground; sky where there is nothing."""
    reach = surface.distance / surface.nearness
    hidden = 1 - torch.exp(-style.weather.fog * (reach - 0.6).clamp(min=0))
    far = ((reach - 3) / 9).clamp(0, 1)
    hidden = torch.maximum(hidden, far * far * (3 - 2 * far))
    hidden = torch.where(surface.sky, 1.0, hidden)
    sky = sky_colour(style, surface.view, details=True)
    plain = torch.where(surface.sky, sky, tint(sky_colours(style)[1], sky))
    return torch.lerp(colours, plain, hidden)


def sketch(surface: Surface, colours: Planes, direct: Plane) -> Planes:
    """What a hand would put on paper: forms, shadows and hints of colour, nothing of the sky."""
    bright = colours.mean(dim=0)
    light = 0.22 + 0.5 * direct.clamp(max=1) + 0.3 * surface.openness
    form = (0.5 + 0.5 * bright) * light
    floor = (0.45 + 0.65 * direct.clamp(max=0.85)) * (0.4 + 0.6 * surface.openness)
    far = ((surface.distance / surface.nearness - 1.2) / 2.5).clamp(0, 1)
    floor = torch.lerp(floor, torch.ones_like(floor), far)
    tone = torch.where(surface.slot < PAINT_SLOTS, form, floor)
    return torch.where(surface.sky, 1.0, tone).expand_as(colours)


def shade(
    surface: Surface, style: Style, shaded: Bool[Tensor, "f h w"], *, supersample: int
) -> Float[Tensor, "f 3 _ _"]:
    """One clip in one style, 0..1, at the final size."""
    colours, glow = albedo(style, surface)
    light, direct = lit(style, surface, shaded)
    picture = reflections(style, surface, colours * light, direct)
    thing = (surface.slot < PAINT_SLOTS).float()
    if style.material.glow:
        # Glow is strongest at the silhouette, so that glowing bodies keep their form.
        grazing = 1 + (surface.view * surface.outward).sum(dim=0)
        picture = picture + colours * (style.material.glow * thing * (0.35 + grazing.clamp(0, 1)))
    if style.material.molten or style.ground.glow:
        hot = torch.where(surface.ground, tint(style.ground.second, picture), tint(style.material.accent, picture))
        picture = picture + glow * hot * 0.9
    picture = sketch(surface, colours, direct) if style.medium.drawing else fogged(style, surface, picture)
    picture = pooled(rearrange(picture, "c f h w -> f c h w").clamp(0, 1.6), supersample)
    lines, near, things = (torch.zeros_like(picture[:, :1]) for _ in range(3))
    if style.medium.outline:
        lines = edges(surface, supersample=supersample)
    if style.medium.layers or style.medium.silhouette or style.medium.heat:
        near = nearness(surface, supersample)
        things = pooled(rearrange(thing * ~surface.sky, "f h w -> f 1 h w"), supersample)
    bloom = 0.6 if style.material.glow > 0.3 or style.material.molten or style.ground.glow else 0.0
    return finish(picture, lines, near, things, style.medium, bloom=bloom)


def pooled(picture: Float[Tensor, "f c _ _"], supersample: int) -> Float[Tensor, "f c _ _"]:
    """Means of the samples of each pixel."""
    return F.avg_pool2d(picture, supersample) if supersample > 1 else picture


def nearness(surface: Surface, supersample: int) -> Float[Tensor, "f 1 _ _"]:
    """Inverse z-depth of one clip, scaled to 0..1 over all its frames; 1 is near, sky is infinitely far."""
    inverse = torch.where(surface.distance < FAR, 1 / surface.distance, 0.0)
    inverse = pooled(rearrange(inverse, "f h w -> f 1 h w"), supersample)
    return (inverse - inverse.amin()) / (inverse.amax() - inverse.amin()).clamp(min=1e-6)
