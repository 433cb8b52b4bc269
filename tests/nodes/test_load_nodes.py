"""The loaders: what they give is the model of the files, every input counts, and what is missing is named."""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.layouts import fixture, layout, scaled, write
from parts import tiny_gen1, write_model
from torch.testing import assert_close

NAMES = {
    "checkpoint": ("checkpoints/dream.safetensors", "sd15_single_file"),
    "motion": ("animatediff_models/v3.ckpt", "v3_sd15_mm"),
    "control": ("controlnet/1.5/depth.pth", "controlnet_sd15"),
    "ip_adapter": ("ipadapter/sd15.safetensors", "ip_adapter_sd15"),
    "clip_vision": ("clip_vision/model.safetensors", "clip_vit_h_14_vision"),
    "vae": ("vae/mse.safetensors", "vae_ft_mse_single_file"),
    "depth": ("depthanything/small.safetensors", "depth_anything_v2_vits"),
    "other vision": ("clip_vision/another.safetensors", "clip_vit_l_14_vision"),
    "sdxl motion": ("animatediff_models/xl.ckpt", "mm_sdxl_v10_beta"),
    "taesd encoder": ("vae_approx/taesd_encoder.pth", "taesd_encoder"),
    "taesd decoder": ("vae_approx/taesd_decoder.pth", "taesd_decoder"),
}
CONTENT = "find by content"
ALL = {"checkpoint": CONTENT, "motion": CONTENT, "control": CONTENT, "ip_adapter": "none", "clip_vision": CONTENT}
ALL |= {"vae": "none", "depth": CONTENT}


def smaller(name: str) -> dict[str, torch.Tensor]:
    """Scaled down, with CLIP's whole vocabulary, since prompts are read with it; depth is known by its size."""
    if name.startswith("depth_anything"):
        return fixture(name, small=False)
    small, whole = scaled(layout(name)).without("model_ema."), layout(name)
    shapes = {
        key: (whole.shapes[key][0], *shape[1:]) if key.endswith("token_embedding.weight") else shape
        for key, shape in small.shapes.items()
    }
    return fixture(replace(small, shapes=shapes), small=False)


@pytest.fixture(scope="module")
def models(pack: Any) -> Iterator[Path]:
    """ComfyUI's models folder with every file in its public layout, small."""
    pack("nodes.host").register_folders()
    folder = pack.base / "models"
    for file, name in NAMES.values():
        write(folder / file, smaller(name))
    yield folder
    for file, _ in NAMES.values():
        (folder / file).unlink()


@pytest.fixture
def public(pack: Any, models: Path) -> Callable[..., tuple[Any, ...]]:
    """Load Public Weights with these choices: MODEL, VAE, GEN1_ENCODER, GEN1_DEPTH."""
    node = pack.node("Gen1_LoadPublic")
    return lambda **choices: node.execute(**{**ALL, **choices}).args


def test_the_embedded_model_is_that_of_the_library(pack: Any) -> None:
    model, vae, encoder, depth = pack.node("Gen1_LoadModel").execute(model="tiny (embedded)").args
    gen1, ours = pack("nodes.host").gen1_of(model), pack("gen1_core.loading").load_gen1("tiny")
    assert (gen1.defaults, gen1.diffusion) == (ours.defaults, ours.diffusion)
    weights = {name.replace("_orig_mod.", ""): tensor for name, tensor in ours.unet.state_dict().items()}
    assert sum(tensor.numel() for tensor in gen1.unet.parameters()) == sum(one.numel() for one in weights.values())

    pictures = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert_close(depth(pictures), ours.depth(pictures), rtol=0, atol=0)
        content = encoder(prompt="snow", seed=3)
        assert_close(content.tokens, pack("gen1_core.pipeline").describe(ours, prompt="snow", seed=3).tokens)
        latents = ours.autoencoder.encode(pictures * 2 - 1)
        assert_close(gen1.autoencoder.encode(pictures * 2 - 1), latents)
        image = vae.decode(pack("nodes.host_frames").denormalised(latents, ours.autoencoder))
        expected = (ours.autoencoder.decode(latents) / 2 + 0.5).clamp(0, 1)
    assert_close(image, pack("nodes.host").image_of(expected), rtol=0, atol=2e-3)


