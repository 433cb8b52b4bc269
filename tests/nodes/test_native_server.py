"""The MODEL in a real ComfyUI server: stock nodes around it, compared by the latents that they save."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gen1_core.recipes.tiny import TINY

STEPS, SCALE, SEED = 3, 1.5, 5
SLIDERS = {"invert": False, "blur_level": 0, "structure_strength": 1.0, "start": 0.0, "end": 1.0}


def parts() -> dict[str, Any]:
    """Everything but the sampling: a plain picture stands for the depth of eight frames."""
    return {
        "load": node("Gen1_LoadModel", model="tiny (embedded)"),
        "image": node("EmptyImage", width=96, height=64, batch_size=8, color=0x808080),
        "structure": node("Gen1_StructureFromImage", image=["image", 0], model=["load", 0], **SLIDERS),
        "content": node("Gen1_ContentFromText", encoder=["load", 2], prompt="a red brick wall", negative="", seed=0),
        "condition": node("Gen1_Condition", model=["load", 0], structure=["structure", 0], content=["content", 0]),
        "noise": node("RandomNoise", noise_seed=SEED),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["load", 0], scheduler="sgm_uniform", steps=STEPS, denoise=1.0),
    }


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def stock(name: str, model: str) -> dict[str, Any]:
    """KSampler, and what it makes in a file."""
    sampled = node(
        "KSampler",
        model=[model, 0],
        seed=SEED,
        steps=STEPS,
        cfg=SCALE,
        sampler_name="euler",
        scheduler="sgm_uniform",
        positive=["condition", 0],
        negative=["condition", 1],
        latent_image=["condition", 2],
        denoise=1.0,
    )
    return {name: sampled, f"{name} saved": node("SaveLatent", samples=[name, 0], filename_prefix=f"native/{name}")}


def custom(name: str, temporal_scale: float) -> dict[str, Any]:
    """SamplerCustomAdvanced with our guider, and what it makes in a file."""
    guider = node(
        "Gen1_Guider",
        model=["load", 0],
        positive=["condition", 0],
        negative=["condition", 1],
        content_scale=SCALE,
        temporal_scale=temporal_scale,
        structure_scale=1.0,
    )
    sampled = node(
        "SamplerCustomAdvanced",
        noise=["noise", 0],
        guider=[f"{name} guider", 0],
        sampler=["sampler", 0],
        sigmas=["sigmas", 0],
        latent_image=["condition", 2],
    )
    saved = node("SaveLatent", samples=[name, 0], filename_prefix=f"native/{name}")
    return {f"{name} guider": guider, name: sampled, f"{name} saved": saved}


def latents(server: Any, name: str) -> Tensor:
    (file,) = Path(server.base, "output", "native").glob(f"{name}_*.latent")
    return load_file(file)["latent_tensor"]


@pytest.fixture(scope="module")
def lora(server) -> str:
    """Kohya's names; the widths are those of the embedded model's content and of its lowest level."""
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v"
    generator = torch.Generator().manual_seed(0)
    folder = Path(server.base, "models", "loras")
    folder.mkdir(parents=True, exist_ok=True)
    width, low = TINY.unet.cross_attention_dim, TINY.unet.block_out_channels[-1]
    halves = {f"{layer}.lora_down.weight": (4, width), f"{layer}.lora_up.weight": (low, 4)}
    tensors = {name: 2 * torch.randn(*shape, generator=generator) for name, shape in halves.items()}
    save_file(tensors, folder / "native.safetensors")
    return "native.safetensors"


def test_stock_nodes_sample_it(server, lora) -> None:
    loras = {
        name: node("LoraLoaderModelOnly", model=["load", 0], lora_name=lora, strength_model=strength)
        for name, strength in (("lora", 1.0), ("lora off", 0.0))
    }
    prompt = {
        **parts(),
        **loras,
        **stock("plain", "load"),
        **stock("changed", "lora"),
        **stock("unchanged", "lora off"),
        **custom("guided", 1.0),
        **custom("smooth", 1.5),
        "decoded": node("VAEDecode", samples=["plain", 0], vae=["load", 1]),
        "shown": node("PreviewImage", images=["decoded", 0]),
    }
    result = server.run(prompt, timeout_s=580)
    assert result.ok, result.message
    plain = latents(server, "plain")
    assert plain.shape == (8, 8, 16, 24) and torch.isfinite(plain).all() and plain.std() > 0.1
    assert (latents(server, "guided") - plain).abs().max() == 0.0
    assert (latents(server, "unchanged") - plain).abs().max() == 0.0
    assert (latents(server, "changed") - plain).abs().max() > 0.01
    assert (latents(server, "smooth") - plain).abs().max() > 0.01
    assert len(result.outputs["shown"]["images"]) == 8


def test_a_patch_that_it_has_no_place_for_is_an_error(server) -> None:
    free = node("FreeU_V2", model=["load", 0], b1=1.3, b2=1.4, s1=0.9, s2=0.2)
    result = server.run({**parts(), "free": free, **stock("refused", "free")}, timeout_s=300)
    assert result.status == "error" and "remove that node" in result.message
