"""The autoencoder's key tables: latent diffusion's names, and both ways in which diffusers has named its attention.

After CompVis/stable-diffusion (ldm/modules/diffusionmodules/model.py) and diffusers' AutoencoderKL, whose present names
are ours. The official folders of SD 1.5 still have the names that diffusers used before 0.18.
"""

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..models.autoencoder import AutoencoderConfig
from .keymap import Row, from_theirs, pointwise, prefixed
from .ldm import diffusers_table, layer_rows, split_checkpoint

VaeLayout = Literal["ldm", "diffusers", "old_diffusers"]

PREFIX = "first_stage_model."

DROPPED = (r"model_ema\..*", r"loss\..*")
"""What is left in a file from training."""

ATTENTION = {
    "ldm": {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"},
    "old_diffusers": {
        "group_norm": "group_norm",
        "query": "to_q",
        "key": "to_k",
        "value": "to_v",
        "proj_attn": "to_out.0",
    },
}


def autoencoder_from(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], AutoencoderConfig]:
    """The autoencoder of a single file, or of a file with nothing else, under our names, and its config.

    ``path`` is only named in errors. Raises ValueError where there is no such autoencoder, or a tensor has no place.
    """
    whole = any(name.startswith(PREFIX) for name in tensors)
    own = split_checkpoint(tensors, path)["vae"] if whole else tensors
    config = autoencoder_config_of({name: tuple(tensor.shape) for name, tensor in own.items()})
    return from_theirs(own, vae_table(config, layout_of(own)), path=path, dropped=DROPPED), config


def vae_table(config: AutoencoderConfig, layout: VaeLayout) -> list[Row]:
    """The whole autoencoder, without a prefix, in one layout -> ours."""
    ldm = [
        *prefixed(_half_rows(config, "down"), theirs="encoder.", ours="encoder."),
        *prefixed(_half_rows(config, "up"), theirs="decoder.", ours="decoder."),
        *layer_rows("quant_conv", "quant_conv"),
        *layer_rows("post_quant_conv", "post_quant_conv"),
    ]
    if layout == "ldm":
        return ldm
    rows = diffusers_table(ldm)
    if layout == "diffusers":
        return rows
    middles = [f"{half}.mid_block.attentions.0" for half in ("encoder", "decoder")]
    kept = [row for row in rows if not row.ours[0].startswith(tuple(middles))]
    return [*kept, *(row for middle in middles for row in _attention_rows(middle, middle, layout))]


def layout_of(names: Mapping[str, object]) -> VaeLayout:
    """Which of the three names an autoencoder's keys have."""
    if "encoder.mid.block_1.conv1.weight" in names:
        return "ldm"
    return "old_diffusers" if "encoder.mid_block.attentions.0.query.weight" in names else "diffusers"


def autoencoder_config_of(shapes: Mapping[str, tuple[int, ...]]) -> AutoencoderConfig:
    """The sizes of an SD autoencoder from its keys (any layout, no prefix) and their shapes.

    The scale of the latents is SD's 0.18215: it is not in a file, and SDXL's autoencoder (0.13025) has the same shapes.

    Raises ValueError where the keys are not those of such an autoencoder.
    """
    down, resnet = ("down", "block") if layout_of(shapes) == "ldm" else ("down_blocks", "resnets")
    widths: list[int] = []
    layers = 0
    for level in count():
        name = f"encoder.{down}.{level}.{resnet}"
        if f"{name}.0.conv1.weight" not in shapes:
            break
        widths.append(shapes[f"{name}.0.conv1.weight"][0])
        layers = next(layer for layer in count() if f"{name}.{layer}.conv1.weight" not in shapes)
    latents = shapes.get("post_quant_conv.weight", ())
    if not widths or not latents:
        raise ValueError(
            f"{len(shapes)} tensors such as {', '.join(list(shapes)[:2])} are not the autoencoder of Stable Diffusion, "
            "or only a piece of it; look what the file is with `gen1 info`, and give a VAE file or a checkpoint."
        )
    return AutoencoderConfig(
        block_out_channels=tuple(widths),
        layers_per_block=layers,
        latent_channels=latents[1],
        latent_mean=(0.0,) * latents[1],
    )


def _half_rows(config: AutoencoderConfig, way: Literal["down", "up"]) -> list[Row]:
    """Encoder or decoder: latent diffusion counts the levels of both from the highest resolution down."""
    widths = config.block_out_channels
    levels = list(range(len(widths)))
    order = levels if way == "down" else levels[::-1]
    last = order[-1]
    rows = [*layer_rows("conv_in", "conv_in"), *layer_rows("norm_out", "conv_norm_out")]
    rows += [*layer_rows("conv_out", "conv_out"), *_attention_rows("mid.attn_1", "mid_block.attentions.0", "ldm")]
    for index in (0, 1):
        rows += _resnet_rows(f"mid.block_{index + 1}", f"mid_block.resnets.{index}", shortcut=False)
    before = widths[order[0]]
    for block, level in enumerate(order):
        theirs, ours = f"{way}.{level}", f"{way}_blocks.{block}"
        for layer in range(config.layers_per_block + (way == "up")):
            shortcut = before != widths[level]
            rows += _resnet_rows(f"{theirs}.block.{layer}", f"{ours}.resnets.{layer}", shortcut=shortcut)
            before = widths[level]
        if level != last:
            rows += layer_rows(f"{theirs}.{way}sample.conv", f"{ours}.{way}samplers.0.conv")
    return rows


def _resnet_rows(theirs: str, ours: str, *, shortcut: bool) -> list[Row]:
    names = {name: name for name in ("norm1", "conv1", "norm2", "conv2")}
    if shortcut:
        names["nin_shortcut"] = "conv_shortcut"
    return [row for name, own in names.items() for row in layer_rows(f"{theirs}.{name}", f"{ours}.{own}")]


def _attention_rows(theirs: str, ours: str, layout: Literal["ldm", "old_diffusers"]) -> list[Row]:
    """Latent diffusion's projections are 1 x 1 convolutions, those of diffusers are linear."""
    rows = []
    for name, own in ATTENTION[layout].items():
        if layout == "ldm" and own != "group_norm":
            rows.append(pointwise(f"{theirs}.{name}.weight", f"{ours}.{own}.weight"))
            rows.append(layer_rows(f"{theirs}.{name}", f"{ours}.{own}")[1])
        else:
            rows += layer_rows(f"{theirs}.{name}", f"{ours}.{own}")
    return rows