def test_a_folder_of_ones_own_is_listed_and_loaded(pack: Any) -> None:
    pack("nodes.host").register_folders()
    node = pack.node("Gen1_LoadModel")
    folder = write_model(tiny_gen1(), pack.base / "models" / "gen1" / "series" / "mine")
    (pack.base / "models" / "gen1" / "half").mkdir(exist_ok=True)
    try:
        options = node.define_schema().inputs[0].options
        assert options == ["tiny (embedded)", "series/mine"]
        before = node.fingerprint_inputs(model="series/mine")
        gen1 = pack("nodes.host").gen1_of(node.execute(model="series/mine").args[0])
        assert gen1.unet.config.frames == 4
        write_model(tiny_gen1(seed=1), folder)
        assert node.fingerprint_inputs(model="series/mine") != before
        assert node.validate_inputs(model="series/mine") is True
    finally:
        shutil.rmtree(pack.base / "models" / "gen1")
    message = node.validate_inputs(model="series/mine")
    assert "models/gen1" in message and "unet, autoencoder, depth, clip, prior" in message and "put it there" in message


def test_public_files_are_found_by_content(pack: Any, public: Callable[..., Any]) -> None:
    model, vae, encoder, depth = public(ip_adapter=CONTENT)
    gen1 = pack("nodes.host").gen1_of(model)
    assert gen1.unet.config.motion and len(gen1.controls) == 1
    assert encoder.reads_pictures and encoder.reads_both
    assert "DPT" in {type(patcher.model).__name__ for patcher in depth.networks}
    with torch.inference_mode():
        content = encoder(prompt="gold", image=torch.rand(1, 3, 40, 50))
    assert content.tokens.shape[-1] == gen1.unet.config.cross_attention_dim


@pytest.mark.slow
def test_every_choice_counts(pack: Any, public: Callable[..., Any]) -> None:
    host = pack("nodes.host")
    model, vae, encoder, depth = public()
    still, uncontrolled = host.gen1_of(public(motion="none")[0]), host.gen1_of(public(control="none")[0])
    assert host.gen1_of(model).unet.config.motion and not still.unet.config.motion
    assert len(host.gen1_of(model).controls) == 1 and not uncontrolled.controls
    assert not encoder.reads_pictures and public(ip_adapter="sd15.safetensors")[2].reads_pictures
    names = [[type(patcher.model).__name__ for patcher in one.networks] for one in (depth, public(depth="none")[3])]
    assert names == [["DPT"], ["DepthNet"]]

    def weights(loaded: Any) -> torch.Tensor:
        return next(loaded.first_stage_model.network.parameters())

    named = public(vae="mse.safetensors")[1]
    assert not torch.equal(weights(named), weights(vae))
    assert torch.equal(weights(public(vae=CONTENT)[1]), weights(named))
    assert type(public(vae="taesd")[1].first_stage_model.network).__name__ == "TinyAutoencoder"
    assert torch.equal(weights(public(checkpoint="dream.safetensors")[1]), weights(vae))


@pytest.mark.slow
def test_checkpoint_is_what_draws(pack: Any, models: Path, public: Callable[..., Any]) -> None:
    """Another finetune has other weights in the same network; one that is searched for has to be the only one."""
    host, second = pack("nodes.host"), models / "checkpoints" / "finetune.safetensors"
    write(second, {name: tensor * 1.5 for name, tensor in smaller("sd15_single_file").items()})
    try:
        first, other = (
            host.gen1_of(public(checkpoint=name)[0]).unet for name in ("dream.safetensors", "finetune.safetensors")
        )
        name = "input_blocks.0.0.weight"
        assert_close(other.state_dict()[name], 1.5 * first.state_dict()[name], rtol=1e-3, atol=1e-3)
        with pytest.raises(ValueError, match=r"holds 2 files .*choose it in checkpoint"):
            public()
    finally:
        second.unlink()


