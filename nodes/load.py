"""Models: our own from a folder, public weights composed of the files that people have, and depth estimators."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from ..gen1_core.checkpoints.catalogue.row import Kind
from ..gen1_core.checkpoints.formats import Format, identify_path
from ..gen1_core.checkpoints.header import read_header
from ..gen1_core.checkpoints.search import anything, find
from ..gen1_core.frames import size_for
from ..gen1_core.gen1 import Gen1
from ..gen1_core.loading import load_depth_estimator, load_gen1
from ..gen1_core.recipes.sd15 import compose, read
from ..gen1_core.recipes.sd15_files import PublicFiles, clip_vision_for
from ..gen1_core.video.clip import MemoryClip
from ..gen1_core.video.geometry import SMALLEST_SIDE
from . import host, native

logger = logging.getLogger(__name__)

TAESD = "taesd"
"""The small VAE, as the core's loader calls it: two files in vae_approx."""

DEPTH_FOLDER = "depthanything"
LORA_FOLDERS = ("loras", host.MOTION_LORA_FOLDER)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which files one input of Load Public Weights offers: where they lie, what they are, and the usual one."""

    folder: str
    kind: Kind
    usual: str
    default: str
    tooltip: str
    none: bool = True

    @property
    def offered(self) -> list[str]:
        """What its list holds."""
        return [*([host.NONE] if self.none else []), host.BY_CONTENT, *host.model_files(self.folder)]


PLACES = {
    "checkpoint": Place(
        folder="checkpoints",
        kind="checkpoint",
        usual="v1-5-pruned-emaonly-fp16.safetensors",
        default=host.BY_CONTENT,
        none=False,
        tooltip="What draws: Stable Diffusion 1.x or any finetune, 2.x, SD2-depth or SD-unCLIP, in models/checkpoints. "
        "'Find by content' takes the only one there.",
    ),
    "motion": Place(
        folder="animatediff_models",
        kind="motion",
        usual="v3_sd15_mm.ckpt",
        default=host.BY_CONTENT,
        tooltip="What joins the frames: an AnimateDiff motion module in models/animatediff_models. With 'none' every "
        "frame is made alone, and flickers.",
    ),
    "control": Place(
        folder="controlnet",
        kind="controlnet",
        usual="control_v11f1p_sd15_depth_fp16.safetensors",
        default=host.BY_CONTENT,
        tooltip="What keeps the structure: a depth ControlNet or T2I adapter in models/controlnet. With 'none' only "
        "SD2-depth keeps it.",
    ),
    "ip_adapter": Place(
        folder="ipadapter",
        kind="ip_adapter",
        usual="ip-adapter_sd15.safetensors",
        default=host.NONE,
        tooltip="What reads a picture as content: an IP-Adapter in models/ipadapter. With 'none' only prompts count.",
    ),
    "clip_vision": Place(
        folder="clip_vision",
        kind="clip_vision",
        usual="CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors",
        default=host.BY_CONTENT,
        tooltip="The eyes of the IP-Adapter, in models/clip_vision: 'find by content' takes the one of its width. Not "
        "looked at without an IP-Adapter.",
    ),
    "vae": Place(
        folder="vae",
        kind="vae",
        usual="vae-ft-mse-840000-ema-pruned.safetensors",
        default=host.NONE,
        tooltip="Another autoencoder, in models/vae: it changes how finely latents become pictures. With 'none' the "
        "checkpoint's own; taesd is fast and rough.",
    ),
    "depth": Place(
        folder=DEPTH_FOLDER,
        kind="depth",
        usual="depth_anything_v2_vits_fp32.safetensors",
        default=host.BY_CONTENT,
        tooltip="What sees the depth of the clip: Depth Anything V2 or MiDaS, in models/depthanything. With 'none' the "
        "rough one of the embedded model, or SD2-depth's own.",
    ),
}
"""The inputs of Load Public Weights, in order."""


def wires(gen1: Gen1) -> tuple[Any, Any, host.ContentReader, host.DepthNetwork]:
    """MODEL, VAE, GEN1_ENCODER and GEN1_DEPTH of one Gen1, which the MODEL carries too."""
    vae, encoder, depth = (
        host.vae_wire(gen1.autoencoder),
        host.encoder_wire(gen1.describer),
        host.depth_wire(gen1.depth),
    )
    model = native.model_of(replace(gen1, autoencoder=host.codec_of(vae), describer=encoder, depth=depth))
    return model, vae, encoder, depth


def short_side() -> io.Int.Input:
    """The working size of a loader."""
    return io.Int.Input(
        "short_side",
        optional=True,
        default=0,
        min=0,
        max=4096,
        step=8,
        tooltip="Pixels of the clip's shorter side while it is edited: more is finer, and takes more time and memory; "
        "far from the model's own size pictures get worse. 0 is the model's own.",
    )


def at_size(gen1: Gen1, short_side: int) -> Gen1:
    """The model at another working size. Raises ValueError for one that its network cannot divide."""
    if not short_side:
        return gen1
    sized = replace(gen1, diffusion=replace(gen1.diffusion, working_size=short_side))
    size_for(sized, MemoryClip(torch.zeros(1, 3, SMALLEST_SIDE, SMALLEST_SIDE, dtype=torch.uint8)))
    return sized


def outputs() -> list[io.Output]:
    """What both loaders give."""
    return [
        io.Model.Output(
            "model_out", display_name="MODEL", tooltip="The space-time U-Net, for samplers and LoRA loaders."
        ),
        io.Vae.Output("vae_out", display_name="VAE", tooltip="Its autoencoder, frame by frame."),
        host.Encoder.Output(
            "encoder", display_name="GEN1_ENCODER", tooltip="Reads prompts and pictures for this model."
        ),
        host.Depth.Output("depth_out", display_name="GEN1_DEPTH", tooltip="Its depth estimator."),
    ]


class LoadModel(io.ComfyNode):
    """The embedded model, or a folder of five files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The form."""
        return io.Schema(
            node_id="Gen1_LoadModel",
            display_name="Gen-1 Load Model",
            category=host.CATEGORY,
            description="A Gen-1 model: the small one that comes with the pack, or your own.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=[host.EMBEDDED, *host.model_folders()],
                    default=host.EMBEDDED,
                    tooltip="The embedded model needs no download. Your own are folders in models/gen1 with unet, "
                    "autoencoder, depth, clip and prior (.safetensors).",
                ),
                short_side(),
            ],
            outputs=outputs(),
            **host.aliases("checkpoint", "loader", "load gen1"),
        )

    @classmethod
    def execute(cls, model: str, short_side: int = 0) -> io.NodeOutput:
        """Reads the five files; the embedded model stays in float32, which costs it nothing."""
        progress = host.on_step("load")
        folder, dtype = host.gen1_folder(model), torch.float32
        if isinstance(folder, Path) and (folder / "unet.safetensors").is_file():
            dtype = host.unet_dtype(read_header(folder / "unet.safetensors").parameters)
        progress("load", 1, 3)
        gen1 = load_gen1(folder, dtype=torch.float32 if dtype.itemsize == 1 else dtype)
        progress("load", 2, 3)
        wired = wires(at_size(gen1, short_side))
        progress("load", 3, 3)
        return io.NodeOutput(*wired)

    @classmethod
    def validate_inputs(cls, model: str | None) -> bool | str:
        """Whether the folder is there, before anything runs."""
        return checked(lambda: model and host.gen1_folder(model))

    @classmethod
    def fingerprint_inputs(cls, model: str | None = None, **others: Any) -> str:
        """Other files in the folder mean loading again."""
        folder = model and host.gen1_folder(model)
        return host.file_state(folder) if isinstance(folder, Path) else ""


class LoadPublic(io.ComfyNode):
    """Files of Stable Diffusion, AnimateDiff, ControlNet and IP-Adapter as one model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The form."""
        return io.Schema(
            node_id="Gen1_LoadPublic",
            display_name="Gen-1 Load Public Weights",
            category=host.CATEGORY,
            description="One video model from the files that most people have. Each is known by what is in it, never "
            "by its name; what does not belong together is refused before anything heavy is loaded.",
            inputs=[
                *(
                    io.Combo.Input(
                        name,
                        options=[*place.offered, *([TAESD] if name == "vae" and len(taesd()) == 2 else [])],
                        default=place.default,
                        tooltip=place.tooltip,
                    )
                    for name, place in PLACES.items()
                ),
                short_side(),
            ],
            outputs=outputs(),
            **host.aliases("animatediff", "controlnet", "ip-adapter", "checkpoint", "stable diffusion"),
        )

    @classmethod
    def execute(cls, short_side: int = 0, **names: str) -> io.NodeOutput:
        """Reads and checks all files, then builds."""
        progress = host.on_step("load")
        require_all(names)
        try:
            plan = read(files_of(names, lambda: progress("load", 1, 4)))
            progress("load", 2, 4)
            dtype = host.unet_dtype(sum(tensor.numel() for tensor in plan.parts["unet"].values()))
            small = dtype.itemsize == 1
            gen1 = compose(plan, dtype=torch.bfloat16 if small else dtype, fp8=small)
        except ValueError as error:
            raise ValueError(in_words_of_the_node(str(error))) from error
        progress("load", 3, 4)
        wired = wires(at_size(gen1, short_side))
        progress("load", 4, 4)
        return io.NodeOutput(*wired)

    @classmethod
    def validate_inputs(cls, checkpoint: str | None) -> bool | str:
        """Whether the checkpoint is there.

        The others are asked for when it runs, first thing: here a message is shown once for each input that is named.
        """
        return checked(lambda: checkpoint and require_there("checkpoint", checkpoint))

    @classmethod
    def fingerprint_inputs(cls, short_side: int | None = 0, **names: str | None) -> str:
        """Other files in the folders mean loading again; ComfyUI sees to the number."""
        return "; ".join(state_of(PLACES[name].folder, chosen) for name, chosen in names.items() if chosen)


class LoadDepth(io.ComfyNode):
    """A depth network by itself."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The form."""
        return io.Schema(
            node_id="Gen1_LoadDepth",
            display_name="Gen-1 Load Depth Estimator",
            category=host.CATEGORY,
            description="The network that sees the depth of a clip: Depth Anything V2, MiDaS, or the embedded model's.",
            inputs=[
                io.Combo.Input(
                    "estimator",
                    options=[host.EMBEDDED, host.BY_CONTENT, *host.model_files(DEPTH_FOLDER)],
                    default=host.EMBEDDED,
                    tooltip="A file in models/depthanything, or the embedded one, which sees shapes roughly. A better "
                    "one keeps finer edges.",
                )
            ],
            outputs=[
                host.Depth.Output("depth", display_name="GEN1_DEPTH", tooltip="For Depth Structure and Edit Video.")
            ],
            **host.aliases("depth anything", "midas", "dpt", "depth estimation"),
        )

    @classmethod
    def execute(cls, estimator: str) -> io.NodeOutput:
        """Reads one file."""
        progress = host.on_step("load")
        if estimator == host.EMBEDDED:
            depth = load_gen1().depth
        else:
            depth = load_depth_estimator(file_of("depth", estimator))
        progress("load", 1, 1)
        return io.NodeOutput(host.depth_wire(depth))

    @classmethod
    def validate_inputs(cls, estimator: str | None) -> bool | str:
        """Whether the file is there, before anything runs."""
        return checked(lambda: estimator not in (None, host.EMBEDDED) and require_there("depth", str(estimator)))

    @classmethod
    def fingerprint_inputs(cls, estimator: str | None = None) -> str:
        """Another file of the same name means loading again."""
        return state_of(DEPTH_FOLDER, estimator) if estimator else ""


