"""Content of an edit: what it shall look like, from a text or from pictures, mixed or passing over the frames."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..gen1_core.content.describe import PriorDescriber
from ..gen1_core.content.encoder import Content
from ..gen1_core.content.mixing import blend, fade
from ..gen1_core.demo import PROMPTS
from . import host
from .pictures import from_frames, from_vision

ENCODER_TOOLTIP = "From a Gen-1 loader: what reads texts and pictures for this model."
NEGATIVE_TOOLTIP = "What guidance moves away from, in words; nothing if empty. Counts where content_scale is above 1."
MOST_FRAMES = 1_000_000
CONTENT_TOOLTIP = "What the edit shall look like: for Gen-1 Condition or Gen-1 Sampler, or to blend with another."


IN_NODES = {
    "or make a content of each and mix them with blend()": "switch per_frame on for one in each frame, or make a "
    "content of each and mix them with Gen-1 Blend Content",
    "add an IP-Adapter with its CLIP vision file (--ip-adapter, --clip-vision), take": "choose an ip_adapter and its "
    "clip_vision in Gen-1 Load Public Weights, take there",
}
"""What the library advises, in words of the nodes."""


@dataclass(frozen=True)
class Later:
    """A content that is made when the clip's number of frames is known: see ``settled``."""

    make: Callable[[int], Content]


def settled(content: Content | Later, frames: int) -> Content:
    """The content of a clip of so many frames. Raises ValueError where a schedule does not lie in it."""
    return content.make(frames) if isinstance(content, Later) else content


@contextmanager
def in_words_of_the_nodes() -> Iterator[None]:
    """Errors of the library say there what to do in ComfyUI."""
    try:
        yield
    except ValueError as error:
        said = str(error)
        for advice, here in IN_NODES.items():
            said = said.replace(advice, here)
        raise ValueError(said) from error


class ContentFromText(io.ComfyNode):
    """A prompt: through the prior (section 3.2), or as the tokens that Stable Diffusion reads."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The form."""
        return io.Schema(
            node_id="Gen1_ContentFromText",
            display_name="Gen-1 Content from Text",
            category=host.CATEGORY,
            description="What the edited clip shall look like, in words.",
            inputs=[
                host.Encoder.Input("encoder", tooltip=ENCODER_TOOLTIP),
                io.String.Input(
                    "prompt",
                    default=PROMPTS[0],
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The look of the whole clip. The embedded model knows materials, colours, light and "
                    "places; it says on the node which words it does not know.",
                ),
                io.String.Input("negative", default="", multiline=True, dynamic_prompts=True, tooltip=NEGATIVE_TOOLTIP),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="Another seed draws another picture of the same words; the same seed the same. Public "
                    "models read the words themselves, so that it changes nothing there.",
                ),
            ],
            outputs=[host.Content.Output("content", tooltip=CONTENT_TOOLTIP)],
            hidden=[io.Hidden.unique_id],
            **host.aliases("prompt", "text encode", "CLIP text", "style"),
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None) -> bool | str:
        """Before anything runs: whether there are words; of a prompt that is wired nothing is known yet (None)."""
        return (
            prompt is None
            or bool(prompt.strip())
            or "the prompt is empty, so it describes no look; say what the clip should show."
        )

    @classmethod
    def execute(cls, encoder: host.ContentReader, prompt: str, negative: str, seed: int) -> io.NodeOutput:
        """The describer's answer, and a word on the node about what it does not know."""
        content = encoder(prompt=prompt, negative=negative, seed=seed)
        describer = encoder.describer
        unknown = describer.encoder.unfamiliar(prompt) if isinstance(describer, PriorDescriber) else []
        if unknown:
            host.say(cls, f"Not among the words this model learnt: {', '.join(unknown)}")
        return io.NodeOutput(content)


