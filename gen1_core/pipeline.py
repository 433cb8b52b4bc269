"""Figure 2 of the paper, top to bottom: a clip and a content in, the restyled clip out.

    frames -> depth -> blur -> encode ----------> structure --+
    prompt or picture -> CLIP (-> prior) -------> content ----+--> U-Net, guided, over the sigmas -> decode -> frames
    noise of every frame, from one seed ------> latents ------+

Pixels stream through in chunks; only depth and latents of the whole clip stay in memory.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional as F

from .content.encoder import Content, ContentEncoder
from .content.prior import content_from_images, content_from_text
from .diffusion.condition import Condition, Denoiser
from .diffusion.guidance import guided, masked, structure_between
from .diffusion.noise import FrameNoise
from .diffusion.prediction import Network, Prediction, as_denoiser
from .diffusion.samplers import SAMPLERS
from .diffusion.schedule import Schedule, Spacing, spaced_sigmas, start
from .diffusion.windows import require_windows, windowed
from .editing import DEFAULT_MASK, MaskOptions, check_mask, keep_background, latent_mask, mask_chunks
from .models.autoencoder import Autoencoder, decode_clip, encode_clip
from .models.prior import Prior
from .models.unet import SpaceTimeUNet
from .structure.blur import encode_structure, flat_structure
from .structure.estimator import DepthEstimator, DepthRange, Structure, range_of, scale_depth
from .tensors import Bytes, Depth, Images, Latents, OnStep, ignore_progress, to_bytes, to_float
from .video.clip import Clip
from .video.geometry import WorkingSize, from_working, pad, to_working, working_size

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """How the U-Net was trained: it travels with its weights. ``working_size`` is the short side in pixels."""

    working_size: int = 256
    prediction: Prediction = "v"
    schedule: Schedule = Schedule()


@dataclass(frozen=True, kw_only=True)
class EditOptions:
    """The sliders of one edit.

    ``blur_level`` is the paper's t_s (0 keeps every detail of the depth, 7 almost none); ``content_scale`` and
    ``temporal_scale`` are omega and omega_t of Eq. 8 (1 is off); ``strength`` below 1 starts from the source's own
    latents; ``structure_start`` and ``structure_end`` are fractions of the sampling steps between which the structure
    is shown. ``window`` frames are denoised together (0: as many as the model was trained on), neighbours share
    ``overlap``. ``passes`` is the number of guidance passes per network call: 2 is fast on a GPU, 1 saves memory.
    """

    blur_level: int = 0
    structure_strength: float = 1.0
    structure_start: float = 0.0
    structure_end: float = 1.0
    content_scale: float = 7.5
    temporal_scale: float = 1.0
    steps: int = 50
    sampler: str = "ddim"
    spacing: Spacing = "trailing"
    strength: float = 1.0
    seed: int = 0
    window: int = 0
    overlap: int = 2
    passes: int = 2
    chunk: int = 8

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(
                f"sampler={self.sampler!r} is not one of the samplers; choose from {', '.join(sorted(SAMPLERS))}."
            )
        if not 0 < self.strength <= 1:
            raise ValueError(
                f"strength={self.strength} is outside 0..1, the share of the noise to start from; "
                "give 1 for a full edit, or a value just above 0 to stay near the source."
            )
        for name in ("steps", "passes", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} would do no work; give a whole number of at least 1.")
        for name in ("content_scale", "temporal_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name}={getattr(self, name)} is no weight to push with; give a number of 0 or more (1 is off)."
                )
        # The structure sliders are checked by the class that holds them, here already, before any work.
        self.structure(torch.zeros(1, 1, 1, 1, 1))

    def structure(self, depth: Depth) -> Structure:
        """These sliders' structure of a clip."""
        return Structure(
            depth=depth,
            blur_level=self.blur_level,
            strength=self.structure_strength,
            start=self.structure_start,
            end=self.structure_end,
        )


@dataclass(frozen=True, kw_only=True)
class Gen1:
    """The parts of one model, each replaceable."""

    unet: SpaceTimeUNet
    autoencoder: Autoencoder
    depth: DepthEstimator
    encoder: ContentEncoder
    prior: Prior
    diffusion: Diffusion
    defaults: EditOptions

    @property
    def device(self) -> torch.device:
        """Where the U-Net is; input is moved there."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the U-Net and the autoencoder compute in; sampling itself stays in float32."""
        return next(self.unet.parameters()).dtype


@torch.inference_mode()
def describe(gen1: Gen1, *, prompt: str | None = None, image: Images | None = None, seed: int = 0) -> Content:
    """The content from a text prompt (through the prior) or from a picture, whichever is given.

    Raises ValueError where both or neither are given, or the prompt is empty.
    """
    check_content(prompt, image)
    if image is not None:
        return content_from_images(gen1.encoder, image.to(gen1.device))
    return content_from_text(gen1.prior, gen1.encoder, prompt or "", seed=seed)


