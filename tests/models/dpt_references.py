"""Depth networks of transformers, tiny or real, with random weights in every parameter."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BitConfig,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
)


def randomised(module: nn.Module) -> Any:
    """Every parameter random, none zero, of a size that keeps activations about 1, and depth above zero."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            # A deep residual network whose branches are all as large as its input makes rounding grow with every block.
            noise = (0.3 if ".norm3." in name else 1.0) + 0.1 * noise
        elif name.endswith("lambda1"):
            noise = 0.5 + 0.1 * noise
        elif parameter.dim() == 1:
            noise = 0.2 * noise
        elif not name.endswith(("token", "embeddings")):
            noise = noise / parameter[0].numel() ** 0.5
        parameter.data = noise
    last = [parameter for name, parameter in module.named_parameters() if name.startswith("head.")][-1]
    last.data.fill_(10.0)  # the last ReLU would hide what is below zero
    return module.eval()


def tiny_dpt(*, eps: float = 1e-12) -> DPTForDepthEstimation:
    return dpt(width=64, depth=12, side=64, hooks=(2, 5, 8, 11), neck=(8, 12, 16, 20), features=16, eps=eps)


def dpt(
    *,
    width: int,
    depth: int,
    side: int,
    hooks: Sequence[int],
    neck: Sequence[int],
    features: int = 256,
    eps: float = 1e-12,
) -> DPTForDepthEstimation:
    config = DPTConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        image_size=side,
        backbone_out_indices=list(hooks),
        neck_hidden_sizes=list(neck),
        fusion_hidden_size=features,
        layer_norm_eps=eps,
    )
    return DPTForDepthEstimation(config)


def hybrid(
    *,
    width: int = 64,
    side: int = 64,
    stem: int = 32,
    stages: Sequence[int] = (128, 256, 512),
    blocks: Sequence[int] = (2, 1, 2),
    neck: Sequence[int] = (128, 256, 16, 20),
    features: int = 16,
) -> DPTForDepthEstimation:
    front: dict[str, Any] = {
        "embedding_size": stem,
        "hidden_sizes": list(stages),
        "depths": list(blocks),
        "global_padding": "same",
        "layer_type": "bottleneck",
        "out_features": ["stage1", "stage2", "stage3"],
        "embedding_dynamic_padding": True,
    }
    bit = BitConfig(**front)
    config = DPTConfig(
        is_hybrid=True,
        backbone_config=bit,
        backbone_featmap_shape=[1, stages[-1], side // 16, side // 16],
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=width // 64,
        image_size=side,
        neck_hidden_sizes=list(neck),
        fusion_hidden_size=features,
    )
    return DPTForDepthEstimation(config)


def depth_anything(
    *,
    width: int = 64,
    depth: int = 12,
    side: int = 70,
    taps: Sequence[int] = (3, 6, 9, 12),
    neck: Sequence[int] = (8, 12, 16, 20),
    features: int = 16,
) -> DepthAnythingForDepthEstimation:
    dino: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": width // 64,
        "image_size": side,
        "out_indices": list(taps),
        "reshape_hidden_states": False,
    }
    backbone = Dinov2Config(**dino)
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=width,
        neck_hidden_sizes=list(neck),
        fusion_hidden_size=features,
    )
    return DepthAnythingForDepthEstimation(config)


@torch.no_grad()
def depth_of(reference: Any, pixels: Tensor) -> Tensor:
    """What the reference makes of pixels of any size [n 1 h w]; DPT's own forward only takes squares."""
    if isinstance(reference, DepthAnythingForDepthEstimation):
        return reference(pixels).predicted_depth[:, None]
    height, width = pixels.shape[-2:]
    config, embeddings = reference.config, reference.dpt.embeddings
    if config.is_hybrid:
        embeddings.image_size = (height, width)  # otherwise it refuses what its positions can be resampled to
    output = reference.dpt(pixels, output_hidden_states=True)
    hooks = config.backbone_out_indices[2:] if config.is_hybrid else config.backbone_out_indices
    levels = [*(output.intermediate_activations or ()), *(output.hidden_states[1 + hook] for hook in hooks)]
    return reference.head(reference.neck(levels, height // 16, width // 16))[:, None]


def published(reference: Any) -> dict[str, Tensor]:
    """Its tensors by the names of public files, whatever the version of transformers."""
    new = {
        "q_proj": "attention.query",
        "k_proj": "attention.key",
        "v_proj": "attention.value",
        "o_proj": "output.dense",
    }
    named = {}
    for name, tensor in reference.state_dict().items():
        for one, other in new.items():
            name = name.replace(f".attention.{one}.", f".attention.{other}.")
        named[name] = tensor
    return named
