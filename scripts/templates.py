"""The workflows of the pack, each a function: what stands in ComfyUI's template browser, and what the tests run."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graph import Graph, Link, Node, as_text
from schemas import ROOT, Schemas
from words import between, table

CLIP = "gen1_bunny.mp4 [temp]"
"""The clip in gen1_core/assets, as Gen-1 Load Video offers it."""

TINY = "tiny (embedded)"

SKETCH = "a pencil sketch on white paper"
SAND = "golden desert sand at dusk"

POSITIVE, NEGATIVE = 0, 1
"""Places of Gen-1 Condition's outputs."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A public file: where it comes from and where it goes."""

    name: str
    folder: str
    url: str
    size: str
    licence: str

    @property
    def offered(self) -> bool:
        """Whether the page offers the download: it does for safetensors only."""
        return self.name.endswith((".safetensors", ".sft"))

    def as_property(self) -> dict[str, str]:
        """What a loader carries for the page."""
        return {"name": self.name, "url": self.url, "directory": self.folder}


HUGGING_FACE = "https://huggingface.co"
SD15 = (
    Weights(
        name="v1-5-pruned-emaonly-fp16.safetensors",
        folder="checkpoints",
        url=f"{HUGGING_FACE}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors",
        size="2.13 GB",
        licence="CreativeML Open RAIL-M",
    ),
    Weights(
        name="v3_sd15_mm.ckpt",
        folder="animatediff_models",
        url=f"{HUGGING_FACE}/guoyww/animatediff/resolve/main/v3_sd15_mm.ckpt",
        size="1.67 GB",
        licence="Apache-2.0",
    ),
    Weights(
        name="control_v11f1p_sd15_depth_fp16.safetensors",
        folder="controlnet",
        url=f"{HUGGING_FACE}/comfyanonymous/ControlNet-v1-1_fp16_safetensors/resolve/main/"
        "control_v11f1p_sd15_depth_fp16.safetensors",
        size="723 MB",
        licence="Open RAIL",
    ),
    Weights(
        name="ip-adapter_sd15.safetensors",
        folder="ipadapter",
        url=f"{HUGGING_FACE}/h94/IP-Adapter/resolve/main/models/ip-adapter_sd15.safetensors",
        size="45 MB",
        licence="Apache-2.0",
    ),
    Weights(
        name="CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors",
        folder="clip_vision",
        url=f"{HUGGING_FACE}/h94/IP-Adapter/resolve/main/models/image_encoder/model.safetensors",
        size="2.53 GB",
        licence="MIT",
    ),
    Weights(
        name="depth_anything_v2_vits_fp32.safetensors",
        folder="depthanything",
        url=f"{HUGGING_FACE}/Kijai/DepthAnythingV2-safetensors/resolve/main/depth_anything_v2_vits_fp32.safetensors",
        size="99 MB",
        licence="Apache-2.0",
    ),
)

OFFLINE = "Needs nothing but this pack: the model and the clip come with it. The model is small, so pictures are soft."


def load(graph: Graph, *, seconds: float = 0.5) -> tuple[Node, Node]:
    """The clip and the embedded model."""
    with graph.group("Load", column=0):
        clip = graph.add("Gen1_LoadVideo", file=CLIP, end_s=seconds)
        model = graph.add("Gen1_LoadModel", model=TINY)
    return clip, model


def depth_of(graph: Graph, clip: Node, model: Node, **sliders: Any) -> Node:
    """The clip's structure."""
    return graph.add(
        "Gen1_DepthStructure", image=clip["IMAGE"], depth=model["GEN1_DEPTH"], model=model["MODEL"], **sliders
    )


def sampled(graph: Graph, clip: Node, model: Node, structure: Node, content: Node, **sliders: Any) -> Node:
    """Our sampler with its decoder below it; the decoder."""
    latent = graph.add(
        "Gen1_Sampler",
        model=model["MODEL"],
        structure=structure["GEN1_STRUCTURE"],
        content=content["GEN1_CONTENT"],
        **sliders,
    )
    return decoded(graph, clip, model, latent["LATENT"])


