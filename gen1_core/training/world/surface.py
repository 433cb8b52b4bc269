"""What each pixel of a clip sees: distance, normal, texture position, colour slot, occlusion, shadow.

A solid is tested only inside the rectangle of the screen that can hold it (or its shadow, or occlusion) at
any frame of the clip: on a processor this is several times faster than testing every ray against every solid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from .geometry import (
    FAR,
    GROUND_SLOT,
    HITS,
    Scene,
    Solid,
    Vector,
    affine,
    corners,
    dot,
    first_yaw,
    local_normal,
    paint_slot,
    picture_extent,
    ray_basis,
    reach,
    texture_turns,
    to_local,
    unit,
)

HORIZON = 60.0
"""Beyond this many times the first distance to the target the ground counts as sky."""

OCCLUSION_REACH = 2.5
"""How far a solid darkens its surroundings, in its own radii."""

TEXTURE_SPAN = 1.6
"""Half the height of the first picture, at the distance of its target, in units of texture."""

Rectangle = tuple[slice, slice, slice]


@dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """The G-buffer of one clip, at the supersampled size."""

    distance: Float[Tensor, "f h w"]
    """Exact z-depth; ``FAR`` where there is only sky."""
    normal: Float[Tensor, "3 f h w"]
    outward: Float[Tensor, "3 f h w"]
    """The normal in the frame of the first camera's yaw (right, up, back)."""
    texture: Float[Tensor, "3 f h w"]
    """Where a texture is looked up: in their own coordinates on solids, from the first camera on ground."""
    position: Float[Tensor, "3 f h w"]
    view: Float[Tensor, "3 f h w"]
    """Unit direction of the rays, in the frame of the first camera's yaw (right, up, back)."""
    slot: Int64[Tensor, "f h w"]
    solid: Int64[Tensor, "f h w"]
    """Number of the solid; -1 for the plane of the ground and sky."""
    openness: Float[Tensor, "f h w"]
    """1 in the open, towards 0 where solids are close by."""
    ground: Bool[Tensor, "f h w"]
    sky: Bool[Tensor, "f h w"]
    nearness: float
    """Distance of the first camera to its target: the unit of fog and of fading lines."""
    footprint: float
    """Width of a supersampled pixel at distance 1."""
    grain: float
    """Units of texture to one of space: textures scale with the picture, since depth shows no other scale."""


def screen(size: int, *, device: torch.device) -> Float[Tensor, " size"]:
    """Pixel centres in -1..1."""
    return (torch.arange(size, device=device, dtype=torch.float32) + 0.5) / size * 2 - 1


def rectangles(points: Float[Tensor, "n f k 3"], scene: Scene, *, height: int, width: int) -> list[Rectangle]:
    """Parts of the screen that hold the hull of each row of points; all of it near the camera."""
    basis = ray_basis(scene.camera, width / height)
    relative = points - rearrange(scene.camera.position, "f c -> 1 f 1 c")
    x, y, z = torch.einsum("fij,nfkj->infk", torch.linalg.inv(basis), relative)
    behind = rearrange(z, "n f k -> n (f k)").amin(dim=1) < 0.05
    z = z.clamp(min=0.05)
    found = []
    for column, size in ((x / z, width), (-y / z, height)):
        flat = rearrange(column, "n f k -> n (f k)")
        low = ((flat.amin(dim=1) + 1) / 2 * size).floor() - 1
        high = ((flat.amax(dim=1) + 1) / 2 * size).ceil() + 1
        found.append((low.masked_fill(behind, 0), high.masked_fill(behind, size), size))
    bounds = [(low.clamp(0, size).int().tolist(), high.clamp(0, size).int().tolist()) for low, high, size in found]
    (x_low, x_high), (y_low, y_high) = bounds
    return [
        (slice(None), slice(top, bottom), slice(left, right))
        for left, right, top, bottom in zip(x_low, x_high, y_low, y_high, strict=True)
    ]


def empty(rectangle: Rectangle) -> bool:
    """Whether a rectangle holds no pixel."""
    return rectangle[1].start >= rectangle[1].stop or rectangle[2].start >= rectangle[2].stop


