"""Styles: named ones, and ones composed at random from parts."""

from dataclasses import dataclass

import torch

from .dice import Dice
from .parts import Colour, Ground, Light, Material, Medium, Palette, Pattern, Sky, Weather
from .substances import MATERIALS, PALETTES, PATTERNS
from .surroundings import GROUNDS, LIGHTS, MEDIA, SKIES, WEATHERS


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
    look: str = "composed"


def preset(name: str, *titles: str, parts: str) -> tuple[str, Style]:
    """A named style from its parts: palette, material, pattern, light, sky, ground, weather, medium."""
    colours, material, pattern, light, sky, ground, weather, medium = parts.split()
    style = Style(
        palette=PALETTES[colours],
        material=MATERIALS[material],
        pattern=PATTERNS[pattern],
        light=LIGHTS[light],
        sky=SKIES[sky],
        ground=GROUNDS[ground],
        weather=WEATHERS[weather],
        medium=MEDIA[medium],
        titles=titles,
        look=name,
    )
    return name, style


PRESETS: dict[str, Style] = dict(
    (
        preset(
            "plastic toys",
            "shiny colorful plastic toys",
            "plastic toys in bright daylight",
            parts="toy plastic plain natural day grass clear photo",
        ),
        preset(
            "clay",
            "soft clay models in a pastel studio",
            "clay animation",
            "pastel clay figures",
            parts="pastel clay plain soft studio white clear photo",
        ),
        preset(
            "marble",
            "white marble statues",
            "sculptures of polished marble",
            parts="white marble plain natural cloudy marble clear photo",
        ),
        preset(
            "chrome",
            "shiny chrome metal",
            "liquid chrome",
            "polished steel sculptures",
            parts="grey chrome plain natural cloudy tiles clear photo",
        ),
        preset(
            "neon night",
            "neon glowing shapes at night",
            "cyberpunk neon",
            "glowing neon city at night",
            parts="electric neon plain natural night grid clear photo",
        ),
        preset(
            "lava",
            "black volcanic rock with glowing orange lava",
            "molten lava",
            "a volcano with lava",
            parts="red lava plain natural red dark haze photo",
        ),
        preset(
            "winter",
            "snow and ice on a cold winter day",
            "a snowy winter day",
            "covered in snow",
            parts="white snow plain natural cloudy snow haze photo",
        ),
        preset(
            "watercolor",
            "a soft watercolor painting",
            "watercolour on paper",
            parts="pastel paper plain bright dawn white clear watercolor",
        ),
        preset(
            "pencil sketch",
            "a pencil sketch on white paper",
            "a hand drawn pencil sketch",
            parts="grey paper plain natural studio white clear pencil",
        ),
        preset(
            "blueprint",
            "a white line blueprint on blue paper",
            "a technical blueprint",
            parts="blue paper plain natural studio white clear blueprint",
        ),
        preset(
            "comic",
            "a comic book drawing with bold outlines",
            "a colorful cartoon",
            "comic book style",
            parts="toy plastic plain natural turquoise sand clear comic",
        ),
        preset(
            "wood",
            "carved wooden toys in warm light",
            "made of carved wood",
            "wooden blocks",
            parts="brown wood plain warm studio planks clear photo",
        ),
        preset(
            "gold",
            "shining gold statues",
            "made of pure gold",
            "a golden treasure",
            parts="yellow gold plain bright golden dark clear photo",
        ),
        preset(
            "moss",
            "overgrown with green moss in a misty forest",
            "mossy ruins",
            parts="jungle moss plain soft overcast grass fog photo",
        ),
        preset(
            "desert",
            "sandstone in a golden desert at sunset",
            "desert ruins at dusk",
            parts="autumn sandstone plain natural sunset sand haze photo",
        ),
        preset(
            "underwater",
            "underwater in turquoise light",
            "a coral reef under the sea",
            parts="toy plastic dotted natural turquoise sand underwater photo",
        ),
        preset(
            "autumn",
            "an autumn day with orange leaves and fog",
            "autumn leaves",
            parts="autumn paper camouflage natural overcast leaves fog photo",
        ),
        preset(
            "candy",
            "pink candy and striped sweets",
            "a candy world",
            "made of candy",
            parts="candy plastic striped bright dawn pink clear photo",
        ),
        preset(
            "ice",
            "blue ice under northern lights",
            "frozen in blue ice",
            parts="cold ice plain natural aurora snow haze photo",
        ),
        preset(
            "chalk",
            "a white chalk drawing on a blackboard",
            "chalk on a blackboard",
            parts="white paper plain natural studio white clear chalk",
        ),
        preset(
            "oil painting",
            "an oil painting in warm colors",
            "an impressionist painting",
            parts="warm paper plain warm golden grass haze oil",
        ),
        preset(
            "old film",
            "an old black and white film",
            "a silent film",
            parts="chess rubber plain dramatic overcast concrete haze grey",
        ),
        preset(
            "glass",
            "colored glass on a chess board",
            "made of glass",
            parts="toy glass plain bright studio tiles clear photo",
        ),
        preset(
            "brick",
            "red brick buildings on a cloudy day",
            "built of red bricks",
            parts="red brick plain natural cloudy concrete clear photo",
        ),
    )
)


def random_style(generator: torch.Generator) -> Style:
    """A style of parts drawn one by one; follows from the generator's state."""
    dice = Dice(generator=generator)
    tinge = tuple(dice.uniform(0.93, 1.07) for _ in range(3))
    return Style(
        palette=dice.pick(tuple(PALETTES.values())),
        material=dice.pick(tuple(MATERIALS.values())),
        pattern=dice.pick(tuple(PATTERNS.values())) if dice.chance(0.35) else PATTERNS["plain"],
        light=dice.pick(tuple(LIGHTS.values())) if dice.chance(0.55) else LIGHTS["natural"],
        sky=dice.pick(tuple(SKIES.values())),
        ground=dice.pick(tuple(GROUNDS.values())),
        weather=dice.pick(tuple(WEATHERS.values())) if dice.chance(0.4) else WEATHERS["clear"],
        medium=dice.pick(tuple(MEDIA.values())) if dice.chance(0.35) else MEDIA["photo"],
        tinge=(tinge[0], tinge[1], tinge[2]),
    )