class LoadLora(io.ComfyNode):
    """A LoRA under names that the core's loaders do not know."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The form."""
        return io.Schema(
            node_id="Gen1_LoadLora",
            display_name="Gen-1 Load LoRA",
            category=host.CATEGORY,
            description="Lays a LoRA over a Gen-1 model, under any names: kohya's, diffusers', peft's, and "
            "AnimateDiff's motion LoRAs, which ComfyUI's own loaders pass over. Chain several for more.",
            inputs=[
                io.Model.Input("model", tooltip="A Gen-1 model, for motion LoRAs with an AnimateDiff motion module."),
                io.Combo.Input(
                    "lora",
                    options=[host.NONE, *loras()],
                    default=host.NONE,
                    tooltip="A file in models/loras or models/animatediff_motion_lora. Only what it has for the U-Net "
                    "counts, not what it has for a text encoder.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How much of it is added: 1 is all of it, 0 nothing, less than 0 the opposite.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model_out", display_name="MODEL", tooltip="The model with the LoRA; the one that came in stays."
                )
            ],
            **host.aliases("LoRA loader", "motion LoRA", "AnimateDiff LoRA", "camera motion", "peft"),
        )

    @classmethod
    def execute(cls, model: Any, lora: str, strength: float) -> io.NodeOutput:
        """Patches a clone."""
        host.gen1_of(model)
        path = lora_file(lora)
        return io.NodeOutput(model if path is None else native.with_lora(model, path, strength=strength))

    @classmethod
    def validate_inputs(cls, lora: str | None) -> bool | str:
        """Whether the file is there, before anything runs."""
        return checked(lambda: lora and lora_file(lora))

    @classmethod
    def fingerprint_inputs(cls, lora: str | None = None, **others: Any) -> str:
        """Another file of the same name means loading again."""
        path = lora_file(lora) if lora else None
        return "" if path is None else host.file_state(path)