def ray_directions(basis: Float[Tensor, "f 3 3"], x: Tensor, y: Tensor) -> Vector:
    """Rays through pixels (x, y), as planes; linear in both, so one sum of a row and a column each."""
    b = basis[..., None, None]
    right, up, ahead = ((b[:, i, 0] * x + b[:, i, 2]) + b[:, i, 1] * y[:, None] for i in range(3))
    return right, up, ahead


def trace(scene: Scene, *, height: int, width: int, device: torch.device, coarse: int = 1) -> Surface:
    """Casts the camera's rays at all solids and the ground; occlusion is found at one pixel in ``coarse`` squared."""
    x, y = screen(width, device=device), -screen(height, device=device)
    basis = ray_basis(scene.camera, width / height)
    yaw = first_yaw(scene.camera)
    to_device = {"device": device, "dtype": torch.float32}
    directions = ray_directions(basis.to(**to_device), x, y)
    eye = rearrange(scene.camera.position.to(**to_device), "f c -> c f 1 1")
    start = scene.camera.position[0] * torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    nearness = float((scene.camera.position[0] - scene.camera.target[0]).norm())

    extent = picture_extent(scene.camera)
    grain = TEXTURE_SPAN / extent

    distance = torch.full_like(directions[0], FAR)
    if scene.ground:
        down = directions[1] < -1e-5
        distance = torch.where(down, -eye[1] / torch.where(down, directions[1], -1.0), FAR)
        distance = torch.where(distance < HORIZON * nearness, distance, FAR)
    solid = torch.full_like(distance, -1, dtype=torch.int64)
    normal = torch.zeros(3, *distance.shape, device=device)
    normal[1] = 1
    texture = torch.zeros_like(normal)

    maps = to_local(scene.solids)
    eyes = (maps @ with_one(scene.camera.position)[..., None])[..., 0].to(**to_device)
    bases = (maps[..., :3] @ basis).to(**to_device)
    turns = maps[..., :3].to(**to_device)
    scales = torch.tensor([body.size for body in scene.solids], dtype=torch.float64) * grain
    # Transposed, for transpose_times.
    paints = (scales[:, None, :, None] * texture_turns(scene.solids, yaw).transpose(-1, -2)).to(**to_device)
    areas = rectangles(corners(scene.solids), scene, height=height, width=width)
    for number, (body, area) in enumerate(zip(scene.solids, areas, strict=True)):
        if empty(area):
            continue
        origin = tuple(rearrange(eyes[number], "f c -> c f 1 1"))
        local = ray_directions(bases[number], x[area[2]], y[area[1]])
        t = HITS[body.kind](origin, local)
        closer = t < distance[area]
        distance[area] = torch.where(closer, t, distance[area])
        solid[area].masked_fill_(closer, number)
        point = tuple(o + t * d for o, d in zip(origin, local, strict=True))
        outward = unit(transpose_times(turns[number], local_normal(body.kind, point)))
        painted = transpose_times(paints[number], point)
        for axis in range(3):
            plane = (axis, *area)
            normal[plane] = torch.where(closer, outward[axis], normal[plane])
            texture[plane] = torch.where(closer, painted[axis], texture[plane])

    sky = distance >= FAR
    earth = torch.tensor([body.earth for body in scene.solids] + [True], device=device)
    ground = earth[solid] & ~sky
    reached = distance.clamp(max=HORIZON * nearness)
    position = torch.stack([eye[i] + reached * directions[i] for i in range(3)])
    to_yaw = yaw.T.to(**to_device)
    floor = torch.einsum("ij,jfhw->ifhw", to_yaw, position - rearrange(start.to(**to_device), "c -> c 1 1 1"))
    slots = torch.tensor([paint_slot(body, extent) for body in scene.solids] + [GROUND_SLOT], device=device)
    return Surface(
        distance=distance,
        normal=normal,
        outward=torch.einsum("ij,jfhw->ifhw", to_yaw, normal),
        texture=torch.where(ground, floor * grain, texture),
        position=position,
        view=torch.einsum("ij,jfhw->ifhw", to_yaw, torch.stack(unit(directions))),
        slot=slots[solid],
        solid=solid,
        openness=enlarged(occlusion(scene, *(plane[..., ::coarse, ::coarse] for plane in (normal, position))), coarse),
        ground=ground,
        sky=sky,
        nearness=nearness,
        footprint=2 * scene.camera.spread / height,
        grain=grain,
    )