def decoded(graph: Graph, clip: Node, model: Node, latent: Link) -> Node:
    """Latents at the clip's size."""
    return graph.add("Gen1_Decode", latent=latent, vae=model["VAE"], image=clip["IMAGE"])


def text(graph: Graph, model: Node, prompt: str) -> Node:
    """Content from a prompt."""
    return graph.add("Gen1_ContentFromText", encoder=model["GEN1_ENCODER"], prompt=prompt)


def picture(graph: Graph, clip: Node) -> Node:
    """A picture to take the look of that needs no file: the clip's first frame as a negative."""
    first = graph.add("ImageFromBatch", image=clip["IMAGE"], batch_index=0, length=1)
    return graph.add("ImageInvert", title="A picture (put yours here)", image=first["IMAGE"])


def save(graph: Graph, images: Node, clip: Node, name: str) -> Node:
    """Frames with the clip's rate and sound as a file."""
    return graph.add(
        "Gen1_SaveVideo",
        images=images["IMAGE"],
        audio=clip["AUDIO"],
        frame_rate=clip["frame_rate"],
        filename_prefix=f"video/{name}",
    )


def compare(graph: Graph, clips: dict[str, Node], *, columns: int = 2) -> Node:
    """Up to four clips side by side under their labels."""
    given: dict[str, Any] = {}
    for place in ("first", "second", "third", "fourth"):
        given[f"{place}_label"] = ""
    for place, (label, node) in zip(("first", "second", "third", "fourth"), clips.items(), strict=False):
        given[place] = node["IMAGE"]
        given[f"{place}_label"] = label
    return graph.add("Gen1_Compare", columns=columns, **given)


def tiny_text_edit(graph: Graph) -> None:
    """One node, a video and a prompt: the shortest way.

    Choose your own video in *Gen-1 Load Video* and say in *Gen-1 Edit Video* what it should look like. The result has
    the frames, size, frame rate and sound of the source. `end_s` 0 takes the whole clip.
    """
    with graph.group("Load", column=0):
        clip = graph.add("Gen1_LoadVideo", file=CLIP, end_s=1.0)
    with graph.group("Sample: edit", column=1, stage="Sample"):
        edited = graph.add("Gen1_EditVideo", video=clip["VIDEO"], prompt=SKETCH)
    with graph.group("Save", column=2):
        graph.add("Gen1_SaveVideo", video=edited["VIDEO"], filename_prefix="video/gen1_text_edit")


def tiny_image_edit(graph: Graph) -> None:
    """The look comes from a picture instead of a prompt.

    So that no file is needed, the picture is the clip's own first frame as a negative. Put *Load Image* with a picture
    of yours in its place.
    """
    with graph.group("Load", column=0):
        clip = graph.add("Gen1_LoadVideo", file=CLIP, end_s=0.5)
    with graph.group("Content: a picture", column=1, stage="Content"):
        look = picture(graph, clip)
    with graph.group("Sample: edit", column=2, stage="Sample"):
        edited = graph.add("Gen1_EditVideo", video=clip["VIDEO"], prompt="", image=look["IMAGE"])
    with graph.group("Save", column=3):
        graph.add("Gen1_SaveVideo", video=edited["VIDEO"], filename_prefix="video/gen1_image_edit")


