"""Styles composed at random, and which styles training never shows."""

from zlib import crc32

import torch

from .dice import Dice
from .looks import Style
from .media import MEDIA
from .presets import PRESETS
from .substances import MATERIALS, PALETTES, PATTERNS
from .surroundings import GROUNDS, LIGHTS, SKIES, WEATHERS

HELD_OUT_COMBINATIONS = 8
"""One of so many combinations of palette, material and sky is never trained."""

HELD_OUT_PAIRS = 10
"""One of so many pairs of a named style and a family is never trained."""

Combination = tuple[str, str, str]


def combination(style: Style) -> Combination:
    """The parts that decide whether a composed style is held out, each by its first name."""
    return style.palette.words[0], style.material.words[0], style.sky.words[0]


NAMED_COMBINATIONS = frozenset(combination(style) for style in PRESETS.values())


def is_held_out(style: Style) -> bool:
    """Whether training never shows this composed style: by the checksum of its palette, material and sky.

    Named styles are trained, and with them their combinations.
    """
    key = combination(style)
    return key not in NAMED_COMBINATIONS and crc32("|".join(key).encode()) % HELD_OUT_COMBINATIONS == 0


def is_held_out_pair(look: str, family: str) -> bool:
    """Whether training never shows this named style on this family."""
    return crc32(f"{look}|{family}".encode()) % HELD_OUT_PAIRS == 0


def random_style(generator: torch.Generator, *, held_out: bool = False) -> Style:
    """A style of parts drawn one by one; all draws are held out, or none; follows from the generator's state."""
    dice = Dice(generator=generator)
    while True:
        style = composed(dice)
        if is_held_out(style) == held_out:
            return style


def named_style(family: str, generator: torch.Generator, *, held_out: bool = False) -> Style:
    """A named style that training shows on this family, or one that it never shows there."""
    looks = [style for name, style in PRESETS.items() if is_held_out_pair(name, family) == held_out]
    return Dice(generator=generator).pick(looks)


def composed(dice: Dice) -> Style:
    """Parts drawn independently of each other."""
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
