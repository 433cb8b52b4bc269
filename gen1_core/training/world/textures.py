"""Smooth procedural textures of a point, in -1..1, and how fine each is, so that it can fade when far."""

import torch
from torch import Tensor

from .geometry import Vector


def noise(point: Vector) -> Tensor:
    """Soft blotches: sines of sines, which need no tables and look alike on every device."""
    x, y, z = point
    a = torch.sin(1.7 * x + 1.3 * torch.sin(1.1 * z + 0.7 * y))
    b = torch.sin(1.9 * z + 1.5 * torch.sin(1.3 * y - 0.9 * x) + 1.3)
    c = torch.sin(2.1 * y + 1.4 * torch.sin(1.2 * x + 1.6 * z) + 2.1)
    return (a + b + c) / 2.4


def plain(point: Vector) -> Tensor:
    """Nothing."""
    return torch.zeros_like(point[0])


def mottled(point: Vector) -> Tensor:
    """Noise at two scales."""
    fine = (point[0] * 2.3 + 5, point[1] * 2.3, point[2] * 2.3 + 3)
    return 0.65 * noise(point) + 0.45 * noise(fine)


def blotches(point: Vector) -> Tensor:
    """Noise with an edge."""
    return torch.tanh(4 * noise(point))


def veins(point: Vector) -> Tensor:
    """Thin veins where noise crosses zero, as in marble."""
    x, y, z = point
    bent = torch.sin(1.3 * x + 0.9 * y + 1.1 * z + 2.6 * noise(point))
    return 1 - 2 * (bent.abs() * 2.2).clamp(max=1)


def cracks(point: Vector) -> Tensor:
    """A net of bright cracks, as in lava."""
    fine = (point[0] * 1.9 + 4, point[1] * 1.9, point[2] * 1.9 + 7)
    ridge = torch.minimum(noise(point).abs(), noise(fine).abs() * 2 + 0.05)
    return 2 * torch.exp(-((ridge * 7) ** 2)) - 1


def rings(point: Vector) -> Tensor:
    """Growth rings about the y axis, as in wood."""
    x, y, z = point
    return torch.sin(6 * (x * x + z * z + 0.05).sqrt() + 0.5 * y + 1.2 * noise((0.5 * x, 0.3 * y, 0.5 * z)))


def planks(point: Vector) -> Tensor:
    """Boards along z with dark joints."""
    x, _, z = point
    board = torch.frac(x * 0.8 + 64)
    joint = 1 - ((board - 0.5).abs() * 2 - 0.86).clamp(min=0) * 14
    tone = torch.sin(torch.floor(x * 0.8 + 64) * 2.4) * 0.6
    return (
        torch.minimum(joint.clamp(-1, 1), 1 - 2 * joint.clamp(0, 1) * (0.5 + 0.3 * tone + 0.1 * torch.sin(3 * z))) * -1
    )


def stripes(point: Vector) -> Tensor:
    """Soft bands along y, slightly slanted."""
    return torch.tanh(3 * torch.sin(2.6 * point[1] + 0.5 * point[0]))


def dots(point: Vector) -> Tensor:
    """Round dots on a lattice in space."""
    x, y, z = point
    return torch.tanh(5 * (torch.cos(2.6 * x) + torch.cos(2.6 * y) + torch.cos(2.6 * z) - 1.5))


def checks(point: Vector) -> Tensor:
    """A chess board in space."""
    x, y, z = point
    return torch.tanh(6 * torch.sin(1.6 * x + 0.8) * torch.sin(1.6 * y + 0.8) * torch.sin(1.6 * z + 0.8))


def swirls(point: Vector) -> Tensor:
    """Bands bent by noise."""
    return torch.tanh(2.5 * torch.sin(2 * point[1] + 1.2 * point[0] + 2.6 * noise(point)))


def bricks(point: Vector) -> Tensor:
    """Mortar (1) between bricks (-1); columns run around x + z so that both sides of a wall show them."""
    x, y, z = point
    row = y * 1.5 + 32
    along = (x + z) * 0.75 + 0.5 * torch.remainder(torch.floor(row), 2) + 32
    gap = torch.maximum((torch.frac(row) - 0.5).abs() - 0.355, ((torch.frac(along) - 0.5).abs() - 0.43) * 2)
    return (gap * 22).clamp(-1, 1)


def grid(point: Vector) -> Tensor:
    """Soft lines on a square grid of the ground."""
    x, _, z = point
    line = torch.maximum(torch.cos(3 * x), torch.cos(3 * z))
    return ((line - 0.9) * 20).clamp(-1, 1)


def dunes(point: Vector) -> Tensor:
    """Long soft ripples."""
    x, y, z = point
    return 0.6 * torch.sin(2.2 * z + 1.2 * noise((0.6 * x, y, 0.6 * z))) + 0.4 * noise(point)


def waves(point: Vector) -> Tensor:
    """Ripples on water."""
    x, y, z = point
    return 0.6 * torch.sin(2.8 * z + 0.8 * x + 1.6 * noise(point)) + 0.4 * torch.sin(1.9 * x - 2.4 * z)


def craters(point: Vector) -> Tensor:
    """Round hollows."""
    x, y, z = point
    bump = torch.cos(1.7 * x + 0.9 * noise((0.5 * x, y, 0.5 * z))) * torch.cos(1.9 * z)
    return torch.tanh(4 * (bump - 0.45)) * 0.8 + 0.25 * noise(point)


def zebra(point: Vector) -> Tensor:
    """Broad wavy bands across x and y, with hard edges."""
    x, y, z = point
    return torch.tanh(6 * torch.sin(3.4 * y + 1.6 * x + 1.6 * z + 1.5 * noise((0.8 * x, 0.8 * y, 0.8 * z))))


def boards(point: Vector) -> Tensor:
    """Broad straight bands on the ground, along z."""
    return torch.tanh(8 * torch.sin(2.4 * point[0]))


def spots(point: Vector) -> Tensor:
    """Round dots on a square lattice of the ground."""
    x, _, z = point
    return torch.tanh(6 * (torch.cos(2.2 * x) + torch.cos(2.2 * z) - 0.8))


def breakers(point: Vector) -> Tensor:
    """Long white crests on dark water."""
    x, y, z = point
    return torch.tanh(4 * (torch.sin(2.6 * z + 1.4 * noise((0.7 * x, y, 0.9 * z))) - 0.45))


def caustics(point: Vector) -> Tensor:
    """Bright wandering lines (-1), as of light through waves."""
    x, y, z = point
    first = torch.sin(1.9 * x + 1.7 * noise(point)).abs()
    second = torch.sin(1.9 * z + 1.7 * noise((z + 2, y, x))).abs()
    return 1 - 2 * torch.exp(-torch.minimum(first, second) * 4)


TEXTURES = {
    "plain": plain,
    "noise": mottled,
    "blotches": blotches,
    "veins": veins,
    "cracks": cracks,
    "rings": rings,
    "planks": planks,
    "stripes": stripes,
    "dots": dots,
    "checks": checks,
    "swirls": swirls,
    "bricks": bricks,
    "grid": grid,
    "dunes": dunes,
    "waves": waves,
    "craters": craters,
    "zebra": zebra,
    "boards": boards,
    "spots": spots,
    "caustics": caustics,
    "breakers": breakers,
}

WAVELENGTHS = {"noise": 1.8, "cracks": 1.6, "bricks": 0.9, "rings": 1.3, "planks": 1.0, "grid": 1.6, "zebra": 1.6}
"""Size of the finest feature at scale 1; 2.2 for textures that are not named."""
