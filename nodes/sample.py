"""From structure and content to frames: ComfyUI's samplers or ours, with latents in and out."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io
from einops import rearrange
from torch import Tensor

from ..gen1_core.diffusion.samplers import SAMPLERS
from ..gen1_core.editing import MaskOptions, latent_mask
from ..gen1_core.frames import encode_source, read_latent_mask, size_for
from ..gen1_core.gen1 import EditOptions, Gen1
from ..gen1_core.models.autoencoder import FrameCodec, decode_clip
from ..gen1_core.pipeline import check_fit, generate
from ..gen1_core.structure.estimator import Structure
from ..gen1_core.structure.feeds import PIXELS_PER_LATENT
from ..gen1_core.tensors import Bytes, Latents, OnStep, to_bytes
from ..gen1_core.video.clip import Clip
from ..gen1_core.video.geometry import WorkingSize, from_working
from . import host, native
from .content import settled
from .host_model import refuse_options

OWN = "as the model prefers"
"""First choice of a combo: what the model was made for."""

MAX_SEED = 2**64 - 1
MOST_WINDOW = 256
AS_GIVEN = MaskOptions(feather_px=0.0)
"""Gen-1 Edit Mask grows and softens; a mask that comes in is used as it is."""

LARGEST_MULTIPLE = 64
"""Of pixels: a U-Net of four levels on latents of an eighth of the size. Padding is always less."""


class Condition(io.ComfyNode):
    """Structure and content as CONDITIONING, with the empty latents that they belong to."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The form."""
        return io.Schema(
            node_id="Gen1_Condition",
            display_name="Gen-1 Condition",
            category=host.CATEGORY,
            description="Brings structure and content into the form that ComfyUI's own samplers take, with empty "
            "latents of the clip's frames and size.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model that will sample: each reads structure and content its way."
                ),
                host.Structure.Input("structure", tooltip="What is kept of the clip, frame by frame."),
                host.Content.Input("content", tooltip="What the clip should look like; its opposite is the negative."),
                *windows(optional=True),
            ],
            outputs=[
                io.Conditioning.Output(
                    "positive",
                    display_name="positive",
                    tooltip="Structure with content: for Guider, KSampler, CFGGuider. It works only with the MODEL "
                    "of a Gen-1 loader.",
                ),
                io.Conditioning.Output(
                    "negative",
                    display_name="negative",
                    tooltip="The same structure without content: what guidance moves away from.",
                ),
                io.Latent.Output("latent", tooltip="Empty latents, one for each frame, at the model's working size."),
            ],
            **host.aliases("conditioning", "apply structure", "apply controlnet", "empty latent"),
        )

    @classmethod
    def validate_inputs(cls, window: int | None = 0, overlap: int | None = 0) -> bool | str:
        """Before anything runs: whether windows move on."""
        return windows_fit(window, overlap)

    @classmethod
    def execute(
        cls, model: Any, structure: Structure, content: Any, window: int = 0, overlap: int = 2
    ) -> io.NodeOutput:
        """Encodes the structure; the rest is handed on."""
        gen1, progress = host.gen1_of(model), host.on_step("structure")
        check_windows(gen1, window, overlap)
        content = settled(content, structure.depth.shape[2])
        told = native.conditioning(gen1, structure, content, window=window, overlap=overlap, on_step=progress)
        return io.NodeOutput(*told)


