"""Files of control networks and of TAESD: ControlNet in three layouts, T2I adapters in two, TAESD whole or in halves.

After lllyasviel/ControlNet (cldm/cldm.py), TencentARC/T2I-Adapter (ldm/modules/encoders/adapter.py), madebyollin/taesd
and diffusers, whose names are ours.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, groupby, takewhile
from pathlib import Path

from torch import Tensor

from ..models.control import ControlNetConfig, T2IAdapterConfig, skip_widths
from ..models.taesd import TinyAutoencoderConfig
from ..models.unet import UNetConfig
from .keymap import Row, from_theirs, prefixed, same
from .ldm import DROPPED, PARTS, diffusers_table, encoder_rows, layer_rows, unet_config_of

PREFIX = "control_model."
DIFFERENCE = "difference"
"""The key that marks a file which holds a ControlNet minus the U-Net that it was trained on."""

XL_FOLDED = 16**2
"""Channels that an adapter for SDXL makes of one channel: it folds 16 x 16 pixels, one for SD 1.x 8 x 8."""

MADE_FOR = {
    768: "SD 1.5, such as control_v11f1p_sd15_depth.pth or t2iadapter_depth_sd15v2.pth",
    1024: "SD 2.x, which says so in its name",
}
"""What to look for, by the width of the content that a U-Net reads."""

Shapes = Mapping[str, tuple[int, ...]]


def controlnet_from(
    tensors: Mapping[str, Tensor], path: Path, *, unet: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], ControlNetConfig]:
    """A ControlNet under our names, and its config; of the official names with and without prefix, or diffusers'.

    ``unet`` are the U-Net's tensors under our names: a file that holds a difference is added to them, for others they
    are not looked at. Old files with a whole checkpoint around the ControlNet are taken too. ``path`` is only named in
    errors.

    Raises ValueError where there is no such ControlNet, a tensor has no place in it, or a difference does not fit.
    """
    marked = any(name.startswith(PREFIX) for name in tensors)
    around = [re.escape(prefix) + ".*" for prefix, _ in PARTS] + list(DROPPED) if marked else []
    own = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    config = controlnet_config_of(_shapes_of(own))
    table = controlnet_table(config)
    named = from_theirs(
        own,
        table if "input_blocks.0.0.weight" in own else diffusers_table(table),
        path=path,
        dropped=[DIFFERENCE, *around],
    )
    return (difference_to_full(named, unet, path=path) if DIFFERENCE in tensors else named), config


def controlnet_table(config: ControlNetConfig) -> list[Row]:
    """A ControlNet without a prefix: the official names -> ours."""
    rows = encoder_rows(config.trunk)
    for index in range(len(skip_widths(config.trunk))):
        rows += layer_rows(f"zero_convs.{index}.0", f"controlnet_down_blocks.{index}")
    hint = "controlnet_cond_embedding"
    blocks = 2 * len(config.hint_block_out_channels) - 2
    rows += layer_rows("input_hint_block.0", f"{hint}.conv_in")
    # Every second place in their list is an activation.
    for index in range(blocks):
        rows += layer_rows(f"input_hint_block.{2 * index + 2}", f"{hint}.blocks.{index}")
    rows += layer_rows(f"input_hint_block.{2 * blocks + 2}", f"{hint}.conv_out")
    return rows + layer_rows("middle_block_out.0", "controlnet_mid_block")


def controlnet_config_of(shapes: Shapes) -> ControlNetConfig:
    """The sizes of a ControlNet from its keys (official or diffusers' names, no prefix) and their shapes.

    Raises ValueError where the keys are not those of a ControlNet for SD 1.x or 2.x.
    """
    hint = "input_hint_block" if "input_hint_block.0.weight" in shapes else "controlnet_cond_embedding"
    first = shapes.get(f"{hint}.0.weight", shapes.get(f"{hint}.conv_in.weight", ()))
    if len(first) != 4:
        raise ValueError(
            f"{len(shapes)} tensors such as {', '.join(list(shapes)[:2])} are not a ControlNet, which has "
            "input_hint_block.0 or controlnet_cond_embedding.conv_in; look what the file is with `gen1 info`."
        )
    # Layers come in pairs, the second of which halves the size and may change the width.
    official = hint == "input_hint_block"
    layers = _while_there(shapes, f"{hint}.{{}}.weight" if official else f"{hint}.blocks.{{}}.weight", sparse=official)
    widths = [first[0], *(shapes[name][0] for name in list(layers)[1::2])]
    # A ControlNet is a U-Net that ends in the middle: what would come out is never there to be read.
    trunk = unet_config_of({"conv_out.weight": (4,), **shapes})
    return ControlNetConfig(trunk=trunk, hint_channels=first[1], hint_block_out_channels=tuple(widths))


def difference_to_full(control: Mapping[str, Tensor], unet: Mapping[str, Tensor], *, path: Path) -> dict[str, Tensor]:
    """A ControlNet stored as the difference to the U-Net that it was trained on, plus that U-Net, both in our names.

    Only what both have is added (way down, middle, time embedding), in float32, kept in the file's dtype. Any finetune
    of SD 1.5 serves as the U-Net; that is what such files are made for.

    Raises ValueError for a U-Net that has nothing in common with it, or other shapes.
    """
    shared = [name for name in control if name in unet]
    wrong = [name for name in shared if control[name].shape != unet[name].shape]
    if wrong or not shared:
        shapes = [f"{name} is {list(control[name].shape)} there, {list(unet[name].shape)} here" for name in wrong]
        raise ValueError(
            f"{path} holds a ControlNet as the difference to a U-Net, which cannot be added to the one given "
            f"({shapes[0] if wrong else 'no tensor has the same name'}); give the image checkpoint that it was made "
            "for, such as SD 1.5 with 4 input channels, or a ControlNet that is stored whole."
        )
    added = {name: (control[name].float() + unet[name].float()).to(control[name].dtype) for name in shared}
    return {**control, **added}


def check_control(config: ControlNetConfig | T2IAdapterConfig, unet: UNetConfig, *, path: Path) -> None:
    """Raises ValueError for a control network that was made for another kind of U-Net; ``path`` is named in it."""
    if isinstance(config, T2IAdapterConfig):
        given, fits = f"levels of {config.channels}", config.channels == unet.block_out_channels
    else:
        trunk = config.trunk
        given = f"levels of {trunk.block_out_channels} and content {trunk.cross_attention_dim} wide"
        alike = ("block_out_channels", "layers_per_block", "attention", "cross_attention_dim")
        fits = all(getattr(trunk, name) == getattr(unet, name) for name in alike)
    if not fits:
        raise ValueError(
            f"{path} is a control network for {given}, and the U-Net has levels of {unet.block_out_channels} and "
            f"content {unet.cross_attention_dim} wide; "
            f"give one made for {MADE_FOR.get(unet.cross_attention_dim, 'this U-Net')}."
        )


def t2i_adapter_from(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], T2IAdapterConfig]:
    """A T2I adapter, full or light, under our names, and its config; of the official names or diffusers'.

    ``path`` is only named in errors. Raises ValueError where it is none for SD 1.x, or a tensor has no place in it.
    """
    config = t2i_adapter_config_of(_shapes_of(tensors))
    table = t2i_adapter_table(config)
    ours = any(name.startswith("adapter.") for name in tensors)
    return from_theirs(tensors, diffusers_table(table) if ours else table, path=path), config


def t2i_adapter_table(config: T2IAdapterConfig) -> list[Row]:
    """The official names -> ours. The full kind counts its layers through all levels, the light one in each."""
    rows = [] if config.light else layer_rows("conv_in", "conv_in")
    for level, width in enumerate(config.channels):
        first = level * (1 if config.light else config.layers_per_block)
        if config.light or level and width != config.channels[level - 1]:
            rows += layer_rows(f"body.{first}.in_conv", f"body.{level}.in_conv")
        for layer in range(config.layers_per_block):
            theirs = f"body.{first}.body.{layer}" if config.light else f"body.{first + layer}"
            for block in ("block1", "block2"):
                rows += layer_rows(f"{theirs}.{block}", f"body.{level}.resnets.{layer}.{block}")
        if config.light:
            rows += layer_rows(f"body.{first}.out_conv", f"body.{level}.out_conv")
    return prefixed(rows, ours="adapter.")


def t2i_adapter_config_of(shapes: Shapes) -> T2IAdapterConfig:
    """The sizes of a T2I adapter from its keys (official or diffusers' names) and their shapes.

    Raises ValueError where the keys are not those of such an adapter, or of one for SDXL.
    """
    own = {name.removeprefix("adapter."): shape for name, shape in shapes.items()}
    light = "body.0.in_conv.weight" in own
    first = own.get("body.0.in_conv.weight" if light else "conv_in.weight", ())
    official_light = light and "body.0.body.0.block1.weight" in own
    levels = _nested_levels(own, "body") if official_light else _full_levels(own)
    folded = T2IAdapterConfig().factor ** 2
    if len(first) != 4 or not levels or first[1] % folded or first[1] in (XL_FOLDED, 3 * XL_FOLDED):
        raise ValueError(
            f"{len(shapes)} tensors such as {', '.join(list(shapes)[:2])} are not a T2I adapter for SD 1.x, which "
            f"starts with {folded} or {3 * folded} channels (one for SDXL has {3 * XL_FOLDED}); "
            "give one for SD 1.x, such as t2iadapter_depth_sd15v2.pth."
        )
    return T2IAdapterConfig(
        in_channels=first[1] // folded,
        channels=tuple(width for width, _ in levels),
        layers_per_block=levels[0][1],
        light=light,
    )


def tiny_autoencoder_from(
    files: Mapping[Path, Mapping[str, Tensor]],
) -> tuple[dict[str, Tensor], TinyAutoencoderConfig]:
    """TAESD under our names, and its config; from one file of diffusers, or from encoder and decoder together.

    Raises ValueError where the files do not make one TAESD, or a tensor has no place in it.
    """
    path = Path(", ".join(str(path) for path in files))
    halves = [_half_of(tensors) for tensors in files.values()]
    if sorted(halves) not in (["decoder.", "encoder."], [""]):
        found = ", ".join(half.rstrip(".") or "neither half alone" for half in halves)
        raise ValueError(
            f"{path} ({found}) do not make one TAESD; give taesd_encoder and taesd_decoder together, "
            "or the one file that diffusers makes of them."
        )
    whole = {
        half + name: tensor
        for half, tensors in zip(halves, files.values(), strict=True)
        for name, tensor in tensors.items()
    }
    config = tiny_autoencoder_config_of(_shapes_of(whole))
    table = tiny_autoencoder_table(config)
    return from_theirs(whole, table if halves[0] else diffusers_table(table), path=path), config


def tiny_autoencoder_table(config: TinyAutoencoderConfig) -> list[Row]:
    """The official names -> ours; theirs begin with ``encoder.`` and ``decoder.`` for the two files they are in."""
    return [*_tiny_rows("encoder", config.encoder_blocks), *_tiny_rows("decoder", config.decoder_blocks)]


def tiny_autoencoder_config_of(shapes: Shapes) -> TinyAutoencoderConfig:
    """The sizes of a TAESD from its keys (both halves; official or diffusers' names) and their shapes.

    Raises ValueError where the keys are not those of a TAESD.
    """
    own = {name.replace(".layers.", ".", 1): shape for name, shape in shapes.items()}
    first = own.get("encoder.0.weight", ())
    latents = own.get("decoder.0.weight", own.get("decoder.1.weight", ()))
    runs = [_runs_of_blocks(own, half) for half in ("encoder.", "decoder.")]
    if len(first) != 4 or len(latents) != 4 or not all(runs):
        raise ValueError(
            f"{len(shapes)} tensors such as {', '.join(list(shapes)[:2])} are not both halves of TAESD; "
            "look what the files are with `gen1 info`."
        )
    return TinyAutoencoderConfig(
        width=first[0], encoder_blocks=runs[0], decoder_blocks=runs[1], latent_channels=latents[1]
    )


def _tiny_rows(half: str, runs: Sequence[int]) -> list[Row]:
    """One half of TAESD, whose names are places in a list. In their decoder the clamp has one too, in ours not."""
    shift, gap = (1, 1) if half == "decoder" else (0, 0)
    rows, place = [], 0
    for level, blocks in enumerate(runs):
        # Places without weights: the decoder has a rectifier after its first layer, and an upsampler before the others.
        before, after = (gap, 0) if level else (0, gap)
        place += before
        rows += _place_rows(half, place, place + shift, layers=("",), bias=not level)
        place += 1 + after
        for _ in range(blocks):
            rows += _place_rows(half, place, place + shift, layers=(".conv.0", ".conv.2", ".conv.4"), bias=True)
            place += 1
    return rows + _place_rows(half, place, place + shift, layers=("",), bias=True)


def _place_rows(half: str, ours: int, theirs: int, *, layers: Sequence[str], bias: bool) -> list[Row]:
    return [
        same(f"{half}.{theirs}{layer}.{name}", f"{half}.layers.{ours}{layer}.{name}")
        for layer in layers
        for name in (("weight", "bias") if bias else ("weight",))
    ]


def _half_of(names: Mapping[str, object]) -> str:
    """Which half of TAESD an official file holds; "" for a file that is none of them."""
    if "0.weight" in names:
        return "encoder."
    return "decoder." if "1.weight" in names else ""


def _runs_of_blocks(shapes: Shapes, half: str) -> tuple[int, ...]:
    """How many residual blocks follow each other, between the single convolutions."""
    places = {int(name.split(".")[1]): ".conv." in name for name in shapes if name.startswith(half)}
    kinds = [places[place] for place in sorted(places)]
    return tuple(len(list(run)) for is_block, run in groupby(kinds) if is_block)


def _full_levels(shapes: Shapes) -> list[tuple[int, int]]:
    """Width and layers of each level of a full adapter."""
    if "body.0.resnets.0.block1.weight" in shapes:
        return _nested_levels(shapes, "resnets")
    widths = [shapes[name][0] for name in _while_there(shapes, "body.{}.block1.weight")]
    # The last two levels of SD have one width and no mark between them, so the first tells how long a level is.
    starts = [index for index in range(len(widths)) if f"body.{index}.in_conv.weight" in shapes]
    layers = starts[0] if starts else len(widths)
    return [(width, layers) for width in widths[::layers]] if layers and not len(widths) % layers else []


def _nested_levels(shapes: Shapes, layers: str) -> list[tuple[int, int]]:
    """Width and layers of each level where the names say the level: diffusers', and official light adapters."""
    levels = []
    for level in count():
        inside = list(_while_there(shapes, f"body.{level}.{layers}.{{}}.block1.weight"))
        if not inside:
            return levels
        out = shapes.get(f"body.{level}.out_conv.weight", shapes[inside[0]])
        levels.append((out[0], len(inside)))
    return levels


def _while_there(shapes: Shapes, pattern: str, *, sparse: bool = False) -> Iterator[str]:
    """The names 0, 1, 2... as far as there are any; ``sparse``: 2, 4, 6..., as activations are counted too."""
    places = count(2, 2) if sparse else count()
    return takewhile(lambda name: name in shapes, (pattern.format(place) for place in places))


def _shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