def check_content(prompt: str | None, image: object | None) -> None:
    """Refuses a content that is missing, given twice, or empty."""
    if (prompt is None) == (image is None):
        given = "both a prompt and an image were" if prompt is not None else "neither a prompt nor an image was"
        raise ValueError(f"{given} given, but the content comes from exactly one; give a prompt or an image.")
    if prompt is not None and not prompt.strip():
        raise ValueError("the prompt is empty, so it describes no content; say what the clip should look like.")


def edit(
    gen1: Gen1,
    clip: Clip,
    content: Content,
    options: EditOptions | None = None,
    *,
    depth: Depth | None = None,
    mask: Clip | None = None,
    mask_options: MaskOptions = DEFAULT_MASK,
    on_step: OnStep = ignore_progress,
) -> Iterator[Bytes]:
    """Restyle a clip: yields exactly its frames, at its size, in chunks of bytes.

    ``content`` comes from ``describe``; ``options`` left out means the model's own defaults, ``depth`` left out means
    that it is estimated here (``read_depth`` gives one to use for several edits). Where a mask is given (white edits),
    the rest of the picture is the source's own bytes. ``on_step(stage, done, total)`` reports progress and may raise
    to cancel. All input is checked, and all latents are made, before the first frame comes out.

    Raises ValueError for a clip without frames or too small, and where the network returns NaN.
    """
    options = options if options is not None else gen1.defaults
    size = size_for(gen1, clip)
    check_edit(gen1, clip, content, options, depth=depth, mask=mask)
    logger.info("%d frames of %dx%d, edited at %s", clip.num_frames, clip.width, clip.height, size)

    if depth is None:
        depth, _ = read_depth(gen1, clip, chunk=options.chunk, on_step=on_step)
    needs_source = mask is not None or options.strength < 1
    source = encode_source(gen1, clip, chunk=options.chunk, on_step=on_step) if needs_source else None
    keep = read_latent_mask(mask, clip, size, mask_options, chunk=options.chunk) if mask is not None else None

    latents = generate(gen1, options.structure(depth), content, options, source=source, mask=keep, on_step=on_step)
    frames = decode(gen1, latents, clip, chunk=options.chunk, on_step=on_step)
    return frames if mask is None else keep_background(frames, clip, mask, mask_options, length=options.chunk)


@torch.inference_mode()
def generate(
    gen1: Gen1,
    structure: Structure,
    content: Content,
    options: EditOptions,
    *,
    source: Latents | None = None,
    mask: Tensor | None = None,
    on_step: OnStep = ignore_progress,
) -> Latents:
    """The diffusion loop of section 3: from the noise of every frame to clean latents ``[1 c f h w]``.

    ``source`` (clean latents of the clip) is needed for ``strength`` below 1 and for a ``mask`` ``[1 1 f h w]``.
    Raises ValueError where it is missing, and where the network returns NaN.
    """
    device = gen1.device
    if source is None and (mask is not None or options.strength < 1):
        raise ValueError(
            f"strength={options.strength} with{'' if mask is not None else 'out'} a mask needs the clip's own latents, "
            "but source is missing; give encode_source(gen1, clip), or use strength 1 and no mask."
        )
    encoded = encode_structure(gen1.autoencoder, on(device, structure), options.chunk, on_step=on_step).float()
    condition = Condition(structure=encoded, content=content.tokens.to(device), null=content.null.to(device))
    _, _, frames, height, width = encoded.shape

    schedule = gen1.diffusion.schedule
    sigmas = [float(s) for s in spaced_sigmas(schedule, options.steps, options.spacing, strength=options.strength)]
    noise = FrameNoise(seed=options.seed, channels=4, height=height, width=width, first=0, count=frames)
    begin = source.to(device) if source is not None and options.strength < 1 else None
    x = start(begin, noise.initial().to(device), sigmas[0])

    denoise = as_denoiser(network(gen1.unet), schedule, gen1.diffusion.prediction, batch=options.passes)
    denoise = windowed(denoise, length=options.window or gen1.unet.config.frames, overlap=options.overlap)
    denoise = guided(denoise, content_scale=options.content_scale, temporal_scale=options.temporal_scale)
    denoise = during(denoise, structure, sigmas, flat=flat_structure(gen1.autoencoder, like=encoded))
    if mask is not None and source is not None:
        denoise = masked(denoise, known=source.to(device), mask=mask.to(device))

    total = len(sigmas) - 1
    on_step("sample", 0, total)
    sampler = SAMPLERS[options.sampler]
    for done, x_next in enumerate(sampler(denoise, x, sigmas, condition, noise=step_noise(noise, device)), start=1):
        x = x_next
        on_step("sample", done, total)
    require_finite(x, gen1.dtype)
    return x


