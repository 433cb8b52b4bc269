"""Which public files make a composition: named, or found by content below a folder such as ComfyUI's ``models``."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoints.catalogue.row import LABELS, Kind
from ..checkpoints.formats import Format, identify_path, weights_in
from ..checkpoints.search import anything, find, scan

BY_CONTENT = ""
"""An option without a value: the only file of its kind below the folders."""

NAMED = ("checkpoint", "motion", "controlnet", "ip_adapter", "clip_vision", "vae", "text_encoder", "models")
"""Any of these on the command line means public weights instead of a model of our own. A LoRA is for either."""

BESIDE = ("statistics", "ip_scale", "prediction", "fp8")
"""These say something of public weights, and nothing without them."""


FAMILIES = {"sd15": "SD 1.5", "sd2": "SD 2.x"}
"""Networks whose parts have names in common, and often shapes."""


@dataclass(frozen=True, kw_only=True)
class PublicFiles:
    """The files of one composition. Only the checkpoint is needed; of several files the order is kept.

    ``ip_scale`` says how much a picture counts beside the prompt: everywhere, or by the names of the U-Net's blocks
    (models/adapter.py: block_scales). ``vae`` is one file, or the two of TAESD.
    ``statistics`` go with SD-unCLIP L alone.
    """

    checkpoint: Path
    motion: Path | None = None
    controls: tuple[Path, ...] = ()
    ip_adapters: tuple[Path, ...] = ()
    clip_vision: Path | None = None
    vae: tuple[Path, ...] = ()
    text_encoder: Path | None = None
    depth: Path | None = None
    loras: tuple[tuple[Path, float], ...] = ()
    statistics: Path | None = None
    ip_scale: float | Mapping[str, float] = 1.0


def without_folders(files: PublicFiles) -> PublicFiles:
    """The same where a folder of diffusers or transformers that holds one network is the weights file in it.

    The checkpoint may be a folder of several, and a depth network's folder says more than its weights.
    """

    def file(path: Path) -> Path:
        return weights_in(path) or path

    return replace(
        files,
        motion=None if files.motion is None else file(files.motion),
        controls=tuple(map(file, files.controls)),
        ip_adapters=tuple(map(file, files.ip_adapters)),
        clip_vision=None if files.clip_vision is None else file(files.clip_vision),
        vae=tuple(map(file, files.vae)),
        text_encoder=None if files.text_encoder is None else file(files.text_encoder),
        loras=tuple((file(path), weight) for path, weight in files.loras),
    )


def check_kinds(files: PublicFiles) -> None:
    """Refuses a file that is not what its place asks for, or of another family, from the headers alone."""
    wanted: list[tuple[Path | None, tuple[Kind, ...]]] = [
        (files.checkpoint, ("checkpoint", "unet")),
        (files.motion, ("motion",)),
        *((path, ("controlnet", "t2i_adapter")) for path in files.controls),
        *((path, ("ip_adapter",)) for path in files.ip_adapters),
        (files.clip_vision, ("clip_vision", "clip")),
        *((path, ("vae", "taesd")) for path in files.vae),
        (files.text_encoder, ("clip_text", "clip")),
        (files.depth, ("depth",)),
        *((path, ("lora",)) for path, _ in files.loras),
    ]
    found = [(path, identify_path(path).require(path, *kinds)) for path, kinds in wanted if path is not None]
    (_, checkpoint), *others = found
    for path, other in others:
        check_family(other, checkpoint, path=path, checkpoint_path=files.checkpoint)


def check_family(file: Format, checkpoint: Format, *, path: Path, checkpoint_path: Path) -> None:
    """Refuses a file for SD 1.5 beside an SD 2.x checkpoint, and the other way round: some would fit by their shapes.

    A LoRA's own loader names what it changes better; a motion LoRA belongs to no checkpoint.
    """
    given, wanted = (one.base.split("-")[0] for one in (file, checkpoint))
    if file.kind == "lora" or given not in FAMILIES or wanted not in FAMILIES or given == wanted:
        return
    label = LABELS[file.kind]
    raise ValueError(
        f"{path} is {label} for {FAMILIES[given]}, but {checkpoint_path} is {FAMILIES[wanted]}; give {label} made for "
        f"{FAMILIES[wanted]}, or a checkpoint of {FAMILIES[given]}."
    )


def add_public(command: argparse.ArgumentParser) -> None:
    """The options that name public files. One without a value is found by content below ``--models``."""
    group = command.add_argument_group(
        "public weights", "A name is looked for below --models; an option without a name is found there by content."
    )

    def file(option: str, text: str, *, many: bool = False) -> None:
        group.add_argument(
            option, nargs="?", const=BY_CONTENT, action="append" if many else "store", metavar="FILE", help=text
        )

    file(
        "--checkpoint", "Stable Diffusion 1.x or 2.x, any finetune, SD2-depth or SD-unCLIP: a file or diffusers folder"
    )
    file("--motion", "AnimateDiff motion module: joins the frames")
    file("--controlnet", "ControlNet or T2I adapter for depth (files do not tell what for); may be repeated", many=True)
    file("--ip-adapter", "IP-Adapter: content from --image; may be given again", many=True)
    file("--clip-vision", "the CLIP vision model of the IP-Adapter")
    file("--text-encoder", "CLIP text encoder, where the checkpoint is a bare U-Net")
    group.add_argument("--vae", nargs="+", metavar="FILE", help="another autoencoder, or the two files of TAESD")
    group.add_argument(
        "--lora", action="append", default=[], metavar="FILE[:WEIGHT]", help="merged into the model; may be given again"
    )
    group.add_argument("--statistics", metavar="FILE", help="ViT-L-14_stats.th, for SD-unCLIP L")
    group.add_argument(
        "--ip-scale",
        type=scale_from,
        metavar="SCALE",
        help="how much the picture counts beside the prompt: a number, or by block, up_blocks.1=1,down_blocks.2=0.5",
    )
    group.add_argument(
        "--models", type=Path, action="append", default=[], metavar="DIR", help="where to look; may be given again"
    )
    group.add_argument("--prediction", choices=("eps", "v"), help="what SD 2.x predicts: v for the 768 px models")
    group.add_argument("--fp8", action="store_true", help="store U-Net and control networks in 8 bits")


def files_from(options: argparse.Namespace, depth: Path | None) -> PublicFiles | None:
    """The files that the options of ``add_public`` name or leave to be found; None where they name none at all.

    ``depth`` is the depth network, where it was named. Raises ValueError for a missing file and for several that could
    be meant.
    """
    if not any(getattr(options, name) not in (None, []) for name in NAMED):
        said = [f"--{name.replace('_', '-')}" for name in BESIDE if getattr(options, name)]
        if said:
            raise ValueError(f"{', '.join(said)} is for public weights, and none are given; give --checkpoint too.")
        return None
    folders: Sequence[Path] = options.models
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"--models {folder} is no folder, so nothing can be found there; give ComfyUI's models.")

    def one(kind: Kind, name: str | None, option: str, accept: Callable[[Format], bool] = anything) -> Path | None:
        return None if name is None else find(kind, name=name, folders=folders, option=option, accept=accept).path

    def required(kind: Kind, name: str | None, option: str) -> Path:
        return find(kind, name=name or BY_CONTENT, folders=folders, option=option, accept=fits).path

    def fits(file: Format) -> bool:
        return file.base in ("", base)

    base = "sd15"
    checkpoint = find("checkpoint", name=options.checkpoint or BY_CONTENT, folders=folders, option="--checkpoint")
    base = checkpoint.format.base
    files = PublicFiles(
        checkpoint=checkpoint.path,
        motion=one("motion", options.motion, "--motion", fits),
        controls=tuple(required("controlnet", name, "--controlnet") for name in options.controlnet or ()),
        ip_adapters=tuple(required("ip_adapter", name, "--ip-adapter") for name in options.ip_adapter or ()),
        text_encoder=one("clip_text", options.text_encoder, "--text-encoder"),
        vae=tuple(required("vae", name, "--vae") for name in options.vae or ()),
        loras=tuple(lora_from(text, folders) for text in options.lora),
        statistics=one("unclip_statistics", options.statistics, "--statistics"),
        depth=depth,
        ip_scale=1.0 if options.ip_scale is None else options.ip_scale,
    )
    files = depth_for(files, folders)
    return replace(files, clip_vision=clip_vision_for(files, options.clip_vision, folders))


def clip_vision_for(files: PublicFiles, name: str | None, folders: Sequence[Path]) -> Path | None:
    """The CLIP vision file that was named; else, for an IP-Adapter, the one below the folders that fits it."""
    if name is None and not (files.ip_adapters and folders):
        return None
    adapters = [identify_path(path) for path in files.ip_adapters]

    def fits(file: Format) -> bool:
        facts = [("embedding" if one.details["reads"] == "embedding" else "vision_width", one) for one in adapters]
        return all(file.number(width) == one.number("encoding") for width, one in facts)

    return find("clip_vision", name=name or BY_CONTENT, folders=folders, option="--clip-vision", accept=fits).path


def depth_for(files: PublicFiles, folders: Sequence[Path]) -> PublicFiles:
    """The same with the depth network below the folders, where one is needed, none was named, and there is just one."""
    inside = identify_path(files.checkpoint).base == "sd2-depth"
    if files.depth is not None or inside or not files.controls:
        return files
    if not any(one.format.kind == "depth" and one.format.supported for one in scan(folders)):
        return files
    return replace(files, depth=find("depth", name=BY_CONTENT, folders=folders, option="--depth").path)


def scale_from(text: str) -> float | dict[str, float]:
    """``0.6``, or ``up_blocks.1=1,down_blocks.2=0.5``."""
    try:
        if "=" not in text:
            return float(text)
        return {name: float(value) for name, _, value in (part.partition("=") for part in text.split(","))}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no scale; give 0.6, or up_blocks.1=1") from error


def lora_from(text: str, folders: Sequence[Path]) -> tuple[Path, float]:
    """``FILE`` or ``FILE:WEIGHT``, the weight 1 where it is left out. A colon of a Windows drive is none of these."""
    name, _, weight = text.rpartition(":")
    try:
        named, amount = (name, float(weight)) if name else (text, 1.0)
    except ValueError:
        named, amount = text, 1.0
    return find("lora", name=named, folders=folders, option="--lora").path, amount
