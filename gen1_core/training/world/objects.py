"""Families of single things: toys, vehicles, people, animals, planets."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from .build import Arrangement, link, moved, path, put
from .dice import Dice
from .geometry import Kind, Solid

Time = Float[Tensor, " f"]
ROUND: tuple[Kind, ...] = ("ellipsoid", "box", "cylinder", "ellipsoid")


def balls(dice: Dice, time: Time) -> Arrangement:
    """Bouncing balls."""
    subject = []
    count = dice.integer(3, 5)
    for number in range(count):
        radius, angle = dice.uniform(0.35, 0.8), 2 * math.pi * (number + dice.uniform(-0.2, 0.2)) / count
        away = dice.uniform(0.8, 1.7)
        bounce = torch.sin(dice.uniform(3, 6) * time + dice.uniform(0, 6)).abs() * dice.uniform(0.1, 1.2)
        x = away * math.cos(angle) + dice.uniform(-0.5, 0.5) * time
        z = away * math.sin(angle) + dice.uniform(-0.5, 0.5) * time
        centre = path(x, radius + bounce, z, time=time)
        subject.append(put("ellipsoid", centre, (radius,) * 3, yaw=dice.uniform(0, 6) + 2 * time, pitch=time))
    return Arrangement(subject=subject, backdrop=[])


def totem(dice: Dice, time: Time) -> Arrangement:
    """A swaying stack of shapes."""
    subject, height, radius = [], 0.0, dice.uniform(0.6, 0.8)
    sway, phase, spin = dice.uniform(0, 0.14), dice.uniform(0, 6), dice.uniform(-2, 2)
    for _ in range(dice.integer(3, 4)):
        kind = dice.pick(ROUND)
        centre = path(sway * torch.sin(5 * time + phase) * height, height + radius * 0.9, 0.0, time=time)
        subject.append(put(kind, centre, (radius, radius * 0.9, radius), yaw=dice.uniform(0, 3) + spin * time))
        height += 1.72 * radius
        radius *= dice.uniform(0.68, 0.88)
    top = path(sway * torch.sin(5 * time + phase) * height, height + 0.6 * radius, 0.0, time=time)
    subject.append(put("cone", top, (radius, radius * 0.9, radius)))
    return Arrangement(subject=subject, backdrop=[], pitch=(-5, 35))


def tumbling(dice: Dice, time: Time) -> Arrangement:
    """Solids that turn and fall to the ground."""
    subject = []
    for number in range(dice.integer(3, 6)):
        kind = dice.pick(("ellipsoid", "box", "cylinder", "cone"))
        size = tuple(dice.uniform(0.3, 0.75) for _ in range(3))
        if kind in ("cylinder", "cone"):
            size = (size[0], size[1], size[0])
        angle, away = number * 2.4 + dice.uniform(-0.3, 0.3), dice.uniform(0.3, 1.5)
        centre = path(
            away * math.cos(angle),
            2.2 + dice.uniform(-1, 1.2) + dice.uniform(-1.1, 0.4) * time,
            away * math.sin(angle),
            time=time,
        )
        spins = [dice.uniform(0, 6) + dice.uniform(-3, 3) * time for _ in range(3)]
        subject.append(put(kind, centre, size, yaw=spins[0], pitch=spins[1], roll=spins[2]))
    return Arrangement(subject=subject, backdrop=[], pitch=(-2, 55), fill=(0.85, 1.3))


def tree(dice: Dice, x: float, z: float, size: float, time: Time) -> list[Solid]:
    """A fir or a round tree."""
    trunk = dice.uniform(0.3, 0.8) * size
    solids = [put("cylinder", path(x, trunk / 2, z, time=time), (0.12 * size, trunk / 2, 0.12 * size))]
    if dice.chance(0.5):
        for level in range(2):
            centre = path(x, trunk + (0.45 + 0.55 * level) * size, z, time=time)
            radius = (0.6 - 0.18 * level) * size
            solids.append(put("cone", centre, (radius, 0.55 * size, radius)))
    else:
        crown = (0.55 * size, dice.uniform(0.5, 0.75) * size, 0.55 * size)
        solids.append(put("ellipsoid", path(x, trunk + 0.42 * size, z, time=time), crown))
    return solids


def car(dice: Dice, time: Time) -> Arrangement:
    """A car that drives past trees, or a truck with a box."""
    length, speed = dice.uniform(0.95, 1.25), dice.uniform(0.3, 2.2)
    bob = 0.02 * torch.sin(12 * time)
    subject = [put("box", path(0.0, 0.5 + bob, 0.0, time=time), (length, 0.25, 0.52))]
    if dice.chance(0.35):
        subject.append(put("box", path(-0.3 * length, 1.05 + bob, 0.0, time=time), (0.68 * length, 0.45, 0.5)))
        subject.append(put("box", path(0.7 * length, 0.85 + bob, 0.0, time=time), (0.28 * length, 0.25, 0.46)))
    else:
        cabin: Kind = dice.pick(("box", "ellipsoid"))
        size = (0.55 * length, 0.3 if cabin == "box" else 0.45, 0.42)
        subject.append(put(cabin, path(-0.1 * length, (0.95 if cabin == "box" else 0.78) + bob, 0.0, time=time), size))
    for side in (-1, 1):
        for end in (-0.62, 0.62):
            hub = path(end * length, 0.27, 0.5 * side, time=time)
            subject.append(put("cylinder", hub, (0.27, 0.1, 0.27), pitch=math.pi / 2, roll=-speed * 4 * time))
        subject.append(put("ellipsoid", path(length, 0.55 + bob, 0.33 * side, time=time), (0.06, 0.1, 0.1)))
    drive = path(speed * (time - 0.5), 0.0, 0.0, time=time)
    backdrop = []
    for _ in range(dice.integer(1, 3)):
        backdrop += tree(dice, dice.uniform(-3.5, 3.5), dice.uniform(-3.4, -1.8), dice.uniform(0.8, 1.5), time)
    return Arrangement(
        subject=moved(subject, yaw=0.0 if dice.chance(0.5) else math.pi, by=drive),
        backdrop=backdrop,
        pitch=(2, 35),
        yaw=(-50, 50),
        fill=(0.8, 1.15),
    )


def walker(dice: Dice, time: Time) -> Arrangement:
    """A walking figure: arms and legs swing as pendulums with knees and elbows."""
    limb: Kind = dice.pick(("ellipsoid", "cylinder"))
    wide = dice.uniform(0.85, 1.25)
    stride = dice.uniform(0.35, 0.7) * torch.sin(dice.uniform(5, 8) * time + dice.uniform(0, 6))
    bob = 0.04 * torch.cos(2 * stride)
    solids = [
        put(
            "ellipsoid" if dice.chance(0.6) else "box",
            path(0, 1.42 + bob, 0, time=time),
            (0.3 * wide, 0.46, 0.2 * wide),
        )
    ]
    solids.append(put("ellipsoid", path(0, 0.98 + bob, 0, time=time), (0.26 * wide, 0.2, 0.19 * wide)))
    solids.append(put("ellipsoid", path(0, 2.14 + bob, 0.02, time=time), (0.22, 0.26, 0.23)))
    solids.append(put("cylinder", path(0, 1.87 + bob, 0, time=time), (0.08, 0.1, 0.08)))
    for side in (-1, 1):
        swing = side * stride
        hip, shoulder = (
            path(0.14 * side * wide, 0.94 + bob, 0, time=time),
            path(0.38 * side * wide, 1.74 + bob, 0, time=time),
        )
        knee = hip + path(0, -0.45 * torch.cos(swing), 0.45 * torch.sin(swing), time=time)
        shin = swing - 0.35 - 0.3 * swing.sin()
        foot = knee + path(0, -0.45 * torch.cos(shin), 0.45 * torch.sin(shin), time=time)
        elbow = shoulder + path(0.06 * side, -0.36 * torch.cos(swing), -0.36 * torch.sin(swing), time=time)
        fore = 0.5 - swing
        hand = elbow + path(0, -0.36 * torch.cos(fore), 0.36 * torch.sin(fore), time=time)
        solids += [link(limb, hip, knee, 0.14 * wide), link(limb, knee, foot, 0.11 * wide)]
        solids += [link(limb, shoulder, elbow, 0.1 * wide), link(limb, elbow, hand, 0.085 * wide)]
        solids.append(put("ellipsoid", foot + path(0, 0, 0.08, time=time), (0.1, 0.08, 0.2)))
    if dice.chance(0.35):
        solids.append(put("cone", path(0, 2.48 + bob, 0, time=time), (0.26, 0.2, 0.26)))
    heading, speed = dice.uniform(-0.8, 0.8), dice.uniform(0, 1.2)
    by = path(0.0, 0.05, speed * (time - 0.5), time=time) @ torch.tensor(
        [[math.cos(heading), 0, -math.sin(heading)], [0, 1, 0], [math.sin(heading), 0, math.cos(heading)]],
        dtype=time.dtype,
    )
    backdrop = (
        tree(dice, dice.uniform(1.2, 2.5) * dice.sign(), dice.uniform(-3, -1.2), 1.4, time) if dice.chance(0.4) else []
    )
    return Arrangement(
        subject=moved(solids, yaw=heading, by=by),
        backdrop=backdrop,
        pitch=(-4, 25),
        yaw=(-65, 65),
        fill=(0.85, 1.3),
    )


def animal(dice: Dice, time: Time) -> Arrangement:
    """A four-legged animal: a dog, a horse, an elephant or a giraffe by its proportions."""
    neck, leg, girth = dice.pick(((0.35, 0.55, 0.34), (0.6, 0.8, 0.36), (0.25, 0.7, 0.58), (1.25, 1.0, 0.36)))
    stride = dice.uniform(0.2, 0.55) * torch.sin(dice.uniform(5, 9) * time + dice.uniform(0, 6))
    body = leg + girth * 0.7 + 0.03 * torch.cos(2 * stride)
    solids = [put("ellipsoid", path(0, body, 0, time=time), (0.85, girth, girth))]
    chest, rear = path(0.62, body + 0.1, 0, time=time), path(-0.75, body + 0.1, 0, time=time)
    nod = 0.6 + 0.1 * torch.sin(3 * time)
    head = chest + path(neck * torch.cos(nod) * 0.8 + 0.1, 0.15 + neck * torch.sin(nod), 0, time=time)
    solids += [link("ellipsoid", chest, head, 0.2 if girth < 0.5 else 0.28)]
    scale = 1.3 if girth > 0.5 else 1.0
    solids.append(
        put(
            "ellipsoid",
            head + path(0.14, 0.02, 0, time=time),
            (0.36 * scale, 0.22 * scale, 0.2 * scale),
            roll=-0.25,
        )
    )
    tail = rear + path(-0.35, -0.2, 0.2 * torch.sin(6 * time), time=time)
    solids.append(link("ellipsoid", rear, rear + (tail - rear) / (tail - rear).norm(dim=-1, keepdim=True) * 0.5, 0.06))
    for side in (-1, 1):
        ear = head + path(-0.02, 0.26 * scale, 0.13 * side * scale, time=time)
        solids.append(put(dice.pick(("cone", "ellipsoid")), ear, (0.07 * scale, 0.15 * scale, 0.07 * scale)))
        for end, phase in ((0.5, 1), (-0.52, -1)):
            swing = stride * side * phase
            top = path(end, body - girth * 0.4, side * girth * 0.55, time=time)
            foot = top + path(torch.sin(swing), -torch.cos(swing), 0, time=time) * (leg + 0.22)
            solids.append(link("cylinder" if girth > 0.5 else "ellipsoid", top, foot, 0.17 if girth > 0.5 else 0.12))
    if girth > 0.5:
        nose = head + path(0.42, -0.05, 0, time=time)
        solids.append(link("ellipsoid", nose, nose + path(0.12, -0.75, 0, time=time), 0.1))
    by = path(dice.uniform(-0.8, 0.8) * (time - 0.5), 0, 0, time=time)
    return Arrangement(
        subject=moved(solids, yaw=dice.pick((0.0, math.pi)), by=by),
        backdrop=[],
        pitch=(-2, 30),
        yaw=(-55, 55),
        fill=(0.85, 1.2),
    )


def portrait(dice: Dice, time: Time) -> Arrangement:
    """Head and shoulders that turn and nod, before a wall or in the open."""
    wall = dice.chance(0.5)
    solids = [put("ellipsoid", path(0, 0, 0, time=time), (0.62, 0.8, 0.68))]
    for side in (-1, 1):
        solids.append(put("ellipsoid", path(0.24 * side, 0.12, 0.57, time=time), (0.11, 0.09, 0.1)))
        solids.append(put("ellipsoid", path(0.62 * side, 0.0, 0.0, time=time), (0.09, 0.18, 0.13)))
    solids.append(put("ellipsoid", path(0, -0.08, 0.68, time=time), (0.1, 0.18, 0.14)))
    solids.append(put("ellipsoid", path(0, -0.38, 0.54, time=time), (0.2, 0.06, 0.1)))
    hair = dice.integer(0, 3)
    if hair == 0:
        solids.append(put("ellipsoid", path(0, 0.3, -0.12, time=time), (0.7, 0.68, 0.66)))
    elif hair == 1:
        solids.append(put("ellipsoid", path(0, 0.0, -0.2, time=time), (0.76, 0.98, 0.6)))
    elif hair == 2:
        solids.append(put("cylinder", path(0, 0.62, 0, time=time), (0.85, 0.04, 0.85)))
        solids.append(put("cylinder", path(0, 0.85, 0, time=time), (0.55, 0.25, 0.55)))
    yaw = dice.uniform(-0.5, 0.5) + dice.uniform(0, 0.6) * torch.sin(dice.uniform(2, 6) * time)
    lift = path(0.1 * torch.sin(4 * time), 2.2 + 0.05 * torch.sin(5 * time + 1), 0, time=time)
    subject = moved(solids, yaw=yaw, by=lift)
    subject.append(put("cylinder", path(0, 1.4, -0.05, time=time), (0.3, 0.4, 0.3)))
    subject.append(put("ellipsoid", path(0, 0.55, -0.1, time=time), (1.25, 0.75, 0.55)))
    backdrop = [put("box", path(0, 2, dice.uniform(-3, -1.4), time=time), (9.0, 7.0, 0.1), wall=True)] if wall else []
    return Arrangement(
        subject=subject,
        backdrop=backdrop,
        ground=False,
        pitch=(-8, 12),
        yaw=(-25, 25),
        swing=18,
        fill=(1.0, 1.6),
    )


def planets(dice: Dice, time: Time) -> Arrangement:
    """A ringed planet and its moons in empty space."""
    tilt = dice.uniform(-0.5, 0.5)
    subject = [put("ellipsoid", path(0, 0, 0, time=time), (0.9, 0.9, 0.9), yaw=dice.uniform(0, 6) + time, roll=tilt)]
    if dice.chance(0.7):
        subject.append(put("cylinder", path(0, 0, 0, time=time), (1.5, 0.025, 1.5), roll=tilt))
    for number in range(dice.integer(2, 4)):
        radius, away = dice.uniform(0.16, 0.45), 1.6 + 0.45 * number
        angle = dice.uniform(0, 6) + dice.uniform(0.6, 2) * time
        centre = path(away * torch.cos(angle), 0.4 * torch.sin(angle + number), away * torch.sin(angle), time=time)
        subject.append(put("ellipsoid", centre, (radius,) * 3, yaw=2 * time))
    return Arrangement(subject=subject, backdrop=[], ground=dice.chance(0.15), pitch=(-20, 45), fill=(1.0, 1.7))
