"""Figure 2 of the paper, top to bottom: a clip and a content in, the restyled clip out.

    frames -> depth -> blur -> encode ----------> structure --+
    prompt or picture -> CLIP (-> prior) -------> content ----+--> U-Net, guided, over the sigmas -> decode -> frames
    noise of every frame, from one seed ------> latents ------+

The same pictures hold for public weights: there the structure goes through control networks (or SD2-depth's fifth
channel), and the content is text, a picture's tokens, or both.

Pixels stream through in chunks; only depth, what is made of it for the network, and latents of the whole clip stay in
memory.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from .conditioning import condition_of, during, muted, network, without_structure
from .content.describe import Describer
from .content.encoder import Content
from .diffusion.guidance import guided, masked, watched
from .diffusion.noise import FrameNoise
from .diffusion.prediction import as_denoiser
from .diffusion.samplers import SAMPLERS
from .diffusion.schedule import spaced_sigmas, start
from .diffusion.windows import require_windows, windowed
from .editing import DEFAULT_MASK, MaskOptions, check_mask, keep_background
from .frames import decode, encode_source, read_depth, read_latent_mask, require_finite, size_for
from .gen1 import EditOptions, Gen1
from .structure.estimator import Structure
from .tensors import Bytes, Depth, Images, Latents, OnLatents, OnStep, ignore_progress
from .video.clip import Clip

logger = logging.getLogger(__name__)


@torch.inference_mode()
def describe(
    gen1: Gen1, *, prompt: str | None = None, image: Images | None = None, negative: str = "", seed: int = 0
) -> Content:
    """The content from a text prompt or from a picture 0..1 ``[1 3 h w]``; from both where the model reads both.

    ``negative`` says what guidance should move away from. Raises ValueError where neither is given, or both to a model
    that reads one, or the prompt is empty.
    """
    check_content(prompt, image, describer=gen1.describer)
    return gen1.describer(prompt=prompt or "", image=image, negative=negative, seed=seed)


def check_content(prompt: str | None, image: object | None, *, describer: Describer) -> None:
    """Refuses a content that is missing, empty, or more than the model reads."""
    if prompt is None and image is None:
        raise ValueError(
            "neither a prompt nor an image was given, but the content comes from one; give a prompt or an image."
        )
    if image is not None and not describer.reads_pictures:
        raise ValueError(
            "a picture was given, but this model reads only text; add an IP-Adapter with its CLIP vision file "
            "(--ip-adapter, --clip-vision), take an SD-unCLIP checkpoint, or give a prompt alone."
        )
    if prompt is not None and image is not None and not describer.reads_both:
        raise ValueError(
            "both a prompt and an image were given, but this model takes its content from exactly one; "
            "give a prompt or an image."
        )
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
    on_latents: OnLatents | None = None,
) -> Iterator[Bytes]:
    """Restyle a clip: yields exactly its frames, at its size, in chunks of bytes.

    ``content`` comes from ``describe``; ``options`` left out means the model's own defaults, ``depth`` left out means
    that it is estimated here (``read_depth`` gives one to use for several edits). Where a mask is given (white edits),
    the rest of the picture is the source's own bytes. ``on_step(stage, done, total)`` reports progress and may raise
    to cancel, ``on_latents`` sees what each step takes for the clean latents. All input is checked, and all latents
    are made, before the first frame comes out.

    Raises ValueError for a clip without frames or too small, and where the network returns NaN.
    """
    options = options if options is not None else gen1.defaults
    size = size_for(gen1, clip)
    check_edit(gen1, clip, content, options, depth=depth, mask=mask)
    logger.info("%d frames of %dx%d, edited at %s", clip.num_frames, clip.width, clip.height, size)

    if depth is None and not gen1.reads_structure:
        depth = torch.zeros(1, 1, clip.num_frames, size.padded_height, size.padded_width, device=gen1.device)
    elif depth is None:
        depth, _ = read_depth(gen1, clip, chunk=options.chunk, on_step=on_step)
    needs_source = mask is not None or options.strength < 1
    source = encode_source(gen1, clip, chunk=options.chunk, on_step=on_step) if needs_source else None
    keep = read_latent_mask(mask, clip, size, mask_options, chunk=options.chunk) if mask is not None else None

    structure = options.structure(depth)
    latents = generate(
        gen1, structure, content, options, source=source, mask=keep, on_step=on_step, on_latents=on_latents
    )
    frames = decode(gen1, latents, clip, chunk=options.chunk, on_step=on_step)
    return frames if mask is None else keep_background(frames, clip, mask, mask_options, length=options.chunk)


@torch.inference_mode()
def generate(
    gen1: Gen1,
    structure: Structure,
    content: Content,
    options: EditOptions,
    *,
    hints: Sequence[Structure] = (),
    source: Latents | None = None,
    mask: Tensor | None = None,
    on_step: OnStep = ignore_progress,
    on_latents: OnLatents | None = None,
) -> Latents:
    """The diffusion loop of section 3: from the noise of every frame to clean latents ``[1 c f h w]``.

    ``hints`` are structures for the control networks, one each, where they look at different things; without them all
    look at ``structure``. ``source`` (clean latents of the clip) is needed for ``strength`` below 1 and for a ``mask``
    ``[1 1 f h w]``. ``on_latents`` sees the clean estimate of every call of the denoiser. Raises ValueError where it is
    missing, and where the network returns NaN.
    """
    device = gen1.device
    if source is None and (mask is not None or options.strength < 1):
        raise ValueError(
            f"strength={options.strength} with{'' if mask is not None else 'out'} a mask needs the clip's own latents, "
            "but source is missing; give encode_source(gen1, clip), or use strength 1 and no mask."
        )
    condition = condition_of(gen1, structure, content, hints, chunk=options.chunk, on_step=on_step)
    _, _, frames, height, width = condition.structure.shape

    schedule = gen1.diffusion.schedule
    sigmas = [float(s) for s in spaced_sigmas(schedule, options.steps, options.spacing, strength=options.strength)]
    channels = gen1.unet.config.out_channels
    noise = FrameNoise(seed=options.seed, channels=channels, height=height, width=width, first=0, count=frames)
    begin = source.to(device) if source is not None and options.strength < 1 else None
    x = start(begin, noise.initial().to(device), sigmas[0])

    free = without_structure(gen1, condition, ())
    denoise = as_denoiser(network(gen1.unet, gen1.controls), schedule, gen1.diffusion.prediction, batch=options.passes)
    denoise = windowed(denoise, length=options.window or gen1.unet.config.longest, overlap=options.overlap)
    denoise = guided(
        denoise,
        content_scale=options.content_scale,
        temporal_scale=options.temporal_scale,
        structure_scale=options.structure_scale,
        without=free,
    )
    # Control networks with hints of their own have ranges of their own.
    denoise = during(denoise, structure, sigmas, without=without_structure(gen1, condition, hints) if hints else free)
    for index, hint in enumerate(hints):
        denoise = during(denoise, hint, sigmas, without=partial(muted, index=index))
    if mask is not None and source is not None:
        denoise = masked(denoise, known=source.to(device), mask=mask.to(device))
    if on_latents is not None:
        denoise = watched(denoise, on_latents)

    total = len(sigmas) - 1
    on_step("sample", 0, total)
    steps = SAMPLERS[options.sampler](denoise, x, sigmas, condition, noise=step_noise(noise, device))
    for done, latents in enumerate(steps, 1):
        x = latents
        on_step("sample", done, total)
    require_finite(x, gen1.dtype)
    return x


def step_noise(noise: FrameNoise, device: torch.device) -> Callable[[int], Latents]:
    """The noise that stochastic samplers add at a step; drawn on the CPU, so every device gets the same."""
    return lambda step: noise.step(step).to(device, non_blocking=True)


def check_edit(
    gen1: Gen1, clip: Clip, content: Content, options: EditOptions, *, depth: Depth | None, mask: Clip | None
) -> None:
    """Refuses what cannot be edited before any heavy work; every message says what to do."""
    check_sliders(gen1, options)
    if mask is not None:
        check_mask(mask, clip.num_frames)
    check_fit(gen1, content, clip.num_frames)
    size = size_for(gen1, clip)
    wanted = (1, 1, clip.num_frames, size.padded_height, size.padded_width)
    if depth is not None and tuple(depth.shape) != wanted:
        raise ValueError(
            f"depth of shape {tuple(depth.shape)} does not belong to this clip, which needs {wanted}; "
            "make it with read_depth(gen1, clip) or `gen1 depth` from the same frames."
        )


def check_sliders(gen1: Gen1, options: EditOptions) -> None:
    """Refuses sliders that this model cannot follow, whatever the clip."""
    spaced_sigmas(gen1.diffusion.schedule, options.steps, options.spacing, strength=options.strength)
    longest = gen1.unet.config.longest
    if options.window > longest:
        raise ValueError(
            f"window={options.window} is longer than the {longest} frames this model has learnt positions for; "
            f"give at most {longest}, or 0 for that many."
        )
    require_windows(options.window or longest, options.overlap)


def check_fit(gen1: Gen1, content: Content, frames: int) -> None:
    """Refuses a content made for another model, or for a clip of another length."""
    config, tokens = gen1.unet.config, content.tokens
    embedded = 0 if content.embedding is None else content.embedding.shape[-1]
    if (
        tokens.shape[0] != 1
        or tokens.shape[-1] != config.cross_attention_dim
        or len(content.pictures) != config.picture_adapters
        or embedded != config.class_embedding_width
    ):
        raise ValueError(
            f"content of shape {tuple(tokens.shape)} with pictures for {len(content.pictures)} IP-Adapters and an "
            f"embedding of width {embedded} does not fit a model that takes one content of width "
            f"{config.cross_attention_dim}, {config.picture_adapters} IP-Adapters and width "
            f"{config.class_embedding_width}; make it with describe(gen1, ...)."
        )
    lengths = {tokens.shape[1], *(picture.tokens.shape[1] for picture in content.pictures)}
    if lengths - {1, frames}:
        raise ValueError(
            f"content for {max(lengths)} frames does not belong to a clip of {frames}; give one for the whole clip, "
            "or one for each frame."
        )