class Guider(io.ComfyNode):
    """Eq. 8 of the paper as a GUIDER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The form."""
        return io.Schema(
            node_id="Gen1_Guider",
            display_name="Gen-1 Guider",
            category=host.CATEGORY,
            description="Guides SamplerCustomAdvanced by content and over time (Eq. 8 of the paper), and by structure. "
            "At temporal and structure scale 1 it is KSampler's guidance with cfg = content scale.",
            inputs=[
                io.Model.Input("model", tooltip="A Gen-1 model, with or without LoRA and the like."),
                io.Conditioning.Input("positive", tooltip="From Gen-1 Condition: structure with content."),
                io.Conditioning.Input("negative", tooltip="From Gen-1 Condition: structure without content."),
                content_scale(),
                temporal_scale(),
                structure_scale(),
            ],
            outputs=[io.Guider.Output("guider", tooltip="For SamplerCustomAdvanced.")],
            **host.aliases("cfg", "guidance", "temporal guidance", "CFGGuider", "omega"),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        content_scale: float,
        temporal_scale: float,
        structure_scale: float = -1.0,
    ) -> io.NodeOutput:
        """Nothing is computed yet."""
        gen1 = host.gen1_of(model)  # that of another loader would pass over the structure without a word
        scales = {
            "content_scale": gen1.defaults.content_scale if content_scale < 0 else content_scale,
            "temporal_scale": temporal_scale,
            "structure_scale": gen1.defaults.structure_scale if structure_scale < 0 else structure_scale,
        }
        return io.NodeOutput(native.guider(model, positive, negative, **scales))


class Encode(io.ComfyNode):
    """The clip's own latents, at the model's working size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The form."""
        return io.Schema(
            node_id="Gen1_Encode",
            display_name="Gen-1 Encode",
            category=host.CATEGORY,
            description="Turns the frames of the clip into latents of the size that the model works at: where "
            "sampling starts when denoise or strength is below 1.",
            inputs=[
                io.Image.Input("image", tooltip="The frames of the clip, of any size."),
                io.Vae.Input("vae", tooltip="The autoencoder from the same loader as the model."),
                io.Model.Input("model", tooltip="The model that will sample: it sets the working size."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White is edited, black stays the clip's own; one mask, or one for every frame. It goes "
                    "into the LATENT as its noise mask, at the place that the frames have in it.",
                ),
            ],
            outputs=[
                io.Latent.Output("latent", tooltip="One for each frame; wire it in place of Condition's empty latents.")
            ],
            **host.aliases("VAE Encode", "image to latent", "video to latent"),
        )

    @classmethod
    def execute(cls, image: Tensor, vae: Any, model: Any, mask: Tensor | None = None) -> io.NodeOutput:
        """A few frames at a time; the mask first, as it is quick and may not fit."""
        codec, clip = host.codec_of(vae), host.clip_of(image)
        gen1 = replace(host.gen1_of(model), autoencoder=codec)
        noise_mask = {} if mask is None else {"noise_mask": padded_mask(gen1, mask, clip)}
        latents = encode_source(gen1, clip, on_step=host.on_step("encode"))
        return io.NodeOutput({**host.latent_of(latents, codec), **noise_mask})


