"""IP-Adapter files: a projection for the picture, and keys and values for the U-Net's cross-attentions.

Layouts (tencent-ailab/IP-Adapter): flat ``image_proj.*`` and ``ip_adapter.*`` in safetensors, the same nested in two
dicts in ``.bin``, and ``image_proj_model.*`` with ``adapter_modules.*`` in training checkpoints. Cross-attentions are
numbered down, up, middle, with odd numbers, since the self-attentions between them have no weights.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from ..models.adapter import (
    HEAD_WIDTH,
    ImageProjectionConfig,
    MLPProjectionConfig,
    ProjectionConfig,
    ResamplerConfig,
    build_projection,
    cross_attentions,
)
from ..models.blocks import UNetConfig
from .files import read_file
from .keymap import Table, from_theirs, same, to_theirs

Shapes = Mapping[str, tuple[int, ...]]

PROJECTION, ATTENTION = "image_proj.", "ip_adapter."
ALIASES = {"image_proj_model.": PROJECTION, "adapter_modules.": ATTENTION}
"""What training checkpoints call the two; they hold the whole U-Net besides."""

DROPPED = (r"unet\..*",)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What an IP-Adapter file holds: the projection under our names, the attention under the file's numbers."""

    config: ProjectionConfig
    projection: dict[str, Tensor]
    attention: dict[str, Tensor]


def read_adapter(tensors: Mapping[str, Tensor], *, path: Path) -> Adapter:
    """The two halves of a file; ``path`` is only named in errors.

    Raises ValueError for keys that belong to neither, and for kinds that are not supported (FaceID).
    """
    named = {_plain(name): tensor for name, tensor in tensors.items()}
    config = projection_config_of({name: tuple(tensor.shape) for name, tensor in named.items()}, path=path)
    attention = {name: tensor for name, tensor in named.items() if name.startswith(ATTENTION)}
    rest = {name: tensor for name, tensor in named.items() if name not in attention}
    return Adapter(
        config=config,
        projection=from_theirs(rest, projection_table(config), path=path, dropped=DROPPED),
        attention=attention,
    )


def attention_for_unet(adapter: Adapter, unet: UNetConfig, *, index: int, path: Path) -> dict[str, Tensor]:
    """The keys and values under the names of the U-Net's ``index``-th IP-Adapter.

    Raises ValueError where the file was made for another U-Net.
    """
    require_unet({name: tuple(tensor.shape) for name, tensor in adapter.attention.items()}, unet, path=path)
    return from_theirs(adapter.attention, attention_table(unet, index), path=path)


def adapter_file(
    projection: Mapping[str, Tensor],
    attention: Mapping[str, Tensor],
    *,
    config: ProjectionConfig,
    unet: UNetConfig,
    index: int,
) -> dict[str, Tensor]:
    """The inverse: our projection and the U-Net's ``index``-th keys and values as a flat IP-Adapter file."""
    return {
        **to_theirs(projection, projection_table(config)),
        **to_theirs(attention, attention_table(unet, index)),
    }


