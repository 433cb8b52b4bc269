"""Control networks: a ControlNet or a T2I adapter looks at pictures (depth, for us) and steers the U-Net.

ControlNet is Zhang et al. 2023 (arXiv:2302.05543), T2I-Adapter Mou et al. 2023 (arXiv:2302.08453). Parameter names of
diffusers' ControlNetModel and T2IAdapter. Both see each frame alone; frames are joined only in the U-Net.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ..tensors import Latents
from .attention import Context
from .blocks import DownBlock, MiddleBlock, UNetConfig
from .layers import Ops, TimeEmbedding, sinusoids, zeroed
from .unet import Residuals

Hints = Float[Tensor, "b _ f hh ww"]
Maps = Float[Tensor, "n c h w"]


@runtime_checkable
class Hint(Protocol):
    """A picture of each frame for one control network, and how strongly its answer counts."""

    @property
    def image(self) -> Hints:
        """0..1 at pixel size; depth has one channel."""
        ...

    @property
    def strength(self) -> float:
        """What the answer is multiplied by; 0 is not asked."""
        ...


@dataclass(frozen=True, kw_only=True)
class ControlNetConfig:
    """Sizes of a ControlNet; the defaults are those for SD 1.5.

    ``trunk`` is the U-Net of which it copies the way down and the middle. Its hint has ``hint_channels`` and goes
    through ``hint_block_out_channels``, each of them half the size of the one before.
    """

    trunk: UNetConfig = UNetConfig(in_channels=4, temporal=False)
    hint_channels: int = 3
    hint_block_out_channels: tuple[int, ...] = (16, 32, 96, 256)

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        if self.trunk.temporal or self.trunk.motion or self.trunk.picture_adapters or self.trunk.class_embedding_width:
            raise ValueError(
                f"trunk={self.trunk} joins frames or reads pictures, which a ControlNet does not; "
                "give the config of the image model, with temporal=False and nothing added."
            )
        if not self.hint_block_out_channels or min(self.hint_channels, *self.hint_block_out_channels) < 1:
            raise ValueError(
                f"hint_channels={self.hint_channels}, hint_block_out_channels={self.hint_block_out_channels} leave a "
                "part without channels; give positive numbers, at least one width."
            )

    @property
    def factor(self) -> int:
        """Pixels of the hint per latent pixel along one side: 8."""
        return 2 ** (len(self.hint_block_out_channels) - 1)


@dataclass(frozen=True, kw_only=True)
class T2IAdapterConfig:
    """Sizes of a T2I adapter; the defaults are those of the full one for SD 1.5.

    One width per level of the U-Net. The ``light`` kind has four layers per level and a quarter of the width inside.
    """

    in_channels: int = 3
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    factor: int = 8
    light: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        if not self.channels or min(self.in_channels, *self.channels, self.layers_per_block, self.factor) < 1:
            raise ValueError(
                f"in_channels={self.in_channels}, channels={self.channels}, "
                f"layers_per_block={self.layers_per_block}, factor={self.factor} leave nothing to build; "
                "give positive numbers and at least one width."
            )
        if self.light and any(width % 4 for width in self.channels):
            raise ValueError(
                f"channels={self.channels} cannot all be quartered, as the light kind does; give multiples of 4."
            )


class HintEncoder(nn.Module):
    """Pixels to maps at latent size, in convolutions; the last starts at zero."""

    def __init__(self, config: ControlNetConfig, *, ops: Ops = nn):
        super().__init__()
        widths = config.hint_block_out_channels
        self.conv_in = ops.Conv2d(config.hint_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for before, width in pairwise(widths):
            self.blocks.append(ops.Conv2d(before, before, 3, padding=1))
            self.blocks.append(ops.Conv2d(before, width, 3, padding=1, stride=2))
        self.conv_out = zeroed(ops.Conv2d(widths[-1], config.trunk.block_out_channels[0], 3, padding=1))

    def forward(self, hint: Maps) -> Float[Tensor, "n c2 h8 w8"]:
        """Pictures 0..1 to maps."""
        x = functional.silu(self.conv_in(hint))
        for block in self.blocks:
            x = functional.silu(block(x))
        return self.conv_out(x)


class ControlNet(nn.Module):
    """A copy of the U-Net's way down and middle that also sees a hint, and adds to the skip connections."""

    def __init__(self, config: ControlNetConfig, *, ops: Ops = nn):
        super().__init__()
        self.config = config
        trunk = config.trunk
        widths = trunk.block_out_channels
        self.conv_in = ops.Conv2d(trunk.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], 4 * widths[0], ops=ops)
        self.controlnet_cond_embedding = HintEncoder(config, ops=ops)
        self.down_blocks = nn.ModuleList(DownBlock(trunk, level, ops=ops) for level in range(len(widths)))
        self.mid_block = MiddleBlock(trunk, ops=ops)
        self.controlnet_down_blocks = nn.ModuleList(zeroed(ops.Conv2d(width, width, 1)) for width in skip_widths(trunk))
        self.controlnet_mid_block = zeroed(ops.Conv2d(widths[-1], widths[-1], 1))

    def forward(
        self,
        x: Latents,
        timestep: Float[Tensor, " b"],
        content: Float[Tensor, "b g n d"],
        hint: Hints,
        *,
        strength: float = 1.0,
    ) -> Residuals:
        """What is added to the U-Net's skip connections and middle, times ``strength``.

        ``x`` is noisy latents without structure. ``hint`` is 0..1 at pixel size; one channel stands for all.

        Raises ValueError for a hint whose frames or size do not fit the latents.
        """
        clip, height, width = x.shape[2:]
        factor = self.config.factor
        if hint.shape[2:] != (clip, factor * height, factor * width):
            raise ValueError(
                f"the hint has {hint.shape[2]} frames of {hint.shape[4]} x {hint.shape[3]} pixels and the latents "
                f"{clip} of {width} x {height}, of which each stands for {factor} x {factor} pixels; "
                "resize the hint to the size of the clip."
            )
        trunk = self.config.trunk
        embedding = self.time_embedding(sinusoids(timestep, trunk.block_out_channels[0]).to(x.dtype))
        context = Context(tokens=rearrange(content, "b g n d -> (b g) n d"))
        hidden = self.conv_in(rearrange(x, "b c f h w -> (b f) c h w"))
        skips = [hidden + self.controlnet_cond_embedding(as_pictures(hint, self.config.hint_channels))]
        for block in self.down_blocks:
            skips += block(skips[-1], embedding, context, 1)
        middle = self.mid_block(skips[-1], embedding, context, 1)
        pairs = zip(self.controlnet_down_blocks, skips, strict=True)
        return Residuals(
            down=tuple(strength * convolve(skip) for convolve, skip in pairs),
            middle=strength * self.controlnet_mid_block(middle),
        )


