"""An exponential moving average of the weights, which is what is evaluated and exported."""

import copy

import torch
from torch import nn


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
    held = [p.detach() for p in averaged.parameters()]
    current = [p.detach() for p in model.parameters()]
    torch._foreach_lerp_(held, current, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
    for kept, fresh in zip(averaged.buffers(), model.buffers(), strict=True):
        kept.copy_(fresh)
