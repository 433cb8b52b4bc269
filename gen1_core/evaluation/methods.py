"""What is compared: the model's own edit, and the baselines made from the same weights (Table S1 of the paper)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ..checkpoints.files import config_from_plain, load_module, read_file
from ..conditioning import condition_of, network, without_structure
from ..content.encoder import Content
from ..diffusion.guidance import guided
from ..diffusion.noise import FrameNoise
from ..diffusion.prediction import as_denoiser
from ..diffusion.samplers import SAMPLERS
from ..diffusion.schedule import spaced_sigmas, start
from ..diffusion.windows import windowed
from ..frames import decode, encode_source, read_depth, require_finite
from ..gen1 import EditOptions, Gen1
from ..models.unet import SpaceTimeUNet, UNetConfig
from ..pipeline import describe, edit, step_noise
from ..tensors import Bytes, Latents, to_float
from ..video.clip import MemoryClip
from .benchmark import Case, Clips

OURS, OURS_IMAGE, SOURCE, TRUTH = "ours", "ours_image", "source", "truth"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What tuning may choose for a baseline. ``weights``: the model's own, or the U-Net of stage 2."""

    content_scale: float = 1.0
    structure_scale: float = 1.0
    strength: float = 1.0
    weights: str = "own"


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to edit.

    ``title`` is for tables, ``short`` for the columns of sheets. ``structure`` says whether the network sees the depth,
    ``image`` that it sees each frame alone (mu^pi of Eq. 8). ``grid`` holds what tuning tries; the first is what is
    used where nothing is tuned (for ours: always). ``content`` is a prompt or a picture.
    """

    name: str
    title: str
    short: str
    grid: tuple[Settings, ...] = (Settings(),)
    structure: bool = False
    image: bool = False
    content: str = "text"


SCALES = (1.5, 1.0, 2.5)
STRENGTHS = (0.75, 0.5, 0.6, 0.9)
"""What tuning tries; of scales also those of the model's own defaults."""


def grid_of(
    strengths: tuple[float, ...],
    weights: tuple[str, ...],
    scales: tuple[float, ...],
    structure_scales: tuple[float, ...] = (1.0,),
) -> tuple[Settings, ...]:
    """Every combination of these content scales, structure scales, strengths and weights."""
    return tuple(
        Settings(content_scale=scale, structure_scale=structure_scale, strength=strength, weights=weight)
        for weight in weights
        for strength in strengths
        for structure_scale in structure_scales
        for scale in scales
    )


def methods_for(
    *, unstructured: bool, content_scale: float = SCALES[0], structure_scale: float = 1.0
) -> tuple[Method, ...]:
    """All methods of a report; those of the video model without structure only where there is one.

    ``content_scale`` and ``structure_scale`` are those of the model's own edits.
    """
    scales = tuple(dict.fromkeys((content_scale, *SCALES)))
    free = ("unstructured", "own") if unstructured else ("own",)
    frames = [
        Method(
            name="sdedit_50",
            title="SDEdit per frame, 50 %",
            short="SDEdit 50 %",
            grid=grid_of((0.5,), free, scales),
            image=True,
        ),
        Method(
            name="sdedit_75",
            title="SDEdit per frame, 75 %",
            short="SDEdit 75 %",
            grid=grid_of((0.75,), free, scales),
            image=True,
        ),
        Method(
            name="sdedit_best",
            title="SDEdit per frame, strength tuned",
            short="SDEdit, tuned",
            grid=grid_of(STRENGTHS, free, scales),
            image=True,
        ),
        Method(
            name="depth_frames",
            title="depth per frame",
            short="depth per frame",
            grid=grid_of((1.0,), ("own",), scales, tuple(dict.fromkeys((structure_scale, 1.0)))),
            structure=True,
            image=True,
        ),
        Method(
            name="flat",
            title="own weights, structure off, SDEdit 75 %",
            short="structure off",
            grid=grid_of((0.75,), ("own",), scales),
        ),
    ]
    videos = [
        Method(
            name=f"unstructured_{percent}",
            title=f"video model without structure, SDEdit {percent} %",
            short=f"no structure {percent} %",
            grid=grid_of((percent / 100,), ("unstructured",), scales),
        )
        for percent in (50, 75)
    ]
    ends = [
        Method(name=SOURCE, title="source, untouched", short="source"),
        Method(name=TRUTH, title="true counterfactual", short="truth"),
    ]
    own = [(content_scale, structure_scale), (1.5, 1.0), (1.5, 1.5), (2.0, 2.0), (2.5, 2.5), (2.0, 3.0)]
    ours = [
        Method(
            name=OURS,
            title="ours, text prompt",
            short="ours, by text",
            grid=tuple(Settings(content_scale=of[0], structure_scale=of[1]) for of in dict.fromkeys(own)),
            structure=True,
        ),
        Method(name=OURS_IMAGE, title="ours, image prompt", short="ours, by image", structure=True, content="image"),
    ]
    return (*ours, *frames, *(videos if unstructured else []), *ends)


@dataclass(frozen=True, kw_only=True, eq=False)
class Editor:
    """The model, and where there is one the same with the U-Net of the stage before structure."""

    gen1: Gen1
    unstructured: Gen1 | None = None
    options: EditOptions
    tuned: Mapping[str, Settings] = field(default_factory=dict)

    def settings(self, method: Method) -> Settings:
        """What a baseline is run with."""
        return self.tuned.get(method.name, method.grid[0])


