"""LoRA (Hu et al., 2021): small changes to a network's weights in a file of their own, read and merged.

A layer's change is scale * up @ down; for a convolution (LoCon) it is the convolution that does both in turn.
"""

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from .files import read_file
from .lora_names import Part, Place, layer_of, places

logger = logging.getLogger(__name__)

Settings = Mapping[str, Any]

NO_SETTINGS: Settings = MappingProxyType({})
"""Of a file that says nothing beside its tensors."""

_KEY = re.compile(
    r"(?P<layer>.+?)(?:\.lora_(?P<role>down|up|mid|A|B)|(?:[._]lora|\.lora_linear_layer)\.(?P<processor>down|up))"
    r"(?:\.\w+)?\.weight"
)
_ALPHA = re.compile(r"(?P<layer>.+?)(?:[._]lora|\.lora_linear_layer)?\.alpha")
_ROLES = {"A": "down", "B": "up"}
_OTHERS = (
    ("dora_scale", "DoRA, which also changes the length of every column"),
    ("lora_magnitude_vector", "DoRA, which also changes the length of every column"),
    ("hada_w", "LoHa (LyCORIS), a product of two pairs"),
    ("lokr_w", "LoKr (LyCORIS), a Kronecker product"),
    ("oft_", "OFT, a rotation"),
    ("on_input", "IA3, a factor for every channel"),
    ("lora_embedding_", "peft's LoRA of an embedding"),
    ("lora_controlnet", "a Control-LoRA, which is a ControlNet"),
    ("lllite_", "a ControlNet-LLLite"),
)
_BASES = {768: "SD1.5", 1024: "SD2", 1280: "the SDXL refiner", 2048: "SDXL"}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The change of one layer. ``mid`` is there where a convolution's kernel is apart (Tucker; LyCORIS), else empty.

    ``scale`` is alpha / rank, and 1 where a file has no alpha.
    """

    down: Float[Tensor, "rank i *kernel"]
    up: Float[Tensor, "o rank2 *one"]
    mid: Float[Tensor, "*mid"]
    scale: float

    def change(self, device: torch.device) -> Float[Tensor, "o i *kernel"]:
        """What is added to the weight, in float32."""
        down, up, mid = (part.to(device, torch.float32) for part in (self.down, self.up, self.mid))
        if mid.ndim:
            down = einsum(mid, down.flatten(1), "p q kh kw, q i -> p i kh kw")
        return self.scale * einsum(up.flatten(1), down, "o rank, rank ... -> o ...")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """What a LoRA file holds: pairs for the U-Net (motion modules are a part of it) and for the text encoder.

    Keys are names of layers with "_" for "."; ``base`` is the family that the shapes belong to, as far as they tell.
    """

    path: Path
    unet: Mapping[str, Pair]
    text: Mapping[str, Pair]
    base: str


def load_lora(path: Path) -> Lora:
    """Read a LoRA file; peft's ``adapter_config.json`` beside it is read for the scale.

    Raises ValueError as read_lora does.
    """
    weights = read_file(path)
    beside = Path(path).with_name("adapter_config.json")
    if Path(path).name.startswith("adapter_model") and beside.is_file():
        return read_lora(weights.tensors, path, settings=_json(beside.read_text(encoding="utf-8"), beside))
    written = weights.metadata.get("lora_adapter_metadata", "{}")
    return read_lora(weights.tensors, path, settings=_json(written, Path(path)))


def read_lora(tensors: Mapping[str, Tensor], path: Path, *, settings: Settings = NO_SETTINGS) -> Lora:
    """The pairs of a LoRA: kohya's names (also LoCon, LCM), diffusers' old and new, peft's, AnimateDiff's.

    ``settings`` are peft's, which keeps alpha apart from the tensors; ``path`` is only named in errors.

    Raises ValueError for another kind of file or of change (DoRA, LoHa, ...), a half pair, or a key that is neither.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in tensors.items():
        found = _KEY.fullmatch(key) or _ALPHA.fullmatch(key)
        if found:
            role = found.groupdict().get("role") or found.groupdict().get("processor") or "alpha"
            halves.setdefault(found["layer"], {})[_ROLES.get(role, role)] = tensor
        elif key.startswith("bundle_emb."):
            logger.info("%s: %s belongs to an embedding for prompts and is left out", path, key)
        else:
            unknown.append(key)
    _refuse_unknown(unknown, known=len(halves), path=path)
    parts: dict[str, dict[str, Pair]] = {"unet": {}, "text": {}, "text_2": {}}
    for layer, half in halves.items():
        part, name = layer_of(layer)
        if name in parts[part]:
            raise ValueError(
                f"{path} has two changes of {layer}, under two names; save it again with one program, or take another."
            )
        parts[part][name] = _pair(layer, half, part, settings=settings, path=path)
    return Lora(path=path, unet=parts["unet"], text=parts["text"], base=_base(parts))


def lora_tensors(lora: Lora) -> dict[str, Tensor]:
    """The inverse of read_lora: the pairs under kohya's names, which every program reads."""
    tensors: dict[str, Tensor] = {}
    for prefix, pairs in (("lora_unet_", lora.unet), ("lora_te_text_model_", lora.text)):
        for layer, pair in pairs.items():
            rank = pair.down.shape[0]
            tensors[f"{prefix}{layer}.lora_down.weight"] = pair.down
            tensors[f"{prefix}{layer}.lora_up.weight"] = pair.up
            tensors[f"{prefix}{layer}.alpha"] = torch.tensor(pair.scale * rank)
            if pair.mid.ndim:
                tensors[f"{prefix}{layer}.lora_mid.weight"] = pair.mid
    return tensors


