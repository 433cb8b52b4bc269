"""Public files made into one model: every part counts, files are found, and what does not fit says so."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints.layouts import Layout, fixture, layout, scaled, write
from parts import relative_error

from gen1_core.checkpoints.files import config_from_plain, read_file
from gen1_core.cli import main
from gen1_core.gen1 import Gen1
from gen1_core.models.unet import UNetConfig
from gen1_core.pipeline import describe, edit, generate
from gen1_core.presets import COMPOSITIONS, DEMO_CLIP
from gen1_core.recipes.sd15 import compose, read
from gen1_core.recipes.sd15_files import PublicFiles
from gen1_core.structure.estimator import Structure, load_depth
from gen1_core.video.clip import MemoryClip

NAMES = {
    "checkpoint": ("checkpoints/dream.safetensors", "sd15_single_file"),
    "motion": ("animatediff_models/v3.ckpt", "v3_sd15_mm"),
    "control": ("controlnet/1.5/depth.pth", "controlnet_sd15"),
    "adapter": ("ipadapter/sd15.safetensors", "ip_adapter_sd15"),
    "plus": ("ipadapter/plus.bin", "ip_adapter_plus_sd15"),
    "vision": ("clip_vision/model.safetensors", "clip_vit_h_14_vision"),
    "t2i": ("other/t2i.pth", "t2i_adapter_depth_sd15v2"),
    "vae": ("vae/vae.safetensors", "vae_ft_mse_single_file"),
    "lora": ("loras/style.safetensors", "lora_kohya_sd15"),
    "lcm": ("other/AnimateLCM.ckpt", "animatelcm_sd15_t2v"),
    "xl": ("other/xl.ckpt", "mm_sdxl_v10_beta"),
    "vit_l": ("other/clip_l.safetensors", "clip_vit_l_14_vision"),
    "unclip": ("other/unclip_h.safetensors", "sd21_unclip_h"),
    "sd2": ("other/sd2.safetensors", "sd21_768_single_file"),
    "taesd_encoder": ("other/taesd_encoder.pth", "taesd_encoder"),
    "taesd_decoder": ("other/taesd_decoder.pth", "taesd_decoder"),
}


def narrowed(name: str) -> Layout:
    """Scaled down, with CLIP's whole vocabulary, since prompts are read with it; no averaged copies."""
    small, whole = scaled(layout(name)).without("model_ema."), layout(name)
    shapes = {
        key: (whole.shapes[key][0], *shape[1:]) if key.endswith("token_embedding.weight") else shape
        for key, shape in small.shapes.items()
    }
    return replace(small, shapes=shapes)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder as ComfyUI's, every file in its public layout and small."""
    folder = tmp_path_factory.mktemp("models")
    for file, name in NAMES.values():
        tensors = fixture(narrowed(name), small=False)
        write(folder / file, tensors, nest=file.endswith(".bin"))
    return folder


def files(models: Path, *parts: str, checkpoint: str = "checkpoint", **more: object) -> PublicFiles:
    path = {name: models / file for name, (file, _) in NAMES.items()}
    given: dict[str, object] = {"checkpoint": path[checkpoint]}
    for part in parts:
        place = {"lcm": "motion", "xl": "motion", "vision": "clip_vision", "vit_l": "clip_vision"}.get(part, part)
        if part in ("control", "t2i"):
            given["controls"] = (*given.get("controls", ()), path[part])
        elif part in ("adapter", "plus"):
            given["ip_adapters"] = (*given.get("ip_adapters", ()), path[part])
        elif part == "lora":
            given["loras"] = ((path[part], 1.0),)
        elif part == "vae":
            given["vae"] = (path[part],)
        else:
            given[place] = path[part]
    return PublicFiles(**{**given, **more})


def model(models: Path, *parts: str, **more: object) -> Gen1:
    """A composition that works at 64 pixels, where the real ones work at 512."""
    gen1 = compose(read(files(models, *parts, **more)))
    return replace(gen1, diffusion=replace(gen1.diffusion, working_size=64))