class Sampler(io.ComfyNode):
    """The library's own loop: what ``gen1_core.generate`` does, with its sliders."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The form."""
        return io.Schema(
            node_id="Gen1_Sampler",
            display_name="Gen-1 Sampler",
            category=host.CATEGORY,
            description="Samples the clip in one node: guidance, steps, context windows. Wire Condition and Guider to "
            "ComfyUI's samplers instead for any sampler and scheduler.",
            inputs=[
                io.Model.Input("model", tooltip="A Gen-1 model, with or without LoRA."),
                host.Structure.Input("structure", tooltip="What is kept of the clip, frame by frame."),
                host.Content.Input("content", tooltip="What the clip should look like."),
                *sliders(),
                io.Combo.Input(
                    "sampler",
                    options=[OWN, *sorted(SAMPLERS)],
                    default=OWN,
                    tooltip="How the steps are taken. The first choice is what the model was tried with.",
                ),
                *windows(optional=False),
                io.Latent.Input(
                    "source",
                    optional=True,
                    tooltip="The clip's own latents from Gen-1 Encode: needed where strength is below 1, or where a "
                    "noise mask (mask of Gen-1 Encode) says what to edit.",
                ),
                structure_scale(),
            ],
            outputs=[io.Latent.Output("latent", tooltip="One for each frame, for Gen-1 Decode or VAE Decode.")],
            **host.aliases("KSampler", "generate", "denoise", "video to video"),
        )

    @classmethod
    def validate_inputs(cls, sampler: str | None = OWN, window: int | None = 0, overlap: int | None = 0) -> bool | str:
        """The server does not check combos of V3 nodes; what is wired is None here."""
        known = [OWN, *sorted(SAMPLERS)]
        if sampler not in (None, *known):
            return f"sampler={sampler!r} is not one of the samplers; choose from {', '.join(known)}."
        return windows_fit(window, overlap)

    @classmethod
    def execute(
        cls,
        model: Any,
        structure: Structure,
        content: Any,
        sampler: str,
        source: dict[str, Any] | None = None,
        **values: Any,
    ) -> io.NodeOutput:
        """Checks first, then samples."""
        gen1 = host.gen1_of(model)
        refuse_options(model)
        options = options_of(gen1, **values, **({} if sampler == OWN else {"sampler": sampler}))
        content = settled(content, structure.depth.shape[2])
        check_fit(gen1, content, structure.depth.shape[2])
        known = None if source is None else source_latents(gen1, source, structure)
        if known is None and options.strength < 1:
            raise ValueError(
                f"strength={options.strength} starts from the clip's own latents, but source is not connected; "
                "wire Gen-1 Encode to source, or set strength to 1."
            )
        mask = None if source is None else mask_of(source, like=known)
        progress = host.on_step("structure", "sample")
        seen: dict[str, Any] = {
            "on_step": keeping(model, progress, shape=structure.depth.shape[2:]),
            "on_latents": progress.previewing(gen1.autoencoder, model),
        }
        gen1 = host.ready(model)
        with host.cancellable(gen1.unet):
            latents = generate(gen1, structure, content, options, source=known, mask=mask, **seen)
        return io.NodeOutput(host.latent_of(latents, gen1.autoencoder))


class Decode(io.ComfyNode):
    """Latents to frames of exactly the source's size, a few at a time."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The form."""
        return io.Schema(
            node_id="Gen1_Decode",
            display_name="Gen-1 Decode",
            category=host.CATEGORY,
            description="Turns latents into frames of the source's size, a few at a time, with progress and cancel. "
            "What was padded for the network is cut off.",
            inputs=[
                io.Latent.Input("latent", tooltip="From Gen-1 Sampler or any sampler of ComfyUI."),
                io.Vae.Input("vae", tooltip="The autoencoder from the same loader as the model."),
                io.Image.Input("image", tooltip="The source clip: the frames come out at its size."),
            ],
            outputs=[io.Image.Output("frames", tooltip="The edited frames, at the size of the source.")],
            **host.aliases("VAE Decode", "latent to image", "latent to video"),
        )

    @classmethod
    def execute(cls, latent: dict[str, Any], vae: Any, image: Tensor) -> io.NodeOutput:
        """Frames are written into one IMAGE as they come."""
        codec, clip = host.codec_of(vae), host.clip_of(image)
        latents = host.latents_of(latent, codec)
        frames, progress = latents.shape[2], host.on_step("decode")
        decoded = decoded_frames(codec, latents, width=clip.width, height=clip.height)
        return io.NodeOutput(host.gather(host.ticking(decoded, progress, "decode", frames=frames), frames=frames))


def content_scale() -> io.Float.Input:
    """The slider for omega; 0 is a scale of its own, so that both at 0 make every frame alone."""
    return io.Float.Input(
        "content_scale",
        default=-1.0,
        min=-1.0,
        max=30.0,
        step=0.1,
        round=0.01,
        tooltip="How strongly the content is followed (omega of the paper); 1 is off, 0 leaves the content out. Below "
        "0 is as the model prefers: 2 for the embedded one, 7.5 for Stable Diffusion.",
    )


def windows(*, optional: bool) -> list[Any]:
    """How long clips are divided."""
    return [
        io.Int.Input(
            "window",
            optional=optional,
            default=0,
            min=0,
            max=MOST_WINDOW,
            tooltip="Frames denoised together: fewer need less memory and move less as one. 0 is as the model "
            "prefers, with its own overlap.",
        ),
        io.Int.Input(
            "overlap",
            optional=optional,
            default=2,
            min=0,
            max=MOST_WINDOW - 1,
            tooltip="Frames that neighbouring windows share, where window is set: more hides seams and takes longer.",
        ),
    ]


