"""Words to build scenes with: moving points, turns, solids, and a camera that frames them."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .dice import Dice, Number
from .geometry import Camera, Kind, Solid, camera_axes, corners

Course = Float[Tensor, " f"] | float | int
"""A coordinate or an angle: one for all frames, or one for each."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrangement:
    """What a family builds: its solids, and how they may be looked at."""

    subject: list[Solid]
    """Solids the camera frames."""
    backdrop: list[Solid]
    ground: bool = True
    pitch: tuple[Number, Number] = (-2.0, 50.0)
    """Angle of the camera above the horizontal, degrees."""
    yaw: tuple[Number, Number] = (0.0, 360.0)
    swing: Number = 40
    """The most the camera may orbit in a clip, degrees."""
    fill: tuple[Number, Number] = (0.75, 1.2)
    """Half extent of the subject over that of the frame."""


def path(x: Course, y: Course, z: Course, *, time: Float[Tensor, " f"]) -> Float[Tensor, "f 3"]:
    """A moving point from its three coordinates."""
    columns = [torch.as_tensor(value, dtype=time.dtype).expand_as(time) for value in (x, y, z)]
    return torch.stack(columns, dim=-1)


def turn(
    *, time: Float[Tensor, " f"], yaw: Course = 0.0, pitch: Course = 0.0, roll: Course = 0.0
) -> Float[Tensor, "f 3 3"]:
    """Rotations: roll about z, then pitch about x, then yaw about y."""

    def about(axis: int, angle: Course) -> Tensor:
        angles = torch.as_tensor(angle, dtype=time.dtype).expand_as(time)
        first, second = (axis + 1) % 3, (axis + 2) % 3
        matrix = torch.eye(3, dtype=time.dtype).repeat(len(time), 1, 1)
        matrix[:, first, first] = matrix[:, second, second] = torch.cos(angles)
        matrix[:, second, first] = torch.sin(angles)
        matrix[:, first, second] = -torch.sin(angles)
        return matrix

    return about(1, yaw) @ about(0, pitch) @ about(2, roll)


def put(
    kind: Kind,
    centre: Float[Tensor, "f 3"],
    size: tuple[float, ...],
    *,
    yaw: Course = 0.0,
    pitch: Course = 0.0,
    roll: Course = 0.0,
    wall: bool = False,
    earth: bool = False,
) -> Solid:
    """A solid at a moving point."""
    angles = turn(time=centre[:, 0], yaw=yaw, pitch=pitch, roll=roll)
    return Solid(kind=kind, centre=centre, size=size, turn=angles, wall=wall, earth=earth)


def link(kind: Kind, start: Float[Tensor, "f 3"], end: Float[Tensor, "f 3"], radius: float) -> Solid:
    """A limb between two points that keep their distance: the solid's y axis lies along it."""
    along = end - start
    length = float(along[0].norm())
    y = F.normalize(along, dim=-1)
    aside = torch.tensor([1.0, 0.0, 0.0] if abs(float(y[0, 0])) < 0.8 else [0.0, 0.0, 1.0], dtype=y.dtype).expand_as(y)
    z = F.normalize(torch.linalg.cross(aside, y), dim=-1)
    stretch = 1.18 if kind == "ellipsoid" else 1.0
    return Solid(
        kind=kind,
        centre=(start + end) / 2,
        size=(radius, length / 2 * stretch, radius),
        turn=torch.stack((torch.linalg.cross(y, z), y, z), dim=-1),
    )


def moved(solids: list[Solid], *, yaw: Course, by: Float[Tensor, "f 3"]) -> list[Solid]:
    """The same solids turned about the origin and then moved."""
    rotation = turn(time=by[:, 0], yaw=yaw)
    return [
        Solid(
            kind=solid.kind,
            centre=(rotation @ solid.centre[..., None])[..., 0] + by,
            size=solid.size,
            turn=rotation @ solid.turn,
            wall=solid.wall,
            earth=solid.earth,
        )
        for solid in solids
    ]


def frame_up(arrangement: Arrangement, dice: Dice, time: Float[Tensor, " f"]) -> Camera:
    """A camera at a drawn angle, as far away as the subject needs to fill the frame, and its drawn motion."""
    spread = math.tan(math.radians(dice.uniform(36, 62) / 2))
    pitch, yaw = (math.radians(dice.uniform(*bounds)) for bounds in (arrangement.pitch, arrangement.yaw))
    points = corners(arrangement.subject)
    flat = points.flatten(0, 2)
    middle = (flat.amin(dim=0) + flat.amax(dim=0)) / 2
    back = torch.tensor(
        [math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch)], dtype=time.dtype
    )
    still = Camera(
        position=(middle + back)[None],
        target=middle[None],
        roll=torch.zeros(1, dtype=time.dtype),
        spread=spread,
    )
    right, up, ahead = ((flat - middle) @ camera_axes(still)[0]).unbind(dim=-1)
    # A corner at depth distance + ahead shows at max(right, up) / (spread * depth): solve for the distance.
    span = torch.maximum(right.abs(), up.abs()) / (spread * dice.uniform(*arrangement.fill))
    distance = max(float((span - ahead).quantile(0.97)), float(-ahead.amin()) * 1.05 + 0.3)

    swing = math.radians(dice.uniform(-arrangement.swing, arrangement.swing)) * dice.chance(0.7)
    angles = yaw + swing * time
    lift = pitch + math.radians(dice.uniform(-8, 8)) * time * dice.chance(0.4)
    reach = distance * (1 + dice.uniform(-0.2, 0.15) * time * dice.chance(0.45))
    offset = path(torch.sin(angles) * torch.cos(lift), torch.sin(lift), torch.cos(angles) * torch.cos(lift), time=time)
    pan = dice.uniform(-0.12, 0.12) * distance * dice.chance(0.35)
    target = middle + camera_axes(still)[0, :, 0] * pan * (time[:, None] - 0.5)
    shake = 0.012 * distance * dice.chance(0.25)
    shaken = path(torch.sin(17 * time), torch.sin(13 * time + 1), torch.cos(11 * time), time=time) * shake
    position = target + offset * reach[:, None] + shaken
    if arrangement.ground:
        position[:, 1] = position[:, 1].clamp(min=0.08 * distance)
    roll = torch.zeros_like(time) + math.radians(dice.uniform(-5, 5)) * dice.chance(0.3)
    return Camera(position=position, target=target + shaken * 0.5, roll=roll, spread=spread)
