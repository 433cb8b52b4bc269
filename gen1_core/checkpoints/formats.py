"""What a file of weights is: by its keys and their shapes, never by its name."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from .catalogue import ROWS
from .catalogue.facts import Fact, Facts
from .catalogue.row import LABELS, Axes, Kind, Row
from .header import Header, Shape, read_header

PREFIXES = (
    "module.",
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.transformer.",
    "unet.",
    "model.",
)
"""What may stand before every key of a file: of training programs, and of parts cut out of a larger file."""

BESIDE = r"model_ema\..*|difference|position_ids"
"""Keys that keep their names where all others have a prefix."""

GEN1_PARTS = ("unet", "autoencoder", "depth", "clip", "prior", "latents", "bank", "train")
"""What Gen-1 files say of themselves in their metadata (checkpoints/files.py: save_file)."""

FILES = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)
"""Weights in the folders of diffusers and transformers, the first that is there counts."""

FOLDERS = (
    "unet",
    "vae",
    "text_encoder",
    "image_encoder",
    "image_normalizer",
    "depth_estimator",
    "controlnet",
    "motion_adapter",
)
"""The folders inside a folder of diffusers that may hold weights."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """What a file is.

    ``base`` is the network it is or belongs to ("sd15", "sd2", "sd2-depth", "sd2-unclip", "sdxl", or "": no matter),
    ``layout`` the program whose names it has, ``prefix`` what stands before every key. ``details`` are facts for people
    and for what must fit together (catalogue/facts.py says which). ``reason`` is "" for what this program can use.
    """

    name: str
    kind: Kind
    base: str = ""
    layout: str = ""
    prefix: str = ""
    reason: str = ""
    details: Facts = field(default_factory=dict)

    @property
    def supported(self) -> bool:
        """Whether this program can use the file."""
        return not self.reason

    def number(self, fact: str) -> int:
        """A number among the details; 0 where there is none of that name."""
        value = self.details.get(fact, 0)
        return value if isinstance(value, int) else 0

    def require(self, path: Path, *kinds: Kind) -> "Format":
        """The format itself, where it is one of ``kinds`` and can be used. ``path`` is only named in errors.

        Raises ValueError for any other, with what the file is and which file to take.
        """
        wanted = " or ".join(LABELS[kind] for kind in kinds)
        if self.kind not in kinds:
            raise ValueError(
                f"{path} is {LABELS[self.kind]} ({self.name}), and {wanted} is needed here; give the file of {wanted}."
            )
        if self.reason:
            raise ValueError(f"{path} is {LABELS[self.kind]} ({self.name}), which cannot be used: {self.reason}.")
        return self


def identify_path(path: Path) -> Format:
    """What a file is, or a folder of diffusers or transformers, without reading its weights.

    Raises ValueError where there is nothing, or no weights, or a damaged file.
    """
    path = Path(path)
    if not path.is_dir():
        return identify(read_header(path))
    if weights := weights_in(path):
        return identify(read_header(weights))
    parts = folder_parts(path)
    if "unet" not in parts:
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        raise ValueError(
            f"{path} is a folder with {found}, and holds neither {FILES[0]} nor the folder unet of a diffusers model; "
            "give a file of weights, or the folder that holds model_index.json."
        )
    unet = identify_path(path / "unet")
    name = unet.name.replace("U-Net", "in a diffusers folder")
    return Format(
        name=name,
        kind="checkpoint",
        base=unet.base,
        layout="diffusers",
        reason=unet.reason,
        details={**unet.details, "parts": tuple(parts)},
    )


def folder_parts(path: Path) -> dict[str, Path]:
    """The weights files in a folder of diffusers by the name of their folder ("unet", "vae", "text_encoder")."""
    return {name: weights for name in FOLDERS if (weights := weights_in(Path(path) / name))}


def weights_in(folder: Path) -> Path | None:
    """The weights file that a folder of diffusers or transformers keeps beside its config, if there is one."""
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def identify(header: Header) -> Format:
    """What a file with this header is. A file that nothing is known about has the kind "unknown" and says so.

    A motion module of exactly three levels counts as one for SDXL.
    """
    if header.container == "torchscript":
        return Format(
            name="TorchScript archive",
            kind="clip",
            layout="openai",
            reason="it is a program with its weights, as OpenAI publishes CLIP, and code in a file is never run; take "
            "clip-vit-large-patch14 in safetensors (of transformers), or open_clip_pytorch_model.bin",
        )
    if own := _gen1(header):
        return own
    prefix, shapes = _without_prefix(header.shapes)
    for row in ROWS:
        if _matches(row, shapes, "\n".join(shapes)):
            details = row.facts(shapes)
            return Format(
                name=row.name.format(**details),
                kind=row.kind,
                base=_base(row, details),
                layout=row.layout,
                prefix=prefix,
                reason=row.reason,
                details=details,
            )
    return Format(name="unknown", kind="unknown", reason=_unknown(header))


def _gen1(header: Header) -> Format | None:
    part = header.metadata.get("kind", "")
    if part == "depth map":
        return Format(name="depth of a clip", kind="depth map", layout="gen1")
    if "config" in header.metadata and part in GEN1_PARTS:
        return Format(name=f"Gen-1's {part}", kind="gen1", base="gen1", layout="gen1", details={"part": part})
    return None


def _without_prefix(shapes: Mapping[str, Shape]) -> tuple[str, dict[str, Shape]]:
    """A prefix that all keys share is no part of any name in the rows; DataParallel and others put it there."""
    found = ""
    shapes = dict(shapes)
    while prefix := next((one for one in PREFIXES if _shared(one, shapes)), ""):
        found += prefix
        shapes = {key.removeprefix(prefix): shape for key, shape in shapes.items()}
    return found, shapes


def _shared(prefix: str, shapes: Mapping[str, Shape]) -> bool:
    named = [key for key in shapes if not re.fullmatch(BESIDE, key)]
    if prefix == "unet." and any("lora" in key for key in named):
        return False  # in a LoRA it says which network the key is for
    return bool(named) and all(key.startswith(prefix) for key in named)


def _matches(row: Row, shapes: Mapping[str, Shape], keys: str) -> bool:
    return (
        all(key in shapes for key in row.has)
        and all(_fits(shapes.get(key), axes) for key, axes in row.shapes.items())
        and all(_pattern(pattern).search(keys) for pattern in row.some)
        and not any(_pattern(pattern).search(keys) for pattern in row.lacks)
    )


def _fits(shape: Shape | None, axes: Axes) -> bool:
    return (
        shape is not None
        and len(shape) == len(axes)
        and all(wanted in (None, size) for size, wanted in zip(shape, axes, strict=True))
    )


@cache
def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.MULTILINE)


def _base(row: Row, details: Facts) -> str:
    """A LoRA's names fit any Stable Diffusion; what its cross-attention reads tells which one it was made for."""
    if row.kind == "lora" and row.base == "sd15":
        made_for: dict[Fact, str] = {1024: "sd2", 2048: "sdxl"}
        return made_for.get(details["context"], row.base)
    return row.base


def _unknown(header: Header) -> str:
    keys = ", ".join(list(header.shapes)[:3])
    return f"its {len(header.shapes)} tensors ({keys}, ...) are not those of any format that this program knows"
