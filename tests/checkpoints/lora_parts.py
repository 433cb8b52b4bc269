"""Small networks for tests of LoRA, and how far two sets of weights are apart."""

from collections.abc import Mapping
from typing import Any

import torch
from parts import relative_error
from torch import Tensor, nn


def filled(module: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data = centre + spread * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def small_unet(levels: int = 4) -> Any:
    """SD1.5's U-Net at a tenth of its width (the widths of the scaled layouts)."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    downs = ["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"]
    ups = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (levels - 1)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64, 128, 128)[:levels],
        down_block_types=tuple(downs),
        up_block_types=tuple(ups),
        cross_attention_dim=192,
        attention_head_dim=8,
    )


def as_ours(text: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that a LoRA can change, of transformers' text encoder under our (open_clip's) names."""
    theirs = {name.removeprefix("text_model."): tensor for name, tensor in text.items()}
    ours = {}
    for block in range(sum(name.endswith("mlp.fc1.weight") for name in theirs)):
        their, our = f"encoder.layers.{block}", f"transformer.resblocks.{block}"
        fused = [theirs[f"{their}.self_attn.{letter}_proj.weight"] for letter in "qkv"]
        ours[f"{our}.attn.in_proj_weight"] = torch.cat(fused)
        ours[f"{our}.attn.out_proj.weight"] = theirs[f"{their}.self_attn.out_proj.weight"].clone()
        ours[f"{our}.mlp.c_fc.weight"] = theirs[f"{their}.mlp.fc1.weight"].clone()
        ours[f"{our}.mlp.c_proj.weight"] = theirs[f"{their}.mlp.fc2.weight"].clone()
    return ours


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def largest_error(ours: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    assert ours.keys() == reference.keys()
    return max(relative_error(ours[name], reference[name]) for name in reference)


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    return [name for name in after if relative_error(after[name], before[name]) > 0.01]