def clip(frames: int = 3) -> MemoryClip:
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(frames, 3, 5, 7, generator=generator)
    pictures = torch.nn.functional.interpolate(small, (64, 72), mode="bicubic").clamp(0, 1)
    return MemoryClip((pictures * 255).byte())


PICTURE = torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(1))


def result(gen1: Gen1, *, image: torch.Tensor | None = None, prompt: str = "gold", **sliders: object) -> torch.Tensor:
    content = describe(gen1, prompt=prompt, image=image, negative="blurry")
    depth = torch.rand(1, 1, 3, 64, 128, generator=torch.Generator().manual_seed(2))
    options = replace(gen1.defaults, **{"steps": 2, "content_scale": 3.0, "overlap": 0, "passes": 1, **sliders})
    return torch.cat(list(edit(gen1, clip(), content, options, depth=depth))).float()


def moved(a: torch.Tensor, b: torch.Tensor) -> bool:
    return ((a - b).abs().mean() / 255).item() > 0.01


FULL = ("motion", "control", "adapter", "vision")


@pytest.fixture(scope="module")
def whole(models: Path) -> Gen1:
    return model(models, *FULL)


@pytest.fixture(scope="module")
def base(whole: Gen1) -> torch.Tensor:
    return result(whole, image=PICTURE)


@pytest.mark.slow
def test_a_composition_edits_with_its_own_defaults(whole: Gen1, base: torch.Tensor) -> None:
    assert base.shape == (3, 3, 64, 72) and base.std() > 5
    assert whole.diffusion.schedule.betas == "linear" and whole.diffusion.prediction == "eps"
    assert whole.defaults == COMPOSITIONS["animatediff"].options
    assert whole.describer.reads_both and whole.reads_structure


@pytest.mark.slow
@pytest.mark.parametrize("without", ["motion", "control", "adapter"])
def test_every_part_counts(models: Path, base: torch.Tensor, without: str) -> None:
    parts = [part for part in FULL if part != without]
    image = None if without == "adapter" else PICTURE
    assert moved(result(model(models, *parts), image=image), base)


@pytest.mark.slow
@pytest.mark.parametrize("more", ["lora", "vae", "t2i", "plus"])
def test_every_addition_counts(models: Path, base: torch.Tensor, more: str) -> None:
    assert moved(result(model(models, *FULL, more), image=PICTURE), base)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sliders",
    [
        {"structure_strength": 0.0},
        {"temporal_scale": 0.0, "content_scale": 0.0},
        {"content_scale": 1.0},
        {"structure_scale": 4.0},
    ],
)
def test_every_slider_counts(whole: Gen1, base: torch.Tensor, sliders: dict[str, float]) -> None:
    assert moved(result(whole, image=PICTURE, **sliders), base)


@pytest.mark.slow
def test_structure_sliders_reach_the_control_network(whole: Gen1, base: torch.Tensor) -> None:
    for slider in ({"blur_level": 7}, {"structure_end": 0.5}):  # a random network hardly looks at its hint
        assert not torch.equal(result(whole, image=PICTURE, **slider), base)


@pytest.mark.slow
def test_prompt_picture_and_negative_count(whole: Gen1, base: torch.Tensor) -> None:
    assert moved(result(whole, image=PICTURE, prompt="a stormy sea at night"), base)
    assert moved(result(whole, image=1 - PICTURE), base)
    assert moved(result(whole, image=None), base)
    content = describe(whole, prompt="gold", negative="blurry")
    assert not torch.equal(content.null, describe(whole, prompt="gold").null)


@pytest.mark.slow
def test_strength_zero_is_the_model_without_control(models: Path, whole: Gen1) -> None:
    free = model(models, *(part for part in FULL if part != "control"))
    torch.testing.assert_close(
        result(whole, image=PICTURE, structure_strength=0.0), result(free, image=PICTURE), rtol=0, atol=0
    )