class ContentFromImage(io.ComfyNode):
    """A picture, or one for each frame; beside a prompt where the model reads both."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The form."""
        return io.Schema(
            node_id="Gen1_ContentFromImage",
            display_name="Gen-1 Content from Image",
            category=host.CATEGORY,
            description="What the edited clip shall look like, shown by a picture: its colours, materials and style, "
            "not its shapes. Wire image or clip_vision.",
            inputs=[
                host.Encoder.Input("encoder", tooltip=ENCODER_TOOLTIP),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The picture whose look the clip takes. An IP-Adapter takes several together.",
                ),
                io.ClipVisionOutput.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="In place of image: a picture that CLIP Vision Encode has read already, with the file that "
                    "this model's pictures are read with.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="Words beside the picture, for models with an IP-Adapter or unCLIP. Leave it empty for the "
                    "embedded model and others of the paper's kind, which read one or the other.",
                ),
                io.String.Input("negative", default="", multiline=True, dynamic_prompts=True, tooltip=NEGATIVE_TOOLTIP),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="Draws the negative's picture, and the noise of unCLIP; without effect where there is "
                    "neither.",
                ),
                io.Boolean.Input(
                    "per_frame",
                    default=False,
                    tooltip="Each frame of the clip follows a picture of its own: give as many as the clip has frames.",
                ),
            ],
            outputs=[host.Content.Output("content", tooltip=CONTENT_TOOLTIP)],
            **host.aliases("IP-Adapter", "image prompt", "style transfer", "reference image", "CLIP vision", "unCLIP"),
        )

    @classmethod
    def execute(
        cls,
        encoder: host.ContentReader,
        prompt: str,
        negative: str,
        seed: int,
        per_frame: bool,
        image: Tensor | None = None,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        """One of the three ways that a picture is read."""
        words = {"prompt": prompt.strip() or None, "negative": negative, "seed": seed}
        if (image is None) == (clip_vision is None):
            raise ValueError(
                f"{'neither image nor clip_vision is' if image is None else 'both image and clip_vision are'} wired, "
                "but the content comes from exactly one of them; wire a picture into image."
            )
        with in_words_of_the_nodes():
            if image is None:
                return io.NodeOutput(from_vision(encoder, clip_vision, per_frame=per_frame, **words))
            images = host.images_of(image)
            return io.NodeOutput(from_frames(encoder, images, **words) if per_frame else encoder(image=images, **words))


class BlendContent(io.ComfyNode):
    """The weighted mean of two contents."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The form."""
        return io.Schema(
            node_id="Gen1_BlendContent",
            display_name="Gen-1 Blend Content",
            category=host.CATEGORY,
            description="A look between two looks, the same in every frame: of texts, of pictures, or of both where "
            "the model has one kind of content for them.",
            inputs=[
                host.Content.Input("a", tooltip="The look at weight 0."),
                host.Content.Input("b", tooltip="The look at weight 1; made with the same encoder as a."),
                io.Float.Input(
                    "weight",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="The share of b: 0 is a alone, 1 is b alone.",
                ),
            ],
            outputs=[host.Content.Output("content", tooltip=CONTENT_TOOLTIP)],
            **host.aliases("mix", "interpolate", "average", "conditioning average"),
        )

    @classmethod
    def execute(cls, a: Content | Later, b: Content | Later, weight: float) -> io.NodeOutput:
        """The mean; of a schedule for the clip's frames, once they are known."""

        def mean(frames: int) -> Content:
            return blend([settled(a, frames), settled(b, frames)], [1 - weight, weight])

        return io.NodeOutput(Later(mean) if isinstance(a, Later) or isinstance(b, Later) else mean(1))


class ScheduleContent(io.ComfyNode):
    """One content that becomes another while the clip runs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The form."""
        return io.Schema(
            node_id="Gen1_ScheduleContent",
            display_name="Gen-1 Schedule Content",
            category=host.CATEGORY,
            description="The look passes from one to another while the clip runs. Chain several for more looks.",
            inputs=[
                host.Content.Input("a", tooltip="The look up to first_frame."),
                host.Content.Input("b", tooltip="The look from last_frame on; made with the same encoder as a."),
                io.Int.Input(
                    "first_frame",
                    default=0,
                    min=0,
                    max=MOST_FRAMES,
                    tooltip="The last frame that is all a, counted from 0: later, and b comes in later.",
                ),
                io.Int.Input(
                    "last_frame",
                    default=15,
                    min=1,
                    max=MOST_FRAMES,
                    tooltip="The first frame that is all b: later makes the passage slower, first_frame + 1 a cut.",
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=MOST_FRAMES,
                    tooltip="How many looks are made, one for each frame: as many as the clip has. 0 is the clip's own "
                    "number, which Condition and Sampler know.",
                ),
            ],
            outputs=[host.Content.Output("content", tooltip=CONTENT_TOOLTIP)],
            **host.aliases("prompt travel", "keyframes", "fade", "prompt schedule", "animate"),
        )

    @classmethod
    def validate_inputs(
        cls, first_frame: int | None = None, last_frame: int | None = None, frames: int | None = None
    ) -> bool | str:
        """Before anything runs: whether the frames follow one another."""
        return in_order(first_frame, last_frame, frames)

    @classmethod
    def execute(
        cls, a: Content | Later, b: Content | Later, first_frame: int, last_frame: int, frames: int
    ) -> io.NodeOutput:
        """Content for each frame, at once where their number is given."""

        def passage(count: int) -> Content:
            require_order(first_frame, last_frame, count)
            return fade({first_frame: settled(a, count), last_frame: settled(b, count)}, frames=count)

        require_order(first_frame, last_frame, frames)

        return io.NodeOutput(passage(frames) if frames else Later(passage))


def require_order(first_frame: int, last_frame: int, frames: int) -> None:
    """Raises ValueError as ``in_order`` says."""
    problem = in_order(first_frame, last_frame, frames)
    if isinstance(problem, str):
        raise ValueError(problem)


def in_order(first_frame: int | None, last_frame: int | None, frames: int | None) -> bool | str:
    """Whether 0 <= first < last < frames, or what to do; of None (wired) and of 0 frames nothing is known yet."""
    numbers = [each if isinstance(each, int) else None for each in (first_frame, last_frame, frames)]
    first_frame, last_frame, frames = numbers  # what is no number is refused by ComfyUI itself
    first, last = first_frame or 0, last_frame
    frames = None if frames == 0 else frames
    if max(each or 0 for each in numbers) > MOST_FRAMES:  # ComfyUI leaves what is judged here to us alone
        return f"frame {max(each or 0 for each in numbers)} is beyond any clip; give {MOST_FRAMES} at most."
    if first < 0 or (last is not None and first >= last):
        return (
            f"first_frame={first_frame} is not before last_frame={last_frame}, so nothing can pass from a to b; "
            f"give last_frame={max(first, 0) + 1} or more."
        )
    if frames is not None and max(first, last or 0) >= frames:
        return (
            f"frames {first} to {last if last is not None else '?'} do not lie in a clip of {frames} frames, which "
            f"ends with frame {frames - 1}; give smaller ones, or "
            "the clip's frame_count as frames (0 takes it by itself)."
        )
    return True
