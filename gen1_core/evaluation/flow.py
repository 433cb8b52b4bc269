"""Exact motion of a rendered clip: where the surface point of each pixel was one frame earlier."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from ..training.world.geometry import FAR, Scene, ray_basis, to_local
from ..training.world.surface import trace
from .distances import warp

TOLERANCE = 0.02
"""A point is the one seen a frame earlier where its depth agrees with the depth buffer there to this share."""


def exact_flow(scene: Scene, *, height: int, width: int) -> tuple[Float[Tensor, "k 2 h w"], Bool[Tensor, "k 1 h w"]]:
    """From every pixel of frames 1, 2, ... to its surface point's place one frame earlier, in pixels, and whether the
    point could be seen there.

    A point rides on its solid; ground and sky rest (the sky as a sphere at the renderer's horizon). Sky counts as seen
    only where there was sky before.
    """
    surface = trace(scene, height=height, width=width, device=torch.device("cpu"))
    points = rearrange(surface.position, "c f h w -> f h w c").double()
    before = torch.stack(
        [_carried(scene, points[frame], surface.solid[frame], frame) for frame in range(1, len(points))]
    )
    basis = torch.linalg.inv(ray_basis(scene.camera, width / height).double())[:-1]
    relative = before - rearrange(scene.camera.position.double()[:-1], "k c -> k 1 1 c")
    x, y, z = torch.einsum("kij,khwj->ikhw", basis, relative)
    in_front = z > 1e-3
    z = torch.where(in_front, z, 1.0)
    column, row = (x / z + 1) / 2 * width - 0.5, (1 - y / z) / 2 * height - 0.5
    flow = torch.stack([column - torch.arange(width), row - torch.arange(height)[:, None]], dim=1).float()

    inside = in_front & (column >= 0) & (column <= width - 1) & (row >= 0) & (row <= height - 1)
    sky = rearrange(surface.sky, "f h w -> f 1 h w")
    # Inverse depth, since it is what bilinear lookup keeps exact on planes.
    near = rearrange(torch.where(surface.distance < FAR, 1 / surface.distance, 0.0), "f h w -> f 1 h w")
    was = warp(near[:-1].expand(-1, 3, -1, -1), flow)[:, :1]
    expected = torch.where(sky[1:], 0.0, rearrange(1 / z, "k h w -> k 1 h w").float())
    agrees = (was - expected).abs() <= TOLERANCE * torch.maximum(was, expected)
    return flow, rearrange(inside, "k h w -> k 1 h w") & agrees


def _carried(scene: Scene, points: Tensor, solid: Tensor, frame: int) -> Float[Tensor, "h w 3"]:
    """Points of one frame where their solids were a frame earlier."""
    moved = points.clone()
    maps = to_local(scene.solids).double()
    for number, body in enumerate(scene.solids):
        on = solid == number
        if not on.any():
            continue
        affine = maps[number, frame]
        local = points[on] @ affine[:, :3].T + affine[:, 3]
        size = torch.tensor(body.size, dtype=torch.float64)
        moved[on] = (local * size) @ body.turn[frame - 1].double().T + body.centre[frame - 1].double()
    return moved
