"""What styles are put together from: palettes, materials, patterns, lights, skies, grounds, weathers, media.

Every part carries the words a caption may use for it, and the numbers the shading uses. Colours are display
values 0..1.
"""

from dataclasses import dataclass

Colour = tuple[float, float, float]
Words = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Palette:
    """Six colours for solids by shape and size."""

    words: Words
    colours: tuple[Colour, ...]


@dataclass(frozen=True, kw_only=True)
class Material:
    """How surfaces answer light; ``own`` colours, where there are any, win over most of the palette."""

    words: Words
    own: tuple[Colour, ...] = ()
    texture: str = "plain"
    scale: float = 3.0
    amount: float = 0.0
    accent: Colour = (0.0, 0.0, 0.0)
    gloss: float = 0.1
    sharpness: float = 20.0
    mirror: float = 0.0
    clear: float = 0.0
    rim: float = 0.0
    glow: float = 0.0
    soft: float = 0.0
    molten: float = 0.0
    """Light that comes out of the texture."""
    cover: float = 0.0
    """How much of what looks up is covered, with ``covering``."""
    covering: Colour = (1.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """A two-coloured texture over the palette."""

    words: Words
    texture: str = "plain"
    scale: float = 3.0
    amount: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Light:
    """Strength, colour and softness of the light, over what the sky gives."""

    words: Words
    sun: float = 1.0
    fill: float = 1.0
    tint: Colour = (1.0, 1.0, 1.0)
    rim: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Sky:
    """Backdrop, and the direction (right, up, towards the camera) and colour of its light."""

    words: Words
    top: Colour
    horizon: Colour
    sun: tuple[float, float, float]
    sun_colour: Colour
    ambient: Colour
    stars: float = 0.0
    clouds: float = 0.0
    disc: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Two colours of the ground and the texture that mixes them."""

    words: Words
    first: Colour
    second: Colour
    texture: str = "noise"
    scale: float = 1.0
    mirror: float = 0.0
    glow: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Weather:
    """Fog: its density per distance to the subject, and its colour where it has one of its own."""

    words: Words
    fog: float
    tint: Colour = (0.0, 0.0, 0.0)
    tinted: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Medium:
    """What the picture is made with: effects on the screen after shading."""

    words: Words
    toon: float = 0.0
    flat: float = 0.0
    outline: float = 0.0
    ink: Colour = (0.05, 0.05, 0.08)
    paper: Colour = (1.0, 1.0, 1.0)
    drawing: float = 0.0
    """How much paper and ink replace the colours."""
    tone: float = 0.5
    """How much of the light and dark remains where paper replaces colour."""
    hatching: float = 0.0
    grain: float = 0.0
    wobble: float = 0.0
    wash: float = 0.0
    grey: float = 0.0
    saturation: float = 1.0
    lattice: float = 0.0
    carved: float = 0.0
    """Bold parallel strokes whose width follows the dark."""
    ramp: tuple[Colour, ...] = ()
    """Colours that replace those of the picture by its brightness, or by depth where there are ``layers``."""
    layers: int = 0
    """Bands of depth, from far to near."""
    contours: float = 0.0
    """Lines between the bands of depth."""
    silhouette: float = 0.0
    """Solids in ink before paper."""
    heat: float = 0.0
    """Nearness adds to brightness."""
    negative: float = 0.0
    mosaic: float = 0.0
    """Square blocks, 16 in the height of the picture."""
    halftone: float = 0.0
    scan: float = 0.0
    leaded: float = 0.0
    """A net of ink lines fixed to the screen."""
    vignette: float = 0.0


def rgb(code: str) -> Colour:
    """A colour from six hexadecimal digits."""
    return int(code[:2], 16) / 255, int(code[2:4], 16) / 255, int(code[4:], 16) / 255


def shades(codes: str) -> tuple[Colour, ...]:
    """Six colours from words of six digits."""
    return tuple(rgb(code) for code in codes.split())
