"""Scenes and styles to clips and their depth."""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from ...tensors import Depth, to_bytes
from .geometry import Scene
from .looks import Style
from .shade import nearness, shade
from .surface import shadow, trace


def render_styles(
    scenes: Sequence[Scene],
    styles: Sequence[Sequence[Style]],
    *,
    height: int,
    width: int,
    supersample: int,
    device: torch.device,
) -> tuple[UInt8[Tensor, "b k f 3 h w"], Depth]:
    """Each scene in each of its k styles; rays are cast once a scene, shadows once a direction of light."""
    if len(scenes) != len(styles):
        raise ValueError(f"{len(scenes)} scenes came with {len(styles)} lists of styles; give each scene its own list.")
    clips, depths = [], []
    for scene, looks in zip(scenes, styles, strict=True):
        size = {"height": height * supersample, "width": width * supersample}
        surface = trace(scene, **size, device=device, coarse=supersample)
        directions = {style.sky.sun for style in looks}
        shadows = {direction: shadow(surface, scene, direction) for direction in directions}
        pictures = [shade(surface, style, shadows[style.sky.sun], supersample=supersample) for style in looks]
        clips.append(torch.stack([to_bytes(picture) for picture in pictures]))
        depths.append(rearrange(nearness(surface, supersample), "f 1 h w -> 1 f h w"))
    return torch.stack(clips), torch.stack(depths)


def render(
    scenes: Sequence[Scene],
    styles: Sequence[Style],
    *,
    height: int,
    width: int,
    supersample: int = 2,
    device: torch.device,
) -> tuple[UInt8[Tensor, "b f 3 h w"], Depth]:
    """Each scene in its style: frames, and exact inverse depth 0..1 over the clip with 1 near."""
    clips, depth = render_styles(
        scenes,
        [[style] for style in styles],
        height=height,
        width=width,
        supersample=supersample,
        device=device,
    )
    return rearrange(clips, "b 1 f c h w -> b f c h w"), depth
