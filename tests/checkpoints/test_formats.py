"""Every public layout is told by its keys, in true and in small shapes, in every container, and never by its name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints.layouts import LAYOUTS, Layout, fixture, layout, scaled, write, write_empty

from gen1_core.checkpoints.files import save_file
from gen1_core.checkpoints.formats import Format, folder_parts, identify, identify_path
from gen1_core.checkpoints.header import Header, Shape
from gen1_core.models.depth import DepthNetConfig
from gen1_core.structure.estimator import DepthRange, save_depth

SD = "Stable Diffusion"
V2 = "Depth Anything V2"
DIFF = "AnimateDiff motion module"

EXPECTED = {
    "animatelcm_sd15_t2v": (f"{DIFF} LCM", "motion", "sd15", "original"),
    "clip_vit_bigg_14_vision": ("CLIP vision ViT-bigG", "clip_vision", "", "transformers"),
    "clip_vit_h_14_vision": ("CLIP vision ViT-H", "clip_vision", "", "transformers"),
    "clip_vit_l_14_vision": ("CLIP vision ViT-L", "clip_vision", "", "transformers"),
    "clip_vit_large_patch14": ("CLIP ViT-L", "clip", "", "transformers"),
    "controlnet_sd15": ("ControlNet for SD 1.x", "controlnet", "sd15", "ldm"),
    "controlnet_sd15_bare": ("ControlNet for SD 1.x", "controlnet", "sd15", "ldm"),
    "controlnet_sd15_diffusers": ("ControlNet for SD 1.x", "controlnet", "sd15", "diffusers"),
    "depth_anything_v2_vitb": (f"{V2} base", "depth", "depth-anything", "original"),
    "depth_anything_v2_vitb_hf": (f"{V2} base", "depth", "depth-anything", "transformers"),
    "depth_anything_v2_vitl": (f"{V2} large", "depth", "depth-anything", "original"),
    "depth_anything_v2_vitl_hf": (f"{V2} large", "depth", "depth-anything", "transformers"),
    "depth_anything_v2_vits": (f"{V2} small", "depth", "depth-anything", "original"),
    "depth_anything_v2_vits_hf": (f"{V2} small", "depth", "depth-anything", "transformers"),
    "dpt_hybrid_hf": ("MiDaS DPT-Hybrid", "depth", "dpt-hybrid", "transformers"),
    "dpt_large_hf": ("MiDaS DPT-Large", "depth", "dpt-large", "transformers"),
    "hotshot_xl_temporal": ("HotshotXL motion module", "motion", "sdxl", ""),
    "ip_adapter_full_face_sd15": ("IP-Adapter Full Face", "ip_adapter", "sd15", "full_face"),
    "ip_adapter_plus_sd15": ("IP-Adapter Plus (16 tokens)", "ip_adapter", "sd15", "plus"),
    "ip_adapter_sd15": ("IP-Adapter (4 tokens)", "ip_adapter", "sd15", "plain"),
    "ip_adapter_sd15_vit_g": ("IP-Adapter (4 tokens)", "ip_adapter", "sd15", "plain"),
    "lcm_lora_sd15": ("LoRA", "lora", "sd15", "kohya"),
    "long_animatediff_64": (f"{DIFF} long", "motion", "sd15", "original"),
    "lora_diffusers_sd15": ("LoRA", "lora", "sd15", "diffusers"),
    "lora_kohya_sd15": ("LoRA", "lora", "sd15", "kohya"),
    "lora_kohya_sd15_conv": ("LoRA", "lora", "sd15", "kohya"),
    "lora_peft_sd15": ("LoRA", "lora", "sd15", "peft"),
    "midas_dpt_hybrid_384": ("MiDaS DPT-Hybrid", "depth", "dpt-hybrid", "midas"),
    "midas_dpt_large_384": ("MiDaS DPT-Large", "depth", "dpt-large", "midas"),
    "mm_sd_v15": (f"{DIFF} v1", "motion", "sd15", "original"),
    "mm_sd_v15_v2": (f"{DIFF} v2", "motion", "sd15", "original"),
    "mm_sdxl_v10_beta": (f"{DIFF} for SDXL", "motion", "sdxl", ""),
    "motion_adapter_v1_5_2_diffusers": (f"{DIFF} v2", "motion", "sd15", "diffusers"),
    "motion_adapter_v1_5_3_diffusers": (f"{DIFF} v3", "motion", "sd15", "diffusers"),
    "motion_adapter_v1_5_diffusers": (f"{DIFF} v1", "motion", "sd15", "diffusers"),
    "motion_lora_v2": ("LoRA for motion modules", "lora", "motion", "animatediff"),
    "open_clip_vit_h_14": ("CLIP ViT-H", "clip", "", "open_clip"),
    "openai_vit_l_14": ("CLIP ViT-L", "clip", "", "open_clip"),
    "sd15_diffusers_text_encoder": ("CLIP text ViT-L", "clip_text", "", "transformers"),
    "sd15_diffusers_unet": (f"{SD} 1.x U-Net", "unet", "sd15", "diffusers"),
    "sd15_diffusers_vae": (f"{SD} autoencoder", "vae", "", "diffusers"),
    "sd15_diffusers_vae_old_attention": (f"{SD} autoencoder", "vae", "", "old_diffusers"),
    "sd15_single_file": (f"{SD} 1.x checkpoint", "checkpoint", "sd15", "ldm"),
    "sd21_768_single_file": (f"{SD} 2.x checkpoint", "checkpoint", "sd2", "ldm"),
    "sd21_unclip_h": (f"{SD} 2.1 unCLIP h checkpoint", "checkpoint", "sd2-unclip", "ldm"),
    "sd21_unclip_l": (f"{SD} 2.1 unCLIP l checkpoint", "checkpoint", "sd2-unclip", "ldm"),
    "sd2_depth_single_file": (f"{SD} 2 depth checkpoint", "checkpoint", "sd2-depth", "ldm"),
    "sparsectrl_rgb": ("SparseCtrl", "sparsectrl", "sd15", ""),
    "sparsectrl_rgb_diffusers": ("SparseCtrl", "sparsectrl", "sd15", ""),
    "sparsectrl_scribble": ("SparseCtrl", "sparsectrl", "sd15", ""),
    "sparsectrl_scribble_diffusers": ("SparseCtrl", "sparsectrl", "sd15", ""),
    "t2i_adapter_depth_sd15v2": ("T2I adapter for SD 1.x", "t2i_adapter", "sd15", "original"),
    "t2i_adapter_depth_sd15v2_diffusers": ("T2I adapter for SD 1.x", "t2i_adapter", "sd15", "diffusers"),
    "taesd_decoder": ("TAESD decoder", "taesd", "", "decoder"),
    "taesd_diffusers": ("TAESD", "taesd", "", "diffusers"),
    "taesd_encoder": ("TAESD encoder", "taesd", "", "encoder"),
    "v3_sd15_adapter": ("LoRA", "lora", "sd15", "diffusers"),
    "v3_sd15_mm": (f"{DIFF} v3", "motion", "sd15", "original"),
    "vae_ft_mse_single_file": (f"{SD} autoencoder", "vae", "", "ldm"),
}
REFUSED = {name for name in LAYOUTS if name.startswith(("sparsectrl", "hotshot", "mm_sdxl"))}

FACTS = {
    "sd15_single_file": {"in_channels": 4, "context": 768, "parts": ("unet", "vae", "text")},
    "sd21_unclip_h": {"context": 1024, "label": 2048, "parts": ("unet", "vae", "text", "vision")},
    "sd2_depth_single_file": {"in_channels": 5, "parts": ("unet", "vae", "text", "depth")},
    "mm_sd_v15": {"frames": 24, "middle": False, "attentions": 2, "levels": 4},
    "long_animatediff_64": {"frames": 64, "middle": True},
    "animatelcm_sd15_t2v": {"frames": 0, "middle": True},
    "motion_adapter_v1_5_2_diffusers": {"frames": 32, "middle": True, "attentions": 2, "levels": 4},
    "controlnet_sd15": {"context": 768, "difference": False, "whole": False},
    "t2i_adapter_depth_sd15v2": {"channels": 3, "light": False},
    "ip_adapter_sd15": {"encoding": 1024, "tokens": 4, "context": 768, "reads": "embedding", "layers": 16},
    "ip_adapter_sd15_vit_g": {"encoding": 1280, "tokens": 4, "reads": "embedding"},
    "ip_adapter_plus_sd15": {"encoding": 1280, "tokens": 16, "reads": "hidden states"},
    "ip_adapter_full_face_sd15": {"encoding": 1280, "tokens": 0, "reads": "hidden states"},
    "clip_vit_h_14_vision": {"vision_width": 1280, "vision_layers": 32, "embedding": 1024, "text_layers": 0},
    "open_clip_vit_h_14": {"vision_layers": 32, "text_width": 1024, "text_layers": 24, "embedding": 1024},
    "openai_vit_l_14": {"vision_width": 1024, "text_width": 768, "embedding": 768},
    "depth_anything_v2_vitl_hf": {"width": 1024, "layers": 24},
    "lcm_lora_sd15": {"rank": 64, "context": 768, "unet": True, "text": False, "convolutions": True},
    "lora_peft_sd15": {"rank": 4, "text": True, "convolutions": False},
    "vae_ft_mse_single_file": {"latents": 4},
}


def told(shapes: dict[str, Shape]) -> Format:
    return identify(Header(shapes=shapes))


def in_short(form: Format) -> tuple[str, str, str, str]:
    return form.name, form.kind, form.base, form.layout


def test_every_layout_is_expected() -> None:
    assert set(EXPECTED) == set(LAYOUTS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_public_layout_is_told(name: str) -> None:
    form = told(layout(name).shapes)
    assert in_short(form) == EXPECTED[name]
    assert form.supported is (name not in REFUSED)
    assert form.details.items() >= FACTS.get(name, {}).items()


@pytest.mark.parametrize("name", LAYOUTS)
def test_narrow_networks_of_the_same_layout_are_told(name: str) -> None:
    form = told(scaled(layout(name)).shapes)
    assert in_short(form)[1:] == EXPECTED[name][1:]


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_layout_rests_on_the_order_of_its_keys(name: str) -> None:
    assert in_short(told(dict(reversed(layout(name).shapes.items())))) == EXPECTED[name]


def with_first(name: str, key: str, channels: int) -> dict[str, Shape]:
    shapes = layout(name).shapes
    width, _, *kernel = shapes[key]
    return {**shapes, key: (width, channels, *kernel)}


def sdxl_of(shapes: dict[str, Shape], block: str) -> dict[str, Shape]:
    """Deeper transformers, by which everything of SDXL differs."""
    deeper = {key.replace(block, block[:-2] + "1."): shape for key, shape in shapes.items() if block in key}
    assert deeper
    return {**shapes, **deeper}


SINGLE = "model.diffusion_model.input_blocks.0.0.weight"
CONTROL = layout("controlnet_sd15_bare").shapes
MOTION = layout("mm_sd_v15").shapes
BY_HAND: dict[str, tuple[dict[str, Shape], str, str]] = {
    "inpainting": (with_first("sd15_single_file", SINGLE, 9), "checkpoint", "plain checkpoint"),
    "inpainting of SD 2": (with_first("sd21_768_single_file", SINGLE, 9), "checkpoint", "plain checkpoint"),
    "inpainting U-Net": (with_first("sd15_diffusers_unet", "conv_in.weight", 9), "unet", "plain checkpoint"),
    "InstructPix2Pix": (with_first("sd15_single_file", SINGLE, 8), "checkpoint", "depth ControlNet"),
    "InstructPix2Pix U-Net": (with_first("sd15_diffusers_unet", "conv_in.weight", 8), "unet", "depth ControlNet"),
    "upscaler": (with_first("sd21_768_single_file", SINGLE, 7), "checkpoint", "plain checkpoint"),
    "SDXL": (
        {SINGLE: (320, 4, 3, 3), "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (768,)},
        "checkpoint",
        "checkpoint for SD 1.5",
    ),
    "SDXL U-Net": (
        sdxl_of(layout("sd15_diffusers_unet").shapes, "down_blocks.1.attentions.0.transformer_blocks.0."),
        "unet",
        "U-Net for SD 1.5",
    ),
    "Stable Video Diffusion": (
        {SINGLE: (320, 8, 3, 3), "model.diffusion_model.input_blocks.1.1.time_stack.0.norm1.weight": (320,)},
        "unet",
        "motion module",
    ),
    "Flux": ({"double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "unet", "checkpoint of SD 1.5"),
    "SD3 checkpoint": (
        {"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (1, 1)},
        "unet",
        "checkpoint of SD 1.5",
    ),
    "Flux's autoencoder": (
        {**layout("vae_ft_mse_single_file").shapes, "decoder.conv_in.weight": (512, 16, 3, 3)},
        "vae",
        "vae-ft-mse",
    ),
    "TAEF1": ({**layout("taesd_decoder").shapes, "1.weight": (64, 16, 3, 3)}, "taesd", "taesd_decoder"),
    "PIA": ({**MOTION, "conv_in.weight": (320, 9, 3, 3)}, "motion", "AnimateDiff"),
    "AnimateLCM-I2V": ({**MOTION, "img_encoder.conv_in.weight": (1, 1, 1, 1)}, "motion", "AnimateLCM_sd15_t2v"),
    "ControlNet for SDXL": ({**CONTROL, "label_emb.0.0.weight": (1280, 2816)}, "controlnet", "ControlNet for SD 1.5"),
    "Control-LoRA": ({**CONTROL, "lora_controlnet": ()}, "controlnet", "depth ControlNet"),
    "ControlNet-LLLite": (
        {"lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k.down.0.weight": (1, 1)},
        "controlnet",
        "depth ControlNet",
    ),
    "T2I adapter for SDXL": (
        with_first("t2i_adapter_depth_sd15v2_diffusers", "adapter.conv_in.weight", 768),
        "t2i_adapter",
        "T2I adapter for SD 1.5",
    ),
    "T2I style": ({"transformer_layes.0.ln_1.weight": (1024,)}, "t2i_adapter", "IP-Adapter"),
    "FaceID": (
        {"image_proj.proj.0.weight": (1024, 512), "ip_adapter.1.to_k_ip.weight": (320, 768)},
        "ip_adapter",
        "ip-adapter-plus-face",
    ),
    "FaceID Plus": (
        {"image_proj.perceiver_resampler.latents": (1, 4, 768), "ip_adapter.0.to_q_lora.down.weight": (128, 320)},
        "ip_adapter",
        "ip-adapter-plus-face",
    ),
    "IP-Adapter for SDXL": (
        {**layout("ip_adapter_plus_sd15").shapes, "ip_adapter.139.to_k_ip.weight": (1280, 2048)},
        "ip_adapter",
        "for SD 1.5",
    ),
    "SigLIP": ({"vision_model.head.probe": (1, 1, 1152)}, "clip_vision", "CLIP-ViT-H"),
    "CLIP with a ResNet": ({"visual.layer1.0.conv1.weight": (1, 1, 1, 1)}, "clip", "CLIP-ViT-H"),
    "T5": ({"encoder.block.0.layer.0.SelfAttention.q.weight": (1, 1)}, "clip_text", "its own text encoder"),
    "LoRA for SDXL, kohya": (
        {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (8, 1280)},
        "lora",
        "for SD 1.5",
    ),
    "LoRA for SDXL, blocks": (
        {"lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_down.weight": (8, 640)},
        "lora",
        "for SD 1.5",
    ),
    "LoRA for SDXL, diffusers": (
        {"unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q.lora_A.weight": (8, 640)},
        "lora",
        "for SD 1.5",
    ),
    "LoRA for Flux": ({"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": (8, 1)}, "lora", "SD 1.5"),
    "LoHa": ({"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": (8, 8)}, "lora", "merge it into a checkpoint"),
    "Video Depth Anything": (
        {
            **layout("depth_anything_v2_vits").shapes,
            "head.motion_modules.0.temporal_transformer.norm.weight": (1,),
        },
        "depth",
        "Depth Anything V2",
    ),
    "MiDaS BEiT": (
        {"pretrained.model.blocks.0.attn.relative_position_bias_table": (1, 1)},
        "depth",
        "Depth Anything V2",
    ),
    "textual inversion": ({"emb_params": (8, 768)}, "embedding", "prompt"),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_what_cannot_be_used_is_named_with_what_can(name: str) -> None:
    shapes, kind, advice = BY_HAND[name]
    form = told(shapes)
    assert form.kind == kind and not form.supported
    assert advice in form.reason
    with pytest.raises(ValueError, match=rf"w.safetensors is an? .*, which cannot be used: .*{advice}"):
        form.require(Path("w.safetensors"), form.kind)


VARIANTS: dict[str, tuple[Layout, str, str]] = {
    "of a training run": (layout("mm_sd_v15").renamed("", "module."), f"{DIFF} v1", "module."),
    "beside a U-Net": (
        replace(
            layout("mm_sd_v15"),
            shapes=layout("mm_sd_v15").shapes | layout("sd15_diffusers_unet").shapes,
        ),
        f"{DIFF} v1",
        "",
    ),
    "an encoder of old": (layout("sd15_single_file").renamed("text_model.", ""), f"{SD} 1.x checkpoint", ""),
    "pruned": (layout("sd15_single_file").without("model_ema."), f"{SD} 1.x checkpoint", ""),
    "a U-Net cut out": (
        layout("sd15_single_file").only("model.diffusion_model.", "model_ema."),
        f"{SD} 1.x U-Net",
        "model.diffusion_model.",
    ),
    "a VAE cut out": (layout("sd21_768_single_file").only("first_stage"), f"{SD} autoencoder", "first_stage_model."),
    "no position_ids": (
        layout("clip_vit_h_14_vision").without("vision_model.embeddings.position_ids"),
        "CLIP vision ViT-H",
        "",
    ),
    "transformers 5": (layout("sd15_diffusers_text_encoder").renamed("text_model.", ""), "CLIP text ViT-L", ""),
    "OpenCLIP's image tower": (layout("open_clip_vit_h_14").only("visual."), "CLIP vision ViT-H", ""),
    "OpenCLIP's text tower": (
        layout("open_clip_vit_h_14").without("visual.", "logit_scale"),
        "CLIP text ViT-H",
        "",
    ),
    "IP-Adapter in other words": (
        layout("ip_adapter_sd15").renamed("ip_adapter.", "adapter_modules."),
        "IP-Adapter (4 tokens)",
        "",
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_in_the_wild_are_told(name: str) -> None:
    file, expected, prefix = VARIANTS[name]
    form = told(file.shapes)
    assert (form.name, form.prefix, form.supported) == (expected, prefix, True)


def test_a_controlnet_with_differences_or_beside_a_checkpoint_says_so() -> None:
    assert told({**CONTROL, "difference": ()}).details["difference"] is True
    both = layout("controlnet_sd15").shapes | layout("sd15_single_file").shapes
    assert told(both).kind == "controlnet" and told(both).details["whole"] is True


def test_a_lora_for_sd2_is_told_by_its_context() -> None:
    key = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora.down.weight"
    assert told({key: (4, 1024)}).base == "sd2" and told({key: (4, 768)}).base == "sd15"


def test_what_is_unknown_shows_its_keys() -> None:
    form = told({"stem.weight": (1,), "body.bias": (2,)})
    assert form.kind == "unknown" and "stem.weight, body.bias" in form.reason and not form.supported


def test_another_kind_is_refused_with_what_was_wanted() -> None:
    with pytest.raises(
        ValueError, match=r"is a motion module \(.* v1\), and an IP-Adapter is needed.*give the file of an"
    ):
        told(MOTION).require(Path("a.pth"), "ip_adapter")
    assert told(MOTION).require(Path("a.pth"), "motion", "lora").kind == "motion"


@pytest.mark.parametrize(
    ("name", "suffix", "wrap", "nest"),
    [
        ("ip_adapter_sd15", ".safetensors", "", False),
        ("ip_adapter_sd15", ".bin", "", True),
        ("ip_adapter_plus_sd15", ".bin", "", True),
        ("t2i_adapter_depth_sd15v2", ".pth", "", False),
        ("motion_lora_v2", ".ckpt", "state_dict", False),
        ("midas_dpt_hybrid_384", ".pt", "model", False),
        ("sparsectrl_rgb", ".ckpt", "controlnet", False),
        ("taesd_decoder", ".pth", "", False),
    ],
)
def test_files_are_told_whatever_they_are_called(tmp_path: Path, name: str, suffix: str, wrap: str, nest: bool) -> None:
    path = write(tmp_path / f"model{suffix}", fixture(name), wrap=wrap, nest=nest)
    renamed = path.rename(tmp_path / "sd_xl_base_1.0.gguf")
    assert in_short(identify_path(renamed)) == EXPECTED[name]


@pytest.mark.parametrize("name", ["sd15_single_file", "sd2_depth_single_file", "clip_vit_bigg_14_vision"])
def test_files_of_true_size_are_told_without_reading_them(tmp_path: Path, name: str) -> None:
    path = write_empty(tmp_path / "w.safetensors", layout(name))
    assert path.stat().st_size > 3e9
    assert in_short(identify_path(path)) == EXPECTED[name]


def test_a_torchscript_archive_is_named(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "ViT-L-14.pt", "w") as archive:
        archive.writestr("ViT-L-14/constants.pkl", b"\x80\x02).")
        archive.writestr("ViT-L-14/code/__torch__.py", "pass")
    form = identify_path(tmp_path / "ViT-L-14.pt")
    assert form.name == "TorchScript archive" and "clip-vit-large-patch14" in form.reason


def test_our_own_files_say_what_they_are(tmp_path: Path) -> None:
    config = DepthNetConfig()
    save_file(tmp_path / "a", {"x": torch.zeros(1)}, kind="depth", config=config, metadata={})
    form = identify_path(tmp_path / "a")
    assert (form.kind, form.base, form.details) == ("gen1", "gen1", {"part": "depth"})
    save_depth(tmp_path / "b", torch.zeros(1, 1, 2, 4, 4), DepthRange(low=0.0, high=1.0))
    assert identify_path(tmp_path / "b").kind == "depth map"


def diffusers_folder(folder: Path) -> Path:
    names = {"unet": "sd15_diffusers_unet", "vae": "sd15_diffusers_vae_old_attention"}
    for part, name in names.items():
        write_empty(folder / part / "diffusion_pytorch_model.safetensors", scaled(layout(name)))
    write_empty(folder / "text_encoder" / "model.safetensors", scaled(layout("sd15_diffusers_text_encoder")))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "X"}), encoding="utf-8")
    return folder


def test_a_diffusers_folder_is_a_checkpoint(tmp_path: Path) -> None:
    form = identify_path(diffusers_folder(tmp_path / "sd"))
    assert (form.kind, form.base, form.layout) == ("checkpoint", "sd15", "diffusers")
    assert form.details["parts"] == ("unet", "vae", "text_encoder")
    assert {part: identify_path(path).kind for part, path in folder_parts(tmp_path / "sd").items()} == {
        "unet": "unet",
        "vae": "vae",
        "text_encoder": "clip_text",
    }
    assert identify_path(tmp_path / "sd" / "vae").layout == "old_diffusers"


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"is a folder with notes\.txt.*give a file of weights"):
        identify_path(tmp_path)