@pytest.mark.slow
@pytest.mark.parametrize("own_hints", [False, True])
def test_structure_scale_moves_away_from_silent_control(whole: Gen1, models: Path, own_hints: bool) -> None:
    """As the difference to a model that has no control network, which takes the same step; in calls of any size."""
    free = model(models, *(part for part in FULL if part != "control"))
    content = describe(whole, prompt="gold", image=PICTURE)
    depth = torch.rand(1, 1, 3, 64, 128, generator=torch.Generator().manual_seed(2))
    # One step, whose result is the clean estimate: sums of passes are sums of results.
    options = replace(whole.defaults, steps=1, sampler="ddim", spacing="trailing", overlap=0, passes=1)
    structure = Structure(depth=depth)

    def made(gen1: Gen1, content_scale: float, structure_scale: float = 1.0, passes: int = 1) -> torch.Tensor:
        scales = {"content_scale": content_scale, "structure_scale": structure_scale, "passes": passes}
        hints = [structure] * len(gen1.controls) if own_hints else []
        return generate(gen1, structure, content, replace(options, **scales), hints=hints)

    bare, null, full = made(free, 0.0), made(whole, 0.0), made(whole, 1.0)
    expected = bare + 3.0 * (null - bare) + 2.0 * (full - null)
    for passes in (1, 4):
        found = made(whole, 2.0, structure_scale=3.0, passes=passes)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert relative_error(found, made(whole, 2.0)) > 0.01


@pytest.mark.slow
def test_longer_clips_go_through_windows(whole: Gen1) -> None:
    content, long = describe(whole, prompt="gold"), clip(7)
    depth = torch.rand(1, 1, 7, 64, 128)
    options = replace(whole.defaults, steps=1, window=4, overlap=2, passes=1)
    assert torch.cat(list(edit(whole, long, content, options, depth=depth))).shape[0] == 7
    with pytest.raises(ValueError, match="or 0 for that many"):
        edit(whole, long, content, replace(options, window=33), depth=depth)


@pytest.mark.slow
def test_unclip_reads_the_picture_by_itself(models: Path) -> None:
    gen1 = model(models, checkpoint="unclip")
    assert gen1.diffusion.prediction == "v" and gen1.unet.config.class_embedding_width
    picture = result(gen1, image=PICTURE)
    assert moved(result(gen1, image=None), picture) and moved(result(gen1, image=1 - PICTURE), picture)


@pytest.mark.slow
def test_animate_lcm_brings_its_own_defaults_and_taesd_a_quick_draft(models: Path) -> None:
    tiny = tuple(models / NAMES[half][0] for half in ("taesd_encoder", "taesd_decoder"))
    gen1 = model(models, "lcm", vae=tiny)
    assert gen1.defaults == COMPOSITIONS["animatelcm"].options
    assert result(gen1).shape == (3, 3, 64, 72)


@pytest.mark.slow
def test_eight_bits_stay_near(models: Path) -> None:
    plan = read(files(models, "motion", "control"))
    small, full = compose(plan, fp8=True), compose(plan)
    weight = small.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q").weight
    assert weight.dtype == torch.float8_e4m3fn and small.dtype == torch.float32
    near, far = (result(replace(one, diffusion=replace(one.diffusion, working_size=64))) for one in (small, full))
    assert 0 < (near - far).abs().mean() / 255 < 0.15


