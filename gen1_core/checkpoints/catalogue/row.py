"""What one row of the catalogue says of a format."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .facts import FactsOf, no_facts

Kind = Literal[
    "checkpoint",
    "unet",
    "vae",
    "taesd",
    "motion",
    "controlnet",
    "t2i_adapter",
    "sparsectrl",
    "ip_adapter",
    "clip",
    "clip_vision",
    "clip_text",
    "depth",
    "lora",
    "unclip_statistics",
    "embedding",
    "gen1",
    "depth map",
    "unknown",
]

LABELS: dict[Kind, str] = {
    "checkpoint": "a checkpoint",
    "unet": "a U-Net",
    "vae": "an autoencoder (VAE)",
    "taesd": "a TAESD",
    "motion": "a motion module",
    "controlnet": "a ControlNet",
    "t2i_adapter": "a T2I adapter",
    "sparsectrl": "a SparseCtrl",
    "ip_adapter": "an IP-Adapter",
    "clip": "a CLIP model",
    "clip_vision": "a CLIP vision model",
    "clip_text": "a CLIP text encoder",
    "depth": "a depth estimator",
    "lora": "a LoRA",
    "unclip_statistics": "a file of unCLIP's statistics",
    "embedding": "a textual inversion",
    "gen1": "a Gen-1 file",
    "depth map": "a depth map",
    "unknown": "something unknown",
}
"""How a sentence names one."""

ANY = None
"""Any size of an axis, in the shapes of a row."""

Axes = tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One format: keys that must be there, shapes of some, patterns that a key must match, and that none may match.

    ``name`` may hold facts in braces. ``reason`` says why a file of this format cannot be used, and what can.
    """

    name: str
    kind: Kind
    has: tuple[str, ...] = ()
    shapes: Mapping[str, Axes] = field(default_factory=dict)
    some: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    base: str = ""
    layout: str = ""
    reason: str = ""
    facts: FactsOf = no_facts


CONV: Axes = (ANY, ANY, ANY, ANY)
LINEAR: Axes = (ANY, ANY)

INSTEAD = "SDXL is another network; take the {} for SD 1.5"
"""Why nothing that belongs to SDXL can be used."""