def windows_fit(window: int | None, overlap: int | None) -> bool | str:
    """True, or why windows of so many frames do not move on; of what is wired nothing is known yet (None)."""
    for name, value, most in (("window", window, MOST_WINDOW), ("overlap", overlap, MOST_WINDOW - 1)):
        if isinstance(value, int) and not 0 <= value <= most:  # ComfyUI leaves what is judged here to us alone
            return f"{name}={value} is no number of frames that fits; give 0 to {most}."
    if isinstance(window, int) and isinstance(overlap, int) and 0 < window <= overlap:
        return (
            f"overlap={overlap} is not smaller than window={window}, so windows would not move; use 0 to {window - 1}."
        )
    return True


def check_windows(gen1: Gen1, window: int, overlap: int) -> None:
    """Raises ValueError for windows that do not move on, or are longer than the model knows."""
    said = windows_fit(window, overlap)
    if isinstance(said, str):
        raise ValueError(said)
    longest = gen1.unet.config.longest
    if window > longest:
        raise ValueError(
            f"window={window} is longer than the {longest} frames this model has learnt positions for; set "
            f"window to {longest} or less, or to 0."
        )


def temporal_scale() -> io.Float.Input:
    """The slider for omega_t."""
    return io.Float.Input(
        "temporal_scale",
        default=1.0,
        min=0.0,
        max=5.0,
        step=0.05,
        round=0.01,
        tooltip="How strongly frames hold together (omega_t of the paper); 1 is off. Above 1 is smoother over time, "
        "below 1 livelier. Anything but 1 takes one more pass a step, or two where structure_scale equals "
        "content_scale.",
    )


def structure_scale() -> io.Float.Input:
    """The slider for the guidance by structure; the last input of a node."""
    return io.Float.Input(
        "structure_scale",
        optional=True,  # it came later than the others, and what was saved before has none
        default=-1.0,
        min=-1.0,
        max=30.0,
        step=0.1,
        round=0.01,
        tooltip="How strongly the shapes are followed; 1 is off. Above 1 they are drawn more clearly, far above 1 "
        "harshly. Anything but 1 takes one more pass a step; none where it equals content_scale and temporal_scale is "
        "1. Below 0 is as the model prefers: 2 for the embedded one, 1 for Stable Diffusion.",
    )


def sliders() -> list[Any]:
    """What both samplers of ours ask: guidance, steps, strength, seed."""
    return [
        content_scale(),
        temporal_scale(),
        io.Int.Input(
            "steps",
            default=0,
            min=0,
            max=1000,
            tooltip="Denoising steps: more is finer and takes longer. 0 is as the model prefers (the embedded one: 4).",
        ),
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.01,
            max=1.0,
            step=0.01,
            round=0.01,
            display_mode=io.NumberDisplay.slider,
            tooltip="How far from the source's own picture the edit starts: 1 keeps only its structure, lower stays "
            "nearer to its colours, just above 0 changes almost nothing.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=MAX_SEED,
            control_after_generate=True,
            tooltip="Another seed is another variation; the same seed gives the same frames.",
        ),
    ]


def options_of(gen1: Gen1, **sliders: Any) -> EditOptions:
    """The model's own options with the sliders set; steps and window of 0 and a scale below 0 leave its own.

    Raises ValueError for windows that do not fit.
    """
    check_windows(gen1, sliders.get("window", 0), sliders.get("overlap", 0))
    own = [name for name in ("steps", "window") if sliders.get(name) == 0]
    own += [name for name in ("content_scale", "structure_scale") if sliders.get(name, 0) < 0]
    own += ["overlap"] if "window" in own else []
    said = {name: value for name, value in sliders.items() if name not in own}
    # One pass at a time costs a CPU nothing and halves its memory; a GPU is faster with both in one call.
    return replace(gen1.defaults, passes=1 if host.device().type == "cpu" else 2, **said)


