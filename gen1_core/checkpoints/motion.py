"""Files of AnimateDiff motion modules: the original names, those of diffusers' MotionAdapter, and what is in neither.

After guoyww/AnimateDiff (animatediff/models/motion_module.py) and diffusers (models/unets/unet_motion_model.py); our
own names are those of diffusers. v1, v2, v3, LongAnimateDiff and AnimateLCM differ in positions and middle only.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count, takewhile
from pathlib import Path

import torch
from torch import Tensor

from ..diffusion.schedule import Betas
from ..models.motion import MotionConfig, positions
from ..models.unet import UNetConfig
from .keymap import Row, from_theirs, same, to_theirs

MODULE = re.compile(r"((?:down_blocks\.\d+|up_blocks\.\d+|mid_block)\.motion_modules\.\d+)\.(.+)")
"""One motion module, and what it has under this name."""

DROPPED = (
    r"(conv_in|conv_out|conv_norm_out|time_embedding)\..*",
    r"(down_blocks\.\d+|up_blocks\.\d+|mid_block)\.(resnets|attentions|downsamplers|upsamplers)\..*",
)
"""The image U-Net that some files carry beside the modules; the checkpoint's own is used."""

FOREIGN = (
    (r".*\.temporal_attentions\.\d+\..*", "the temporal layers of HotshotXL, which are for SDXL"),
    (r"img_encoder\..*", "AnimateLCM-I2V, which also needs its image encoder"),
    (r"controlnet_cond_embedding\..*", "a SparseCtrl network, which holds motion modules of its own"),
    (r"(fps|motion)_embedding\..*", "FancyVideo, which needs layers of its own"),
)
"""Names in relatives of motion modules that this U-Net cannot use."""

LCM_FRAMES = 64
"""Positions of a file that holds none: AnimateLCM was trained with sinusoids for so many."""


def motion_from(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], MotionConfig]:
    """The motion modules of a file under the names that they have in our U-Net, and their config.

    Takes the original names and those of diffusers, also after ``module.``. ``path`` is only named in errors.

    Raises ValueError for relatives that need more than these layers, and for a tensor that has no place in them.
    """
    given = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
    _refuse_relatives(shapes, path)
    config = motion_config_of(shapes)
    modules = modules_of(shapes)
    table = motion_table(modules, config) if _is_original(shapes) else diffusers_table(modules, config)
    ours = from_theirs(given, table, path=path, dropped=DROPPED)
    for module in modules:
        weight = ours.get(f"{module}.proj_in.weight")
        if weight is not None:
            computed = positions(config.frames, len(weight)).to(weight.dtype)
            ours.setdefault(f"{module}.transformer_blocks.0.pos_embed.pe", computed)
    return ours, config


def motion_to(tensors: Mapping[str, Tensor], config: MotionConfig) -> dict[str, Tensor]:
    """The motion modules of a U-Net of ours under AnimateDiff's original names; what else it holds is left out.

    Positions are always written, also for AnimateLCM, whose own file leaves them to the program.
    """
    ours = {name: tensor for name, tensor in tensors.items() if MODULE.fullmatch(name)}
    return to_theirs(ours, motion_table(modules_of(ours), config))


def motion_table(modules: Iterable[str], config: MotionConfig) -> list[Row]:
    """Original names -> ours, for modules such as "down_blocks.0.motion_modules.0"."""
    rows: list[Row] = []
    for module in modules:
        theirs, block = f"{module}.temporal_transformer", "transformer_blocks.0"
        for name in ("norm", "proj_in", "proj_out"):
            rows += _layer(f"{theirs}.{name}", f"{module}.{name}")
        theirs, ours = f"{theirs}.{block}", f"{module}.{block}"
        for index in range(config.attentions):
            attention = f"{theirs}.attention_blocks.{index}"
            rows += _layer(f"{theirs}.norms.{index}", f"{ours}.norm{index + 1}")
            rows += [same(f"{attention}.to_{one}.weight", f"{ours}.attn{index + 1}.to_{one}.weight") for one in "qkv"]
            rows += _layer(f"{attention}.to_out.0", f"{ours}.attn{index + 1}.to_out.0")
        copies = tuple(f"{theirs}.attention_blocks.{index}.pos_encoder.pe" for index in range(config.attentions))
        rows.append(_positions(copies, f"{ours}.pos_embed.pe"))
        for name, own in (("ff.net.0.proj", "ff.net.0.proj"), ("ff.net.2", "ff.net.2"), ("ff_norm", "norm3")):
            rows += _layer(f"{theirs}.{name}", f"{ours}.{own}")
    return rows


def diffusers_table(modules: Iterable[str], config: MotionConfig) -> list[Row]:
    """The same modules in a file of diffusers' MotionAdapter, whose names are ours."""
    return [same(name, name) for row in motion_table(modules, config) for name in row.ours]


def modules_of(names: Iterable[str]) -> list[str]:
    """The motion modules that these names belong to, in the order of the file."""
    found = (MODULE.fullmatch(name) for name in names)
    return list(dict.fromkeys(match.group(1) for match in found if match))


