"""LoRA in training (Hu et al., 2021): pairs of small matrices beside frozen layers, and the file they become."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from ..checkpoints.files import save_file
from ..checkpoints.lora import Lora, Pair, lora_tensors
from ..models.unet import SpaceTimeUNet
from .task import seeded

LAYERS = re.compile(
    r"(?!.*(temporal|motion)).*\.transformer_blocks\.\d+\.(attn[12]\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2))"
)
"""Attention and feed-forward layers of the spatial transformers. Pictures teach nothing about time."""

CONTENT = re.compile(r"content_embedding\.linear_[12]")
"""Where the content joins the time embedding: there it reaches every residual block."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """How much a LoRA can change: the rank of every layer's change. Its alpha is the rank, so its scale is 1."""

    rank: int = 8

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank={self.rank} leaves no room for any change; give 1 or more, 8 is usual.")


class Adapter(nn.Module):
    """What is added to the output of one layer: ``up`` of ``down`` of its input; nothing until it is trained."""

    def __init__(self, width_in: int, width: int, *, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, width_in) * width_in**-0.5)
        self.up = nn.Parameter(torch.zeros(width, rank))

    def forward(self, x: Float[Tensor, "*rows i"]) -> Float[Tensor, "*rows o"]:
        """The change of the layer's output for its input."""
        return F.linear(F.linear(x, self.down), self.up)


class Adapters(nn.ModuleDict):
    """An adapter for each layer, under the layer's name with "_" for ".", as in LoRA files."""


def adapters_for(unet: SpaceTimeUNet, config: LoraConfig, *, seed: int) -> Adapters:
    """New adapters for all layers of the network that a LoRA changes, on its device.

    Raises ValueError where the rank is not below the width of every layer.
    """
    layers = lora_layers(unet)
    narrowest = min(min(layer.weight.shape) for layer in layers.values())
    if config.rank >= narrowest:
        raise ValueError(
            f"rank={config.rank} is no smaller than the narrowest layer ({narrowest}), where a LoRA saves nothing; "
            f"give at most {narrowest - 1}, or fine-tune all weights."
        )

    def build() -> Adapters:
        sizes = {name: (layer.in_features, layer.out_features) for name, layer in layers.items()}
        return Adapters({name.replace(".", "_"): Adapter(*size, rank=config.rank) for name, size in sizes.items()})

    return seeded(build, seed).to(next(unet.parameters()).device)


def lora_layers(unet: SpaceTimeUNet) -> dict[str, nn.Linear]:
    """The layers that a LoRA changes, by name.

    Raises ValueError where the network has none.
    """
    found = {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and (LAYERS.fullmatch(name) or CONTENT.fullmatch(name))
    }
    if not found:
        raise ValueError(
            "this U-Net has no spatial attention, whose layers a LoRA changes; fine-tune all weights (method full)."
        )
    return found


def attach(unet: SpaceTimeUNet, adapters: Adapters) -> list[RemovableHandle]:
    """Have every layer add what its adapter answers; ``remove`` of what is returned undoes it."""

    def adding(adapter: nn.Module) -> Any:
        return lambda layer, args, out: out + adapter(args[0])

    return [
        layer.register_forward_hook(adding(adapters[name.replace(".", "_")]))
        for name, layer in lora_layers(unet).items()
    ]


@contextmanager
def holding(module: nn.Module, other: nn.Module) -> Iterator[None]:
    """The module with the other's weights for as long as the block lasts, then with its own again, to the bit."""
    own = {name: value.detach().clone() for name, value in module.state_dict().items()}
    module.load_state_dict(other.state_dict())
    try:
        yield
    finally:
        module.load_state_dict(own)


def lora_of(adapters: Adapters, path: Path) -> Lora:
    """Trained adapters as what a LoRA file holds, in float16; ``path`` is only named in errors."""
    state = {name: value.detach().cpu().half() for name, value in adapters.state_dict().items()}
    pairs = {
        name: Pair(down=state[f"{name}.down"], up=state[f"{name}.up"], mid=torch.tensor(0.0), scale=1.0)
        for name in adapters
    }
    return Lora(path=path, unet=pairs, text={}, base="")


def save_lora(path: Path, adapters: Adapters, config: LoraConfig, *, metadata: dict[str, Any]) -> None:
    """Write the adapters under kohya's names, which every program reads, with what they were made from."""
    told = {"recipe": json.dumps(metadata), "ss_network_dim": str(config.rank), "ss_network_alpha": str(config.rank)}
    save_file(path, lora_tensors(lora_of(adapters, path)), kind="lora", config=config, metadata=told)
