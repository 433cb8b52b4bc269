"""Scenes and styles to clips and their depth."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from ...tensors import Depth, to_bytes
from .geometry import FAR, Scene
from .shade import shade
from .styles import Style
from .surface import Surface, shadow, trace


def clip_depth(surface: Surface, *, supersample: int) -> Float[Tensor, "1 f h w"]:
    """Inverse z-depth of one clip, scaled to 0..1 over all its frames; 1 is near, sky is infinitely far."""
    inverse = torch.where(surface.distance < FAR, 1 / surface.distance, 0.0)[None]
    if supersample > 1:
        inverse = F.avg_pool2d(inverse, supersample)
    low, high = inverse.amin(), inverse.amax()
    return (inverse - low) / (high - low).clamp(min=1e-6)


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
        surface = trace(scene, height=height * supersample, width=width * supersample, device=device)
        directions = {style.sky.sun for style in looks}
        shadows = {direction: shadow(surface, scene, direction) for direction in directions}
        pictures = [shade(surface, style, shadows[style.sky.sun], supersample=supersample) for style in looks]
        clips.append(torch.stack([to_bytes(picture) for picture in pictures]))
        depths.append(clip_depth(surface, supersample=supersample))
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