def loras() -> list[str]:
    """Names in both folders, each once."""
    return list(dict.fromkeys(name for folder in LORA_FOLDERS for name in host.model_files(folder)))


def lora_file(name: str) -> Path | None:
    """The file of a name, in models/loras first; None for "none". Raises ValueError where it is gone."""
    folder = next((folder for folder in LORA_FOLDERS if name in host.model_files(folder)), LORA_FOLDERS[0])
    return host.model_path(folder, name, kind="lora", option="lora")


def checked(check: Callable[[], object]) -> bool | str:
    """What ``validate_inputs`` says: the message of what was refused."""
    try:
        check()
        return True
    except ValueError as error:
        return str(error)


def require_there(name: str, chosen: str) -> None:
    """Refuses a file that is gone, and a search in empty folders."""
    place = PLACES[name]
    depends = name in ("clip_vision", "depth", "control")  # on the other files, which are not looked into here
    searched = chosen == host.BY_CONTENT and (depends or host.model_files(place.folder))
    if not searched and chosen not in (host.NONE, TAESD):
        file_of(name, chosen)


def require_all(names: dict[str, str]) -> None:
    """Refuses files that are gone, all in one message."""
    found = [checked(lambda item=item: require_there(*item)) for item in names.items()]
    missing = [message for message in found if isinstance(message, str)]
    if missing:
        raise ValueError("\n".join(missing))