def tiny_parts(graph: Graph) -> None:
    """The same edit from its parts, sampled by ComfyUI's own SamplerCustomAdvanced.

    Every link of the method is a wire: swap the depth, the content, the guider, the sampler or the scheduler. LoRA,
    ModelSampling and torch.compile nodes go into the MODEL wire.
    """
    clip, model = load(graph)
    with graph.group("Structure", column=1):
        structure = depth_of(graph, clip, model)
    with graph.group("Content", column=1):
        content = text(graph, model, SKETCH)
    with graph.group("Sample", column=2):
        condition = graph.add(
            "Gen1_Condition",
            model=model["MODEL"],
            structure=structure["GEN1_STRUCTURE"],
            content=content["GEN1_CONTENT"],
        )
        guider = graph.add(
            "Gen1_Guider", model=model["MODEL"], positive=condition[POSITIVE], negative=condition[NEGATIVE]
        )
        noise = graph.add("RandomNoise", noise_seed=0)
        sampler = graph.add("KSamplerSelect", sampler_name="dpmpp_2m")
        sigmas = graph.add("BasicScheduler", model=model["MODEL"], scheduler="simple", steps=4, denoise=1.0)
        graph.lane()
        latent = graph.add(
            "SamplerCustomAdvanced",
            noise=noise["NOISE"],
            guider=guider["GUIDER"],
            sampler=sampler["SAMPLER"],
            sigmas=sigmas["SIGMAS"],
            latent_image=condition["LATENT"],
        )
        frames = decoded(graph, clip, model, latent["output"])
    with graph.group("Save", column=3):
        save(graph, frames, clip, "gen1_parts")
        graph.add("PreviewImage", title="The depth that is kept", images=structure["IMAGE"])


def tiny_content_swap(graph: Graph) -> None:
    """The same clip with three contents: a prompt, a picture, and the two blended.

    Structure and seed are the same in all three; only the link into `content` differs.
    """
    clip, model = load(graph)
    with graph.group("Structure", column=1):
        structure = depth_of(graph, clip, model)
    with graph.group("Content", column=1):
        words = text(graph, model, SAND)
        look = picture(graph, clip)
        graph.lane()
        shown = graph.add("Gen1_ContentFromImage", encoder=model["GEN1_ENCODER"], image=look["IMAGE"])
        mixed = graph.add("Gen1_BlendContent", a=words["GEN1_CONTENT"], b=shown["GEN1_CONTENT"], weight=0.5)
    frames = {"source": clip}
    with graph.group("Sample", column=2):
        for label, content in {"text": words, "picture": shown, "both": mixed}.items():
            if label != "text":
                graph.lane()
            frames[label] = sampled(graph, clip, model, structure, content)
    with graph.group("Save", column=3):
        save(graph, compare(graph, frames), clip, "gen1_content_swap")


def tiny_schedule_content(graph: Graph) -> None:
    """The look passes from one prompt to another while the clip runs.

    `frames` comes from the clip itself, so another clip needs only other first and last frames. Chain two *Gen-1
    Schedule Content* for a third look.
    """
    clip, model = load(graph, seconds=0.8)
    with graph.group("Structure", column=1):
        structure = depth_of(graph, clip, model)
    with graph.group("Content", column=1):
        begin = text(graph, model, SKETCH)
        end = text(graph, model, SAND)
        content = graph.add(
            "Gen1_ScheduleContent",
            a=begin["GEN1_CONTENT"],
            b=end["GEN1_CONTENT"],
            first_frame=3,
            last_frame=16,
            frames=clip["frame_count"],
        )
    with graph.group("Sample", column=2):
        frames = sampled(graph, clip, model, structure, content)
    with graph.group("Save", column=3):
        save(graph, frames, clip, "gen1_schedule_content")


def tiny_structure_detail(graph: Graph) -> None:
    """One slider at four values: how much detail of the shapes is kept.

    `blur_level` is the paper's t_s: 0 keeps every edge of the depth, 7 leaves only the large masses. The last picture
    is the depth as the model gets it.
    """
    clip, model = load(graph)
    with graph.group("Content", column=0):
        content = text(graph, model, SAND)
    frames, depths = {}, {}
    with graph.group("Structure and sampling", column=1, stage="Structure"):
        for level in (0, 2, 4, 7):
            if level:
                graph.lane()
            structure = depth_of(graph, clip, model, blur_level=level)
            depths[f"depth at {level}"] = structure
            frames[f"blur level {level}"] = sampled(graph, clip, model, structure, content)
    with graph.group("Save", column=2):
        save(graph, compare(graph, frames), clip, "gen1_structure_detail")
        graph.add("PreviewImage", title="What the model sees", images=compare(graph, depths)["IMAGE"])


