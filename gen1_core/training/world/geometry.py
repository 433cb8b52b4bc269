"""Analytic solids, cameras and scenes, and where a ray meets them.

Every solid is a unit shape in a local frame: the sphere, the cube, the cylinder and the cone that fit in
-1..1. A ray is carried into that frame by an affine map, which keeps its parameter; camera rays have forward
component 1, so the parameter of a hit is its exact z-depth. Space is right handed with y up; the ground, if
there is one, is y = 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Kind = Literal["ellipsoid", "box", "cylinder", "cone"]
Vector = tuple[Tensor, ...]
"""Three planes of coordinates that broadcast to "f h w"; planes keep the hot loops contiguous."""

FAR = 1e4
"""The parameter of a ray that hits nothing."""

NEAREST = 1e-3
GROUND_SLOT, WALL_SLOT = 6, 7
PAINT_SLOTS = 6
"""Colours of a palette; the slots of ground and walls follow them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Solid:
    """A moving unit shape: ``turn`` and then ``centre`` place it, ``size`` holds its half extents."""

    kind: Kind
    centre: Float[Tensor, "f 3"]
    size: tuple[float, ...]
    turn: Float[Tensor, "f 3 3"]
    wall: bool = False
    """Walls, floors and table tops of a set: they take shadows, cast none, and have a colour of their own."""
    earth: bool = False
    """Hills and waves: they look as the ground does."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Camera:
    """A path of a pinhole camera; ``spread`` is the tangent of half its vertical field of view."""

    position: Float[Tensor, "f 3"]
    target: Float[Tensor, "f 3"]
    roll: Float[Tensor, " f"]
    spread: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """What moves in front of which camera; a look is not part of it."""

    family: str
    solids: tuple[Solid, ...]
    camera: Camera
    ground: bool


LARGE = 0.26
"""Mean half extent of a large solid, over half the height of the picture at the distance of the subject."""


def picture_extent(camera: Camera) -> float:
    """Half the height of the first picture at the distance of its target: the unit of what a depth map shows."""
    return float((camera.position[0] - camera.target[0]).norm()) * camera.spread


def paint_slot(solid: Solid, extent: float) -> int:
    """Colour of a solid from what a depth map shows, its shape and its size in the picture, so that an edit can be
    predicted; ``extent`` is that of the picture."""
    if solid.wall:
        return WALL_SLOT
    if solid.earth:
        return GROUND_SLOT
    large = sum(solid.size) / 3 > LARGE * extent
    slots = {"ellipsoid": (4, 0), "box": (5, 1), "cylinder": (5, 2), "cone": (3, 3)}
    return slots[solid.kind][large]


def camera_axes(camera: Camera) -> Float[Tensor, "f 3 3"]:
    """Columns right, up and forward of every frame."""
    forward = F.normalize(camera.target - camera.position, dim=-1)
    level = F.normalize(
        torch.linalg.cross(forward, torch.tensor([0.0, 1.0, 0.0]).to(forward).expand_as(forward)), dim=-1
    )
    above = torch.linalg.cross(level, forward)
    cos, sin = torch.cos(camera.roll)[:, None], torch.sin(camera.roll)[:, None]
    return torch.stack((cos * level + sin * above, cos * above - sin * level, forward), dim=-1)


def ray_basis(camera: Camera, aspect: float) -> Float[Tensor, "f 3 3"]:
    """Maps (x, y, 1), with x and y in -1..1 on the screen, to a ray of forward component 1."""
    scale = torch.tensor([camera.spread * aspect, camera.spread, 1.0], dtype=camera.position.dtype)
    return camera_axes(camera) * scale


def first_yaw(camera: Camera) -> Float[Tensor, "3 3"]:
    """Columns right, up and back of the first camera without its pitch: light and ground are fixed to it."""
    back = camera.position[0] - camera.target[0]
    back = F.normalize(back * torch.tensor([1.0, 0.0, 1.0]).to(back), dim=0)
    up = torch.tensor([0.0, 1.0, 0.0]).to(back)
    return torch.stack((torch.linalg.cross(up, back), up, back), dim=-1)


def texture_turns(solids: Sequence[Solid], yaw: Float[Tensor, "3 3"]) -> Float[Tensor, "n f 3 3"]:
    """From each solid's axes to those of its texture, which must follow from the solid's visible form.

    A ball's texture does not spin with it, that of a cylinder or cone does not turn about its axis, and of the faces
    of a box the one that looks at the first camera is always the same.
    """
    return torch.stack([texture_turn(solid, yaw) for solid in solids])


def texture_turn(solid: Solid, yaw: Float[Tensor, "3 3"]) -> Float[Tensor, "f 3 3"]:
    """One solid's rotation of ``texture_turns``."""
    if solid.kind == "ellipsoid" and max(solid.size) < 1.01 * min(solid.size):
        return yaw.T @ solid.turn
    axis = solid.turn[:, :, 1]
    if solid.size[0] == solid.size[2] and solid.kind != "box":
        z = F.normalize(yaw[:, 2] - axis * (axis @ yaw[:, 2])[:, None] + 1e-6, dim=-1)
        upright = torch.stack((torch.linalg.cross(axis, z), axis, z), dim=-1)
        return upright.transpose(-1, -2) @ solid.turn
    matches = torch.einsum("ij,ik,gjk->g", yaw, solid.turn[0], QUARTER_TURNS.transpose(-1, -2))
    return QUARTER_TURNS[int(matches.argmax())].T.expand_as(solid.turn)


