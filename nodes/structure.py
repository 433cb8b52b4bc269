"""Structure of a clip: depth estimated here, or any pictures of another pack taken as depth."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io
from einops import rearrange, reduce
from torch import Tensor

from ..gen1_core.frames import depth_frames, read_depth, size_for
from ..gen1_core.gen1 import Gen1
from ..gen1_core.structure.blur import blur, weakened
from ..gen1_core.structure.estimator import MAX_BLUR_LEVEL, Structure
from ..gen1_core.tensors import Bytes
from ..gen1_core.video.clip import Clip
from ..gen1_core.video.geometry import to_working
from . import host

PREVIEW = 1
"""Its place among the outputs."""


def sliders() -> list[Any]:
    """What every structure is given besides its depth."""
    return [
        io.Int.Input(
            "blur_level",
            default=0,
            min=0,
            max=MAX_BLUR_LEVEL,
            display_mode=io.NumberDisplay.slider,
            tooltip="How much detail of the depth is lost (t_s of the paper): 0 keeps every edge, 7 almost nothing, so "
            "that the content may change the shapes.",
        ),
        io.Float.Input(
            "structure_strength",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.05,
            display_mode=io.NumberDisplay.slider,
            tooltip="How much of the depth is shown: 1 is the depth itself, 0 leaves the shapes to the content. A "
            "ControlNet is turned down, other models see the depth fade to its mean.",
        ),
        io.Float.Input(
            "start",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Share of the sampling steps after which the structure is shown: 0 is from the first step on. "
            "Later leaves the large shapes to the content. Each sampler counts its own steps: two in a row, or denoise "
            "below 1, count anew.",
        ),
        io.Float.Input(
            "end",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Share of the sampling steps after which the structure is no longer shown: 1 is to the last step. "
            "Earlier leaves the details to the content. Each sampler counts its own steps.",
        ),
    ]


def outputs() -> list[Any]:
    """The same for every structure."""
    return [
        host.Structure.Output(
            "structure",
            tooltip="For Gen-1 Condition or Gen-1 Sampler: what the edit keeps of the clip, frame by frame.",
        ),
        io.Image.Output(
            "preview",
            tooltip="The depth as the model sees it, blurred and weakened: near is bright; frames and size are those "
            "of the pictures that came in.",
        ),
    ]


class DepthStructure(io.ComfyNode):
    """Depth of every frame (section 3.3), with one range for the whole clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The form."""
        return io.Schema(
            node_id="Gen1_DepthStructure",
            display_name="Gen-1 Depth Structure",
            category=host.CATEGORY,
            description="Estimates the depth of a clip, which an edit keeps while the look changes. One range of depth "
            "holds for all frames, so it does not flicker.",
            inputs=[
                io.Image.Input("image", tooltip="The frames of the clip to edit, in their order."),
                host.Depth.Input("depth", tooltip="Depth estimator: from one of the Gen-1 loaders."),
                io.Model.Input(
                    "model", tooltip="The model that will edit the clip: the structure is made at its working size."
                ),
                *sliders(),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
            **host.aliases("depth", "depth map", "MiDaS", "Depth Anything", "ControlNet", "video structure"),
        )

    @classmethod
    def validate_inputs(cls, start: float | None = 0.0, end: float | None = 1.0) -> bool | str:
        """Before anything runs: whether a step lies between start and end."""
        return steps_between(start, end)

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """A preview that nothing took before means working again."""
        return f"preview {previewed()}"

    @classmethod
    def execute(
        cls,
        image: Tensor,
        depth: Any,
        model: Any,
        blur_level: int,
        structure_strength: float,
        start: float,
        end: float,
    ) -> io.NodeOutput:
        """Depth, and what the model sees of it."""
        gen1, clip = replace(host.gen1_of(model), depth=depth), host.clip_of(image)
        progress = progress_of("depth")
        estimate, _ = read_depth(gen1, clip, chunk=gen1.defaults.chunk, on_step=progress)
        structure = Structure(
            depth=estimate.cpu(), blur_level=blur_level, strength=structure_strength, start=start, end=end
        )
        return io.NodeOutput(structure, shown(cls, gen1, structure, clip, progress))


class StructureFromImage(io.ComfyNode):
    """Any pictures as depth: those of other packs' estimators, of a renderer, or drawn by hand."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The form."""
        return io.Schema(
            node_id="Gen1_StructureFromImage",
            display_name="Gen-1 Structure from Image",
            category=host.CATEGORY,
            description="Takes any pictures as the depth that an edit keeps: from another pack's depth node, from a "
            "3D program, or edges and poses where the model has a ControlNet for them.",
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="A picture of depth for each frame: bright is near, colours are averaged.",
                ),
                io.Model.Input(
                    "model", tooltip="The model that will edit the clip: the structure is made at its working size."
                ),
                io.Boolean.Input(
                    "invert",
                    default=False,
                    tooltip="Swaps near and far: for pictures in which dark is near, as distances usually are.",
                ),
                *sliders(),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
            **host.aliases("depth", "depth map", "control image", "external depth", "normal", "canny"),
        )

    @classmethod
    def validate_inputs(cls, start: float | None = 0.0, end: float | None = 1.0) -> bool | str:
        """Before anything runs: whether a step lies between start and end."""
        return steps_between(start, end)

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """A preview that nothing took before means working again."""
        return f"preview {previewed()}"

    @classmethod
    def execute(
        cls,
        image: Tensor,
        model: Any,
        invert: bool,
        blur_level: int,
        structure_strength: float,
        start: float,
        end: float,
    ) -> io.NodeOutput:
        """The pictures' brightness at the working size, and what the model sees of it."""
        gen1, clip = host.gen1_of(model), host.clip_of(image)
        progress = progress_of("resize")
        size, parts = size_for(gen1, clip), []
        for part in image.split(gen1.defaults.chunk):
            grey = reduce(host.images_of(part), "f c h w -> f 1 h w", "mean")
            parts.append(to_working(1 - grey if invert else grey, size).cpu())
            progress("resize", sum(map(len, parts)), clip.num_frames)
        depth = rearrange(torch.cat(parts), "f 1 h w -> 1 1 f h w")
        structure = Structure(depth=depth, blur_level=blur_level, strength=structure_strength, start=start, end=end)
        return io.NodeOutput(structure, shown(cls, gen1, structure, clip, progress))