def nested(flat: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A flat file as the two dicts of a ``.bin``."""
    return {
        part.removesuffix("."): {
            name.removeprefix(part): tensor for name, tensor in flat.items() if name.startswith(part)
        }
        for part in (PROJECTION, ATTENTION)
    }


def projection_config_of(shapes: Shapes, *, path: Path) -> ProjectionConfig:
    """The kind and the sizes of the projection, from the shapes alone (the heads are 64 wide, as all released)."""
    shapes = {_plain(name): shape for name, shape in shapes.items()}
    if _is_face_id(shapes):
        raise ValueError(
            f"{path} is an IP-Adapter FaceID, which needs face embeddings of insightface instead of CLIP; "
            "use ip-adapter-plus-face_sd15 or ip-adapter-full-face_sd15, which need CLIP alone."
        )

    def size(name: str, axis: int) -> int:
        shape = shapes.get(PROJECTION + name, ())
        if len(shape) <= axis:
            raise ValueError(
                f"{path} lacks {PROJECTION}{name}, so it is no whole IP-Adapter; download the file again, or look what "
                "it is with `gen1 info`."
            )
        return shape[axis]

    if PROJECTION + "latents" in shapes:
        depth = 1 + max(
            (int(found[1]) for name in shapes if (found := re.match(r"image_proj\.layers\.(\d+)\.", name))), default=-1
        )
        return ResamplerConfig(
            input_width=size("proj_in.weight", 1),
            width=size("latents", 2),
            context_width=size("proj_out.weight", 0),
            tokens=size("latents", 1),
            depth=depth,
            heads=size("layers.0.0.to_q.weight", 0) // HEAD_WIDTH,
            mlp_width=size("layers.0.1.1.weight", 0),
        )
    if PROJECTION + "proj.3.weight" in shapes:
        return MLPProjectionConfig(input_width=size("proj.0.weight", 1), context_width=size("proj.3.weight", 0))
    context = size("norm.weight", 0)
    return ImageProjectionConfig(
        input_width=size("proj.weight", 1), context_width=context, tokens=size("proj.weight", 0) // context
    )


def projection_table(config: ProjectionConfig) -> Table:
    """The file's projection <-> ours: the same names below ``image_proj.``."""
    return [same(PROJECTION + name, name) for name in parameter_names(config)]


def parameter_names(config: ProjectionConfig) -> list[str]:
    """The names of a projection's parameters, without memory for them."""
    with torch.device("meta"):
        return list(build_projection(config).state_dict())


def attention_table(unet: UNetConfig, index: int) -> Table:
    """The file's numbered keys and values <-> those of the U-Net's ``index``-th IP-Adapter."""
    return [
        same(f"{ATTENTION}{2 * place + 1}.{letter}_ip.weight", f"{name}.{letter}_ip.{index}.weight")
        for place, (name, _) in enumerate(cross_attentions(unet))
        for letter in ("to_k", "to_v")
    ]


def require_unet(shapes: Shapes, unet: UNetConfig, *, path: Path) -> None:
    """Refuses an IP-Adapter that was made for another U-Net, by the shapes of its keys alone."""
    keys = {
        int(found[1]): shape
        for name, shape in shapes.items()
        if (found := re.fullmatch(r"(?:ip_adapter|adapter_modules)\.(\d+)\.to_k_ip\.weight", name))
    }
    wanted = {
        2 * place + 1: (width, unet.cross_attention_dim) for place, (_, width) in enumerate(cross_attentions(unet))
    }
    if not keys:
        raise ValueError(
            f"{path} holds no ip_adapter.N.to_k_ip.weight, so nothing in the U-Net could read the picture; "
            "give a whole IP-Adapter file."
        )
    if keys == wanted:
        return
    context = next(iter(keys.values()))[-1]
    raise ValueError(
        f"{path} is an IP-Adapter {_made_for(context, len(keys))}, but this U-Net has {len(wanted)} cross-attentions "
        f"on a context {unet.cross_attention_dim} wide{_differing(keys, wanted)}; {_instead(unet.cross_attention_dim)}"
    )


def _made_for(context: int, count: int) -> str:
    families = {768: "for SD 1.5", 1024: "for SD 2.x", 2048: "for SDXL"}
    return f"{families.get(context, 'for another model')} ({count} cross-attentions on a context {context} wide)"


def _differing(keys: Mapping[int, tuple[int, ...]], wanted: Mapping[int, tuple[int, ...]]) -> str:
    """The first pair that differs, where neither the number nor the context tells."""
    place = next((n for n in wanted if n in keys and keys[n][-1] == wanted[n][-1] and keys[n] != wanted[n]), None)
    return "" if place is None else f" (number {place} of shape {list(keys[place])} instead of {list(wanted[place])})"


def _instead(context: int) -> str:
    if context == 768:
        return "give one for SD 1.5, such as ip-adapter_sd15.safetensors or ip-adapter-plus_sd15.safetensors."
    return (
        "there is none for it among the public files, so use an SD 1.5 checkpoint, or an SD-unCLIP one, "
        "which reads pictures by itself."
    )


def statistics_of(tensors: Mapping[str, Tensor], *, path: Path) -> tuple[Tensor, Tensor]:
    """Mean and deviation ``[d]`` of unCLIP's embeddings, from the tensors of a diffusers ``image_normalizer``.

    The original ``ViT-L-14_stats.th`` is a pair without names: read_statistics.
    """
    if set(tensors) != {"mean", "std"} or tensors["mean"].numel() != tensors["std"].numel():
        raise ValueError(
            f"{path} holds {', '.join(list(tensors)[:4]) or 'nothing'} instead of a mean and a std of one width; give "
            "ViT-L-14_stats.th, or diffusion_pytorch_model.safetensors of the image_normalizer folder."
        )
    return tensors["mean"].float().flatten(), tensors["std"].float().flatten()


def read_statistics(path: Path) -> tuple[Tensor, Tensor]:
    """Mean and deviation ``[d]`` of unCLIP's embeddings from a file of either layout; only tensors are read.

    For SD-unCLIP L, whose checkpoint lacks them. Those of H are zeros and ones, so it needs no file.
    """
    try:
        with path.open("rb") as file:
            safe = file.read(9)[8:] == b"{"
        stored: Any = read_file(path).tensors if safe else torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise ValueError(
            f"{path} cannot be read as the statistics of embeddings ({str(error)[:200]}); give ViT-L-14_stats.th, or "
            "diffusion_pytorch_model.safetensors of the image_normalizer folder."
        ) from error
    named = stored if isinstance(stored, Mapping) else {}
    if isinstance(stored, (tuple, list)) and len(stored) == 2:
        named = {"mean": stored[0], "std": stored[1]}
    return statistics_of(named, path=path)


def _plain(name: str) -> str:
    for alias, prefix in ALIASES.items():
        if name.startswith(alias):
            return prefix + name.removeprefix(alias)
    return name


def _is_face_id(shapes: Shapes) -> bool:
    network = all(PROJECTION + name in shapes for name in ("proj.0.weight", "norm.weight"))
    return network or any("_lora." in name or name.startswith(PROJECTION + "perceiver_") for name in shapes)