def merge(state: Mapping[str, Tensor], lora: Lora, *, weight: float, part: Part) -> dict[str, Tensor]:
    """A network's tensors with a LoRA added ``weight`` times; others, and those given, stay as they are.

    ``state`` has our names, all of a U-Net (with its motion modules) or of a text encoder; what a file has for the
    other ``part`` is not looked at. Computed in float32, then back in each tensor's dtype. Layers without a place are
    logged by name.

    Raises ValueError where no layer of the file has a place here, or one has another shape.
    """
    if not math.isfinite(weight):
        raise ValueError(f"weight={weight} of {lora.path} is no number to multiply by; give one, 1.0 for all of it.")
    pairs = lora.unet if part == "unet" else lora.text
    found = places(pairs.keys(), {name: tuple(tensor.shape) for name, tensor in state.items()}, part)
    _refuse_misfit(state, lora, pairs, found, part)
    if left := [layer for layer in pairs if layer not in found]:
        logger.warning("%s: %d layers have no place here and are left out: %s", lora.path, len(left), ", ".join(left))
    by_weight: dict[str, list[str]] = {}
    for layer, place in found.items():
        by_weight.setdefault(place.weight, []).append(layer)
    merged = dict(state)
    for name, layers in by_weight.items():
        total = state[name].to(torch.float32, copy=True)
        for layer in layers:
            rows = total.chunk(found[layer].shares)[found[layer].share]
            rows += weight * pairs[layer].change(rows.device).reshape(rows.shape)
        merged[name] = total.to(state[name].dtype)
    return merged


def _json(text: str, path: Path) -> Settings:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} holds LoRA settings that are not JSON ({error}); download it again, or save it again."
        ) from error


def _refuse_unknown(unknown: Sequence[str], *, known: int, path: Path) -> None:
    for mark, kind in _OTHERS:
        if any(mark in key for key in unknown):
            raise ValueError(
                f"{path} is {kind}, and only plain LoRA and LoCon can be merged here; merge it into the checkpoint "
                "with the program that made it, or look for a plain LoRA of the same."
            )
    if unknown or not known:
        raise ValueError(
            f"{path} has {known} layers of a LoRA and {len(unknown)} other tensors ({_some(unknown)}), which are not "
            "known in a LoRA; look what the file is with `gen1 info`, and give it where it belongs."
        )


def _pair(layer: str, half: Mapping[str, Tensor], part: str, *, settings: Settings, path: Path) -> Pair:
    if "down" not in half or "up" not in half:
        raise ValueError(
            f"{path} has only {', '.join(half)} of {layer}, and a change needs both down and up; download it again."
        )
    down, up = half["down"], half["up"]
    mid = half.get("mid", torch.tensor(0.0))
    ranks = (up.shape[1], *mid.shape[:2], down.shape[0])
    if ranks[::2] != ranks[1::2]:
        raise ValueError(
            f"{path} has {layer} of ranks {ranks}, which cannot follow one another; download it again, "
            "or convert it again with the program that made it."
        )
    rank = down.shape[0]
    if "alpha" in half:
        return Pair(down=down, up=up, mid=mid, scale=half["alpha"].item() / rank)
    return Pair(down=down, up=up, mid=mid, scale=_peft_scale(layer, part, rank, settings))


def _peft_scale(layer: str, part: str, rank: int, settings: Settings) -> float:
    """alpha / rank as peft's LoraConfig has it, where diffusers writes one for each network; 1 without."""
    network = {"unet": "unet.", "text": "text_encoder.", "text_2": "text_encoder_2."}[part]

    def setting(name: str, default: Any) -> Any:
        return settings.get(network + name, settings.get(name, default))

    alpha = setting("lora_alpha", rank)
    for pattern, value in (setting("alpha_pattern", None) or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", layer):
            alpha = value
    return alpha / (math.sqrt(rank) if setting("use_rslora", False) else rank)


def _base(parts: Mapping[str, Mapping[str, Pair]]) -> str:
    """The family, by the width of the text that cross-attention reads, or of the text encoder itself."""
    if any("motion_modules" in layer for layer in parts["unet"]):
        return "an AnimateDiff motion module"
    widths = {pair.down.shape[1] for layer, pair in parts["unet"].items() if layer.endswith("attn2_to_k")}
    if parts["text_2"] or 2048 in widths:
        return "SDXL"
    widths = widths or {pair.down.shape[1] for layer, pair in parts["text"].items() if "self_attn" in layer}
    return _BASES.get(next(iter(widths)), "another network") if len(widths) == 1 else "another network"


def _refuse_misfit(
    state: Mapping[str, Tensor], lora: Lora, pairs: Mapping[str, Pair], found: Mapping[str, Place], part: Part
) -> None:
    target = {"unet": "U-Net", "text": "text encoder"}[part]
    hint = "--motion with a motion module" if "motion" in lora.base else f"a checkpoint of {lora.base}"
    if lora.base == "SDXL" or (pairs and not found):
        raise ValueError(
            f"{lora.path} is a LoRA for {lora.base}, and {len(found)} of its {len(pairs)} layers have a place in this "
            f"{target} ({_some(list(pairs))}); give {hint}, or a LoRA made for this one."
        )
    for layer, place in found.items():
        wanted = state[place.weight].chunk(place.shares)[place.share].shape
        given = _shape(pairs[layer])
        if math.prod(given) != math.prod(wanted) or given[:2] != wanted[:2]:
            raise ValueError(
                f"{lora.path} changes {layer} by {list(given)}, and this {target} has {list(wanted)} there: it is a "
                f"LoRA for {lora.base}; give {hint}, or a LoRA made for this one."
            )


def _shape(pair: Pair) -> tuple[int, ...]:
    kernel = pair.mid.shape[2:] if pair.mid.ndim else pair.down.shape[2:]
    return (pair.up.shape[0], pair.down.shape[1], *kernel)


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")
