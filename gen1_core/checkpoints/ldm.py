"""Latent diffusion's own names for Stable Diffusion 1.x and 2.x: single files, their parts, and the U-Net's key table.

After CompVis/stable-diffusion (ldm/modules/diffusionmodules/openaimodel.py) and Stability-AI/stablediffusion; our own
names are those of diffusers. The autoencoder's table is in vae.py.
"""

import logging
import re
from collections.abc import Mapping
from itertools import count
from pathlib import Path

from torch import Tensor

from ..diffusion.prediction import Prediction
from ..models.unet import UNetConfig
from .keymap import Row, Table, from_theirs, same

logger = logging.getLogger(__name__)

PARTS = (
    ("model.diffusion_model.", "unet"),
    ("first_stage_model.", "vae"),
    ("cond_stage_model.transformer.", "text"),  # SD 1.x: CLIP of transformers
    ("cond_stage_model.model.", "text"),  # SD 2.x: OpenCLIP
    ("embedder.model.visual.", "vision"),  # unCLIP
    ("depth_model.model.", "depth"),  # SD2-depth: MiDaS hybrid
    ("noise_augmentor.", "noise_augmentor"),  # unCLIP
)
"""What a single file is made of, by the beginning of its keys."""

DROPPED = (
    r"model_ema\..*",  # a second, averaged copy, or what is left of one
    r"embedder\.model\..*",  # the text half of unCLIP's CLIP
    r"(sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?",
    r"betas|posterior_(variance|log_variance_clipped|mean_coef[12])|lvlb_weights|logvar|scale_factor",
    r"embedding_manager\..*",  # of textual inversion
    r"cond_stage_model\.(logit_scale|text_projection)",  # to CLIP's shared space, which is not read
    r"epoch|global_step|v_pred|ztsnr|state_dict",  # notes of training programs
)
"""Keys of a single file that nothing needs: averaged copies and tables of the schedule, which are computed."""

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
}
TRANSFORMER = ("norm", "proj_in", "proj_out")
BLOCK = ("norm1", "norm2", "norm3", "attn1.to_out.0", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2")
PROJECTIONS = tuple(f"{attention}.to_{letter}" for attention in ("attn1", "attn2") for letter in "qkv")


def split_checkpoint(tensors: Mapping[str, Tensor], path: Path) -> dict[str, dict[str, Tensor]]:
    """A single file in parts, each without its prefix: "unet", "vae", "text" (named as in transformers for SD 1.x, as
    in OpenCLIP for 2.x), "vision" (OpenCLIP's image tower, still with ``visual.``), "depth", "noise_augmentor".

    ``path`` is only named in errors. Raises ValueError for keys that belong to no part and are not known as unneeded.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    rest = []
    for name, tensor in tensors.items():
        prefix, part = next((pair for pair in PARTS if name.startswith(pair[0])), ("", ""))
        if part:
            short = name.removeprefix("embedder.model." if part == "vision" else prefix)
            parts.setdefault(part, {})[short] = tensor
        else:
            rest.append(name)
    if unknown := [name for name in rest if not any(re.fullmatch(pattern, name) for pattern in DROPPED)]:
        raise ValueError(
            f"{path} holds {len(unknown)} tensors that are no part of a Stable Diffusion 1.x or 2.x file "
            f"({', '.join(unknown[:4])}{', ...' if len(unknown) > 4 else ''}); look what the file is with `gen1 info`."
        )
    logger.debug("%s: %d tensors are not needed: %s", path, len(rest), ", ".join(rest))
    return parts


def unet_from(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], UNetConfig]:
    """The U-Net of a single file, or of a file with nothing else, under our names, and its config.

    Takes latent diffusion's names, with and without prefix, and those of diffusers. ``path`` is only named in errors.

    Raises ValueError where there is no such U-Net, or a tensor has no place in it.
    """
    whole = any(name.startswith(PARTS[0][0]) for name in tensors)
    own = split_checkpoint(tensors, path)["unet"] if whole else tensors
    config = unet_config_of({name: tuple(tensor.shape) for name, tensor in own.items()})
    table = unet_table(config)
    return from_theirs(own, table if "input_blocks.0.0.weight" in own else diffusers_table(table), path=path), config


def unet_table(config: UNetConfig) -> list[Row]:
    """The spatial U-Net, without a prefix: latent diffusion's names -> ours. No temporal layers, no IP-Adapters."""
    levels = len(config.block_out_channels)
    rows = encoder_rows(config)
    index = count()
    for block, level in enumerate(reversed(range(levels))):
        attends = config.attention[level]
        for layer in range(config.layers_per_block + 1):
            theirs = f"output_blocks.{next(index)}"
            # Skip connections join the input here, so it is never as wide as the output.
            rows += resnet_rows(f"{theirs}.0", f"up_blocks.{block}.resnets.{layer}", shortcut=True)
            if attends:
                rows += transformer_rows(f"{theirs}.1", f"up_blocks.{block}.attentions.{layer}")
            if level and layer == config.layers_per_block:
                rows += layer_rows(f"{theirs}.{1 + attends}.conv", f"up_blocks.{block}.upsamplers.0.conv")
    return [*rows, *layer_rows("out.0", "conv_norm_out"), *layer_rows("out.2", "conv_out")]


def encoder_rows(config: UNetConfig) -> list[Row]:
    """What a U-Net and its ControlNets share: the embeddings, the way down and the middle."""
    widths = config.block_out_channels
    rows = [
        *layer_rows("time_embed.0", "time_embedding.linear_1"),
        *layer_rows("time_embed.2", "time_embedding.linear_2"),
        *layer_rows("input_blocks.0.0", "conv_in"),
    ]
    if config.class_embedding_width:
        rows += layer_rows("label_emb.0.0", "class_embedding.linear_1")
        rows += layer_rows("label_emb.0.2", "class_embedding.linear_2")
    index = count(1)
    for level, width in enumerate(widths):
        before = widths[max(level - 1, 0)]
        for layer in range(config.layers_per_block):
            theirs = f"input_blocks.{next(index)}"
            shortcut = layer == 0 and before != width
            rows += resnet_rows(f"{theirs}.0", f"down_blocks.{level}.resnets.{layer}", shortcut=shortcut)
            if config.attention[level]:
                rows += transformer_rows(f"{theirs}.1", f"down_blocks.{level}.attentions.{layer}")
        if level < len(widths) - 1:
            rows += layer_rows(f"input_blocks.{next(index)}.0.op", f"down_blocks.{level}.downsamplers.0.conv")
    return [
        *rows,
        *resnet_rows("middle_block.0", "mid_block.resnets.0", shortcut=False),
        *transformer_rows("middle_block.1", "mid_block.attentions.0"),
        *resnet_rows("middle_block.2", "mid_block.resnets.1", shortcut=False),
    ]


def layer_rows(theirs: str, ours: str) -> list[Row]:
    """Weight and bias of one layer."""
    return [same(f"{theirs}.{name}", f"{ours}.{name}") for name in ("weight", "bias")]


def resnet_rows(theirs: str, ours: str, *, shortcut: bool) -> list[Row]:
    """One residual block of the U-Net; it has a ``shortcut`` where its width changes."""
    names = {**RESNET, "skip_connection": "conv_shortcut"} if shortcut else RESNET
    return [row for name, own in names.items() for row in layer_rows(f"{theirs}.{name}", f"{ours}.{own}")]


def transformer_rows(theirs: str, ours: str) -> list[Row]:
    """One spatial transformer, which is named alike on both sides."""
    names = [*TRANSFORMER, *(f"transformer_blocks.0.{name}" for name in BLOCK)]
    rows = [row for name in names for row in layer_rows(f"{theirs}.{name}", f"{ours}.{name}")]
    blocks = [f"transformer_blocks.0.{name}.weight" for name in PROJECTIONS]
    return rows + [same(f"{theirs}.{name}", f"{ours}.{name}") for name in blocks]


def diffusers_table(table: Table) -> list[Row]:
    """The same network in a file of diffusers, whose names are ours."""
    return [same(name, name) for row in table for name in row.ours]


def unet_config_of(shapes: Mapping[str, tuple[int, ...]]) -> UNetConfig:
    """The sizes of a U-Net of Stable Diffusion 1.x or 2.x from its keys (either naming, no prefix) and their shapes.

    Shapes do not tell the number of heads. It is 8 in SD 1.x, whose transformers project with convolutions, and one per
    64 channels in 2.x, whose transformers project with linear layers (v1- and v2-inference.yaml); ComfyUI decides the
    same way. Nor do they tell what the network predicts: see prediction_of.

    Raises ValueError where the keys are not those of such a U-Net.
    """
    levels, bottom = (
        (_ldm_levels(shapes), "middle_block.1.")
        if "input_blocks.0.0.weight" in shapes
        else (_diffusers_levels(shapes), "mid_block.attentions.0.")
    )
    first = shapes.get("input_blocks.0.0.weight", shapes.get("conv_in.weight", ()))
    last = shapes.get("out.2.weight", shapes.get("conv_out.weight", ()))
    project = shapes.get(f"{bottom}proj_in.weight", ())
    context = shapes.get(f"{bottom}transformer_blocks.0.attn2.to_k.weight", ())
    if not (levels and first and last and project and context):
        raise ValueError(
            f"{len(shapes)} tensors such as {', '.join(list(shapes)[:2])} are not the U-Net of Stable Diffusion 1.x or "
            "2.x, or only a piece of it; look what the file is with `gen1 info`, and give a whole checkpoint."
        )
    labels = shapes.get("label_emb.0.0.weight", shapes.get("class_embedding.linear_1.weight", (0, 0)))
    widths = tuple(width for width, _, _ in levels)
    linear = len(project) == 2
    return UNetConfig(
        in_channels=first[1],
        out_channels=last[0],
        block_out_channels=widths,
        layers_per_block=levels[0][1],
        attention=tuple(attends for _, _, attends in levels),
        num_attention_heads=tuple(max(1, width // 64) for width in widths) if linear else 8,
        cross_attention_dim=context[1],
        temporal=False,
        use_linear_projection=linear,
        class_embedding_width=labels[1],
    )


VELOCITY_SPREAD = 0.09
"""Above it, the spread of one bias tells SD 2.x at 768 px from the 512 px models, as ComfyUI tells them apart."""


def prediction_of(tensors: Mapping[str, Tensor], config: UNetConfig) -> Prediction:
    """What a U-Net (under our names) was trained to predict, as far as it tells.

    SD 1.x and SD2-depth predict the noise, unCLIP the velocity. SD 2.x has both: its 512 px base models predict the
    noise and its 768 px ones the velocity, in files that differ in nothing but values. ComfyUI (supported_models.py,
    SD20) looks at the spread of the last transformer's first bias; so do we. A finetune of SD 1.x to the velocity
    does not tell.
    """
    if config.class_embedding_width:
        return "v"
    if not config.use_linear_projection or config.in_channels != 4:
        return "eps"
    last = f"up_blocks.{len(config.block_out_channels) - 1}.attentions.{config.layers_per_block}"
    bias = tensors[f"{last}.transformer_blocks.0.norm1.bias"]
    return "v" if bias.float().std().item() > VELOCITY_SPREAD else "eps"


def _ldm_levels(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, int, bool]]:
    """Width, layers and attention of each level; a downsampler ends a level."""
    levels = [(0, 0, False)]
    for index in count(1):
        name = f"input_blocks.{index}"
        if f"{name}.0.op.weight" in shapes:
            levels.append((0, 0, False))
        elif f"{name}.0.in_layers.2.weight" in shapes:
            width = shapes[f"{name}.0.in_layers.2.weight"][0]
            levels[-1] = (width, levels[-1][1] + 1, f"{name}.1.proj_in.weight" in shapes)
        else:
            return [level for level in levels if level[1]]
    return levels


def _diffusers_levels(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, int, bool]]:
    levels = []
    for level in count():
        name = f"down_blocks.{level}"
        layers = next(layer for layer in count() if f"{name}.resnets.{layer}.conv1.weight" not in shapes)
        if not layers:
            return levels
        width = shapes[f"{name}.resnets.0.conv1.weight"][0]
        levels.append((width, layers, f"{name}.attentions.0.proj_in.weight" in shapes))
    return levels