def motion_config_of(shapes: Mapping[str, tuple[int, ...]]) -> MotionConfig:
    """The sizes of motion modules from keys (either naming) and shapes.

    Shapes do not tell heads and groups; every public file has 8 and 32, which the config has by itself.

    Raises ValueError where there are no motion modules, or positions of several lengths.
    """
    if not modules_of(shapes):
        raise ValueError(
            f"{len(shapes)} tensors such as {', '.join(list(shapes)[:2])} are no AnimateDiff motion module; "
            "look what the file is with `gen1 info`, and give a motion module for Stable Diffusion 1.5."
        )
    lengths = {shape[1] for name, shape in shapes.items() if re.search(r"\.pos_(encoder|embed)\.pe$", name)}
    if len(lengths) > 1:
        raise ValueError(
            f"the motion modules have positions for {sorted(lengths)} frames, and one clip goes through all of them; "
            "download the file again, or convert it again with the program that made it."
        )
    return MotionConfig(
        frames=lengths.pop() if lengths else LCM_FRAMES,
        attentions=2 if any(re.search(r"\.(attention_blocks\.1|attn2)\.", name) for name in shapes) else 1,
        middle=any(name.startswith("mid_block.motion_modules.") for name in shapes),
    )


def with_motion(base: UNetConfig, tensors: Mapping[str, Tensor], config: MotionConfig, *, path: Path) -> UNetConfig:
    """The config of an image U-Net together with these motion modules (under our names).

    Raises ValueError where the modules were made for another U-Net; ``path`` is only named in errors.
    """
    weights = {module: tensors.get(f"{module}.proj_in.weight") for module in modules_of(tensors)}
    given = {module: len(weight) for module, weight in weights.items() if weight is not None}
    wanted = _widths(base, config)
    if given != wanted:
        first = (f"down_blocks.{level}.motion_modules.0" for level in count())
        levels = [given[module] for module in takewhile(given.__contains__, first)]
        raise ValueError(
            f"{path} holds {len(given)} motion modules for levels of width {levels}, but this checkpoint takes "
            f"{len(wanted)} for {list(base.block_out_channels)}: one of three levels is for SDXL; "
            "take a motion module made for this Stable Diffusion (SD 1.5: mm_sd_v15, mm_sd_v15_v2 or v3_sd15_mm)."
        )
    return replace(base, motion=config)


def betas_of(config: UNetConfig) -> Betas:
    """The noise schedule that a network was trained with.

    Motion modules (v1 to v3, Long, AnimateLCM) saw plain linear betas, diffusers' "linear" (configs/inference/*.yaml of
    AnimateDiff), Stable Diffusion those that are linear in their root. The wrong one makes washed-out, grey video.
    ComfyUI has the same two under other names: its "sqrt_linear" is the plain one, its "linear" Stable Diffusion's.
    """
    return "linear" if config.motion else "scaled_linear"


def _widths(base: UNetConfig, config: MotionConfig) -> dict[str, int]:
    levels = list(enumerate(base.block_out_channels))
    layers = base.layers_per_block
    down = {f"down_blocks.{level}.motion_modules.{i}": width for level, width in levels for i in range(layers)}
    up = {
        f"up_blocks.{len(levels) - 1 - level}.motion_modules.{i}": width
        for level, width in levels
        for i in range(layers + 1)
    }
    middle = {"mid_block.motion_modules.0": base.block_out_channels[-1]} if config.middle else {}
    return {**down, **up, **middle}


def _is_original(names: Iterable[str]) -> bool:
    return any(".temporal_transformer." in name for name in names)


def _refuse_relatives(shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    relative = next((what for pattern, what in FOREIGN if any(re.fullmatch(pattern, name) for name in shapes)), "")
    if shapes.get("conv_in.weight", (0, 0))[1] == 9:
        relative = "PIA, whose first layer has 9 channels of its own"
    if relative:
        raise ValueError(
            f"{path} is {relative}, and this network has no place for all of it; "
            "take a motion module for Stable Diffusion 1.5 (mm_sd_v15_v2, v3_sd15_mm, AnimateLCM_sd15_t2v)."
        )


def _layer(theirs: str, ours: str) -> list[Row]:
    return [same(f"{theirs}.{name}", f"{ours}.{name}") for name in ("weight", "bias")]


def _positions(copies: tuple[str, ...], ours: str) -> Row:
    """The original has the positions once per attention, we have them once per block."""

    def read(parts: Sequence[Tensor]) -> list[Tensor]:
        if any(not torch.equal(part, parts[0]) for part in parts):
            raise ValueError(
                f"{' and '.join(copies)} differ, but a block has one set of frame positions; "
                "download the file again, or take a motion module whose positions are the public ones."
            )
        return [parts[0]]

    def write(parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0].clone() for _ in copies]  # safetensors takes no tensor twice

    return Row(theirs=copies, ours=(ours,), read=read, write=write)