def file_of(name: str, chosen: str, accept: Callable[[Format], bool] = anything) -> Path:
    """The file that an input names, or that is found for it.

    Raises ValueError with the file wanted, the folders looked in and what is there.
    """
    place = PLACES[name]
    try:
        if chosen != host.BY_CONTENT:
            path = host.model_path(place.folder, chosen, kind=place.kind, option=name)
        else:
            path = find(
                place.kind, name="", folders=host.folders_of(place.folder), option=f"--{name}", accept=accept
            ).path
    except ValueError as error:
        other = ", or choose none" if place.none and chosen == host.BY_CONTENT else ""
        raise ValueError(f"{in_words_of_the_node(str(error))} Usual: {place.usual}{other}.") from error
    if path is None:
        raise ValueError(f"{name} is {chosen!r}, and a file is needed; choose one, such as {place.usual}.")
    return path


def files_of(names: dict[str, str], tick: Callable[[], None]) -> PublicFiles:
    """The files that the inputs name, and those found by content that fit the checkpoint."""
    checkpoint = file_of("checkpoint", names["checkpoint"])
    base = identify_path(checkpoint).base
    # SD2-depth reads depth by itself and brings its own network, so what is not named is not needed.
    inside = ("control", "depth") if base == "sd2-depth" else ()
    tick()

    def fits(file: Format) -> bool:
        return not file.base or file.base.split("-")[0] == base.split("-")[0]

    def one(name: str) -> Path | None:
        chosen = names[name]
        if chosen == host.NONE or (chosen == host.BY_CONTENT and name in inside):
            return None
        path = file_of(name, chosen, anything if name == "depth" else fits)
        tick()
        return path

    control, adapter = one("control"), one("ip_adapter")
    vae = taesd() if names["vae"] == TAESD else [one("vae")]
    files = PublicFiles(
        checkpoint=checkpoint,
        motion=one("motion"),
        controls=() if control is None else (control,),
        ip_adapters=() if adapter is None else (adapter,),
        vae=tuple(path for path in vae if path is not None),
        depth=one("depth"),
    )
    if names["clip_vision"] == host.BY_CONTENT:
        return replace(files, clip_vision=clip_vision_for(files, None, host.folders_of("clip_vision")))
    return replace(files, clip_vision=one("clip_vision"))


def taesd() -> list[Path]:
    """The two files of TAESD for Stable Diffusion, by the names that the core looks for."""
    wanted = ("taesd_encoder", "taesd_decoder")
    found = [name for stem in wanted for name in host.model_files("vae_approx") if Path(name).stem == stem]
    paths = [host.model_path("vae_approx", name, kind="taesd", option="vae") for name in found]
    return [path for path in paths if path is not None]


def state_of(folder: str, chosen: str) -> str:
    """What changes when the chosen file does, or any file where one is to be found."""
    if chosen in (host.NONE, host.EMBEDDED, TAESD):
        return chosen
    names = host.model_files(folder) if chosen == host.BY_CONTENT else [chosen]
    files = [place / name for place in host.folders_of(folder) for name in names]
    return "; ".join(host.file_state(file) for file in files)


def in_words_of_the_node(message: str) -> str:
    """A message of the library with inputs of the node in place of options of the command line."""
    message = re.sub(r"(?:give its path with|name it with) --([a-z-]+)", r"choose it in \1", message)
    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", lambda option: option[1].replace("-", "_"), message)