class AdapterLayer(nn.Module):
    """Two convolutions with a rectifier between them, added to the input."""

    def __init__(self, width: int, *, light: bool, ops: Ops = nn):
        super().__init__()
        self.block1 = ops.Conv2d(width, width, 3, padding=1)
        self.block2 = ops.Conv2d(width, width, 3, padding=1) if light else ops.Conv2d(width, width, 1)

    def forward(self, x: Maps) -> Maps:
        """Maps to maps."""
        return x + self.block2(torch.relu(self.block1(x)))


class AdapterLevel(nn.Module):
    """The layers of one level; the light kind makes them narrow."""

    def __init__(self, width_in: int, width: int, config: T2IAdapterConfig, *, ops: Ops = nn):
        super().__init__()
        inner = width // 4 if config.light else width
        self.in_conv = ops.Conv2d(width_in, inner, 1) if config.light or width_in != width else nn.Identity()
        self.resnets = nn.Sequential(
            *[AdapterLayer(inner, light=config.light, ops=ops) for _ in range(config.layers_per_block)]
        )
        self.out_conv = ops.Conv2d(inner, width, 1) if config.light else nn.Identity()

    def forward(self, x: Maps) -> Float[Tensor, "n c2 h w"]:
        """Maps to maps of another width."""
        return self.out_conv(self.resnets(self.in_conv(x)))