def network(unet: SpaceTimeUNet) -> Network:
    """The U-Net as the denoiser wants it: noisy latents and structure side by side, 4 + 8 = 12 channels."""
    dtype = next(unet.parameters()).dtype

    def call(x: Latents, timestep: Tensor, condition: Condition) -> Latents:
        stacked = torch.cat([x, condition.structure.to(x)], dim=1).to(dtype)
        return unet(stacked, timestep, condition.content.to(dtype), image=condition.image).to(x.dtype)

    return call


def during(denoise: Denoiser, structure: Structure, sigmas: Sequence[float], *, flat: Tensor) -> Denoiser:
    """The structure only between its start and end, given as fractions of the sampling steps."""
    if (structure.start, structure.end) == (0.0, 1.0):
        return denoise
    steps = len(sigmas) - 1
    first = min(round(structure.start * steps), steps - 1)
    after = max(round(structure.end * steps), first + 1)
    return structure_between(denoise, flat, sigma_start=sigmas[first], sigma_end=sigmas[after])


def step_noise(noise: FrameNoise, device: torch.device) -> Callable[[int], Latents]:
    """The noise that stochastic samplers add at a step; drawn on the CPU, so every device gets the same."""
    return lambda step: noise.step(step).to(device, non_blocking=True)


def on(device: torch.device, structure: Structure) -> Structure:
    """The structure with its depth on a device."""
    return replace(structure, depth=structure.depth.to(device))


@torch.inference_mode()
def read_depth(
    gen1: Gen1, clip: Clip, *, chunk: int = 8, on_step: OnStep = ignore_progress
) -> tuple[Depth, DepthRange]:
    """Depth of every frame, estimated on the source's pixels, then brought to the working size.

    It is scaled to 0..1 by one range for the whole clip, which comes back with it: one range per frame would flicker.
    """
    size = size_for(gen1, clip)
    raw, done = torch.empty(clip.num_frames, 1, size.height, size.width, device=gen1.device), 0
    for frames in clip:
        for part in frames.split(chunk):
            estimate = gen1.depth(to_float(part.to(gen1.device)))
            small = F.interpolate(estimate, (size.height, size.width), mode="bilinear", antialias=True)
            raw[done : done + len(part)] = small
            done += len(part)
            on_step("depth", done, clip.num_frames)
    depth_range = range_of(raw)
    scaled = pad(scale_depth(raw, depth_range), width=size.padded_width, height=size.padded_height)
    return rearrange(scaled, "f 1 h w -> 1 1 f h w"), depth_range


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


def check_edit(
    gen1: Gen1, clip: Clip, content: Content, options: EditOptions, *, depth: Depth | None, mask: Clip | None
) -> None:
    """Refuses what cannot be edited before any heavy work; every message says what to do."""
    spaced_sigmas(gen1.diffusion.schedule, options.steps, options.spacing, strength=options.strength)
    longest = gen1.unet.config.frames
    if options.window > longest:
        raise ValueError(
            f"window={options.window} is longer than the {longest} frames this model has learnt positions for; "
            f"give at most {longest}, or 0 for that many."
        )
    require_windows(options.window or longest, options.overlap)
    if mask is not None:
        check_mask(mask, clip.num_frames)
    tokens = content.tokens
    if tokens.shape[0] != 1 or tokens.shape[-1] != gen1.unet.config.cross_attention_dim:
        raise ValueError(
            f"content of shape {tuple(tokens.shape)} does not fit a model that takes one content of width "
            f"{gen1.unet.config.cross_attention_dim}; make it with describe(gen1, ...)."
        )
    size = size_for(gen1, clip)
    wanted = (1, 1, clip.num_frames, size.padded_height, size.padded_width)
    if depth is not None and tuple(depth.shape) != wanted:
        raise ValueError(
            f"depth of shape {tuple(depth.shape)} does not belong to this clip, which needs {wanted}; "
            "make it with read_depth(gen1, clip) or `gen1 depth` from the same frames."
        )


def size_for(gen1: Gen1, clip: Clip) -> WorkingSize:
    """The size a clip is edited at: the model's short side, padded to what autoencoder and U-Net can halve.

    Raises ValueError for a clip that cannot be edited, before any heavy work.
    """
    if clip.num_frames < 1:
        raise ValueError("the clip has 0 frames, so there is nothing to edit; check start, end and stride.")
    multiple = 8 * 2 ** (len(gen1.unet.config.block_out_channels) - 1)
    return working_size(clip.width, clip.height, short_side=gen1.diffusion.working_size, multiple=multiple)