def keeping(model: Any, progress: OnStep, *, shape: Sequence[int]) -> OnStep:
    """The same ``OnStep``, which brings the U-Net back where another network needed its place in a small memory.

    ``shape`` is that of the padded clip: frames, height, width in pixels.
    """
    frames, height, width = shape
    channels = model.model.latent_format.latent_channels
    sizes = [2 * frames, channels, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT]

    def on_step(stage: str, done: int, total: int) -> None:
        progress(stage, done, total)
        if (stage == "sample" and done == 0) or (stage in ("depth", "encode") and done == total):
            host.ready(model, memory=model.memory_required(sizes))

    return on_step


def source_latents(gen1: Gen1, source: dict[str, Any], structure: Structure) -> Latents:
    """The clip's own latents. Raises ValueError where they are of another clip or size than the structure."""
    latents = host.latents_of(source, gen1.autoencoder)
    frames, height, width = structure.depth.shape[2:]
    wanted = (frames, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    if tuple(latents.shape[2:]) != wanted:
        raise ValueError(
            f"source has latents of {tuple(latents.shape[2:])} (frames, height, width) and the structure needs "
            f"{wanted}; make both from the same frames and with the same model (Gen-1 Encode)."
        )
    return latents


def padded_mask(gen1: Gen1, mask: Tensor, clip: Clip) -> Tensor:
    """MASK as a noise mask ``[f 1 h w]`` over the latents of a clip, which are padded: as Edit Video's own.

    Raises ValueError for a mask of another number of frames.
    """
    cells = read_latent_mask(host.mask_clip(mask), clip, size_for(gen1, clip), AS_GIVEN, chunk=gen1.defaults.chunk)
    return rearrange(cells, "1 1 f h w -> f 1 h w").cpu()


def mask_of(source: dict[str, Any], *, like: Latents | None) -> Tensor | None:
    """The noise mask that a LATENT carries, ``[1 1 f h w]``; None where it has none."""
    mask = source.get("noise_mask")
    if mask is None or like is None:
        return None
    frames, height, width = like.shape[2:]
    cells = latent_mask(mask.reshape(-1, 1, *mask.shape[-2:]).float(), (height, width))
    if len(cells) not in (1, frames):
        raise ValueError(
            f"the noise mask has {len(cells)} pictures and the clip {frames} frames, so they cannot be matched; give "
            "one picture, or one for every frame."
        )
    return rearrange(cells.expand(frames, -1, -1, -1), "f 1 h w -> 1 1 f h w")


def size_of(latents: Latents, *, width: int, height: int) -> WorkingSize:
    """The working size that latents of a source of this size have: the short side fills them, the long one is padded.

    Raises ValueError for latents of a source of another shape.
    """
    padded_height, padded_width = (side * PIXELS_PER_LATENT for side in latents.shape[-2:])
    scale = min(padded_width, padded_height) / min(width, height)
    size = WorkingSize(
        width=max(1, round(width * scale)),
        height=max(1, round(height * scale)),
        padded_width=padded_width,
        padded_height=padded_height,
    )
    padding = (padded_width - size.width, padded_height - size.height)
    if min(padding) < 0 or max(padding) >= LARGEST_MULTIPLE:
        raise ValueError(
            f"latents of {padded_width}x{padded_height} pixels are not those of a source of {width}x{height}, which "
            f"would be {size.width}x{size.height}; connect to image the frames that the latents were made for."
        )
    return size


def decoded_frames(codec: FrameCodec, latents: Latents, *, width: int, height: int, chunk: int = 8) -> Iterator[Bytes]:
    """Frames at the source's size, a few at a time."""
    size, weight = size_of(latents, width=width, height=height), next(codec.parameters())
    for part in rearrange(latents, "1 c f h w -> f c h w").split(chunk):
        with torch.inference_mode():
            images = decode_clip(codec, part.to(weight.device, weight.dtype), chunk=chunk)
            frames = to_bytes(from_working(images, size, width=width, height=height)).cpu()
        yield frames
