"""Families of places: buildings, landscapes, interiors, tables."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from .build import Arrangement, path, put
from .dice import Dice
from .geometry import Kind, Solid
from .objects import tree

Time = Float[Tensor, " f"]


def castle(dice: Dice, time: Time) -> Arrangement:
    """A keep between corner towers with pointed roofs."""
    width, height, depth = dice.uniform(0.9, 1.3), dice.uniform(0.5, 0.9), dice.uniform(0.7, 1.2)
    subject = [put("box", path(0, height, 0, time=time), (width, height, depth))]
    for x, z in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        tall, radius = height * dice.uniform(1.1, 1.6), dice.uniform(0.26, 0.4)
        subject.append(put("cylinder", path(x * width, tall, z * depth, time=time), (radius, tall, radius)))
        roof = dice.uniform(0.3, 0.5)
        subject.append(
            put(
                "cone",
                path(x * width, 2 * tall + roof, z * depth, time=time),
                (radius * 1.25, roof, radius * 1.25),
            )
        )
    if dice.chance(0.7):
        keep = dice.uniform(0.35, 0.7)
        subject.append(put("box", path(0, 2 * height + keep, 0, time=time), (0.45, keep, 0.45)))
        subject.append(put("cone", path(0, 2 * height + 2 * keep + 0.35, 0, time=time), (0.62, 0.36, 0.62)))
    subject.append(put("box", path(0, 0.35, depth, time=time), (0.22, 0.35, 0.06)))
    return Arrangement(subject=subject, backdrop=[], pitch=(2, 45), yaw=(-50, 50))


def forest(dice: Dice, time: Time) -> Arrangement:
    """Trees."""
    subject: list[Solid] = []
    for number in range(dice.integer(4, 6)):
        angle, away = number * 2.4 + dice.uniform(-0.4, 0.4), 0.5 + 0.42 * number
        subject += tree(dice, away * math.cos(angle), away * math.sin(angle), dice.uniform(0.9, 1.6), time)
    return Arrangement(subject=subject, backdrop=[], pitch=(1, 40), fill=(0.9, 1.35))


def city(dice: Dice, time: Time) -> Arrangement:
    """Blocks of houses and towers along streets."""
    subject = []
    for row in (-1, 0, 1):
        for column in (-1, 0, 1):
            if dice.chance(0.1):
                continue
            tall, width = dice.uniform(0.35, 1.7), dice.uniform(0.32, 0.52)
            x, z = 1.35 * row + dice.uniform(-0.08, 0.08), 1.35 * column + dice.uniform(-0.08, 0.08)
            kind: Kind = "box" if dice.chance(0.85) else "cylinder"
            subject.append(put(kind, path(x, tall, z, time=time), (width, tall, dice.uniform(0.32, 0.52))))
            if dice.chance(0.35):
                subject.append(put("box", path(x, 2 * tall + 0.2, z, time=time), (width * 0.6, 0.2, 0.22)))
    return Arrangement(subject=subject, backdrop=[], pitch=(5, 55), fill=(0.9, 1.4))


def hills(dice: Dice, time: Time) -> Arrangement:
    """Rolling hills and mountains, with a house or trees."""
    subject = []
    for number in range(dice.integer(4, 6)):
        wide, tall = dice.uniform(1.2, 2.4), dice.uniform(0.5, 1.5)
        x, z = -3.4 + 6.8 * (number + dice.uniform(0, 1)) / 6, dice.uniform(-3.2, -0.6)
        if dice.chance(0.3):
            subject.append(put("cone", path(x, tall, z - 1, time=time), (wide * 0.8, tall, wide * 0.8), earth=True))
        else:
            subject.append(put("ellipsoid", path(x, -0.1, z, time=time), (wide, tall, wide), earth=True))
    house, side = dice.uniform(-1.2, 1.2), dice.uniform(0.9, 1.6)
    subject.append(put("box", path(house, 0.28, side, time=time), (0.36, 0.28, 0.3)))
    subject.append(put("cone", path(house, 0.78, side, time=time), (0.56, 0.26, 0.56)))
    subject += tree(dice, house + 1.1 * dice.sign(), side + dice.uniform(-0.4, 0.4), 0.7, time)
    return Arrangement(subject=subject, backdrop=[], pitch=(4, 30), yaw=(-30, 30), swing=25, fill=(1.3, 1.9))


def walls(dice: Dice, time: Time, *, away: float, aside: float) -> list[Solid]:
    """A back wall and a wall on one side."""
    side = dice.sign()
    return [
        put("box", path(0, 3, -away, time=time), (12.0, 6.0, 0.1), wall=True),
        put("box", path(aside * side, 3, 0, time=time), (0.1, 6.0, 12.0), wall=True),
    ]


def room(dice: Dice, time: Time) -> Arrangement:
    """A room: table with chairs, or a sofa, with a lamp, a shelf and a picture."""
    subject = []
    if dice.chance(0.5):
        top = dice.uniform(0.7, 0.85)
        kind: Kind = dice.pick(("box", "cylinder"))
        subject.append(put(kind, path(0, top, 0, time=time), (0.85, 0.05, 0.6 if kind == "box" else 0.85)))
        legs = [(-0.65, -0.42), (0.65, -0.42), (0.65, 0.42), (-0.65, 0.42)]
        subject += [put("cylinder", path(x, top / 2, z, time=time), (0.06, top / 2, 0.06)) for x, z in legs]
        for side in (-1, 1):
            chair = 1.15 * side
            subject.append(put("box", path(chair, 0.42, 0, time=time), (0.26, 0.05, 0.26)))
            subject.append(put("box", path(chair + 0.24 * side, 0.8, 0, time=time), (0.04, 0.42, 0.26)))
            subject.append(put("box", path(chair, 0.2, 0, time=time), (0.05, 0.2, 0.2)))
        subject.append(put("ellipsoid", path(0.1, top + 0.2, 0, time=time), (0.2, 0.16, 0.2)))
    else:
        subject.append(put("box", path(0, 0.3, -0.4, time=time), (1.1, 0.3, 0.45)))
        subject.append(put("box", path(0, 0.75, -0.85, time=time), (1.1, 0.45, 0.16)))
        subject += [put("box", path(1.15 * side, 0.45, -0.4, time=time), (0.16, 0.45, 0.5)) for side in (-1, 1)]
        subject += [put("ellipsoid", path(0.55 * side, 0.75, -0.5, time=time), (0.26, 0.24, 0.16)) for side in (-1, 1)]
        subject.append(put("cylinder", path(0, 0.22, 0.75, time=time), (0.55, 0.05, 0.4)))
        subject.append(put("cylinder", path(0, 0.1, 0.75, time=time), (0.12, 0.1, 0.12)))
    lamp = 1.65 * dice.sign()
    subject.append(put("cylinder", path(lamp, 0.75, -0.9, time=time), (0.05, 0.75, 0.05)))
    subject.append(put("cone", path(lamp, 1.65, -0.9, time=time), (0.32, 0.24, 0.32)))
    if dice.chance(0.4):
        roll = dice.uniform(-1.0, 1.0) + 0.8 * time
        subject.append(put("ellipsoid", path(roll, 0.25, 1.1, time=time), (0.25, 0.25, 0.25), roll=-roll / 0.25))
    backdrop = walls(dice, time, away=1.7, aside=2.6)
    backdrop.append(put("box", path(dice.uniform(-0.5, 0.5), 1.9, -1.58, time=time), (0.6, 0.4, 0.05)))
    return Arrangement(subject=subject, backdrop=backdrop, pitch=(5, 38), yaw=(-28, 28), swing=20, fill=(0.9, 1.3))


def table(dice: Dice, time: Time) -> list[Solid]:
    """A table top that fills the lower part of the picture, and the wall behind it."""
    top = put("box", path(0, -0.1, 0, time=time), (dice.uniform(1.9, 4), 0.1, dice.uniform(1.5, 2.5)), wall=True)
    return [top, put("box", path(0, 0, -dice.uniform(2.6, 4), time=time), (14.0, 9.0, 0.1), wall=True)]


def books(dice: Dice, time: Time) -> Arrangement:
    """A pile of books and a row of upright ones on a table."""
    subject, height = [], 0.0
    for _ in range(dice.integer(2, 4)):
        thick = dice.uniform(0.09, 0.2)
        size = (dice.uniform(0.55, 0.8), thick, dice.uniform(0.42, 0.6))
        subject.append(put("box", path(-0.6, height + thick, 0.1, time=time), size, yaw=dice.uniform(-0.5, 0.5)))
        height += 2 * thick
    x = 0.35
    for _ in range(dice.integer(2, 4)):
        thick, tall = dice.uniform(0.07, 0.15), dice.uniform(0.5, 0.8)
        subject.append(put("box", path(x + thick, tall, -0.3, time=time), (thick, tall, dice.uniform(0.4, 0.5))))
        x += 2 * thick + 0.02
    ball = dice.uniform(0.2, 0.32)
    roll = 0.2 + dice.uniform(0.2, 1.0) * time
    subject.append(put("ellipsoid", path(roll, ball, 0.75, time=time), (ball,) * 3, roll=-roll / ball))
    return Arrangement(
        subject=subject,
        backdrop=table(dice, time),
        ground=False,
        pitch=(10, 55),
        yaw=(-40, 40),
        swing=30,
        fill=(0.9, 1.3),
    )


def still_life(dice: Dice, time: Time) -> Arrangement:
    """A bottle, a cup, a bowl and fruit on a table."""
    tall = dice.uniform(0.55, 0.8)
    bottle = dice.uniform(-0.9, -0.4)
    subject = [
        put("cylinder", path(bottle, tall, -0.3, time=time), (0.3, tall, 0.3)),
        put("ellipsoid", path(bottle, 2 * tall, -0.3, time=time), (0.3, 0.25, 0.3)),
        put("cylinder", path(bottle, 2 * tall + 0.4, -0.3, time=time), (0.1, 0.3, 0.1)),
    ]
    cup = dice.uniform(0.4, 0.9)
    subject.append(put("cylinder", path(cup, 0.3, 0.3, time=time), (0.28, 0.3, 0.28)))
    subject.append(put("ellipsoid", path(cup + 0.3, 0.32, 0.3, time=time), (0.14, 0.18, 0.05)))
    for number in range(dice.integer(2, 4)):
        radius = dice.uniform(0.2, 0.34)
        x = -0.75 + 0.62 * number + dice.uniform(-0.1, 0.1)
        roll = dice.uniform(-0.3, 0.3) * time
        size = (radius * dice.uniform(1, 1.25), radius, radius)
        subject.append(put("ellipsoid", path(x + roll, radius, 0.85, time=time), size, roll=-roll / radius))
    return Arrangement(
        subject=subject,
        backdrop=table(dice, time),
        ground=False,
        pitch=(5, 45),
        yaw=(-40, 40),
        swing=35,
        fill=(0.9, 1.3),
    )


def abstract(dice: Dice, time: Time) -> Arrangement:
    """A waving field of columns or balls."""
    kind: Kind = dice.pick(("box", "cylinder", "ellipsoid", "cone"))
    side, phase, speed = 4, dice.uniform(0, 6), dice.uniform(2, 5)
    along, across, swell = dice.uniform(0.4, 1.4), dice.uniform(-0.8, 0.8), dice.uniform(0.25, 0.6)
    wide, tall = dice.uniform(0.28, 0.46), dice.uniform(0.4, 1.1)
    subject = []
    for row in range(side):
        for column in range(side):
            wave = swell * torch.sin(speed * time + phase + along * row + across * column)
            centre = path(row - 1.5, tall + wave, column - 1.5, time=time)
            size = (wide, tall if kind != "ellipsoid" else wide, wide)
            subject.append(put(kind, centre, size))
    return Arrangement(subject=subject, backdrop=[], ground=dice.chance(0.7), pitch=(8, 65), fill=(0.95, 1.5))


def corridor(dice: Dice, time: Time) -> Arrangement:
    """An avenue of columns one moves through, with something at its end."""
    subject, forward = [], dice.uniform(0.5, 2.5) * time
    kind: Kind = dice.pick(("cylinder", "box"))
    for row in range(4):
        for side in (-1, 1):
            centre = path(1.5 * side, 1.6, 2.4 - 2.2 * row + forward, time=time)
            subject.append(put(kind, centre, (0.3, 1.6, 0.3)))
            subject.append(put("box", path(1.5 * side, 3.3, 2.4 - 2.2 * row + forward, time=time), (0.42, 0.12, 0.42)))
    goal = path(0, 0.9, -6 + forward, time=time)
    subject.append(put(dice.pick(("ellipsoid", "cone", "box")), goal, (0.9, 0.9, 0.9), yaw=time))
    return Arrangement(subject=subject, backdrop=[], pitch=(2, 14), yaw=(-14, 14), swing=12, fill=(1.0, 1.5))
