"""Our U-Net under the names that ComfyUI knows: Stable Diffusion's original ones, for LoRA, ControlNet and merge nodes.

The core maps kohya's and diffusers' LoRA names onto those names, adds them to ControlNets of differences, fills
Control-LoRAs from them and merges checkpoints by them. What only we have (temporal layers, motion modules, IP-Adapters)
keeps its name.
"""

from typing import Any

import torch
from torch import nn

from ..gen1_core.checkpoints.ldm import unet_table
from ..gen1_core.models.unet import SpaceTimeUNet, UNetConfig


def renamed(unet: SpaceTimeUNet, ops: Any) -> SpaceTimeUNet:
    """The same network and the same weights in memory, with layers made from ``ops`` and original names."""
    with torch.device("meta"):
        network = SpaceTimeUNet(unet.config, ops=ops)
    network.load_state_dict(unet.state_dict(), strict=True, assign=True)
    network.eval().requires_grad_(False)
    _rename(network)
    return network


def _rename(network: SpaceTimeUNet) -> None:
    """Lists the layers under their original names; ``forward`` finds them as attributes, as before."""
    rows = unet_table(network.config)
    theirs = {_layer(row.ours[0]): _layer(row.theirs[0]) for row in rows}
    layers = [(name, layer) for name, layer in network.named_modules() if _holds_tensors(layer)]
    own = dict(network._modules)
    network._modules.clear()
    # Past nn.Module's own bookkeeping, which would list them again.
    network.__dict__.update(own)
    for name, layer in layers:
        *path, last = theirs.get(name, name).split(".")
        places: dict[str, Any] = network._modules
        for step in path:
            places = places.setdefault(step, nn.Module())._modules
        places[last] = layer


def _layer(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _holds_tensors(module: nn.Module) -> bool:
    return any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))


def core_config(config: UNetConfig) -> dict[str, Any]:
    """The sizes in the words of the core's U-Net of Stable Diffusion, by which it finds the names."""
    widths, layers = config.block_out_channels, config.layers_per_block
    heads = {"num_head_channels": 64} if config.use_linear_projection else {"num_heads": config.heads[0]}
    labels = {"num_classes": "sequential", "adm_in_channels": config.class_embedding_width}
    return {
        "image_size": 32,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": [layers] * len(widths),
        "transformer_depth": [int(attends) for attends in config.attention for _ in range(layers)],
        "transformer_depth_output": [int(attends) for attends in config.attention for _ in range(layers + 1)],
        "transformer_depth_middle": 1,
        "context_dim": config.cross_attention_dim,
        "use_linear_in_transformer": config.use_linear_projection,
        "use_spatial_transformer": True,
        "legacy": False,
        **heads,
        **(labels if config.class_embedding_width else {}),
    }
