"""The whole edit in one node; and what is done with a result: masks, background, comparison, figures."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io
from einops import rearrange, repeat
from torch import Tensor

from ..gen1_core.content.describe import Describer, PriorDescriber
from ..gen1_core.content.encoder import Content, ContentEncoder
from ..gen1_core.editing import MaskOptions, keep_background, mask_chunks
from ..gen1_core.frames import size_for
from ..gen1_core.gen1 import Gen1
from ..gen1_core.loading import load_gen1
from ..gen1_core.metrics import depth_error, frame_consistency, prompt_consistency
from ..gen1_core.pipeline import describe, edit
from ..gen1_core.structure.estimator import MAX_BLUR_LEVEL, DepthEstimator, range_of, scale_depth
from ..gen1_core.tensors import Bytes, Images, OnStep, to_bytes, to_float
from ..gen1_core.video.clip import Clip
from ..gen1_core.video.geometry import resize
from ..gen1_core.video.sheet import beside
from . import host
from .host_model import refuse_options
from .sample import AS_GIVEN, keeping, options_of, sliders, structure_scale

PROMPT = "a pencil sketch on white paper"
"""Words that the embedded model knows, so that a new node shows something."""

NO_IMAGE = (
    "the prompt is empty and no image is connected, so nothing says how it should look; give a prompt or an image."
)

CHUNK = 8


class EditVideo(io.ComfyNode):
    """VIDEO in, VIDEO out: ``gen1_core.edit`` with its sliders, streamed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The form."""
        return io.Schema(
            node_id="Gen1_EditVideo",
            display_name="Gen-1 Edit Video",
            category=host.CATEGORY,
            description="Keeps the structure of a video and replaces its content by what a prompt or a picture says. "
            "Frames, size, frame rate and sound stay as they are. Works at once with the small embedded model; load a "
            "larger one for better pictures.",
            inputs=[
                io.Video.Input("video", tooltip="The video to edit, of any size and length; it is read as a stream."),
                io.String.Input(
                    "prompt",
                    default=PROMPT,
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the video should look like, in words.",
                ),
                io.String.Input(
                    "negative",
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to keep away from, in words; may stay empty.",
                ),
                io.Int.Input(
                    "blur_level",
                    default=0,
                    min=0,
                    max=MAX_BLUR_LEVEL,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="How much detail of the shapes is given up (t_s of the paper): 0 keeps every edge of the "
                    "depth, 7 almost nothing, so that the content may change the shapes.",
                ),
                io.Float.Input(
                    "structure_strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.01,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="How much the depth counts at all: 1 keeps the shapes, 0 leaves them to the content.",
                ),
                *sliders(),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="A picture whose look the video takes (the first of a batch). It takes the place of the "
                    "prompt, or goes beside it where the model reads both.",
                ),
                io.Model.Input(
                    "model", optional=True, tooltip="Another model than the embedded one, from a Gen-1 loader."
                ),
                host.Depth.Input("depth", optional=True, tooltip="Another depth estimator than the model's own."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White is edited, black stays the source's own picture; one mask, or one for every frame. "
                    "Gen-1 Edit Mask grows and softens it.",
                ),
                structure_scale(),
            ],
            outputs=[
                io.Video.Output(
                    "edited",
                    tooltip="The edited video, with the source's frames, size, frame rate and sound; for Save Video.",
                )
            ],
            **host.aliases("video to video", "restyle", "style transfer", "Runway", "video edit", "vid2vid"),
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None, image: object = NO_IMAGE) -> bool | str:
        """Before anything runs: whether there is anything to edit with; what is wired is None here."""
        return NO_IMAGE if image == NO_IMAGE and prompt is not None and not prompt.strip() else True

    @classmethod
    def execute(
        cls,
        video: Any,
        prompt: str,
        negative: str,
        image: Tensor | None = None,
        model: Any = None,
        depth: Any = None,
        mask: Tensor | None = None,
        **values: Any,
    ) -> io.NodeOutput:
        """All input is checked before the heavy work; the file is whole, or not there."""
        progress = host.on_step("depth", "encode", "structure", "sample", "write")
        source = host.source_of_video(video)
        gen1 = load_gen1("tiny", device=host.device()) if model is None else host.gen1_of(model)
        if model is not None:
            refuse_options(model)
        gen1 = replace(gen1, depth=shown(gen1.depth if depth is None else depth, progress))
        options = options_of(gen1, **values)
        content = content_of(gen1, prompt, negative, image, seed=options.seed)
        on_step = progress if model is None else kept(model, gen1, source.clip, progress)
        with host.cancellable(gen1.unet):
            frames = edit(
                gen1,
                source.clip,
                content,
                options,
                mask=None if mask is None else host.mask_clip(mask),
                mask_options=AS_GIVEN,
                on_step=on_step,
                on_latents=progress.previewing(gen1.autoencoder, model),
            )
        path = host.kept_path(".mp4")  # gone when nothing holds the VIDEO any more
        host.write(path, host.ticking(frames, progress, "write", frames=source.clip.num_frames), source)
        return io.NodeOutput(host.video_of(path))


class EditMask(io.ComfyNode):
    """A mask grown, softened, inverted; and with it the background of the source put back."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The form."""
        return io.Schema(
            node_id="Gen1_EditMask",
            display_name="Gen-1 Edit Mask",
            category=host.CATEGORY,
            description="Prepares a mask (white is edited, black stays), and puts the source's own picture back where "
            "the mask is black.",
            inputs=[
                io.Mask.Input(
                    "mask", tooltip="White is edited, black stays: one for the whole clip, or one for every frame."
                ),
                io.Int.Input(
                    "grow_px",
                    default=0,
                    min=-512,
                    max=512,
                    tooltip="Pixels by which the white part is widened; a negative number narrows it.",
                ),
                io.Float.Input(
                    "feather_px",
                    default=2.0,
                    min=0.0,
                    max=256.0,
                    step=0.5,
                    tooltip="Width in pixels over which its edge fades; 0 is a hard edge.",
                ),
                io.Boolean.Input(
                    "invert",
                    default=False,
                    tooltip="Swaps what is edited and what stays, before growing and softening.",
                ),
                io.Image.Input(
                    "edited", optional=True, tooltip="The edited frames: they show where the mask is white."
                ),
                io.Image.Input(
                    "source", optional=True, tooltip="The source's frames: they show where the mask is black."
                ),
            ],
            outputs=[
                io.Mask.Output(
                    "prepared", tooltip="The mask as it is used, at the size of the source where there is one."
                ),
                io.Image.Output(
                    "kept",
                    tooltip="The edited frames with the source's background; without frames a picture of the mask.",
                ),
            ],
            **host.aliases("grow mask", "feather mask", "inpaint", "background", "composite", "blend"),
        )

    @classmethod
    def execute(
        cls,
        mask: Tensor,
        grow_px: int,
        feather_px: float,
        invert: bool,
        edited: Tensor | None = None,
        source: Tensor | None = None,
    ) -> io.NodeOutput:
        """A few frames at a time."""
        options = MaskOptions(grow_px=grow_px, feather_px=feather_px, invert=invert)
        white, progress = host.mask_clip(mask), host.on_step("mask", "composite")
        old = white if source is None else host.clip_of(source)
        parts = []
        for part in mask_chunks(white, old, CHUNK, options):
            parts.append(part.cpu())
            progress("mask", sum(map(len, parts)), old.num_frames)
        prepared = torch.cat(parts)
        if edited is None and source is None:
            return io.NodeOutput(host.mask_of(prepared), host.image_of(repeat(prepared, "n 1 h w -> n c h w", c=3)))
        if edited is None or source is None:
            missing = "edited" if edited is None else "source"
            raise ValueError(
                f"only one of edited and source is connected, but the background of one is put behind the other; "
                f"connect {missing} too, or neither to prepare only the mask."
            )
        new = host.clip_of(edited)
        check_same(new, old)
        frames = keep_background(new, old, white, options, length=CHUNK)
        frames = host.ticking(frames, progress, "composite", frames=old.num_frames)
        return io.NodeOutput(host.mask_of(prepared), host.gather(frames, frames=old.num_frames))


