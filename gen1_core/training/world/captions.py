"""Captions of styles, with or without the family of the scene, and every word they may use."""

import re
from collections.abc import Sequence

import torch

from .dice import Dice
from .looks import Style
from .media import MEDIA, PHOTO
from .presets import PRESETS
from .scenes import TRAINED_FAMILIES
from .substances import MATERIALS, PALETTES, PATTERNS
from .surroundings import GROUNDS, LIGHTS, SKIES, WEATHERS

NOUNS = {
    "balls": ("balls", "bouncing balls", "spheres", "some balls"),
    "castle": ("a house with towers", "buildings", "a palace with towers"),
    "totem": ("a stack of shapes", "a stack of stones", "falling blocks"),
    "car": ("a car", "a car driving", "a vehicle", "a car on a road"),
    "forest": ("a forest", "trees", "a group of trees", "woods"),
    "city": ("a city", "buildings", "houses in a city", "towers of a city"),
    "walker": ("a person walking", "a walking man", "a woman walking", "a person", "a walking robot"),
    "animal": ("an animal", "a dog", "a horse", "an animal walking", "a creature"),
    "portrait": ("a face", "a portrait", "the head of a man", "a woman", "a person"),
    "tumbling": ("falling shapes", "tumbling blocks", "objects falling", "falling stones"),
    "room": ("a room", "a hall with furniture", "a living room", "furniture in a room", "a table and chairs"),
    "books": ("books", "books on a table", "a pile of books", "a stack of books"),
    "still_life": ("a bottle and fruit", "a still life", "a bottle and a cup on a table", "fruit on a table"),
    "planets": ("planets", "a planet with rings", "planets in space", "a planet and moons"),
    "hills": ("hills", "mountains", "a landscape", "a house in the hills"),
    "abstract": ("abstract shapes", "moving columns", "a pattern of shapes"),
    "corridor": ("columns", "a hall of columns", "moving columns"),
    "plants": ("plants", "flowers in pots", "a plant with leaves", "house plants"),
    "sea": ("a boat on waves", "the sea with a boat", "waves", "a ship on the water"),
    "flock": ("birds", "flying birds", "fish", "a group of birds", "swimming fish"),
}
"""What a scene of each family is called; families that are held out are called by words of the others."""

NAMELESS = ("a scene", "things", "shapes", "objects", "everything", "a world")
"""What a scene is called when its family is not named."""

GLUE = ("made of", "style", "in the style of", "a video of", "with")


def known_words() -> frozenset[str]:
    """Every lower-case word a training caption can hold."""
    texts = [*GLUE, *NAMELESS]
    texts += [noun for family in TRAINED_FAMILIES for noun in NOUNS[family]]
    texts += [title for style in PRESETS.values() for title in style.titles]
    for table in (PALETTES, MATERIALS, PATTERNS, LIGHTS, SKIES, GROUNDS, WEATHERS, MEDIA):
        texts += [text for part in table.values() for text in part.words]
    return frozenset(re.findall(r"[a-z]+", " ".join(texts)))


def caption(style: Style, family: str | None, generator: torch.Generator, *, paraphrase: bool = False) -> str:
    """Describes a style, and in about half of the draws the scene; follows from the generator's state.

    A scene without a family, a real clip, is never named. With ``paraphrase`` a named style is described in words that
    training never shows together.
    """
    dice = Dice(generator=generator)
    named = dice.chance(0.5)
    noun = dice.pick(NOUNS[family]) if named and family else ""
    titles = style.paraphrases if paraphrase else style.titles
    return titled(titles, noun, dice) if titles else composed(style, noun, dice)


def titled(titles: Sequence[str], noun: str, dice: Dice) -> str:
    """A caption of a named style from one of its descriptions."""
    title = dice.pick(titles)
    prefix = dice.pick(("", "", "", "a video of ", "a photo of ", "a picture of "))
    if not noun:
        return prefix + title
    return prefix + dice.pick((f"{noun} in the style of {title}", f"{noun} {title}", f"{title} with {noun}"))


def composed(style: Style, noun: str, dice: Dice) -> str:
    """A caption from the parts of a style; some are left out."""
    subject = noun or dice.pick(NAMELESS)
    thing = substance(style, subject, dice)
    places = [
        (style.ground.words, 0.6),
        (style.sky.words, 0.85),
        (style.light.words, 0.8),
        (style.weather.words, 0.9),
    ]
    said = [dice.pick(words) for words, keep in places if words and dice.chance(keep)]
    always = style.medium != PHOTO
    prefix = dice.pick(style.medium.words) if always or dice.chance(0.4) else ""
    return joined(prefix, thing, *said)


def substance(style: Style, subject: str, dice: Dice) -> str:
    """The subject with its colour, pattern and material."""
    colour = dice.pick(style.palette.words) if dice.chance(0.35 if style.material.own else 0.9) else ""
    material = dice.pick(style.material.words) if dice.chance(0.9) else ""
    pattern = dice.pick(style.pattern.words) if style.pattern.words else ""
    trailing = pattern.startswith("with ")
    look = joined("" if trailing else pattern, colour, material)
    thing = f"{subject} made of {look}" if material else qualified(look, subject)
    return joined(thing, pattern if trailing else "")


def joined(*texts: str) -> str:
    """The texts that are not empty, with spaces between."""
    return " ".join(text for text in texts if text)


def qualified(adjectives: str, subject: str) -> str:
    """Adjectives between the article and the rest: "a castle" becomes "an orange castle"."""
    article, _, rest = subject.partition(" ")
    if article not in ("a", "an", "the", "some") or not rest:
        return joined(adjectives, subject)
    text = joined(adjectives, rest)
    if article in ("a", "an"):
        article = "an" if text[0] in "aeiou" else "a"
    return f"{article} {text}"
