"""Motion module files: every key of the public layouts in both namings, there and back, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints.layouts import fixture, layout, write
from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers
from torch import Tensor
from torch.testing import assert_close

from gen1_core.checkpoints.files import read_file
from gen1_core.checkpoints.motion import (
    betas_of,
    diffusers_table,
    modules_of,
    motion_config_of,
    motion_from,
    motion_table,
    motion_to,
    with_motion,
)
from gen1_core.models.motion import MotionConfig
from gen1_core.models.unet import SpaceTimeUNet, UNetConfig

ORIGINAL = ("mm_sd_v15", "mm_sd_v15_v2", "v3_sd15_mm", "animatelcm_sd15_t2v", "long_animatediff_64")
DIFFUSERS = ("motion_adapter_v1_5_diffusers", "motion_adapter_v1_5_2_diffusers", "motion_adapter_v1_5_3_diffusers")
CONFIGS = {
    "mm_sd_v15": MotionConfig(frames=24),
    "mm_sd_v15_v2": MotionConfig(frames=32, middle=True),
    "v3_sd15_mm": MotionConfig(frames=32),
    "animatelcm_sd15_t2v": MotionConfig(frames=64, middle=True),
    "long_animatediff_64": MotionConfig(frames=64, middle=True),
    "motion_adapter_v1_5_diffusers": MotionConfig(frames=24),
    "motion_adapter_v1_5_2_diffusers": MotionConfig(frames=32, middle=True),
    "motion_adapter_v1_5_3_diffusers": MotionConfig(frames=32),
}
SD1 = UNetConfig(in_channels=4, temporal=False)
SMALL = replace(SD1, block_out_channels=(32, 64, 128, 128), cross_attention_dim=192)
PATH = Path("motion.safetensors")
TEMPORAL = ".temporal_transformer.transformer_blocks"


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert_close(ours[name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("name", ORIGINAL + DIFFUSERS)
def test_config_and_names_of_the_public_files_at_full_size(name: str) -> None:
    shapes = layout(name).shapes
    config = motion_config_of(shapes)
    assert config == CONFIGS[name]
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    if name in ORIGINAL:
        # Equality of the copies needs values, which are not there; the names are what counts here.
        table = motion_table(modules_of(shapes), config)
        named = {own for row in table for own in row.ours if all(key in tensors for key in row.theirs)}
        assert {key for row in table for key in row.theirs} >= tensors.keys()
    else:
        named = set(motion_from(tensors, PATH)[0])
    with torch.device("meta"):
        state = SpaceTimeUNet(replace(SD1, motion=config)).state_dict()
    wanted = {key for key in state if "motion_modules" in key}
    assert wanted - named == ({key for key in wanted if key.endswith(".pe")} if "lcm" in name else set())
    assert named <= wanted


@pytest.mark.parametrize("name", ORIGINAL)
def test_original_files_become_what_diffusers_makes_of_them(name: str) -> None:
    file = fixture(name)
    ours, config = motion_from(file, PATH)
    learned = {key: tensor for key, tensor in ours.items() if not key.endswith(".pe")}
    same(learned, convert_animatediff_checkpoint_to_diffusers(file))
    for key in ours.keys() - learned.keys():
        copies = key.replace(".transformer_blocks", TEMPORAL)
        for index in range(2):
            stored = file.get(copies.replace("pos_embed", f"attention_blocks.{index}.pos_encoder"))
            assert_close(ours[key], stored if stored is not None else ours[key], rtol=0, atol=0)
        assert ours[key].shape[1] == config.frames


@pytest.mark.parametrize("name", ORIGINAL)
def test_saving_gives_the_file_back(name: str, tmp_path: Path) -> None:
    file = fixture(name)
    ours, config = motion_from(file, PATH)
    with_the_rest = {**ours, "conv_in.weight": torch.ones(1)}
    saved = read_file(write(tmp_path / "motion.safetensors", motion_to(with_the_rest, config))).tensors
    same({key: tensor for key, tensor in saved.items() if key in file}, file)
    assert all(".pe" in key for key in saved.keys() - file.keys()) and (saved.keys() == file.keys() or "lcm" in name)
    same(motion_from(saved, PATH)[0], ours)


@pytest.mark.parametrize("name", DIFFUSERS)
def test_adapters_of_diffusers_load_as_they_are(name: str) -> None:
    file = fixture(name)
    ours, config = motion_from(file, PATH)
    same(ours, file)
    assert with_motion(SMALL, ours, config, path=PATH).longest == CONFIGS[name].frames
    assert {own for row in diffusers_table(modules_of(file), config) for own in row.ours} == file.keys()


@pytest.mark.parametrize("wrap", ["", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_training_checkpoints_are_unwrapped(tmp_path: Path, prefix: str, wrap: str) -> None:
    file = fixture("mm_sd_v15")
    image = {"conv_in.weight": torch.ones(32, 4, 3, 3), "down_blocks.0.resnets.0.conv1.weight": torch.ones(2)}
    path = tmp_path / "mm.ckpt"
    content = {prefix + key: tensor for key, tensor in {**file, **image}.items()}
    torch.save({wrap: content, "epoch": 3} if wrap else {**content, "animatediff_config": "x"}, path)
    same(motion_from(read_file(path).tensors, path)[0], motion_from(file, PATH)[0])


def test_computed_positions_have_the_type_of_the_file() -> None:
    file = {key: tensor.half() for key, tensor in fixture("animatelcm_sd15_t2v").items()}
    assert {tensor.dtype for tensor in motion_from(file, PATH)[0].values()} == {torch.float16}


def test_two_different_sets_of_positions_are_refused() -> None:
    file = fixture("mm_sd_v15")
    name = next(key for key in file if key.endswith("attention_blocks.1.pos_encoder.pe"))
    with pytest.raises(ValueError, match="whose positions are the public ones"):
        motion_from({**file, name: file[name] + 1}, PATH)
    with pytest.raises(ValueError, match="download the file again"):
        motion_from({**file, name: file[name][:, :8]}, PATH)
    del file[name]
    with pytest.raises(ValueError, match="download the file again"):
        motion_from(file, PATH)


@pytest.mark.parametrize(
    ("extra", "shape", "what"),
    [
        ("conv_in.weight", (32, 9, 3, 3), "PIA"),
        ("img_encoder.conv.weight", (1,), "AnimateLCM-I2V"),
        ("controlnet_cond_embedding.weight", (1,), "SparseCtrl"),
        ("fps_embedding.linear.bias", (1,), "FancyVideo"),
    ],
)
def test_relatives_are_refused_by_name(extra: str, shape: tuple[int, ...], what: str) -> None:
    with pytest.raises(ValueError, match=f"{what}.*take a motion module for Stable Diffusion 1.5"):
        motion_from({**fixture("mm_sd_v15"), extra: torch.ones(shape)}, PATH)


def test_files_without_motion_modules_are_refused() -> None:
    with pytest.raises(ValueError, match="take a motion module for Stable Diffusion 1.5"):
        motion_from(fixture("hotshot_xl_temporal"), PATH)
    with pytest.raises(ValueError, match="give a motion module for Stable Diffusion 1.5"):
        motion_from({"encoder.conv_in.weight": torch.ones(1)}, PATH)
    with pytest.raises(ValueError, match="give it where it belongs"):
        motion_from({**fixture("mm_sd_v15"), "something.else": torch.ones(1)}, PATH)


def test_modules_for_another_base_model_are_refused() -> None:
    sdxl, config = motion_from(fixture("mm_sdxl_v10_beta"), PATH)
    with pytest.raises(ValueError, match="SDXL; take a motion module made for this Stable Diffusion"):
        with_motion(SMALL, sdxl, config, path=PATH)
    ours, config = motion_from(fixture("mm_sd_v15"), PATH)
    with pytest.raises(ValueError, match="take a motion module made for this Stable Diffusion"):
        with_motion(SD1, ours, config, path=PATH)


def test_betas_are_those_the_modules_were_trained_with() -> None:
    assert betas_of(SD1) == "scaled_linear"
    assert betas_of(replace(SD1, motion=MotionConfig())) == "linear"