def load_unstructured(gen1: Gen1, path: Path) -> Gen1:
    """The model with the U-Net of stage 2, which has learnt to do without structure.

    Raises ValueError where the file is no U-Net of this kind of model.
    """
    file = read_file(path)
    if file.kind != "unet":
        raise ValueError(
            f"{path} holds {file.kind or 'weights of another program'}, not a U-Net of this program; "
            "give the unet.safetensors of a training that stopped before the structure stage."
        )
    config = config_from_plain(UNetConfig, file.metadata["config"])
    ours = gen1.unet.config
    if (config.in_channels, config.cross_attention_dim) != (ours.in_channels, ours.cross_attention_dim):
        raise ValueError(
            f"{path} takes {config.in_channels} channels and contents of width {config.cross_attention_dim}, the model "
            f"{ours.in_channels} and {ours.cross_attention_dim}; give the stage-2 U-Net of the same training."
        )
    unet = load_module(lambda: SpaceTimeUNet(config), file.tensors, device=gen1.device, dtype=gen1.dtype, path=path)
    return replace(gen1, unet=unet)


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """One edit with what every method needs of it, made once: contents, estimated depth, the source's latents."""

    case: Case
    clips: Clips
    contents: Mapping[str, Content]
    depth: Float[Tensor, "1 1 f height width"]
    latents: Latents


def prepare(editor: Editor, case: Case, clips: Clips) -> Prepared:
    """The prompt and the picture as contents; depth and latents of the source, by the model itself."""
    clip = MemoryClip(clips.source)
    return Prepared(
        case=case,
        clips=clips,
        contents={
            "text": describe(editor.gen1, prompt=case.prompt),
            "image": describe(editor.gen1, image=to_float(clips.example)),
        },
        depth=read_depth(editor.gen1, clip)[0],
        latents=encode_source(editor.gen1, clip),
    )


def thinned(prepared: Prepared, every: int) -> Prepared:
    """Every ``every``-th frame of an edit, for methods that see each frame alone.

    The motion between the frames that are left is not known, so there is none.
    """
    clips = prepared.clips
    few = replace(
        clips,
        source=clips.source[::every],
        truth=clips.truth[::every],
        depth=clips.depth[:, :, ::every],
        flow=clips.flow[:0],
        seen=clips.seen[:0],
    )
    return replace(prepared, clips=few, depth=prepared.depth[:, :, ::every], latents=prepared.latents[:, :, ::every])


def make(editor: Editor, method: Method, prepared: Prepared, settings: Settings | None = None) -> Bytes:
    """The edited clip. ``settings`` left out are those that tuning chose, for ours the model's own.

    Raises ValueError for settings that need the U-Net without structure where none was loaded.
    """
    clips = prepared.clips
    if method.name in (SOURCE, TRUTH):
        return clips.source if method.name == SOURCE else clips.truth
    if method.name in (OURS, OURS_IMAGE):
        return restyle(editor, prepared, with_scales(editor.options, settings), content=method.content)
    settings = settings or editor.settings(method)
    gen1 = editor.unstructured if settings.weights == "unstructured" else editor.gen1
    if gen1 is None:
        raise ValueError(
            f"{method.name} is made with weights that were not loaded; give --unstructured FILE, or another folder."
        )
    options = replace(
        with_scales(editor.options, settings),
        seed=prepared.case.seed,
        strength=settings.strength,
        temporal_scale=1.0,
    )
    latents = sample(gen1, prepared, options, method)
    return torch.cat(list(decode(gen1, latents, MemoryClip(clips.source))))


def with_scales(options: EditOptions, settings: Settings | None) -> EditOptions:
    """The options with the scales of these settings; none: as they are."""
    if settings is None:
        return options
    return replace(options, content_scale=settings.content_scale, structure_scale=settings.structure_scale)


def restyle(editor: Editor, prepared: Prepared, options: EditOptions, *, content: str = "text") -> Bytes:
    """Our own edit, by the pipeline that everybody runs."""
    clip, options = MemoryClip(prepared.clips.source), replace(options, seed=prepared.case.seed)
    return torch.cat(list(edit(editor.gen1, clip, prepared.contents[content], options, depth=prepared.depth)))


@torch.inference_mode()
def sample(gen1: Gen1, prepared: Prepared, options: EditOptions, method: Method) -> Latents:
    """The loop of ``pipeline.generate`` for a baseline: without structure, or frame by frame, which no slider says."""
    content = prepared.contents[method.content]
    condition = condition_of(gen1, options.structure(prepared.depth), content, (), chunk=options.chunk)
    without = without_structure(gen1, condition, ())
    if not method.structure:
        condition = without(condition)
    condition = replace(condition, image=method.image)
    schedule = gen1.diffusion.schedule
    sigmas = [float(s) for s in spaced_sigmas(schedule, options.steps, options.spacing, strength=options.strength)]
    _, _, frames, height, width = condition.structure.shape
    channels = gen1.unet.config.out_channels
    noise = FrameNoise(seed=options.seed, channels=channels, height=height, width=width, first=0, count=frames)
    begin = prepared.latents.to(gen1.device) if options.strength < 1 else None
    x = start(begin, noise.initial().to(gen1.device), sigmas[0])
    denoise = as_denoiser(network(gen1.unet), schedule, gen1.diffusion.prediction, batch=options.passes)
    denoise = windowed(denoise, length=options.window or gen1.unet.config.longest, overlap=options.overlap)
    denoise = guided(
        denoise,
        content_scale=options.content_scale,
        temporal_scale=options.temporal_scale,
        structure_scale=options.structure_scale,
        without=without,
    )
    *_, x = SAMPLERS[options.sampler](denoise, x, sigmas, condition, noise=step_noise(noise, gen1.device))
    require_finite(x, gen1.dtype)
    return x