@pytest.mark.slow
def test_motion_joins_the_frames_and_control_shows_the_structure(pack: Any, public: Callable[..., Any]) -> None:
    """Without the first, what a frame becomes does not depend on its neighbours; without the second, not on depth."""
    host = pack("nodes.host")
    joined, alone = (host.ready(public(motion=motion)[0]).unet for motion in (CONTENT, "none"))
    x = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, :, 2] += 1.0
    content = torch.randn(1, 1, 7, joined.config.cross_attention_dim, generator=torch.Generator().manual_seed(1))

    def first_frame(unet: Any, latents: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return unet(latents, torch.tensor([500.0]), content)[:, :, 0]

    assert_close(first_frame(alone, changed), first_frame(alone, x))
    assert not torch.allclose(first_frame(joined, changed), first_frame(joined, x))
    assert host.gen1_of(public()[0]).reads_structure
    assert not host.gen1_of(public(control="none")[0]).reads_structure


def test_clip_vision_is_not_looked_at_without_an_ip_adapter(public: Callable[..., Any]) -> None:
    for choice in ("none", "another.safetensors"):
        assert not public(clip_vision=choice)[2].reads_pictures


def test_files_that_do_not_belong_together_are_refused_in_the_words_of_the_node(public: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"SD ?XL|sdxl"):
        public(motion="xl.ckpt")
    with pytest.raises(ValueError, match="put it there and press R, or choose another"):
        public(motion="none", checkpoint="nowhere.safetensors")
    with pytest.raises(ValueError, match=r"give clip_vision with .*CLIP-ViT-H"):
        public(ip_adapter=CONTENT, clip_vision="none")
    with pytest.raises(ValueError) as caught:
        public(ip_adapter=CONTENT, clip_vision="another.safetensors")
    assert "--" not in str(caught.value)


def test_what_is_missing_is_named_all_at_once(pack: Any, models: Path, public: Callable[..., Any]) -> None:
    node = pack.node("Gen1_LoadPublic")
    assert node.validate_inputs(checkpoint=CONTENT) is True
    message = node.validate_inputs(checkpoint="gone.ckpt")
    assert "checkpoint gone.ckpt is not in" in message and "Usual: v1-5-pruned" in message
    moved = models / "ipadapter" / "sd15.safetensors"
    moved.rename(models / "sd15.safetensors")
    try:
        with pytest.raises(ValueError) as caught:
            public(motion="gone.ckpt", ip_adapter=CONTENT)
    finally:
        (models / "sd15.safetensors").rename(moved)
    motion, adapter = str(caught.value).splitlines()
    assert all(
        part in motion for part in ("motion gone.ckpt", "models/animatediff_models", "v3.ckpt", "Usual: v3_sd15")
    )
    assert "models/ipadapter" in adapter and "put the file there, or choose it in ip_adapter" in adapter
    assert "ip-adapter_sd15.safetensors, or choose none" in adapter


def test_several_that_could_be_meant_are_listed(pack: Any, models: Path, public: Callable[..., Any]) -> None:
    second = shutil.copyfile(models / NAMES["motion"][0], models / "animatediff_models" / "second.ckpt")
    try:
        with pytest.raises(ValueError, match=r"holds 2 files .*choose it in motion"):
            public()
        assert pack("nodes.host").gen1_of(public(motion="second.ckpt")[0]).unet.config.motion
    finally:
        second.unlink()


def test_a_file_that_changes_is_loaded_again(pack: Any, models: Path) -> None:
    node = pack.node("Gen1_LoadPublic")
    before = [node.fingerprint_inputs(**{**ALL, "vae": name}) for name in ("none", CONTENT, "mse.safetensors")]
    write(models / NAMES["vae"][0], smaller(NAMES["vae"][1]))
    after = [node.fingerprint_inputs(**{**ALL, "vae": name}) for name in ("none", CONTENT, "mse.safetensors")]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, False]


def test_short_side_is_the_size_that_is_worked_at(pack: Any) -> None:
    """Structure and latents are of it; the network's least is named."""
    node, image = pack.node("Gen1_LoadModel"), torch.rand(2, 90, 120, 3)
    shapes = []
    for side in (64, 0, 256):
        with torch.inference_mode():
            model, vae, _, _ = node.execute(model="tiny (embedded)", short_side=side).args
            latent = pack.node("Gen1_Encode").execute(image=image, vae=vae, model=model).args[0]["samples"]
        shapes.append(latent.shape[-2])
    assert shapes == [8, 16, 32]
    with pytest.raises(ValueError, match=r"short_side=8 is smaller than .* raise short_side to \d+ or more"):
        node.execute(model="tiny (embedded)", short_side=8)


@pytest.mark.slow
def test_public_weights_have_a_size_too(pack: Any, public: Callable[..., Any]) -> None:
    gen1_of = pack("nodes.host").gen1_of
    assert [gen1_of(public(short_side=side)[0]).diffusion.working_size for side in (0, 320)] == [512, 320]
    node = pack.node("Gen1_LoadPublic")
    assert node.fingerprint_inputs(**ALL, short_side=320) == node.fingerprint_inputs(**ALL)