def tiny_temporal_scale(graph: Graph) -> None:
    """How strongly the frames hold together, at four values (Eq. 8 of the paper).

    0 makes every frame alone, below 1 is livelier, 1 is off, above 1 is smoother. *Gen-1 Metrics* measures it: frame
    consistency is how alike neighbouring frames are.
    """
    clip, model = load(graph)
    with graph.group("Content", column=0):
        content = text(graph, model, SKETCH)
    with graph.group("Structure", column=1):
        structure = depth_of(graph, clip, model)
    frames = {}
    with graph.group("Sample", column=2):
        for scale in (0.0, 0.7, 1.0, 1.5):
            if scale:
                graph.lane()
            label = f"temporal scale {scale:g}"
            frames[label] = sampled(graph, clip, model, structure, content, temporal_scale=scale)
            report = graph.add(
                "Gen1_Metrics", edited=frames[label]["IMAGE"], encoder=model["GEN1_ENCODER"], prompt=SKETCH
            )
            graph.add("PreviewAny", title=label, source=report["STRING"])
    with graph.group("Save", column=3):
        save(graph, compare(graph, frames), clip, "gen1_temporal_scale")


def tiny_keep_background(graph: Graph) -> None:
    """Only what is near is edited; behind it the source stays as it is.

    The mask is cut from the depth, so no file is needed: everything nearer than the threshold is white. Any MASK does
    in its place, from ComfyUI's mask editor or from a segmentation pack.
    """
    clip, model = load(graph)
    with graph.group("Structure", column=1):
        structure = depth_of(graph, clip, model)
    with graph.group("Content", column=1):
        content = text(graph, model, SAND)
    with graph.group("Mask: what is near", column=2, stage="Mask"):
        grey = graph.add("ImageToMask", image=structure["IMAGE"], channel="red")
        near = graph.add("ThresholdMask", mask=grey["MASK"], value=0.5)
    with graph.group("Sample", column=2):
        frames = sampled(graph, clip, model, structure, content)
    with graph.group("Save", column=3):
        kept = graph.add(
            "Gen1_EditMask",
            mask=near["MASK"],
            grow_px=4,
            feather_px=4.0,
            edited=frames["IMAGE"],
            source=clip["IMAGE"],
        )
        save(graph, kept, clip, "gen1_keep_background")


def tiny_start_from_source(graph: Graph) -> None:
    """Half way: the edit starts from the source's own latents, in ComfyUI's KSampler.

    `denoise` of *KSampler* is how far it goes: 1 keeps only the structure, 0.3 little more than a tint.
    """
    clip, model = load(graph)
    with graph.group("Structure", column=1):
        structure = depth_of(graph, clip, model)
    with graph.group("Content", column=1):
        content = text(graph, model, SAND)
    with graph.group("Sample", column=2):
        condition = graph.add(
            "Gen1_Condition",
            model=model["MODEL"],
            structure=structure["GEN1_STRUCTURE"],
            content=content["GEN1_CONTENT"],
        )
        own = graph.add("Gen1_Encode", image=clip["IMAGE"], vae=model["VAE"], model=model["MODEL"])
        latent = graph.add(
            "KSampler",
            model=model["MODEL"],
            seed=0,
            steps=12,
            cfg=1.5,
            sampler_name="dpmpp_2m",
            scheduler="simple",
            positive=condition[POSITIVE],
            negative=condition[NEGATIVE],
            latent_image=own["LATENT"],
            denoise=0.6,
        )
        frames = decoded(graph, clip, model, latent["LATENT"])
    with graph.group("Save", column=3):
        save(graph, frames, clip, "gen1_start_from_source")


