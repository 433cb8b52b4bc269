"""Frames in and out of the model: depth, latents and mask of a clip as it streams by, and latents back to frames."""

from collections.abc import Iterator

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional as F

from .editing import MaskOptions, latent_mask, mask_chunks
from .gen1 import Gen1
from .models.autoencoder import decode_clip, encode_clip
from .structure.estimator import DepthRange, range_of, scale_depth
from .tensors import Bytes, Depth, Latents, OnStep, ignore_progress, to_bytes, to_float
from .video.clip import Clip
from .video.geometry import WorkingSize, from_working, pad, to_working, working_size


def size_for(gen1: Gen1, clip: Clip) -> WorkingSize:
    """The size a clip is edited at: the model's short side, padded to what autoencoder and U-Net can halve.

    Raises ValueError for a clip that cannot be edited, before any heavy work.
    """
    if clip.num_frames < 1:
        raise ValueError("the clip has 0 frames, so there is nothing to edit; check start, end and stride.")
    multiple = 8 * 2 ** (len(gen1.unet.config.block_out_channels) - 1)
    return working_size(clip.width, clip.height, short_side=gen1.diffusion.working_size, multiple=multiple)


@torch.inference_mode()
def read_depth(
    gen1: Gen1, clip: Clip, *, chunk: int = 8, on_step: OnStep = ignore_progress
) -> tuple[Depth, DepthRange]:
    """Depth of every frame, estimated on the source's pixels, then brought to the working size.

    It is scaled to 0..1 by one range for the whole clip, which comes back with it: one range per frame would flicker.
    Until that is known all of it waits on the CPU, where there is room.
    """
    size = size_for(gen1, clip)
    raw, done = torch.empty(clip.num_frames, 1, size.height, size.width), 0
    for frames in clip:
        for part in frames.split(chunk):
            estimate = gen1.depth(to_float(part.to(gen1.device)))
            small = F.interpolate(estimate, (size.height, size.width), mode="bilinear", antialias=True)
            raw[done : done + len(part)] = small
            done += len(part)
            on_step("depth", done, clip.num_frames)
    depth_range = range_of(raw)
    depth = torch.empty(clip.num_frames, 1, size.padded_height, size.padded_width, device=gen1.device)
    for part, scaled in zip(raw.split(chunk), depth.split(chunk), strict=True):
        estimate = scale_depth(part.to(gen1.device), depth_range)
        scaled[:] = pad(estimate, width=size.padded_width, height=size.padded_height)
    return rearrange(depth, "f 1 h w -> 1 1 f h w"), depth_range


@torch.inference_mode()
def encode_source(gen1: Gen1, clip: Clip, *, chunk: int = 8, on_step: OnStep = ignore_progress) -> Latents:
    """The clip's own latents: where ``strength`` below 1 starts, and what a mask keeps."""
    size = size_for(gen1, clip)
    parts, done = [], 0
    for frames in clip:
        for part in frames.split(chunk):
            images = to_working(to_float(part.to(gen1.device)), size)
            parts.append(encode_clip(gen1.autoencoder, images, chunk=chunk).float())
            done += len(part)
            on_step("encode", done, clip.num_frames)
    return rearrange(torch.cat(parts), "f c h w -> 1 c f h w")


def read_latent_mask(mask: Clip, clip: Clip, size: WorkingSize, options: MaskOptions, *, chunk: int) -> Tensor:
    """The mask ``[1 1 f h w]`` at latent resolution; padding is kept, not edited."""
    cells = (size.padded_height // 8, size.padded_width // 8)
    parts = []
    for part in mask_chunks(mask, clip, chunk, options):
        small = F.interpolate(part, (size.height, size.width), mode="area")
        padding = (0, size.padded_width - size.width, 0, size.padded_height - size.height)
        parts.append(latent_mask(F.pad(small, padding), cells))
    return rearrange(torch.cat(parts), "f 1 h w -> 1 1 f h w")


def decode(
    gen1: Gen1, latents: Latents, clip: Clip, *, chunk: int = 8, on_step: OnStep = ignore_progress
) -> Iterator[Bytes]:
    """Latents to frames at the source's size, chunk by chunk; the padding is cut off first.

    Raises ValueError where the autoencoder returns NaN, as Stable Diffusion's does in float16.
    """
    size = size_for(gen1, clip)
    by_frame = rearrange(latents, "1 c f h w -> f c h w")
    total = len(by_frame)
    for first in range(0, total, chunk):
        part = by_frame[first : first + chunk].to(gen1.dtype)
        with torch.inference_mode():
            images = decode_clip(gen1.autoencoder, part, chunk=chunk)
            require_finite(images, gen1.dtype)
            frames = to_bytes(from_working(images, size, width=clip.width, height=clip.height)).cpu()
        on_step("decode", min(first + chunk, total), total)
        yield frames


def require_finite(values: Tensor, dtype: torch.dtype) -> None:
    """Refuses NaN and infinity, which would silently become black or noisy pictures."""
    if not torch.isfinite(values).all():
        raise ValueError(
            f"the network returned NaN or infinite values in {dtype}, so there is no picture to decode; "
            "run in float32, or check that the weights are whole with `gen1 info`."
        )


def depth_frames(gen1: Gen1, depth: Depth, clip: Clip, *, chunk: int = 8) -> Iterator[Bytes]:
    """Depth as grey frames at the clip's size, white is near: what the model sees of the source."""
    size = size_for(gen1, clip)
    for part in depth[0].split(chunk, dim=1):
        grey = from_working(rearrange(part, "1 f h w -> f 1 h w"), size, width=clip.width, height=clip.height)
        yield to_bytes(repeat(grey, "f 1 h w -> f 3 h w")).cpu()
