"""Families of nature: plants that sway, waves with a boat, birds or fish."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from .build import Arrangement, link, moved, path, put, turn
from .dice import Dice
from .geometry import Solid

Time = Float[Tensor, " f"]


def plants(dice: Dice, time: Time) -> Arrangement:
    """Flowers or leafy shoots in pots, swaying in the wind."""
    subject: list[Solid] = []
    wind, pace = dice.uniform(0.1, 0.35), dice.uniform(4, 8)
    count = dice.integer(2, 3)
    flowers = dice.chance(0.6)
    for number in range(count):
        x, z = 1.25 * (number - (count - 1) / 2) + dice.uniform(-0.1, 0.1), dice.uniform(-0.35, 0.35)
        width, tall = dice.uniform(0.26, 0.36), dice.uniform(0.22, 0.36)
        subject.append(put("cylinder", path(x, tall, z, time=time), (width, tall, width)))
        subject.append(put("cylinder", path(x, 2 * tall, z, time=time), (width * 1.2, 0.06, width * 1.2)))
        lean = wind * torch.sin(pace * time + number + dice.uniform(0, 1)) + dice.uniform(-0.2, 0.2)
        stem = dice.uniform(0.9, 1.5)
        foot = path(x, 2 * tall, z, time=time)
        top = foot + path(torch.sin(lean), torch.cos(lean), 0, time=time) * stem
        subject.append(link("cylinder", foot, top, 0.05))
        if flowers:
            subject += flower(dice, top, lean, time)
        subject += leaves(foot, top, 3 if flowers else 6, lean, dice.uniform(0.3, 0.42))
    return Arrangement(subject=subject, backdrop=[], pitch=(2, 35), yaw=(-40, 40), swing=35, fill=(0.95, 1.3))


def flower(dice: Dice, top: Float[Tensor, "f 3"], lean: Float[Tensor, " f"], time: Time) -> list[Solid]:
    """A disc with petals around it that looks up and forwards."""
    petals, reach = dice.integer(5, 6), dice.uniform(0.24, 0.3)
    solids = [put("ellipsoid", path(0, 0, 0, time=time), (0.15, 0.15, 0.12))]
    for number in range(petals):
        angle = 2 * math.pi * number / petals
        centre = path(reach * math.cos(angle), reach * math.sin(angle), 0, time=time)
        solids.append(put("ellipsoid", centre, (0.17, 0.11, 0.05), roll=angle))
    return moved(solids, yaw=lean, by=top)


def leaves(
    foot: Float[Tensor, "f 3"], top: Float[Tensor, "f 3"], count: int, lean: Float[Tensor, " f"], length: float
) -> list[Solid]:
    """Long leaves to both sides of a stem, lower ones longer."""
    solids = []
    for number in range(count):
        side = 1 - 2 * (number % 2)
        height = 0.2 + 0.75 * number / count
        size = length * (1.2 - 0.5 * height)
        angle = side * (0.6 + 0.25 * torch.sin(3 * lean + number))
        root = foot + (top - foot) * height
        middle = root + path(side * size * torch.cos(angle), size * torch.sin(angle.abs()), 0, time=lean)
        solids.append(put("ellipsoid", middle, (size, 0.09, 0.2), roll=angle, yaw=0.0))
    return solids


def sea(dice: Dice, time: Time) -> Arrangement:
    """Waves that roll towards the camera, and a sailing boat on them."""
    swell, pace, apart = dice.uniform(0.16, 0.36), dice.uniform(0.5, 1.6), 1.3
    waves = []
    shift = dice.uniform(0, apart)
    for number in range(9):
        z = -7.5 + apart * number + shift + pace * time
        crest = swell * (0.75 + 0.25 * torch.sin(2.3 * number + 3 * time))
        x = 1.2 * math.sin(1.9 * number)
        waves.append(put("ellipsoid", path(x, crest - 0.55, z, time=time), (7.0, 0.6, 0.62), earth=True))
    beat = 2 * math.pi * (pace * time + shift) / apart
    bob, rock = 0.5 * swell * torch.sin(beat), 0.35 * swell * torch.sin(beat + 1.2)
    hull = dice.uniform(0.75, 1.0)
    boat = [
        put("box", path(0, 0.24, 0, time=time), (hull * 0.8, 0.2, 0.32)),
        put("cone", path(hull * 1.05, 0.24, 0, time=time), (0.26, 0.3 * hull, 0.26), roll=-math.pi / 2),
    ]
    mast = dice.uniform(0.8, 1.1)
    if dice.chance(0.65):
        boat.append(put("cylinder", path(0, 0.4 + mast, 0, time=time), (0.05, mast, 0.05)))
        boat.append(put("cone", path(-0.06, 0.5 + mast, 0, time=time), (0.62 * hull, mast * 0.85, 0.07)))
    else:
        boat.append(put("box", path(-0.15, 0.66, 0, time=time), (0.42 * hull, 0.24, 0.26)))
        boat.append(put("cylinder", path(-0.2, 1.15, 0, time=time), (0.14, 0.3, 0.14)))
    drift = dice.uniform(-0.8, 0.8)
    rolled = [rocked(solid, rock) for solid in boat]
    subject = moved(rolled, yaw=dice.uniform(-0.5, 0.5), by=path(drift * (time - 0.5), 0.12 + bob, 0, time=time))
    return Arrangement(subject=subject, backdrop=waves, pitch=(7, 26), yaw=(-20, 20), swing=15, fill=(0.5, 0.8))


def rocked(solid: Solid, roll: Float[Tensor, " f"]) -> Solid:
    """A solid turned about the z axis through the origin."""
    rotation = turn(time=roll, roll=roll)
    return Solid(
        kind=solid.kind,
        centre=(rotation @ solid.centre[..., None])[..., 0],
        size=solid.size,
        turn=rotation @ solid.turn,
    )


def flock(dice: Dice, time: Time) -> Arrangement:
    """Birds with beating wings, or fish that wag their tails, all of one kind and one way."""
    bird, count = dice.chance(0.55), dice.integer(3, 4)
    heading = dice.uniform(-0.5, 0.5) + math.pi * dice.chance(0.5)
    subject: list[Solid] = []
    for number in range(count):
        beat = dice.uniform(7, 11) * time + dice.uniform(0, 6)
        scale = dice.uniform(0.75, 1.05)
        animal = flying(beat, scale, time) if bird else swimming(beat, 1.3 * scale, time)
        row, side = (number + 1) // 2, 1 - 2 * (number % 2)
        away = path(
            0.9 * (time - 0.5) - 0.6 * row,
            2.6 + 0.42 * side * row + 0.12 * torch.sin(4 * time + number),
            0.7 * side * row + dice.uniform(-0.2, 0.2),
            time=time,
        )
        subject += moved(moved(animal, yaw=0.0, by=away), yaw=heading, by=path(0, 0, 0, time=time))
    return Arrangement(subject=subject, backdrop=[], ground=False, pitch=(-30, 45), yaw=(-40, 40), fill=(1.1, 1.6))


def flying(beat: Float[Tensor, " f"], scale: float, time: Time) -> list[Solid]:
    """A bird that flies along x."""
    solids = [
        put("ellipsoid", path(0, 0, 0, time=time), (0.45 * scale, 0.17 * scale, 0.17 * scale)),
        put("ellipsoid", path(0.45 * scale, 0.08 * scale, 0, time=time), (0.15 * scale,) * 3),
        put(
            "cone",
            path(0.66 * scale, 0.06 * scale, 0, time=time),
            (0.06 * scale, 0.12 * scale, 0.06 * scale),
            roll=-math.pi / 2,
        ),
        put("ellipsoid", path(-0.52 * scale, 0, 0, time=time), (0.24 * scale, 0.04 * scale, 0.14 * scale)),
    ]
    for side in (-1, 1):
        lift = side * 0.7 * torch.sin(beat)
        centre = path(0.02, 0.5 * scale * torch.sin(lift) * side, 0.55 * scale * side * torch.cos(lift), time=time)
        solids.append(put("ellipsoid", centre, (0.24 * scale, 0.05 * scale, 0.52 * scale), pitch=-lift))
    return solids


def swimming(beat: Float[Tensor, " f"], scale: float, time: Time) -> list[Solid]:
    """A fish that swims along x."""
    wag = 0.45 * torch.sin(beat)
    tail = path(-0.62 * scale * torch.cos(wag), 0, -0.62 * scale * torch.sin(wag), time=time)
    return [
        put("ellipsoid", path(0, 0, 0, time=time), (0.55 * scale, 0.32 * scale, 0.16 * scale)),
        put(
            "cone",
            tail,
            (0.28 * scale, 0.26 * scale, 0.06 * scale),
            yaw=-wag,
            roll=-math.pi / 2,
        ),
        put("cone", path(-0.02, 0.36 * scale, 0, time=time), (0.22 * scale, 0.14 * scale, 0.04 * scale)),
        put("ellipsoid", path(0.36 * scale, 0.08 * scale, 0.13 * scale, time=time), (0.06 * scale,) * 3),
        put("ellipsoid", path(0.36 * scale, 0.08 * scale, -0.13 * scale, time=time), (0.06 * scale,) * 3),
    ]