class Compare(io.ComfyNode):
    """Up to four clips in one picture, each under its label."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The form."""
        places = ("first", "second", "third", "fourth")
        return io.Schema(
            node_id="Gen1_Compare",
            display_name="Gen-1 Compare",
            category=host.CATEGORY,
            description="Puts up to four clips side by side, each under its label: source, depth and edits, or one "
            "slider at several values.",
            inputs=[
                io.Image.Input("first", tooltip="It sets the size; the others are brought to it."),
                io.Int.Input(
                    "columns", default=2, min=1, max=4, tooltip="How many stand in a row; the rest goes below."
                ),
                *(
                    io.String.Input(f"{place}_label", default=label, tooltip=f"What is written above the {place} clip.")
                    for place, label in zip(places, ("source", "depth", "edit", ""), strict=True)
                ),
                *(
                    io.Image.Input(
                        place,
                        optional=True,
                        tooltip="Another clip with as many frames as the first, or a single picture that stands still.",
                    )
                    for place in places[1:]
                ),
            ],
            outputs=[io.Image.Output("compared", tooltip="One frame for every frame of the first clip, of even size.")],
            **host.aliases("side by side", "grid", "compare", "labels", "concatenate images"),
        )

    @classmethod
    def execute(
        cls,
        first: Tensor,
        columns: int,
        second: Tensor | None = None,
        third: Tensor | None = None,
        fourth: Tensor | None = None,
        **labels: str,
    ) -> io.NodeOutput:
        """Only the clips that are connected take a place."""
        given = {"first": first, "second": second, "third": third, "fourth": fourth}
        images = {place: image for place, image in given.items() if image is not None}
        clips = [alike(host.clip_of(image), host.clip_of(first), place) for place, image in images.items()]
        names = [labels[f"{place}_label"] for place in images]
        grid = beside(clips, names, columns=min(columns, len(clips)), length=CHUNK)
        frames = host.ticking(grid, host.on_step("compare"), "compare", frames=len(first))
        return io.NodeOutput(host.gather(frames, frames=len(first)))


