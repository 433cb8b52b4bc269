"""Depth networks from public files: MiDaS DPT-Large and DPT-Hybrid, Depth Anything V2 small, base and large.

Each comes in two layouts, its authors' and that of transformers (a file, or a folder with a config), and DPT-Hybrid
also inside SD2-depth. One table per layout; sizes come from the shapes, what shapes cannot tell from the family.

Two things no file tells: the metric models of Depth Anything V2 (near smaller, not for us) have the keys of the
relative ones, and so has Depth Anything V1, which reads its tokens after other blocks. A folder's config does tell.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models.dpt import DPT, LEVELS, DPTConfig
from ..models.resnet import ResNetConfig
from ..models.vit import ViTConfig
from .depth_names import DROPPED, INSIDE_SD2, DepthLayout, depth_table, layout_of, published
from .files import load_module, read_file
from .keymap import from_theirs

_HEAD_WIDTH = 64
"""Channels per attention head of every public network."""

_HOOKS = {
    ("dpt", 24): (5, 11, 17, 23),
    ("dpt", 12): (2, 5, 8, 11),
    ("hybrid", 12): (8, 11),
    ("depth anything", 12): (2, 5, 8, 11),
    ("depth anything", 24): (4, 11, 17, 23),
}
"""Where tokens are read, by family and number of blocks: in no file (MiDaS dpt_depth.py, Depth Anything V2 dpt.py)."""

_FILES = ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin")


def load_depth_network(path: Path, *, device: torch.device, dtype: torch.dtype) -> DPT:
    """A depth network from a file or from a folder of transformers, without that package.

    Of half precision files the weights become ``dtype``: depth wants float32.

    Raises ValueError for files of another network, and for folders of a kind of DPT that is not one of ours.
    """
    path = Path(path)
    if not path.is_dir():
        return depth_network(read_file(path).tensors, path=path, device=device, dtype=dtype)
    config = _folder_config(path)
    weights = next((path / name for name in _FILES if (path / name).is_file()), None)
    if weights is None:
        raise ValueError(
            f"{path} has a config.json but none of {', '.join(_FILES)}; "
            "give the folder with config.json and model.safetensors, both whole."
        )
    return _network(read_file(weights).tensors, path=weights, device=device, dtype=dtype, settings=config)


def depth_network(tensors: Mapping[str, Tensor], *, path: Path, device: torch.device, dtype: torch.dtype) -> DPT:
    """The network that these tensors of one file are, whatever their layout; ``path`` is only named in errors.

    Of an SD2-depth checkpoint it takes the DPT-Hybrid within, from the whole file or from that part alone.

    Raises ValueError for tensors of another network.
    """
    return _network(tensors, path=path, device=device, dtype=dtype, settings={})


def depth_config_of(shapes: Mapping[str, tuple[int, ...]], layout: DepthLayout) -> DPTConfig:
    """The sizes of a network from shapes under our names; epsilon and the like as ``layout`` was published with.

    Raises ValueError for a number of blocks that no public network has.
    """
    dino = layout.startswith("depth_anything")
    resnet = _resnet_of(shapes)
    depth = _count(shapes, "backbone.blocks.{}.norm1.weight")
    family = "depth anything" if dino else "hybrid" if resnet else "dpt"
    if (family, depth) not in _HOOKS:
        known = sorted(blocks for name, blocks in _HOOKS if name == family)
        raise ValueError(
            f"this {family} network has {depth} blocks, and where to read its tokens is only known for {known}; "
            "give one of the public sizes."
        )
    _, tokens, width = shapes["backbone.pos_embed"]
    patch = 16 if resnet else shapes["backbone.patch_embed.proj.weight"][-1]
    narrow = [shapes[f"narrow.{level}.weight"] for level in range(LEVELS)]
    return DPTConfig(
        vit=ViTConfig(
            image_size=math.isqrt(tokens - 1) * patch,
            patch_size=patch,
            width=width,
            depth=depth,
            heads=max(1, width // _HEAD_WIDTH),
            norm_eps=1e-12 if layout in ("dpt", "dpt_hybrid") else 1e-6,
            dino=dino,
            position_offset=0.1 if layout == "depth_anything" else 0.0,
            resnet=resnet,
        ),
        hooks=_HOOKS[family, depth],
        reassembled=(narrow[0][1], narrow[1][1], narrow[2][1], narrow[3][1]),
        features=narrow[0][0],
        head_width=shapes["head.conv1.weight"][0],
    )


def _network(
    tensors: Mapping[str, Tensor],
    *,
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    settings: Mapping[str, Any],
) -> DPT:
    """``settings`` are a parsed config.json of transformers, for what shapes cannot tell."""
    own, layout = _bare(tensors, path)
    named = from_theirs(own, depth_table(layout), path=path, dropped=DROPPED)
    try:
        config = depth_config_of({name: tuple(tensor.shape) for name, tensor in named.items()}, layout)
    except KeyError as error:
        raise ValueError(
            f"{path} begins like a depth network but lacks {error.args[0]}; "
            "download it again, or give a network for depth such as Intel/dpt-large."
        ) from error
    config = _with_settings(config, settings, path)
    return load_module(lambda: DPT(config), named, device=device, dtype=dtype, path=path)


def _bare(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], DepthLayout]:
    """Without what stands before every key in a training checkpoint, or beside them inside SD2-depth."""
    tensors = published(tensors)
    found = layout_of(tensors)
    if found is None or "pretrained.model.blocks.0.attn.q_bias" in tensors:
        midas = any("scratch." in name for name in tensors)
        kind = "a depth network on another transformer" if midas else "no depth network that is known here"
        raise ValueError(
            f"{path} is {kind} ({', '.join(list(tensors)[:3])}, ...); give MiDaS dpt_large_384 or "
            "dpt_hybrid_384, Intel/dpt-large, Intel/dpt-hybrid-midas, or Depth Anything V2 small, base or large."
        )
    layout, prefix = found
    inside = prefix == INSIDE_SD2
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix) or not inside}
    return {name.removeprefix(prefix): tensor for name, tensor in own.items()}, layout


def _resnet_of(shapes: Mapping[str, tuple[int, ...]]) -> ResNetConfig | None:
    start = "backbone.patch_embed.backbone."
    if f"{start}stem.conv.weight" not in shapes:
        return None
    stages = range(_count(shapes, f"{start}stages.{{}}.blocks.0.conv1.weight"))
    last = [shapes[f"{start}stages.{stage}.blocks.0.conv3.weight"] for stage in stages]
    return ResNetConfig(
        stem=shapes[f"{start}stem.conv.weight"][0],
        blocks=tuple(_count(shapes, f"{start}stages.{stage}.blocks.{{}}.conv1.weight") for stage in stages),
        widths=tuple(shape[0] for shape in last),
        inner_widths=tuple(shape[1] for shape in last),
    )


def _count(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    return next(number for number in range(len(shapes) + 1) if name.format(number) not in shapes)


def _folder_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{folder} has no config.json that can be read ({error}), so it is not a folder of transformers; "
            "give the folder with config.json and model.safetensors, both whole."
        ) from error
    if settings.get("depth_estimation_type", "relative") != "relative":
        raise ValueError(
            f"{folder} estimates depth in metres, where near is small; give the relative model of the same size, "
            "for example Depth-Anything-V2-Small-hf."
        )
    return settings


def _with_settings(config: DPTConfig, settings: Mapping[str, Any], path: Path) -> DPTConfig:
    """What a config.json of transformers says and shapes do not; what it leaves out stays as published."""
    if not settings:
        return config
    vit = settings.get("backbone_config") or {} if config.vit.dino else settings
    if settings.get("readout_type", "project") != "project" or settings.get("add_projection", False):
        raise ValueError(
            f"{path.parent} is a DPT with readout_type={settings.get('readout_type')!r}, "
            f"add_projection={settings.get('add_projection')!r}, which no published depth network has; "
            "give Intel/dpt-large or Intel/dpt-hybrid-midas."
        )
    hooks = _hooks_of(vit, config)
    heads, eps = vit.get("num_attention_heads"), vit.get("layer_norm_eps")
    return replace(
        config,
        vit=replace(
            config.vit,
            heads=config.vit.heads if heads is None else heads,
            norm_eps=config.vit.norm_eps if eps is None else eps,
        ),
        hooks=hooks,
    )


def _hooks_of(vit: Mapping[str, Any], config: DPTConfig) -> tuple[int, ...]:
    """The blocks that tokens are read after, counted from 0; DINOv2's backbone counts from 1, 0 being the patches."""
    if not config.vit.dino:
        found = vit.get("backbone_out_indices") or ()
        return tuple(found[config.resnet_levels :]) or config.hooks
    if vit.get("out_indices"):
        return tuple(number - 1 for number in vit["out_indices"])
    return tuple(int(name.removeprefix("stage")) - 1 for name in vit.get("out_features") or ()) or config.hooks
