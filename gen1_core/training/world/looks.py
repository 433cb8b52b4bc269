"""A style: one of each part, and what it is called."""

from dataclasses import dataclass

from .media import MEDIA
from .parts import Colour, Ground, Light, Material, Medium, Palette, Pattern, Sky, Weather
from .substances import MATERIALS, PATTERNS
from .surroundings import GROUNDS, LIGHTS, SKIES, WEATHERS


@dataclass(frozen=True, kw_only=True)
class Style:
    """A look: what shows of it is predictable from the style and a depth map."""

    palette: Palette
    material: Material = MATERIALS["plastic"]
    pattern: Pattern = PATTERNS["plain"]
    light: Light = LIGHTS["natural"]
    sky: Sky = SKIES["day"]
    ground: Ground = GROUNDS["grass"]
    weather: Weather = WEATHERS["clear"]
    medium: Medium = MEDIA["photo"]
    tinge: Colour = (1.0, 1.0, 1.0)
    """A slight cast over all colours, drawn for variety."""
    titles: tuple[str, ...] = ()
    """Whole descriptions of a named style; a composed one is described by its parts."""
    paraphrases: tuple[str, ...] = ()
    """Descriptions that no training caption holds."""
    look: str = "composed"