class AdapterNet(nn.Module):
    """All levels of a T2I adapter: pixels become channels, then each level after the first is half the size."""

    def __init__(self, config: T2IAdapterConfig, *, ops: Ops = nn):
        super().__init__()
        self.factor = config.factor
        folded, widths = config.in_channels * config.factor**2, config.channels
        if not config.light:
            self.conv_in = ops.Conv2d(folded, widths[0], 3, padding=1)
        self.light = config.light
        widths_in = [folded if config.light else widths[0], *widths]
        self.body = nn.ModuleList(AdapterLevel(*pair, config, ops=ops) for pair in zip(widths_in, widths, strict=False))

    def forward(self, hint: Maps) -> list[Tensor]:
        """Pictures to one map per level."""
        x = functional.pixel_unshuffle(hint, self.factor)
        if not self.light:
            x = self.conv_in(x)
        features = []
        for level, block in enumerate(self.body):
            # Rounded up, as the U-Net halves its maps.
            x = block(functional.avg_pool2d(x, 2, ceil_mode=True) if level else x)
            features.append(x)
        return features


class T2IAdapter(nn.Module):
    """Maps of a picture that are added inside the U-Net's way down, the same at every timestep."""

    def __init__(self, config: T2IAdapterConfig, *, ops: Ops = nn):
        super().__init__()
        self.config = config
        self.adapter = AdapterNet(config, ops=ops)

    def forward(self, hint: Hints, *, strength: float = 1.0) -> Residuals:
        """One map per level of the U-Net, times ``strength``.

        ``hint`` is 0..1 at pixel size, its sides multiples of ``config.factor``; one channel stands for all.
        """
        features = self.adapter(as_pictures(hint, self.config.in_channels))
        return Residuals(features=tuple(strength * feature for feature in features))


def control_residuals(
    controls: Sequence[ControlNet | T2IAdapter],
    x: Latents,
    timestep: Float[Tensor, " b"],
    content: Float[Tensor, "b g n d"],
    hints: Sequence[Hint],
) -> Residuals:
    """What all control networks add to the U-Net together, each looking at its own hint; no hints: nothing.

    A network whose hint has strength 0 is not run. ``content`` is text alone: pictures and unCLIP's embedding are for
    the U-Net.

    Raises ValueError where hints and networks cannot be paired.
    """
    if hints and len(hints) != len(controls):
        raise ValueError(
            f"{len(hints)} hints for {len(controls)} control networks cannot be paired; give one hint for each network."
        )
    parts = []
    for control, hint in zip(controls, hints, strict=False):
        if not hint.strength:
            continue
        if isinstance(control, ControlNet):
            parts.append(control(x, timestep, content, hint.image, strength=hint.strength))
        else:
            parts.append(control(hint.image, strength=hint.strength))
    return Residuals(
        down=_sums([part.down for part in parts if part.down]),
        middle=next(iter(_sums([(part.middle,) for part in parts if part.middle is not None])), None),
        features=_sums([part.features for part in parts if part.features]),
    )


def skip_widths(trunk: UNetConfig) -> list[int]:
    """The width of every skip connection of a U-Net, in the order in which it makes them."""
    widths = trunk.block_out_channels
    inner = [width for width in widths[:-1] for _ in range(trunk.layers_per_block + 1)]
    return [widths[0], *inner, *[widths[-1]] * trunk.layers_per_block]


def as_pictures(hint: Hints, channels: int) -> Float[Tensor, "n channels hh ww"]:
    """A clip as a batch of pictures; one channel (depth) is repeated."""
    pictures = rearrange(hint, "b c f hh ww -> (b f) c hh ww")
    return pictures.expand(-1, channels, -1, -1) if pictures.shape[1] == 1 else pictures


def _sums(parts: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """The parts added up, position by position; none make none."""
    return tuple(reduce(torch.add, tensors) for tensors in zip(*parts, strict=True))
