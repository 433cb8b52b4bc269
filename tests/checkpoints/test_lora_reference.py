"""LoRA files of every layout, merged: equal to what diffusers and peft make of them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.layouts import fixture
from checkpoints.lora_parts import as_ours, changed, copied, filled, largest_error, small_unet
from parts import relative_error
from torch import Tensor

from gen1_core.checkpoints.ldm import unet_config_of
from gen1_core.checkpoints.lora import load_lora, merge, read_lora
from gen1_core.models.unet import SpaceTimeUNet

PATH = Path("some.safetensors")

LAYOUTS = (
    "lora_kohya_sd15",
    "lora_kohya_sd15_conv",
    "lora_diffusers_sd15",
    "lora_peft_sd15",
    "lcm_lora_sd15",
    "v3_sd15_adapter",
)


def small_text() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=64,
            hidden_size=192,
            intermediate_size=768,
            num_hidden_layers=12,
            num_attention_heads=4,
            bos_token_id=62,
            eos_token_id=63,
        )
    )


def as_transformers(ours: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of as_ours; what no LoRA changes is taken from ``like``."""
    theirs = {}
    for name in like:
        found = re.fullmatch(r"(?:text_model\.)?encoder\.layers\.(\d+)\.(self_attn|mlp)\.(\w+)\.weight", name)
        block = f"transformer.resblocks.{found[1]}" if found else ""
        if not found:
            theirs[name] = like[name]
        elif found[3] in ("q_proj", "k_proj", "v_proj"):
            theirs[name] = ours[f"{block}.attn.in_proj_weight"].chunk(3)["qkv".index(found[3][0])]
        else:
            layer = {"out_proj": "attn.out_proj", "fc1": "mlp.c_fc", "fc2": "mlp.c_proj"}[found[3]]
            theirs[name] = ours[f"{block}.{layer}.weight"]
    return theirs


def load_with_diffusers(tensors: Mapping[str, Tensor], unet: Any, text: Any, weight: float) -> None:
    """The converters and loaders that all of diffusers' pipelines for Stable Diffusion share."""
    from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin as Loader

    known = ("lora_", "unet.", "text_encoder.")
    named = {key if key.startswith(known) else f"unet.{key}": tensor for key, tensor in tensors.items()}
    state, alphas = Loader.lora_state_dict(named)[:2]
    Loader.load_lora_into_unet(state, network_alphas=alphas, unet=unet)
    unet.set_adapters(unet.active_adapters(), weight)
    if any("text_encoder" in key for key in state):
        Loader.load_lora_into_text_encoder(state, network_alphas=alphas, text_encoder=text, lora_scale=weight)


def merged_by_peft(model: Any) -> dict[str, Tensor]:
    """The weights of a model with adapters in it, as peft merges them."""
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.merge()
    return {key.replace(".base_layer", ""): t for key, t in model.state_dict().items() if ".lora_" not in key}


def forward_errors(adapted: Any, *states: Mapping[str, Tensor]) -> list[float]:
    """How far our U-Net with each of these weights is from a U-Net of diffusers with adapters at work."""
    generator = torch.Generator().manual_seed(5)
    width = states[0]["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"].shape[1]
    x, context = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 7, width, generator=generator)
    with torch.device("meta"):
        network = SpaceTimeUNet(unet_config_of({name: tuple(t.shape) for name, t in states[0].items()})).eval()
    errors = []
    with torch.no_grad():
        reference = adapted(x, torch.tensor(500), context).sample
        for weights in states:
            network.load_state_dict(weights, assign=True)
            output = network(x[:, :, None], torch.tensor([500.0]), context[:, None])[:, :, 0]
            errors.append(relative_error(output, reference))
    return errors


@pytest.mark.parametrize("name", LAYOUTS)
def test_merging_equals_diffusers(name: str) -> None:
    unet, text = filled(small_unet()), filled(small_text())
    before, before_text = copied(unet.state_dict()), as_ours(text.state_dict())
    tensors = {key: tensor.float() for key, tensor in fixture(name, seed=3).items()}
    lora = read_lora(tensors, PATH)
    ours = merge(before, lora, weight=0.7, part="unet")
    ours_text = merge(before_text, lora, weight=0.7, part="text")
    load_with_diffusers(tensors, unet, text, 0.7)

    errors = forward_errors(unet, ours, before)
    assert errors[0] <= 1e-5
    assert errors[1] > 0.01

    assert largest_error(ours, merged_by_peft(unet)) <= 1e-6
    assert largest_error(ours_text, as_ours(merged_by_peft(text))) <= 1e-6
    assert len(changed(before, ours)) == len(lora.unet)
    assert len(changed(before_text, ours_text)) == {72: 48, 48: 24, 0: 0}[len(lora.text)]


