"""A Gen-1 start: an image U-Net with what is new, equal to the image model at step 0, and able to learn the rest."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints.layouts import fixture, layout
from parts import randomised, relative_error
from safetensors.torch import save_file
from torch import Tensor

from gen1_core.checkpoints.files import config_from_plain, load_module, read_file
from gen1_core.checkpoints.inflate import Motion, inflate, inflate_file
from gen1_core.checkpoints.keymap import to_theirs
from gen1_core.checkpoints.ldm import unet_from, unet_table
from gen1_core.models.motion import MotionConfig
from gen1_core.models.unet import SpaceTimeUNet, UNetConfig

PREFIX = "model.diffusion_model."
IMAGE = UNetConfig(
    in_channels=4,
    block_out_channels=(32, 64),
    layers_per_block=1,
    attention=(True, True),
    num_attention_heads=8,
    cross_attention_dim=16,
    temporal=False,
)
FRAMES = 4


def image_unet(config: UNetConfig = IMAGE) -> SpaceTimeUNet:
    unet = randomised(SpaceTimeUNet(config))
    assert isinstance(unet, SpaceTimeUNet)
    return unet


def built(tensors: dict[str, Tensor], config: UNetConfig) -> SpaceTimeUNet:
    return load_module(
        lambda: SpaceTimeUNet(config), tensors, device=torch.device("cpu"), dtype=torch.float32, path=Path("start")
    )


def shared(tensors: dict[str, Tensor], config: UNetConfig) -> SpaceTimeUNet:
    """The network on these very tensors: at real size there is no room for two."""
    with torch.device("meta"):
        unet = SpaceTimeUNet(config)
    unet.load_state_dict(tensors, strict=True, assign=True)
    return unet.eval()


def inputs(width: int, *, frames: int = FRAMES, size: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy latents, structure, timestep, and the one token of an image embedding."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, frames, size, size, generator=generator)
    structure = torch.randn(2, 8, frames, size, size, generator=generator)
    return x, structure, torch.tensor([500.0, 20.0]), torch.randn(2, 1, 1, width, generator=generator)


@torch.no_grad()
@pytest.mark.parametrize("image", [True, False], ids=["images", "clips"])
def test_a_start_is_the_image_model(image: bool) -> None:
    unet = image_unet()
    start = built(*inflate(unet.state_dict(), unet.config, frames=FRAMES, seed=0))
    x, structure, timestep, content = inputs(16)
    expected = unet(x, timestep, content)
    found = start(torch.cat([x, structure], dim=1), timestep, content, image=image)
    error = relative_error(found, expected)
    assert error <= 1e-6, error
    assert start.config == replace(IMAGE, in_channels=12, temporal=True, frames=FRAMES)


def test_everything_new_can_learn() -> None:
    """A zero that gets no gradient would stay zero; what lies behind zeros gets one from the second step on."""
    unet = image_unet()
    start = built(*inflate(unet.state_dict(), unet.config, frames=FRAMES, seed=0)).requires_grad_()
    new = {name: value for name, value in start.named_parameters() if name not in unet.state_dict()}
    rate = torch.optim.SGD(start.parameters(), lr=0.1)
    x, structure, timestep, content = inputs(16)
    for _ in range(2):
        rate.zero_grad()
        start(torch.cat([x, structure], dim=1), timestep, content).square().mean().backward()
        rate.step()
    structural = start.get_parameter("conv_in.weight").grad
    assert structural is not None
    assert structural[:, 4:].abs().amax(dim=(0, 2, 3)).min() > 0
    assert len(new) > 20
    assert [name for name, value in new.items() if value.grad is None or not value.grad.abs().max() > 0] == []


def test_the_seed_makes_the_new_layers() -> None:
    unet = image_unet()
    one, again, other = (inflate(unet.state_dict(), unet.config, frames=FRAMES, seed=seed)[0] for seed in (3, 3, 4))
    assert all(torch.equal(one[name], again[name]) for name in one)
    position = "down_blocks.0.temporal_attentions.0.position.weight"
    assert not torch.equal(one[position], other[position])


def test_new_layers_have_the_dtype_of_the_checkpoint() -> None:
    unet = image_unet().to(torch.float16)
    tensors, _ = inflate(unet.state_dict(), unet.config, frames=FRAMES, seed=0)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


@pytest.mark.parametrize("change", [{"in_channels": 5}, {"class_embedding_width": 32}, {"in_channels": 12}])
def test_what_is_no_plain_image_model_is_refused(change: dict[str, int]) -> None:
    config = replace(IMAGE, **change)
    with pytest.raises(ValueError, match="start from a text-to-image checkpoint"):
        inflate(image_unet(config).state_dict(), config, frames=FRAMES, seed=0)
    with pytest.raises(ValueError, match="start from a text-to-image checkpoint"):
        inflate({}, replace(IMAGE, temporal=True), frames=FRAMES, seed=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["sd15_single_file", "sd21_768_single_file"])
def test_a_checkpoint_file_becomes_a_gen1_file(name: str, tmp_path: Path) -> None:
    theirs = fixture(layout(name).only(PREFIX))
    save_file(theirs, tmp_path / "checkpoint.safetensors")
    written = tmp_path / "unet.safetensors"
    metadata = {"started_from": name}
    config = inflate_file(
        tmp_path / "checkpoint.safetensors", written, motion=None, frames=6, seed=0, metadata=metadata
    )
    file = read_file(written)
    assert (file.kind, file.metadata["started_from"]) == ("unet", name)
    assert config_from_plain(UNetConfig, file.metadata["config"]) == config
    image = built(*unet_from(theirs, Path("checkpoint")))
    start = built(file.tensors, config)
    x, structure, timestep, content = inputs(config.cross_attention_dim, frames=2)
    found = start(torch.cat([x, structure], dim=1), timestep, content)
    assert relative_error(found, image(x, timestep, content)) <= 1e-6


@pytest.mark.slow
@pytest.mark.real
@torch.no_grad()
def test_a_start_at_real_size_is_the_image_model() -> None:
    theirs = fixture(layout("sd15_single_file").only(PREFIX), small=False)
    tensors, config = unet_from(theirs, Path("checkpoint"))
    unet, start = shared(tensors, config), shared(*inflate(tensors, config, frames=8, seed=0))
    x, structure, timestep, content = inputs(768, frames=2)
    expected = unet(x, timestep, content)
    for image in (True, False):
        found = start(torch.cat([x, structure], dim=1), timestep, content, image=image)
        assert relative_error(found, expected) <= 1e-6
    # What is new is there: without its zeros, clips are no longer images.
    torch.nn.init.normal_(start.get_parameter("mid_block.temporal_attentions.0.proj_out.weight"), std=0.1)
    assert relative_error(start(torch.cat([x, structure], dim=1), timestep, content), expected) > 0.01


@torch.no_grad()
@pytest.mark.parametrize("name", ["mm_sd_v15", "mm_sd_v15_v2", "v3_sd15_mm"])
def test_a_motion_module_is_taken_over(name: str, tmp_path: Path) -> None:
    theirs, motion = fixture(layout("sd15_single_file").only(PREFIX)), fixture(name, seed=1)
    save_file(theirs, tmp_path / "checkpoint.safetensors")
    save_file(motion, tmp_path / "motion.safetensors")
    config = inflate_file(
        tmp_path / "checkpoint.safetensors",
        tmp_path / "unet.safetensors",
        motion=tmp_path / "motion.safetensors",
        frames=FRAMES,
        seed=0,
        metadata={},
    )
    file = read_file(tmp_path / "unet.safetensors")
    assert config_from_plain(UNetConfig, file.metadata["config"]) == config
    assert config.motion is not None
    assert (config.motion.middle, config.temporal) == ("v2" in name, False)
    image, start = built(*unet_from(theirs, Path("checkpoint"))), built(file.tensors, config)
    x, structure, timestep, content = inputs(config.cross_attention_dim)
    both = torch.cat([x, structure], dim=1)
    expected = image(x, timestep, content)
    assert relative_error(start(both, timestep, content, image=True), expected) <= 1e-6
    assert relative_error(start(both, timestep, content), expected) > 0.01


def test_a_motion_module_that_does_not_fit_is_refused() -> None:
    unet, sizes = image_unet(), MotionConfig(frames=8)
    other = SpaceTimeUNet(replace(IMAGE, block_out_channels=(64, 64), motion=sizes)).state_dict()
    layers = {name: tensor for name, tensor in other.items() if "motion_modules" in name}
    motion = Motion(layers, sizes, Path("motion.ckpt"))
    with pytest.raises(ValueError, match="take a motion module made for this Stable Diffusion"):
        inflate(unet.state_dict(), IMAGE, frames=FRAMES, seed=0, motion=motion)
    with pytest.raises(ValueError, match="lower frames"):
        inflate(unet.state_dict(), IMAGE, frames=9, seed=0, motion=motion)


def test_the_checkpoint_is_not_written_over(tmp_path: Path) -> None:
    unet = image_unet()
    path = tmp_path / "checkpoint.safetensors"
    save_file(to_theirs(unet.state_dict(), unet_table(unet.config)), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="give the output another name"):
        inflate_file(path, path, motion=None, frames=FRAMES, seed=0, metadata={})
    assert path.read_bytes() == before