def steps_between(start: float | None, end: float | None) -> bool | str:
    """What ``Structure`` says of them: True, or its error. Of what is wired nothing is known yet (None)."""
    if not isinstance(start, int | float) or not isinstance(end, int | float):
        return True  # what is no number is refused by ComfyUI itself
    try:
        Structure(depth=torch.zeros(1, 1, 1, 1, 1), start=start, end=end)
    except ValueError as error:
        return str(error)
    return True


def previewed() -> bool:
    """Whether anything takes the preview: it is as large as the clip as IMAGE."""
    return PREVIEW in host.linked_outputs(count=len(outputs()))


def progress_of(stage: str) -> host.Progress:
    """The bar of a structure."""
    return host.on_step(stage, "preview") if previewed() else host.on_step(stage)


def shown(
    node: type[io.ComfyNode], gen1: Gen1, structure: Structure, clip: Clip, progress: host.Progress
) -> Tensor | None:
    """The structure as IMAGE, as this model sees it; says on the node where it sees none at all."""
    if not gen1.reads_structure:
        host.say(node, "This model does not look at structure; load it with a depth ControlNet.")
    if not previewed():
        return None
    frames = host.ticking(seen(gen1, structure, clip), progress, "preview", frames=clip.num_frames)
    return host.gather(frames, frames=clip.num_frames)


def seen(gen1: Gen1, structure: Structure, clip: Clip) -> Iterator[Bytes]:
    """Grey frames at the clip's size, a few at a time; control networks are turned down instead of shown less."""
    strength = 1.0 if gen1.controls else structure.strength
    for part in weakened(structure.depth, strength, chunk=gen1.defaults.chunk):
        yield from depth_frames(gen1, blur(part, structure.blur_level), clip, chunk=gen1.defaults.chunk)