WRONG: dict[str, tuple[Callable[[Path], PublicFiles], str]] = {
    "SDXL motion": (lambda m: files(m, "xl"), r"motion module for SDXL\).*take the .* for SD 1.5"),
    "ViT-L into ViT-H": (lambda m: files(m, "adapter", "vit_l"), "give the CLIP vision|give a CLIP vision"),
    "no CLIP vision": (lambda m: files(m, "adapter"), "give --clip-vision"),
    "ControlNet on SD2": (lambda m: files(m, "control", checkpoint="sd2"), "or a checkpoint of SD 1.5"),
    "adapter on SD2": (lambda m: files(m, "adapter", "vision", checkpoint="sd2"), "or a checkpoint of SD 1.5"),
    "motion on SD2": (lambda m: files(m, "motion", checkpoint="sd2"), "give a motion module made for SD 2.x"),
    "LoRA on SD2": (lambda m: files(m, "lora", checkpoint="sd2"), "a LoRA made for this one"),
    "two autoencoders": (lambda m: files(m, vae=(m / NAMES["vae"][0],) * 2), "give one, or the two halves"),
    "half a TAESD": (lambda m: files(m, vae=(m / NAMES["taesd_encoder"][0],)), "give taesd_encoder and taesd_decoder"),
    "ViT-L beside unCLIP H": (lambda m: files(m, "vit_l", checkpoint="unclip"), "leave --clip-vision out"),
    "motion as checkpoint": (lambda m: files(m, checkpoint="motion"), "give the file of"),
    "checkpoint as control": (lambda m: files(m, controls=(m / NAMES["checkpoint"][0],)), "give the file of"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_before_any_work(models: Path, case: str) -> None:
    make, advice = WRONG[case]
    with pytest.raises(ValueError, match=advice):
        read(make(models))


@pytest.mark.parametrize("key", ["logit_scale", "text_projection"])
def test_keys_of_clips_shared_space_do_no_harm(models: Path, tmp_path: Path, key: str) -> None:
    tensors = {**fixture(narrowed("sd15_single_file"), small=False), f"cond_stage_model.{key}": torch.ones(1)}
    tensors["v_pred"] = torch.ones(1)
    path = write(tmp_path / "finetune.safetensors", tensors)
    assert read(PublicFiles(checkpoint=path)).composition == "image"


def test_a_text_encoder_of_its_own_is_the_one_that_reads(models: Path, tmp_path: Path) -> None:
    tensors = fixture(narrowed("sd15_diffusers_text_encoder"), small=False, seed=7)
    path = write(tmp_path / "text_encoder" / "model.safetensors", tensors)
    (tmp_path / "text_encoder" / "config.json").write_text("{}", encoding="utf-8")
    own, other = (read(files(models, **more)) for more in ({}, {"text_encoder": path.parent}))
    names = [key for key in own.parts["text"] if "ln_final" in key]
    assert names and not torch.equal(own.parts["text"][names[0]], other.parts["text"][names[0]])
    with pytest.raises(ValueError, match="of its own family"):
        read(files(models, checkpoint="sd2", text_encoder=path))


def test_folders_of_one_network_are_taken_as_its_file(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "image_encoder"
    folder.mkdir()
    shutil.copy(models / NAMES["vision"][0], folder / "model.safetensors")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    plan = read(files(models, "adapter", clip_vision=folder))
    assert plan.files.clip_vision == folder / "model.safetensors"


def test_block_scales_go_to_their_blocks(models: Path) -> None:
    gen1 = compose(read(files(models, "adapter", "vision", ip_scale={"up_blocks.1": 1.0})))
    scales = describe(gen1, prompt="gold", image=PICTURE).pictures[0].scales
    assert len(scales) == 16 and sum(scales) == 3


def test_what_is_predicted_is_the_familys_unless_told(models: Path) -> None:
    assert read(files(models)).prediction == "eps" and read(files(models), prediction="v").prediction == "v"
    assert read(files(models, checkpoint="unclip")).prediction == "v"


@pytest.mark.slow
def test_the_command_finds_files_by_name_and_by_content(models: Path, tmp_path: Path, caplog) -> None:
    tree = tmp_path / "models"
    for name in ("checkpoints", "animatediff_models", "controlnet", "clip_vision", "loras"):
        shutil.copytree(models / name, tree / name)
    (tree / "ipadapter").mkdir()
    shutil.copy(models / NAMES["adapter"][0], tree / "ipadapter" / "named_badly.safetensors")
    video = tmp_path / "out.mp4"
    command = ["edit", str(DEMO_CLIP), "-o", str(video), "--end", "0.1", "--size", "64", "--device", "cpu"]
    command += ["--prompt", "an oil painting", "--negative", "blurry", "--steps", "1", "--models", str(tree)]
    command += ["--motion", "--controlnet", "--ip-adapter", "--image", str(DEMO_CLIP), "--lora", "style:0.5"]
    assert main([*command, "--dtype", "keep", "--ip-scale", "0.8"]) == 0 and video.stat().st_size > 0
    assert "give --depth" in caplog.text
    write(tree / "depthanything" / "vits.pth", fixture("depth_anything_v2_vits", small=False))
    caplog.clear()
    assert main([*command, "--depth", "vits.pth", "--max-size", "64"]) == 0 and "give --depth" not in caplog.text


@pytest.mark.parametrize(
    ("more", "advice"),
    [
        (["--motion", "v2_missing.ckpt"], "Give --motion"),
        (["--checkpoint", "nothing.safetensors"], "Give --checkpoint"),
        (["--vae"], "expected at least one argument"),
        (["--lora", "sytle"], "style.safetensors"),
        (["--ip-adapter"], "name it with --ip-adapter"),
        (["--image", str(DEMO_CLIP)], "(--ip-adapter, --clip-vision)"),
        (["--motion", "v3.ckpt", "--window", "64"], "or 0 for that many"),
        (["--depth", "v2_vits.pth"], "Give --depth"),
        (["--ip-scale", "up_blocks"], "give 0.6"),
    ],
)
def test_the_command_names_what_is_missing(models: Path, tmp_path: Path, capsys, more: list[str], advice: str) -> None:
    command = ["edit", str(DEMO_CLIP), "-o", str(tmp_path / "out.mp4"), "--prompt", "gold", "--models", str(models)]
    command += ["--checkpoint", "dream.safetensors"] if "--checkpoint" not in more else []
    try:
        status = main([*command, *more])
    except SystemExit as stop:
        status = stop.code
    assert status == 2 and advice in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("checkpoint", ["a checkpoint", "Stable Diffusion 1.x", "context: 192"]),
        ("motion", ["a motion module", "frames: 32"]),
        ("control", ["a ControlNet"]),
        ("plus", ["an IP-Adapter", "tokens: 16"]),
        ("xl", ["cannot be used"]),
    ],
)
def test_info_says_what_a_file_is(models: Path, capsys, part: str, said: list[str]) -> None:
    assert main(["info", str(models / NAMES[part][0])]) == 0
    text = capsys.readouterr().out
    assert all(words in text for words in said), text


def test_inflate_writes_a_u_net_that_says_how_to_train_it(models: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "unet.safetensors"
    command = ["inflate", str(models / NAMES["checkpoint"][0]), "-o", str(output), "--frames", "4"]
    assert main(command) == 0 and "12 input channels" in capsys.readouterr().out
    file = read_file(output)
    config = config_from_plain(UNetConfig, file.metadata["config"])
    assert (file.kind, config.in_channels, config.temporal, config.frames) == ("unet", 12, True, 4)
    assert not file.tensors["conv_in.weight"][:, 4:].any() and file.tensors["conv_in.weight"][:, :4].any()
    assert main([*command, "--motion", str(models / NAMES["motion"][0])]) == 0
    file = read_file(output)
    config = config_from_plain(UNetConfig, file.metadata["config"])
    assert config.motion is not None and json.loads(file.metadata["diffusion"])["schedule"]["betas"] == "linear"
    assert main([*command[:3], str(models / NAMES["motion"][0]), "--motion", str(models / NAMES["motion"][0])]) == 2
    assert "another name" in capsys.readouterr().err
    assert main(["inflate", str(models / NAMES["lora"][0]), "-o", str(output)]) == 2
    assert "give the file of" in capsys.readouterr().err and read_file(output).kind == "unet"


@pytest.mark.slow
def test_a_depth_network_of_the_users_reads_the_clip(models: Path, tmp_path: Path) -> None:
    """Depth Anything V2 small at its real size with random weights: its depth is not the embedded model's."""
    network = write(tmp_path / "any_name.safetensors", fixture("depth_anything_v2_vits", small=False))
    depths = []
    for name, more in (("own", []), ("theirs", ["--depth", str(network)])):
        saved = tmp_path / f"{name}.safetensors"
        command = ["depth", str(DEMO_CLIP), "-o", str(saved), "--end", "0.05", "--max-size", "64", "--device", "cpu"]
        assert main([*command, *more]) == 0
        depths.append(load_depth(saved)[0])
    assert depths[0].shape == depths[1].shape and (depths[0] - depths[1]).abs().mean() > 0.05
