"""An exponential moving average of the weights, which is what is evaluated and exported."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def averaged_copy(model: nn.Module) -> nn.Module:
    """A copy that holds the average; it starts at the model's weights and takes no gradients."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def decay_at(decay: float, step: int) -> float:
    """The decay of one step: short memory first, so that the start is soon forgotten; ``decay`` in the
    end."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update(averaged: nn.Module, model: nn.Module, *, decay: float) -> None:
    """average <- decay * average + (1 - decay) * weights; buffers are copied as they are."""
    update_tensors(list(averaged.parameters()), list(model.parameters()), decay=decay)
    for kept, fresh in zip(averaged.buffers(), model.buffers(), strict=True):
        kept.copy_(fresh)


@torch.no_grad()
def update_tensors(averaged: Sequence[Tensor], current: Sequence[Tensor], *, decay: float) -> None:
    """The same of tensors: a process that holds a part of the weights averages its part."""
    held, fresh = [tensor.detach() for tensor in averaged], [tensor.detach() for tensor in current]
    torch._foreach_lerp_(held, fresh, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