def enlarged(plane: Float[Tensor, "f _ _"], factor: int) -> Float[Tensor, "f _ _"]:
    """Each value in a square of ``factor`` by ``factor`` pixels."""
    return repeat(plane, "f h w -> f (h i) (w j)", i=factor, j=factor) if factor > 1 else plane


def with_one(points: Float[Tensor, "f 3"]) -> Float[Tensor, "f 4"]:
    """Homogeneous coordinates."""
    return torch.cat((points, torch.ones_like(points[:, :1])), dim=-1)


def transpose_times(matrix: Float[Tensor, "f 3 3"], vector: Vector) -> Vector:
    """Transposed matrix of each frame times a vector of planes: carries normals out of a local frame."""
    m = matrix[..., None, None]
    x, y, z = (m[:, 0, i] * vector[0] + m[:, 1, i] * vector[1] + m[:, 2, i] * vector[2] for i in range(3))
    return x, y, z


def casters(scene: Scene) -> list[Solid]:
    """Solids that cast shadows."""
    return [solid for solid in scene.solids if not solid.wall]


def occlusion(
    scene: Scene, normal: Float[Tensor, "3 f h w"], position: Float[Tensor, "3 f h w"]
) -> Float[Tensor, "f h w"]:
    """Cheap ambient occlusion: each solid hides what its half-size core covers, fading within a few radii."""
    openness = torch.ones_like(normal[0])
    solids = casters(scene)
    if not solids:
        return openness
    height, width = openness.shape[-2:]
    areas = rectangles(corners(solids, factor=0.5, margin=OCCLUSION_REACH), scene, height=height, width=width)
    frames = torch.stack([solid.turn for solid in solids])
    shift = -frames.transpose(-1, -2) @ torch.stack([solid.centre for solid in solids])[..., None]
    rigid = torch.cat((frames.transpose(-1, -2), shift), dim=-1).to(normal)
    for body, matrix, radius, area in zip(solids, rigid, reach(solids).tolist(), areas, strict=True):
        if empty(area):
            continue
        point = affine(matrix, tuple(position[(slice(None), *area)]))
        away = tuple(p - p.clamp(-s / 2, s / 2) for p, s in zip(point, body.size, strict=True))
        squared = dot(away, away)
        world = transpose_times(matrix[..., :3], away)
        facing = -dot(world, tuple(normal[(slice(None), *area)])) * torch.rsqrt(squared + 1e-6)
        window = (1 - squared / (OCCLUSION_REACH * radius) ** 2).clamp(min=0)
        hidden = facing.clamp(min=0) * (0.6 * radius**2 / (squared + 0.15 * radius**2)).clamp(max=1) * window * window
        openness[area] *= 1 - 0.75 * hidden
    return openness


def shadow(surface: Surface, scene: Scene, light: Sequence[float]) -> Bool[Tensor, "f h w"]:
    """Which pixels a light, given in the frame of the first yaw (right, up, back), does not reach."""
    height, width = surface.distance.shape[-2:]
    shaded = torch.zeros_like(surface.sky)
    solids = casters(scene)
    if not solids:
        return shaded
    towards = first_yaw(scene.camera) @ torch.nn.functional.normalize(torch.tensor(light, dtype=torch.float64), dim=0)
    boxes = corners(solids)
    floor = 0.0 if scene.ground else float(boxes[..., 1].min()) - 2.0
    # A shadow lies in the hull of the solid and its image on the floor.
    length = ((boxes[..., 1:2] - floor) / towards[1].clamp(min=0.05)).clamp(0, 20)
    hull = torch.cat((boxes, boxes - towards * length), dim=2)
    areas = rectangles(hull, scene, height=height, width=width)
    maps = to_local(solids)
    rays = (maps[..., :3] @ towards).to(surface.normal)
    lifted = surface.position + surface.normal * (0.004 * surface.nearness)
    for body, matrix, ray, area in zip(solids, maps.to(surface.normal), rays, areas, strict=True):
        if empty(area):
            continue
        origin = affine(matrix, tuple(lifted[(slice(None), *area)]))
        shaded[area] |= HITS[body.kind](origin, tuple(rearrange(ray, "f c -> c f 1 1"))) < FAR
    return shaded