def tiny_other_structure(graph: Graph) -> None:
    """Structure from elsewhere: depth of another estimator, or any pictures.

    Below, the edges that core's *Canny* finds go in as depth; depth nodes of other packs are wired the same way. Above,
    *Gen-1 Load Depth Estimator* replaces the model's own estimator. *Gen-1 Metrics* says how much of the depth each
    keeps.
    """
    clip, model = load(graph)
    with graph.group("Load: another depth", column=0, stage="Load"):
        estimator = graph.add("Gen1_LoadDepth")
    with graph.group("Structure", column=1):
        depth = graph.add(
            "Gen1_DepthStructure",
            image=clip["IMAGE"],
            depth=estimator["GEN1_DEPTH"],
            model=model["MODEL"],
            blur_level=1,
        )
        edges = graph.add("Canny", image=clip["IMAGE"], low_threshold=0.1, high_threshold=0.3)
        drawn = graph.add("Gen1_StructureFromImage", image=edges["IMAGE"], model=model["MODEL"], blur_level=1)
    with graph.group("Content", column=1):
        content = text(graph, model, SAND)
    frames = {"source": clip, "depth": depth}
    with graph.group("Sample", column=2):
        frames["from depth"] = sampled(graph, clip, model, depth, content)
        measured(graph, clip, model, estimator, frames["from depth"])
        graph.lane()
        frames["from edges"] = sampled(graph, clip, model, drawn, content)
        measured(graph, clip, model, estimator, frames["from edges"])
    with graph.group("Save", column=3):
        save(graph, compare(graph, frames), clip, "gen1_other_structure")


def measured(graph: Graph, clip: Node, model: Node, estimator: Node, frames: Node) -> None:
    """Figures of an edit, shown below it."""
    report = graph.add(
        "Gen1_Metrics",
        edited=frames["IMAGE"],
        encoder=model["GEN1_ENCODER"],
        prompt=SAND,
        source=clip["IMAGE"],
        depth=estimator["GEN1_DEPTH"],
    )
    graph.add("PreviewAny", source=report["STRING"])


def sd15_animatediff_controlnet_ipadapter(graph: Graph) -> None:
    """Weights that most people have, as one video model: Stable Diffusion 1.5, AnimateDiff, ControlNet, IP-Adapter.

    Each file is told by its content; *find by content* takes the only one of its kind, so renamed files are found too.
    Files that end in `.ckpt` are not offered for download by ComfyUI: follow the link. Any SD 1.5 finetune may stand in
    place of the checkpoint. *Gen-1 Load LoRA* takes a style LoRA, or a motion LoRA of AnimateDiff, in place of *none*.
    """
    names = {weights.folder: weights for weights in SD15}
    with graph.group("Load", column=0):
        clip = graph.add("Gen1_LoadVideo", file=CLIP, max_size=768)
        model = graph.add(
            "Gen1_LoadPublic",
            models=tuple(weights.as_property() for weights in SD15 if weights.offered),
            checkpoint=names["checkpoints"].name,
            motion=names["animatediff_models"].name,
            control=names["controlnet"].name,
            ip_adapter=names["ipadapter"].name,
            clip_vision=names["clip_vision"].name,
            depth=names["depthanything"].name,
        )
        styled = graph.add("Gen1_LoadLora", model=model["MODEL"])
    with graph.group("Structure", column=1):
        structure = depth_of(graph, clip, model)
    with graph.group("Content", column=1):
        look = picture(graph, clip)
        content = graph.add(
            "Gen1_ContentFromImage",
            encoder=model["GEN1_ENCODER"],
            image=look["IMAGE"],
            prompt="an oil painting, thick brush strokes",
            negative="blurry, low quality",
        )
    with graph.group("Sample", column=2):
        condition = graph.add(
            "Gen1_Condition",
            model=styled["MODEL"],
            structure=structure["GEN1_STRUCTURE"],
            content=content["GEN1_CONTENT"],
        )
        guider = graph.add(
            "Gen1_Guider",
            model=styled["MODEL"],
            positive=condition[POSITIVE],
            negative=condition[NEGATIVE],
        )
        noise = graph.add("RandomNoise", noise_seed=0)
        sampler = graph.add("KSamplerSelect", sampler_name="ddim")
        sigmas = graph.add("BasicScheduler", model=styled["MODEL"], scheduler="ddim_uniform", steps=25, denoise=1.0)
        graph.lane()
        latent = graph.add(
            "SamplerCustomAdvanced",
            noise=noise["NOISE"],
            guider=guider["GUIDER"],
            sampler=sampler["SAMPLER"],
            sigmas=sigmas["SIGMAS"],
            latent_image=condition["LATENT"],
        )
        frames = decoded(graph, clip, model, latent["output"])
    with graph.group("Save", column=3):
        save(graph, frames, clip, "gen1_sd15")