class Metrics(io.ComfyNode):
    """The paper's two metrics (section 4.2), and how much of the depth is lost."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The form."""
        return io.Schema(
            node_id="Gen1_Metrics",
            display_name="Gen-1 Metrics",
            category=host.CATEGORY,
            description="Measures an edit: how alike its frames are, how well they fit the prompt, how much of the "
            "source's depth is lost. Compare only figures of one encoder and one depth estimator.",
            inputs=[
                io.Image.Input("edited", tooltip="The edited frames, at least two."),
                host.Encoder.Input(
                    "encoder", tooltip="From Gen-1 Load Model: the CLIP that sees frames and reads the prompt."
                ),
                io.String.Input(
                    "prompt", default=PROMPT, multiline=True, tooltip="The prompt that the frames are held against."
                ),
                io.Image.Input(
                    "source",
                    optional=True,
                    tooltip="The source's frames: with depth connected too, the depths are compared.",
                ),
                host.Depth.Input("depth", optional=True, tooltip="The estimator that looks at both clips."),
            ],
            outputs=[
                io.String.Output("report", display_name="report", tooltip="All figures as text."),
                io.Float.Output(
                    "frame_consistency",
                    display_name="frame_consistency",
                    tooltip="Mean cosine of neighbouring frames as CLIP sees them; 1 is a still.",
                ),
                io.Float.Output(
                    "prompt_consistency",
                    display_name="prompt_consistency",
                    tooltip="Mean cosine of the frames and the prompt in CLIP; more is closer.",
                ),
                io.Float.Output(
                    "depth_error",
                    display_name="depth_error",
                    tooltip="Mean difference of the two depths, 0 to 1; less keeps more. 0 where there is no source.",
                ),
            ],
            **host.aliases("CLIP score", "evaluate", "measure", "consistency"),
        )

    @classmethod
    def execute(
        cls, edited: Tensor, encoder: Any, prompt: str, source: Tensor | None = None, depth: Any = None
    ) -> io.NodeOutput:
        """Both clips are looked at a few frames at a time."""
        clip = host.clip_of(edited)
        progress = host.on_step("look", "depth of the edit", "depth of the source")
        host.load(*encoder.networks)
        looking = encoder_of(encoder.describer)
        seen = torch.cat(list(embeddings(looking, clip, progress)))
        frames, fit = frame_consistency(seen), prompt_consistency(seen, looking.encode_texts([prompt]))
        lines, error = [f"frame consistency {frames:.4f}", f"prompt consistency {fit:.4f}"], 0.0
        if source is not None and depth is not None:
            before = alike(host.clip_of(source), clip, "source")
            new = depth_of(clip, depth, progress, stage="depth of the edit", frames=clip.num_frames)
            old = depth_of(before, depth, progress, stage="depth of the source", frames=clip.num_frames)
            error = depth_error(new, old)
            lines.append(f"depth error {error:.4f}")
        return io.NodeOutput("\n".join(lines), frames, fit, error)