def quarter_turns() -> Float[Tensor, "24 3 3"]:
    """The rotations of a cube."""
    orders = [torch.eye(3, dtype=torch.float64)[list(order)] for order in permutations(range(3))]
    signs = [torch.diag(torch.tensor(sign, dtype=torch.float64)) for sign in product((-1, 1), repeat=3)]
    return torch.stack([s @ c for s in signs for c in orders if torch.linalg.det(s @ c) > 0])


QUARTER_TURNS = quarter_turns()


def to_local(solids: Sequence[Solid]) -> Float[Tensor, "n f 3 4"]:
    """Affine maps from the world to each solid's unit frame."""
    turn = torch.stack([solid.turn for solid in solids])
    size = torch.tensor([solid.size for solid in solids], dtype=turn.dtype)
    linear = turn.transpose(-1, -2) / size[:, None, :, None]
    shift = -linear @ torch.stack([solid.centre for solid in solids])[..., None]
    return torch.cat((linear, shift), dim=-1)


def corners(solids: Sequence[Solid], *, factor: float = 1.0, margin: float = 0.0) -> Float[Tensor, "n f 8 3"]:
    """Corners of the solids' boxes: half extents times ``factor``, grown by ``margin`` radii."""
    turn = torch.stack([solid.turn for solid in solids])
    size = torch.tensor([solid.size for solid in solids], dtype=turn.dtype)
    size = size * factor + margin * reach(solids)[:, None]
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=turn.dtype)] * 3)
    offsets = torch.einsum("nfij,nkj->nfki", turn, size[:, None] * signs)
    return torch.stack([solid.centre for solid in solids])[:, :, None] + offsets


def reach(solids: Sequence[Solid]) -> Float[Tensor, " n"]:
    """A typical radius of each solid: its middle half extent."""
    return torch.tensor([sorted(solid.size)[1] for solid in solids], dtype=torch.float64)


def affine(matrix: Float[Tensor, "f 3 4"], point: Vector) -> Vector:
    """A point (planes of its coordinates) under an affine map of each frame."""
    m = matrix[..., None, None]
    x, y, z = (m[:, i, 0] * point[0] + m[:, i, 1] * point[1] + m[:, i, 2] * point[2] + m[:, i, 3] for i in range(3))
    return x, y, z


