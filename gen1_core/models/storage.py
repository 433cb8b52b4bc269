"""Weights stored in 8 bits and computed with in 16 or 32: half the memory of float16, some precision lost.

What is stored small are the matrices of linear layers and convolutions; norms, biases and embeddings, a few per cent
of a network, keep their precision. ``ops=FP8_OPS`` builds a network so; the layers hold plain float8_e4m3fn without
scales, which is how ComfyUI and others store Stable Diffusion's weights in 8 bits.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Size = int | tuple[int, int]

FP8 = torch.float8_e4m3fn
"""4 bits of exponent, 3 of mantissa: magnitudes from 2**-9 to 448, no infinity."""


def convert(tensor: Tensor, *, device: torch.device, dtype: torch.dtype, copy: bool) -> Tensor:
    """The tensor on a device and in a type; without ``copy`` the tensor itself where it has both already.

    What is too large for 8 bits becomes the largest number there, not NaN.
    """
    if dtype == FP8 and tensor.dtype != FP8:
        largest = torch.finfo(FP8).max
        return tensor.to(device, torch.float32).clamp(-largest, largest).to(FP8)
    return tensor.to(device, dtype, copy=copy)


class Fp8Linear(nn.Linear):
    """A linear layer whose matrix is stored in 8 bits and computes in the type of its input."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__(in_features, out_features, bias)
        self.weight = _stored(self.weight)

    def forward(self, input: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """As torch.nn.Linear."""
        return functional.linear(input, self.weight.to(input.dtype), self.bias)


class Fp8Conv2d(nn.Conv2d):
    """A convolution whose kernel is stored in 8 bits and computes in the type of its input."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        bias: bool = True,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        self.weight = _stored(self.weight)

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """As torch.nn.Conv2d."""
        return self._conv_forward(input, self.weight.to(input.dtype), self.bias)


@dataclass(frozen=True)
class Storage:
    """The namespace that layers are made from (models/layers.py: Ops)."""

    Linear: Callable[..., nn.Module] = Fp8Linear
    Conv2d: Callable[..., nn.Module] = Fp8Conv2d
    GroupNorm: Callable[..., nn.Module] = nn.GroupNorm
    LayerNorm: Callable[..., nn.Module] = nn.LayerNorm
    Embedding: Callable[..., nn.Module] = nn.Embedding


FP8_OPS = Storage()


def _stored(weight: Tensor) -> nn.Parameter:
    """Numbers this coarse cannot be trained, so they ask for no gradient."""
    return nn.Parameter(convert(weight.detach(), device=weight.device, dtype=FP8, copy=False), requires_grad=False)