def lora_for(model: Any, prefix: str, *, layers: int) -> dict[str, torch.Tensor]:
    """A LoRA under peft's names, for some layers of attention over frames or over pixels."""
    unet = model.model.diffusion_model
    wanted = [name for name, _ in unet.named_modules() if re.search(prefix + r".*\.to_q$", name)][:layers]
    tensors = {}
    for name in wanted:
        out, width = unet.get_submodule(name).weight.shape
        tensors[f"unet.{name}.lora_A.weight"] = torch.ones(2, width)
        tensors[f"unet.{name}.lora_B.weight"] = torch.ones(out, 2)
    assert len(wanted) == layers
    return tensors


@pytest.fixture(scope="module")
def lora_files(pack: Any) -> Iterator[Any]:
    """A style of peft's and a motion LoRA, each in its folder, and the embedded model."""
    pack("nodes.host").register_folders()
    model = pack.node("Gen1_LoadModel").execute(model="tiny (embedded)").args[0]
    files = {
        "loras/style.safetensors": lora_for(model, "", layers=3),
        "animatediff_motion_lora/pan.safetensors": lora_for(model, "", layers=2),
        "loras/elsewhere.safetensors": {
            "lora_unet_elsewhere.lora_down.weight": torch.ones(1, 4),
            "lora_unet_elsewhere.lora_up.weight": torch.ones(4, 1),
        },
    }
    for name, tensors in files.items():
        write(pack.base / "models" / name, tensors)
    yield model
    for name in files:
        (pack.base / "models" / name).unlink()


def test_loras_of_both_folders_are_offered_and_loaded(pack: Any, lora_files: Any) -> None:
    node, model = pack.node("Gen1_LoadLora"), lora_files
    options = next(one.options for one in node.define_schema().inputs if one.id == "lora")
    assert options == ["none", "elsewhere.safetensors", "style.safetensors", "pan.safetensors"]
    style, pan = (node.execute(model=model, lora=name, strength=1.0).args[0] for name in options[2:])
    assert (len(style.patches), len(pan.patches)) == (3, 2)
    assert node.execute(model=model, lora="none", strength=1.0).args[0] is model
    assert node.validate_inputs(lora="pan.safetensors") is True
    assert "models/loras" in node.validate_inputs(lora="gone.safetensors")
    assert node.fingerprint_inputs(lora="pan.safetensors") != node.fingerprint_inputs(lora="style.safetensors")


def test_strength_is_how_much_of_a_lora_is_added(pack: Any, lora_files: Any) -> None:
    """To the MODEL that comes in, which stays as it is."""
    import comfy.lora

    node, model = pack.node("Gen1_LoadLora"), lora_files

    def change(strength: float) -> torch.Tensor:
        patched = node.execute(model=model, lora="pan.safetensors", strength=strength).args[0]
        key = next(iter(patched.patches))
        weight = model.model_state_dict()[key]
        return comfy.lora.calculate_weight(patched.patches[key], weight.float().clone(), key) - weight

    torch.testing.assert_close(change(1.0), torch.full_like(change(1.0), 2.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(change(0.25), torch.full_like(change(1.0), 0.5), atol=1e-3, rtol=0)
    torch.testing.assert_close(change(-1.0), -change(1.0), atol=1e-3, rtol=0)
    assert not change(0.0).any() and not model.patches
    styled = node.execute(model=model, lora="style.safetensors", strength=1.0).args[0]
    for other in (model, styled):
        with pytest.raises(ValueError, match="take one for Stable Diffusion"):
            node.execute(model=other, lora="elsewhere.safetensors", strength=1.0)


def test_a_depth_estimator_alone(pack: Any, models: Path) -> None:
    node = pack.node("Gen1_LoadDepth")
    assert node.define_schema().inputs[0].options == ["tiny (embedded)", CONTENT, "small.safetensors"]
    embedded, found, named = (
        node.execute(estimator=name).args[0].networks[0].model
        for name in ("tiny (embedded)", CONTENT, "small.safetensors")
    )
    assert [type(one).__name__ for one in (embedded, found, named)] == ["DepthNet", "DPT", "DPT"]
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), named.parameters(), strict=True))
    assert node.validate_inputs(estimator="tiny (embedded)") is True
    message = node.validate_inputs(estimator="gone.pth")
    assert "models/depthanything" in message and "depth_anything_v2_vits_fp32.safetensors" in message
    assert node.fingerprint_inputs(estimator=CONTENT) == node.fingerprint_inputs(estimator="small.safetensors")