def content_of(gen1: Gen1, prompt: str, negative: str, image: Tensor | None, *, seed: int) -> Content:
    """The content of the edit: a picture takes the prompt's place where the model reads only one of them."""
    picture = None if image is None else host.images_of(image[:1])
    alone = picture is not None and not gen1.describer.reads_both
    words = None if alone or not prompt.strip() else prompt
    return describe(gen1, prompt=words, image=picture, negative=negative, seed=seed)


def kept(model: Any, gen1: Gen1, clip: Clip, progress: OnStep) -> OnStep:
    """Brings the U-Net to its device, also where depth and autoencoder take its place meanwhile (``keeping``)."""
    size = size_for(gen1, clip)
    host.ready(model)
    return keeping(model, progress, shape=(clip.num_frames, size.padded_height, size.padded_width))


def shown(estimate: DepthEstimator, progress: host.Progress) -> DepthEstimator:
    """The same estimator, whose depth is seen as a preview while it works."""

    def estimate_and_show(images: Images) -> Tensor:
        raw = estimate(images)
        progress.show(to_bytes(repeat(scale_depth(raw, range_of(raw)), "n 1 h w -> n c h w", c=3)))
        return raw

    return estimate_and_show


def check_same(edited: Clip, source: Clip) -> None:
    """Raises ValueError where two clips cannot be laid over each other."""
    new, old = ((clip.num_frames, clip.width, clip.height) for clip in (edited, source))
    if new != old:
        raise ValueError(
            f"edited has {new[0]} frames of {new[1]}x{new[2]} and source {old[0]} of {old[1]}x{old[2]}, so they cannot "
            "be laid over each other; connect the frames that the edit was made of."
        )


def alike(clip: Clip, like: Clip, name: str) -> Iterator[Bytes]:
    """A clip's frames at the size of another; a single picture is repeated for all of its frames.

    Raises ValueError where the clip has another number of frames.
    """
    if clip.num_frames not in (1, like.num_frames):
        raise ValueError(
            f"{name} has {clip.num_frames} frames and the first clip {like.num_frames}, so they cannot be shown "
            "together; connect clips of one length, or a single picture."
        )
    repeats = like.num_frames if clip.num_frames == 1 else 1

    def frames() -> Iterator[Bytes]:
        for chunk in clip:
            sized = resize(to_float(chunk), width=like.width, height=like.height)
            yield from to_bytes(sized).expand(len(chunk) * repeats, -1, -1, -1).split(CHUNK)

    return frames()


def encoder_of(describer: Describer) -> ContentEncoder:
    """What brings frames and prompts into one space. Raises ValueError for a model without such an encoder."""
    if not isinstance(describer, PriorDescriber):
        raise ValueError(
            "this encoder reads words and pictures by different networks, so they cannot be compared; connect the "
            "encoder of Gen-1 Load Model."
        )
    return describer.encoder


def embeddings(encoder: ContentEncoder, clip: Clip, progress: host.Progress) -> Iterator[Tensor]:
    """Every frame as CLIP sees it, a few at a time."""
    done = 0
    for part in clip:
        yield encoder.encode_images(to_float(part).to(host.device()))
        done += len(part)
        progress("look", done, clip.num_frames)


def depth_of(
    chunks: Iterable[Bytes], depth: DepthEstimator, progress: host.Progress, *, stage: str, frames: int
) -> Tensor:
    """Depth 0..1 ``[1 1 f h w]`` with one range for the clip."""
    parts = []
    for part in chunks:
        parts.append(depth(to_float(part)).cpu())
        progress(stage, sum(map(len, parts)), frames)
    raw = torch.cat(parts)
    return rearrange(scale_depth(raw, range_of(raw)), "f 1 h w -> 1 1 f h w")
