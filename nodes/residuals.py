"""What ControlNets and T2I adapters of the core add to the network's maps, in our words and window by window."""

from collections.abc import Sequence
from typing import Any

from einops import rearrange
from torch import Tensor

from ..gen1_core.models.unet import NO_RESIDUALS, Residuals, UNetConfig


def residuals_of(control: Any, config: UNetConfig, *, passes: int) -> Residuals:
    """The core's ``control``, with an axis for the passes: ``[passes, frames, c, h, w]``.

    Its lists are made to be taken from the end: "output" has one map for each skip connection, "input" one for each
    block on the way down, of which adapters use the last of each level.
    """
    if not control:
        return NO_RESIDUALS

    def apart(maps: Tensor) -> Tensor:
        return rearrange(maps, "(b f) c h w -> b f c h w", b=passes)

    inputs = list(reversed(control.get("input") or []))
    last = [(level + 1) * (config.layers_per_block + 1) - 1 for level in range(len(config.block_out_channels))]
    refuse_gaps(inputs, last)
    down = control.get("output") or []
    middle = [each for each in control.get("middle") or [] if each is not None]
    if any(each is None for each in down):
        raise ValueError(
            f"this ControlNet adds to {sum(each is not None for each in down)} of {len(down)} skip connections, which "
            "the Gen-1 U-Net cannot; use a ControlNet or a T2I adapter for Stable Diffusion 1.5."
        )
    return Residuals(
        down=tuple(apart(each) for each in down),
        middle=apart(middle[-1]) if middle else None,
        features=tuple(apart(inputs[index]) for index in last) if any(each is not None for each in inputs) else (),
    )


def refuse_gaps(inputs: Sequence[Any], last: Sequence[int]) -> None:
    """Adapters for another network add elsewhere."""
    used = [index for index, each in enumerate(inputs) if each is not None]
    if used and used != list(last):
        raise ValueError(
            f"this T2I adapter adds to the blocks {used} on the way down and the Gen-1 U-Net takes it at {list(last)}; "
            "use a T2I adapter for Stable Diffusion 1.5."
        )


def in_window(given: Residuals, part: slice) -> Residuals:
    """Those of a window's frames, as the network takes them."""

    def cut(maps: Tensor) -> Tensor:
        return rearrange(maps[:, part], "b f c h w -> (b f) c h w")

    return Residuals(
        down=tuple(cut(each) for each in given.down),
        middle=None if given.middle is None else cut(given.middle),
        features=tuple(cut(each) for each in given.features),
    )


def added(one: Residuals, other: Residuals) -> Residuals:
    """Both together."""
    middles = [each.middle for each in (one, other) if each.middle is not None]
    return Residuals(
        down=_sums(one.down, other.down),
        middle=sum(middles[1:], middles[0]) if middles else None,
        features=_sums(one.features, other.features),
    )


def _sums(one: Sequence[Tensor], other: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if not one or not other:
        return (*one, *other)
    return tuple(a + b for a, b in zip(one, other, strict=True))