def dot(a: Vector, b: Vector) -> Tensor:
    """Inner product of two vectors of planes."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def unit(a: Vector) -> Vector:
    """A vector of planes at length 1."""
    scale = torch.rsqrt(dot(a, a).clamp(min=1e-12))
    return a[0] * scale, a[1] * scale, a[2] * scale


def inverse(direction: Tensor) -> Tensor:
    """1 / direction, finite for rays along a face."""
    return 1 / torch.where(direction.abs() < 1e-6, 1e-6, direction)


def hit_ellipsoid(origin: Vector, direction: Vector) -> Tensor:
    """Nearest parameter at which rays enter the unit sphere."""
    a, b, c = dot(direction, direction), dot(origin, direction), dot(origin, origin) - 1
    inside = b * b - a * c
    near = (-b - inside.clamp(min=0).sqrt()) / a
    return torch.where((inside > 0) & (near > NEAREST), near, FAR)


def hit_box(origin: Vector, direction: Vector) -> Tensor:
    """Nearest parameter at which rays enter the cube -1..1."""
    near, far = (
        torch.full_like(direction[0] + origin[0], -FAR),
        torch.full_like(direction[0] + origin[0], FAR),
    )
    for o, d in zip(origin, direction, strict=True):
        slope = inverse(d)
        middle, half = -o * slope, slope.abs()
        near, far = torch.maximum(near, middle - half), torch.minimum(far, middle + half)
    return torch.where((near < far) & (near > NEAREST), near, FAR)


def hit_cylinder(origin: Vector, direction: Vector) -> Tensor:
    """Nearest parameter at which rays enter the capped cylinder of radius 1, -1 < y < 1."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    a, b, c = (dx * dx + dz * dz).clamp(min=1e-8), ox * dx + oz * dz, ox * ox + oz * oz - 1
    inside = b * b - a * c
    middle, half = -b / a, inside.clamp(min=0).sqrt() / a
    slope = inverse(dy)
    middle_cap, half_cap = -oy * slope, slope.abs()
    near = torch.maximum(middle - half, middle_cap - half_cap)
    far = torch.minimum(middle + half, middle_cap + half_cap)
    return torch.where((inside > 0) & (near < far) & (near > NEAREST), near, FAR)


def hit_cone(origin: Vector, direction: Vector) -> Tensor:
    """Nearest parameter at which rays meet the capped cone, apex at y = 1, base of radius 1 at y = -1."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    # On the mantle the radius is (1 - y) / 2; one of the two roots may lie on the mirror cone above.
    radius, slope = (1 - oy) / 2, -dy / 2
    a = dx * dx + dz * dz - slope * slope
    a = torch.where(a.abs() < 1e-6, 1e-6, a)
    b, c = ox * dx + oz * dz - radius * slope, ox * ox + oz * oz - radius * radius
    inside = b * b - a * c
    root = inside.clamp(min=0).sqrt()
    nearest = torch.full_like(inside, FAR)
    for t in ((-b - root) / a, (-b + root) / a):
        on_mantle = (inside > 0) & ((oy + t * dy).abs() < 1) & (t > NEAREST)
        nearest = torch.minimum(nearest, torch.where(on_mantle, t, FAR))
    t = (-1 - oy) * inverse(dy)
    x, z = ox + t * dx, oz + t * dz
    return torch.minimum(nearest, torch.where((x * x + z * z < 1) & (t > NEAREST), t, FAR))


HITS = {"ellipsoid": hit_ellipsoid, "box": hit_box, "cylinder": hit_cylinder, "cone": hit_cone}


def local_normal(kind: Kind, point: Vector) -> Vector:
    """Outward direction (of any length) on a unit shape, at a point of its surface."""
    x, y, z = point
    zero = torch.zeros_like(x)
    if kind == "ellipsoid":
        return point
    if kind == "box":
        ax, ay, az = x.abs(), y.abs(), z.abs()
        on_x, on_y = (ax >= ay) & (ax >= az), (ay > ax) & (ay >= az)
        return (
            torch.where(on_x, x.sign(), zero),
            torch.where(on_y, y.sign(), zero),
            torch.where(on_x | on_y, zero, z.sign()),
        )
    if kind == "cylinder":
        cap = y.abs() > 0.9995
        return torch.where(cap, zero, x), torch.where(cap, y.sign(), zero), torch.where(cap, zero, z)
    base = y < -0.9995
    return torch.where(base, zero, x), torch.where(base, zero - 1, (1 - y) / 4), torch.where(base, zero, z)
