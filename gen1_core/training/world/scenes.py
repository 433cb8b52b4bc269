"""Families of scenes and how one is drawn from a seed."""

import torch

from .build import frame_up
from .dice import Dice
from .geometry import Scene
from .nature import flock, plants, sea
from .objects import animal, balls, car, planets, portrait, totem, tumbling, walker
from .places import abstract, books, castle, city, corridor, forest, hills, room, still_life

BUILDERS = {
    "balls": balls,
    "castle": castle,
    "totem": totem,
    "car": car,
    "forest": forest,
    "city": city,
    "walker": walker,
    "animal": animal,
    "portrait": portrait,
    "tumbling": tumbling,
    "room": room,
    "books": books,
    "still_life": still_life,
    "planets": planets,
    "hills": hills,
    "abstract": abstract,
    "corridor": corridor,
    "plants": plants,
    "sea": sea,
    "flock": flock,
}

FAMILIES = tuple(BUILDERS)

HELD_OUT_FAMILIES = ("castle", "totem", "corridor")
"""Families that training never shows: what is in them, others have, but not so arranged."""

TRAINED_FAMILIES = tuple(family for family in FAMILIES if family not in HELD_OUT_FAMILIES)


def random_scene(family: str, generator: torch.Generator, *, frames: int) -> Scene:
    """A scene of a family: its solids, their motion and a camera; follows from the generator's state."""
    if family not in BUILDERS:
        raise ValueError(f"family={family!r} is not a family of scenes; choose one of {', '.join(FAMILIES)}.")
    if frames < 1:
        raise ValueError(f"frames={frames} leaves nothing to render; ask for at least 1.")
    dice = Dice(generator=generator)
    time = torch.linspace(0, 1, frames, dtype=torch.float64)
    arrangement = BUILDERS[family](dice, time)
    return Scene(
        family=family,
        solids=tuple(arrangement.subject + arrangement.backdrop),
        camera=frame_up(arrangement, dice, time),
        ground=arrangement.ground,
    )