def gen1_own_checkpoint(graph: Graph) -> None:
    """A Gen-1 model of your own, as `gen1 train` leaves it.

    Copy the folder with `unet`, `autoencoder`, `depth`, `clip` and `prior` (`.safetensors`) into `ComfyUI/models/gen1`
    under a name, press R, and choose it in *Gen-1 Load Model*; here it is called `mine`.
    """
    with graph.group("Load", column=0):
        clip = graph.add("Gen1_LoadVideo", file=CLIP)
        model = graph.add("Gen1_LoadModel", model="mine")
    with graph.group("Sample: edit", column=1, stage="Sample"):
        edited = graph.add(
            "Gen1_EditVideo",
            video=clip["VIDEO"],
            prompt=SAND,
            model=model["MODEL"],
            depth=model["GEN1_DEPTH"],
        )
    with graph.group("Save", column=2):
        graph.add("Gen1_SaveVideo", video=edited["VIDEO"], filename_prefix="video/gen1_own")


WORKFLOWS: tuple[Callable[[Graph], None], ...] = (
    tiny_text_edit,
    tiny_image_edit,
    tiny_parts,
    tiny_content_swap,
    tiny_schedule_content,
    tiny_structure_detail,
    tiny_temporal_scale,
    tiny_keep_background,
    tiny_start_from_source,
    tiny_other_structure,
    sd15_animatediff_controlnet_ipadapter,
    gen1_own_checkpoint,
)


def said(make: Callable[[Graph], None]) -> tuple[str, str]:
    """The first line of a workflow's docstring, and the rest with its lines joined."""
    head, _, rest = (make.__doc__ or "").partition("\n\n")
    return " ".join(head.split()), " ".join(rest.split())


def about(make: Callable[[Graph], None]) -> str:
    """What stands in the note of a workflow."""
    head, rest = said(make)
    note = f"## {head}\n\n{rest}"
    if make.__name__.startswith("tiny_"):
        return f"{note}\n\n{OFFLINE}"
    if make is sd15_animatediff_controlnet_ipadapter:
        files = [(f"[{one.name}]({one.url})", f"models/{one.folder}", one.size, one.licence) for one in SD15]
        return f"{note}\n\n{table(('file', 'folder', 'size', 'licence'), files)}"
    files = [(f"{part}.safetensors", "models/gen1/mine") for part in ("unet", "autoencoder", "depth", "clip", "prior")]
    return f"{note}\n\n{table(('file', 'folder'), files)}"


def workflow_files(schemas: Schemas) -> dict[Path, str]:
    """Every workflow with its text, and the list of them."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (version,) = re.findall(r'^version = "(.+)"$', project, flags=re.MULTILINE)
    folder, files, rows = ROOT / "workflows", {}, []
    for make in WORKFLOWS:
        name = make.__name__
        graph = Graph(name, schemas=schemas, version=version, about=about(make))
        make(graph)
        files[folder / f"{name}.json"] = as_text(graph.workflow())
        rows.append((f"[{name}]({name}.json)", said(make)[0]))
    page = folder / "README.md"
    files[page] = between(page.read_text(encoding="utf-8"), table(("workflow", "shows"), rows), path=page)
    return files
