"""Weights in 8 bits: a quarter of the memory of float32, and how far the answers are from it."""

from pathlib import Path

import pytest
import torch
from parts import UNET, randomised, relative_error
from torch import nn

from gen1_core.checkpoints.files import load_module
from gen1_core.models.layers import Ops
from gen1_core.models.storage import FP8, FP8_OPS, convert
from gen1_core.models.unet import SpaceTimeUNet

CPU = torch.device("cpu")


def stored(tensors: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> SpaceTimeUNet:
    return load_module(
        lambda: SpaceTimeUNet(UNET, ops=FP8_OPS), tensors, device=CPU, dtype=dtype, path=Path("w"), copy=False
    )


def answer(unet: nn.Module, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.manual_seed(0)
    x, content = torch.randn(1, 12, 3, 8, 8).to(dtype), torch.randn(1, 1, 1, 16).to(dtype)
    with torch.no_grad():
        return unet(x, torch.tensor([500.0]), content).float()


def test_it_is_an_ops_namespace() -> None:
    assert isinstance(FP8_OPS, Ops)


def test_matrices_are_stored_small_and_the_rest_is_not() -> None:
    unet = stored(randomised(SpaceTimeUNet(UNET)).state_dict())
    small = {name for name, parameter in unet.named_parameters() if parameter.dtype == FP8}
    assert "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight" in small and "conv_in.weight" in small
    kinds = (nn.Linear, nn.Conv2d)
    assert small == {f"{name}.weight" for name, module in unet.named_modules() if isinstance(module, kinds)}
    assert all(p.dtype == torch.float32 for name, p in unet.named_parameters() if name not in small)
    assert not any(parameter.requires_grad for name, parameter in unet.named_parameters() if name in small)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_answer_is_that_of_rounded_weights(dtype: torch.dtype) -> None:
    plain = randomised(SpaceTimeUNet(UNET))
    unet = stored(plain.state_dict(), dtype)
    rounded = {name: tensor.to(dtype) for name, tensor in unet.state_dict().items()}
    reference = load_module(lambda: SpaceTimeUNet(UNET), rounded, device=CPU, dtype=dtype, path=Path("w"), copy=False)
    torch.testing.assert_close(answer(unet, dtype), answer(reference, dtype), rtol=0, atol=0)
    error = relative_error(answer(unet, dtype), answer(plain))
    assert 0.005 < error < 0.15


def test_weights_that_are_small_already_stay_in_the_file() -> None:
    tensors = stored(randomised(SpaceTimeUNet(UNET)).state_dict()).state_dict()
    again = stored(tensors).state_dict()
    assert all(again[name].data_ptr() == tensor.data_ptr() for name, tensor in tensors.items())


def test_what_is_too_large_becomes_the_largest_number() -> None:
    small = convert(torch.tensor([1e4, -1e4, 0.5]), device=CPU, dtype=FP8, copy=False)
    assert small.float().tolist() == [448.0, -448.0, 0.5]


def test_a_new_network_can_be_built_outside_of_loading() -> None:
    layer = FP8_OPS.Conv2d(4, 8, 3, padding=1)
    assert layer.weight.dtype == FP8 and layer(torch.randn(1, 4, 5, 5)).shape == (1, 8, 5, 5)