def test_a_text_encoder_with_a_merged_lora_equals_one_with_peft_at_work() -> None:
    text = filled(small_text())
    tensors = {key: tensor.float() for key, tensor in fixture("lora_kohya_sd15").items()}
    merged = merge(as_ours(text.state_dict()), read_lora(tensors, PATH), weight=0.7, part="text")
    tokens = torch.tensor([[62, 5, 9, 63]])
    with torch.no_grad():
        before = text(tokens).last_hidden_state
        load_with_diffusers(tensors, filled(small_unet()), text, 0.7)
        reference = text(tokens).last_hidden_state
        tower = filled(small_text())
        tower.load_state_dict(as_transformers(merged, tower.state_dict()))
        ours = tower(tokens).last_hidden_state
    assert relative_error(ours, reference) <= 1e-5
    assert relative_error(before, reference) > 0.01


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_an_adapter_of_peft_is_merged_as_peft_does(rank_stabilised: bool, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    unet = filled(small_unet(2))
    before = copied(unet.state_dict())
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_k", "to_out.0", "conv1", "proj_in", "conv_in", "linear_2"],
        rank_pattern={"to_k": 3},
        alpha_pattern={"attn2.to_k": 5},
        use_rslora=rank_stabilised,
        init_lora_weights=False,
    )
    adapted = get_peft_model(unet, config)
    adapted.save_pretrained(str(tmp_path))
    lora = load_lora(tmp_path / "adapter_model.safetensors")
    ours = merge(before, lora, weight=1.0, part="unet")
    reference = adapted.merge_and_unload().state_dict()
    assert largest_error(ours, reference) <= 1e-6
    assert len(changed(before, ours)) == len(lora.unet) > 20


def test_diffusers_keeps_alpha_in_the_metadata(tmp_path: Path) -> None:
    from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(0)
    unet = filled(small_unet(2))
    before = copied(unet.state_dict())
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["to_q", "to_v"], init_lora_weights=False)
    unet.add_adapter(config)
    StableDiffusionLoraLoaderMixin.save_lora_weights(
        tmp_path,
        unet_lora_layers=dict(get_peft_model_state_dict(unet)),
        unet_lora_adapter_metadata=config.to_dict(),
    )
    lora = load_lora(tmp_path / "pytorch_lora_weights.safetensors")
    assert {pair.scale for pair in lora.unet.values()} == {3.0}
    assert largest_error(merge(before, lora, weight=1.0, part="unet"), merged_by_peft(unet)) <= 1e-6


@pytest.fixture(scope="module")
def motion_network() -> Any:
    from diffusers.models.unets.unet_motion_model import MotionAdapter, UNetMotionModel

    widths = (32, 64, 128, 128)
    adapter = MotionAdapter(block_out_channels=widths, motion_num_attention_heads=8)
    network: Any = UNetMotionModel.from_unet2d(small_unet(), adapter)
    return filled(network)


def test_a_motion_lora_changes_motion_modules_as_in_diffusers(motion_network: Any) -> None:
    tensors = fixture("motion_lora_v2")
    before = copied(motion_network.state_dict())
    lora = read_lora(tensors, PATH)
    ours = merge(before, lora, weight=0.8, part="unet")

    # The names that diffusers' conversion script gives to them.
    converted = {
        "unet." + re.sub(r"attention_blocks\.([01])", lambda at: f"attn{int(at[1]) + 1}", key): tensor
        for key, tensor in ((key.replace("temporal_transformer.", ""), tensor) for key, tensor in tensors.items())
    }
    motion_network.load_lora_adapter(dict(converted), prefix="unet", network_alphas=None)
    motion_network.set_adapters(motion_network.active_adapters(), 0.8)
    assert largest_error(ours, merged_by_peft(motion_network)) <= 1e-6
    assert len(changed(before, ours)) == len(lora.unet) == 168

    again = merge(before, read_lora(converted, PATH), weight=0.8, part="unet")
    assert largest_error(again, ours) == 0


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("name", ["lora_kohya_sd15_conv", "lcm_lora_sd15"])
def test_merging_at_real_size_equals_diffusers(name: str) -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(cross_attention_dim=768).eval()
    before = fixture("sd15_diffusers_unet", small=False)
    unet.load_state_dict(before, assign=True)
    tensors = {key: tensor.float() for key, tensor in fixture(name, seed=3, small=False).items()}
    ours = merge(before, read_lora(tensors, PATH), weight=0.7, part="unet")
    load_with_diffusers({key: t for key, t in tensors.items() if "lora_te" not in key}, unet, None, 0.7)
    errors = forward_errors(unet, ours, before)
    assert errors[0] <= 1e-5
    assert errors[1] > 0.01
