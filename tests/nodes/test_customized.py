"""What `gen1 customize` writes, in ComfyUI: the LoRA on a MODEL, the folder as a model."""

import shutil
from typing import Any

import pytest
import torch

EMBEDDED = "tiny (embedded)"


@pytest.fixture(scope="module")
def model(pack: Any) -> Any:
    pack("nodes.host").register_folders()
    return pack.node("Gen1_LoadModel").execute(model=EMBEDDED).args[0]


def test_a_lora_changes_in_comfyui_what_it_changes_in_the_pipeline(pack: Any, model: Any) -> None:
    """By the pack's node and by ComfyUI's own loader, every layer of it, to rounding."""
    import comfy.lora
    import comfy.sd

    lora, loading = pack("gen1_core.training.lora"), pack("gen1_core.loading")
    gen1 = loading.load_gen1()
    config = lora.LoraConfig(rank=4)
    adapters = lora.adapters_for(gen1.unet, config, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapters.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    path = pack.base / "models" / "loras" / "look.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    lora.save_lora(path, adapters, config, metadata={})
    try:
        patched = pack.node("Gen1_LoadLora").execute(model=model, lora=path.name, strength=0.5).args[0]
        stock, _ = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(path)), 0.5, 0)
        merged = loading.with_lora(gen1, path, weight=0.5).unet.state_dict()
    finally:
        path.unlink()
    base = gen1.unet.state_dict()
    changed = sorted(
        (weight.flatten().tolist() for name, weight in merged.items() if not torch.equal(weight, base[name]))
    )
    for one in (patched, stock):
        assert len(one.patches) == len(adapters) == len(changed)
        state = one.model_state_dict()
        theirs = [comfy.lora.calculate_weight(ops, state[key].float().clone(), key) for key, ops in one.patches.items()]
        for ours, found in zip(changed, sorted(weight.flatten().tolist() for weight in theirs), strict=True):
            torch.testing.assert_close(torch.tensor(found), torch.tensor(ours), atol=1e-5, rtol=1e-4)


def test_a_customized_folder_is_offered_and_loaded(pack: Any, model: Any) -> None:
    files, presets = pack("gen1_core.checkpoints.files"), pack("gen1_core.presets")
    loading = pack("gen1_core.loading")
    folder = pack.base / "models" / "gen1" / "mine"
    shutil.copytree(presets.MODELS["tiny"], folder)
    try:
        gen1 = loading.load_gen1()
        tensors = {name: value.half() + 0.5 for name, value in gen1.unet.state_dict().items()}
        metadata = loading.as_metadata(gen1.diffusion, gen1.defaults)
        files.save_file(
            folder / "unet.safetensors", tensors, kind="unet", config=gen1.unet.config, metadata=metadata
        )  # fmt: skip
        node = pack.node("Gen1_LoadModel")
        assert "mine" in node.define_schema().inputs[0].options
        mine = node.execute(model="mine").args[0]
    finally:
        shutil.rmtree(folder)
    (first, *_), (other, *_) = (one.model_state_dict().values() for one in (model, mine))
    torch.testing.assert_close(other.float(), first.float() + 0.5, atol=1e-2, rtol=0)
