"""Part of the adapter: IMAGE, MASK and LATENT of ComfyUI into pictures, clips and latents of gen1_core, and back."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from ..gen1_core.models.autoencoder import Autoencoder
from ..gen1_core.tensors import Bytes, Images, Latents, to_bytes, to_float
from ..gen1_core.video.clip import Clip

BYTES_PER_PIXEL = 3 * 4
"""Of IMAGE: float32 for each colour."""

SD_SCALE = 0.18215
"""Latents of Stable Diffusion in the core's LATENT are this much larger than networks see them."""


def images_of(image: Tensor) -> Images:
    """IMAGE as float pictures ``[n 3 h w]``, alpha dropped, grey repeated, clipped to 0..1."""
    if image.ndim != 4 or not len(image):
        raise ValueError(
            f"an IMAGE of shape {tuple(image.shape)} is not [frames, height, width, colours] with at least one frame; "
            "connect the output of a node that loads pictures or a video."
        )
    colours = image[..., :3] if image.shape[-1] >= 3 else repeat(image[..., 0], "f h w -> f h w 3")
    return rearrange(colours, "f h w c -> f c h w").float().clamp(0, 1)


def image_of(images: Images) -> Tensor:
    """Float pictures ``[n 3 h w]`` as IMAGE on ComfyUI's intermediate device."""
    return rearrange(images, "n c h w -> n h w c").contiguous().float().to(comfy.model_management.intermediate_device())


@dataclass(frozen=True)
class ImageClip:
    """IMAGE as a clip: it turns to bytes as it is read, so that no second copy of it lies in memory."""

    image: Tensor
    chunk: int = 8

    @property
    def num_frames(self) -> int:
        """Exact."""
        return self.image.shape[0]

    @property
    def height(self) -> int:
        """Pixels."""
        return self.image.shape[1]

    @property
    def width(self) -> int:
        """Pixels."""
        return self.image.shape[2]

    def __iter__(self) -> Iterator[Bytes]:
        for part in self.image.split(self.chunk):
            yield to_bytes(images_of(part)).cpu()


def clip_of(image: Tensor, *, chunk: int = 8) -> Clip:
    """IMAGE as a clip. Raises ValueError where it has no frames."""
    images_of(image[:1])
    return ImageClip(image, chunk)


def gather(chunks: Iterable[Bytes], *, frames: int) -> Tensor:
    """A stream of byte chunks as one IMAGE, filled as they come.

    Raises ValueError where memory does not hold it, and where their number is another.
    """
    image, done = torch.empty(0), 0
    for chunk in chunks:
        if not done:
            require_memory(frames, *chunk.shape[-2:])
            image = torch.empty(frames, *chunk.shape[-2:], 3, device=comfy.model_management.intermediate_device())
        image[done : done + len(chunk)] = rearrange(to_float(chunk), "n c h w -> n h w c")[: frames - done]
        done += len(chunk)
    if done != frames or not frames:
        raise ValueError(
            f"{done} frames came of a clip that said it had {frames}, so the video is damaged or was changed "
            "meanwhile; load it again."
        )
    return image


def require_memory(frames: int, height: int, width: int) -> None:
    """Refuses frames that memory does not hold as IMAGE, before the machine begins to swap."""
    free = comfy.model_management.get_free_memory(comfy.model_management.intermediate_device())
    needed = frames * height * width * BYTES_PER_PIXEL
    if needed > free:
        raise ValueError(
            f"{frames} frames of {width}x{height} take {needed / 1e9:.1f} GB as IMAGE, and {free / 1e9:.1f} GB of "
            "memory are free; connect VIDEO instead, which streams, or take fewer frames (end_s, stride) or smaller "
            "ones (max_size)."
        )


def masks_of(mask: Tensor) -> Tensor:
    """MASK ``[F H W]`` or ``[H W]`` as ``[n 1 h w]``, clipped to 0..1."""
    if mask.ndim not in (2, 3):
        raise ValueError(
            f"a MASK of shape {tuple(mask.shape)} is not [frames, height, width]; connect a MASK output, or make one "
            "of an IMAGE with Convert Image to Mask."
        )
    return rearrange(mask if mask.ndim == 3 else mask[None], "f h w -> f 1 h w").float().clamp(0, 1)


def mask_of(masks: Tensor) -> Tensor:
    """``[n 1 h w]`` as MASK."""
    return rearrange(masks, "n 1 h w -> n h w").contiguous().float().to(comfy.model_management.intermediate_device())


def mask_clip(mask: Tensor) -> Clip:
    """MASK as a clip of grey frames, white edits: what ``edit(mask=...)`` takes."""
    return ImageClip(rearrange(masks_of(mask), "f 1 h w -> f h w 1"))


def latent_scale(codec: Any) -> tuple[float, tuple[float, ...]]:
    """Scale and mean between LATENT and what the U-Net sees: latents = (LATENT - mean) * scale."""
    network = getattr(codec, "network", codec)
    if isinstance(network, Autoencoder):
        return network.config.latent_scale, network.config.latent_mean
    return SD_SCALE, (0.0, 0.0, 0.0, 0.0)


def latent_channels(codec: Any) -> int:
    """Channels of LATENT."""
    return len(latent_scale(codec)[1])


def latent_of(latents: Latents, codec: Any) -> dict[str, Tensor]:
    """Latents ``[1 c f h w]`` as LATENT ``[F c h w]`` in the scale of the core's VAE."""
    samples = denormalised(rearrange(latents, "1 c f h w -> f c h w").float(), codec)
    return {"samples": samples.to(comfy.model_management.intermediate_device())}


def latents_of(latent: dict[str, Any], codec: Any) -> Latents:
    """LATENT as latents ``[1 c f h w]``, normalised as the U-Net wants them."""
    samples = latent["samples"]
    channels = latent_channels(codec)
    if samples.ndim != 4 or samples.shape[1] != channels:
        raise ValueError(
            f"a LATENT of shape {tuple(samples.shape)} is not [frames, {channels}, height, width]; make it with Gen-1 "
            "Encode, Gen-1 Condition, or VAE Encode with the VAE of the Gen-1 loader."
        )
    return rearrange(normalised(samples.float(), codec), "f c h w -> 1 c f h w")


def normalised(raw: Tensor, codec: Any) -> Tensor:
    """LATENT ``[n c h w]`` in the U-Net's scale."""
    scale, mean = latent_scale(codec)
    return (raw - raw.new_tensor(mean)[:, None, None]) * scale


def denormalised(latents: Tensor, codec: Any) -> Tensor:
    """The inverse of ``normalised``."""
    scale, mean = latent_scale(codec)
    return latents / scale + latents.new_tensor(mean)[:, None, None]


class RawCodec(nn.Module):
    """An autoencoder of gen1_core as the core's VAE class calls one: -1..1 to latents without scale and mean."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def encode(self, pixels: Tensor) -> Tensor:
        """Pictures to LATENT."""
        if isinstance(self.network, Autoencoder):
            return self.network.moments(pixels)[0]
        return denormalised(self.network.encode(pixels), self.network)

    def decode(self, samples: Tensor, **_: Any) -> Tensor:
        """LATENT to pictures."""
        if isinstance(self.network, Autoencoder):
            return self.network.decode_raw(samples)
        return self.network.decode(normalised(samples, self.network))
