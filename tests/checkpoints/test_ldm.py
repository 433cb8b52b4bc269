"""Stable Diffusion's single files: every key of the public layouts, and tensors equal to diffusers' own converter's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.layouts import fixture, layout
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from parts import randomised, relative_error
from torch import Tensor

from gen1_core.checkpoints.keymap import names, to_theirs
from gen1_core.checkpoints.ldm import (
    diffusers_table,
    prediction_of,
    split_checkpoint,
    unet_config_of,
    unet_from,
    unet_table,
)
from gen1_core.models.unet import SpaceTimeUNet, UNetConfig

SD1 = UNetConfig(
    in_channels=4,
    block_out_channels=(32, 64, 96),
    attention=(True, True, False),
    cross_attention_dim=24,
    temporal=False,
)
SD2 = replace(SD1, block_out_channels=(64, 128, 128), num_attention_heads=(1, 2, 2), use_linear_projection=True)
DEPTH = replace(SD2, in_channels=5, layers_per_block=1)
UNCLIP = replace(SD2, class_embedding_width=48)
CONFIGS = {"sd1": SD1, "sd2": SD2, "depth": DEPTH, "unclip": UNCLIP}

SINGLE_FILES = {
    "sd15_single_file": {"unet": 686, "vae": 248, "text": 197},
    "sd21_768_single_file": {"unet": 686, "vae": 248, "text": 294},
    "sd2_depth_single_file": {"unet": 686, "vae": 248, "text": 294, "depth": 368},
    "sd21_unclip_h": {"unet": 690, "vae": 248, "text": 294, "vision": 392, "noise_augmentor": 8},
    "sd21_unclip_l": {"unet": 690, "vae": 248, "text": 294, "vision": 296, "noise_augmentor": 8},
}
UNETS = ["sd15_single_file", "sd21_768_single_file", "sd2_depth_single_file", "sd21_unclip_h"]
PREFIX = "model.diffusion_model."
PATH = Path("checkpoint.safetensors")
FULL_SIZE = UNetConfig(in_channels=4, temporal=False)
FULL_SIZE_2 = replace(
    FULL_SIZE, num_attention_heads=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True
)


def on_meta(name: str) -> dict[str, Tensor]:
    """A file of the public layout without memory for its values."""
    return {key: torch.empty(shape, device="meta") for key, shape in layout(name).shapes.items()}


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def checkpoint(config: UNetConfig, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random weights under our names, and the same as latent diffusion's file has them."""
    ours = randomised(SpaceTimeUNet(config), seed).state_dict()
    return ours, {PREFIX + name: tensor for name, tensor in to_theirs(ours, unet_table(config)).items()}


def reference(config: UNetConfig) -> UNet2DConditionModel:
    attends = ["CrossAttn" if attends else "" for attends in config.attention]
    unclip = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": config.class_embedding_width}
    network: Any = UNet2DConditionModel  # its hints are narrower than what it takes
    return network(
        in_channels=config.in_channels,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in attends),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(attends)),
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        attention_head_dim=config.num_attention_heads,
        cross_attention_dim=config.cross_attention_dim,
        use_linear_projection=config.use_linear_projection,
        **(unclip if config.class_embedding_width else {}),
    )


def read_by_diffusers(theirs: dict[str, Tensor], config: UNetConfig, folder: Path) -> UNet2DConditionModel:
    """The single file through diffusers' own converter; its config would otherwise come from the network."""
    with torch.device("meta"):
        reference(config).save_config(folder)
    # Its converter takes tensors out of the dict it is given.
    network: Any = UNet2DConditionModel
    return network.from_single_file(dict(theirs), config=str(folder)).eval()


@pytest.mark.parametrize("name", SINGLE_FILES)
def test_every_key_of_a_public_file_has_its_part(name: str) -> None:
    parts = split_checkpoint(on_meta(name), PATH)
    assert {part: len(tensors) for part, tensors in parts.items()} == SINGLE_FILES[name]
    dropped = len(layout(name).shapes) - sum(SINGLE_FILES[name].values())
    text_of_unclip = {"sd21_unclip_h": 6, "sd21_unclip_l": 150}
    assert dropped == 14 + text_of_unclip.get(name, 0)  # 12 tables of the schedule, 2 leftovers of the average


@pytest.mark.parametrize("name", [*SINGLE_FILES, "sd15_diffusers_unet"])
def test_every_key_of_a_public_unet_fits_the_network(name: str) -> None:
    tensors = on_meta(name)
    renamed, config = unet_from(tensors, PATH)
    with torch.device("meta"):
        assert shapes(renamed) == shapes(SpaceTimeUNet(config).state_dict())
    own = split_checkpoint(tensors, PATH)["unet"] if name in SINGLE_FILES else tensors
    table = unet_table(config) if name in SINGLE_FILES else diffusers_table(unet_table(config))
    assert shapes(to_theirs(renamed, table)) == shapes(own)
    assert sorted(names(table)) == sorted(own)


def test_the_config_is_read_from_shapes() -> None:
    found = {name: unet_from(on_meta(name), PATH)[1] for name in [*SINGLE_FILES, "sd15_diffusers_unet"]}
    assert found == {
        "sd15_single_file": FULL_SIZE,
        "sd21_768_single_file": FULL_SIZE_2,
        "sd2_depth_single_file": replace(FULL_SIZE_2, in_channels=5),
        "sd21_unclip_h": replace(FULL_SIZE_2, class_embedding_width=2048),
        "sd21_unclip_l": replace(FULL_SIZE_2, class_embedding_width=1536),
        "sd15_diffusers_unet": FULL_SIZE,
    }


@pytest.mark.parametrize(
    ("config", "spread", "prediction"),
    [(SD1, 0.5, "eps"), (SD2, 0.05, "eps"), (SD2, 0.5, "v"), (DEPTH, 0.5, "eps"), (UNCLIP, 0.05, "v")],
)
def test_what_a_u_net_tells_of_its_prediction(config: UNetConfig, spread: float, prediction: str) -> None:
    """Only SD 2.x at 768 px is told by values: the same bias that ComfyUI looks at, in our names."""
    last = f"up_blocks.{len(config.block_out_channels) - 1}.attentions.{config.layers_per_block}"
    name = f"{last}.transformer_blocks.0.norm1.bias"
    theirs = [row.theirs[0] for row in unet_table(config) if row.ours == (name,)]
    if config.block_out_channels == FULL_SIZE_2.block_out_channels:
        assert theirs == ["output_blocks.11.1.transformer_blocks.0.norm1.bias"]
    bias = torch.linspace(-1, 1, 320) * spread * 3**0.5
    assert prediction_of({name: bias}, config) == prediction


@pytest.mark.parametrize("name", UNETS)
def test_diffusers_reads_a_single_file_to_the_same_tensors(name: str, tmp_path: Path) -> None:
    theirs = fixture(layout(name).only(PREFIX))
    ours, config = unet_from(theirs, PATH)
    same(read_by_diffusers(theirs, config, tmp_path).state_dict(), ours)
    same({PREFIX + key: tensor for key, tensor in to_theirs(ours, unet_table(config)).items()}, theirs)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_other_sizes_go_there_and_back(config: UNetConfig, tmp_path: Path) -> None:
    ours, theirs = checkpoint(config)
    same(read_by_diffusers(theirs, config, tmp_path).state_dict(), ours)
    for file in (theirs, {key.removeprefix(PREFIX): tensor for key, tensor in theirs.items()}, ours):
        read, found = unet_from(file, PATH)
        assert found == config
        same(read, ours)


@torch.no_grad()
@pytest.mark.parametrize("name", UNETS)
def test_a_single_file_gives_the_output_of_diffusers(name: str, tmp_path: Path) -> None:
    compare(fixture(layout(name).only(PREFIX)), tmp_path, frames=2, size=8)


@torch.no_grad()
@pytest.mark.parametrize("part", ["class_embedding.linear_2", "mid_block.attentions.0.proj_out"])
def test_the_parts_count(part: str, tmp_path: Path) -> None:
    _, theirs = checkpoint(UNCLIP)
    key = {"class_embedding.linear_2": "label_emb.0.2", "mid_block.attentions.0.proj_out": "middle_block.1.proj_out"}
    without = {name: value * (not name.startswith(PREFIX + key[part])) for name, value in theirs.items()}
    whole, less = (load(tensors) for tensors in (theirs, without))
    inputs = arguments(UNCLIP, frames=1, size=8)
    assert relative_error(run(less, inputs), run(whole, inputs)) > 0.01


def test_a_leftover_average_is_dropped_and_an_unknown_key_is_not() -> None:
    _, theirs = checkpoint(SD1)
    leftovers = {"model_ema.diffusion_modelinput_blocks00weight": torch.ones(2), "betas": torch.ones(3)}
    assert set(split_checkpoint({**theirs, **leftovers}, PATH)) == {"unet"}
    with pytest.raises(ValueError, match=r"checkpoint.safetensors holds 1 .*conditioner.*look what the file is with"):
        split_checkpoint({**theirs, "conditioner.embedders.0.weight": torch.ones(1)}, PATH)
    with pytest.raises(ValueError, match=r"input_blocks.1.1.transformer_blocks.1.norm1.*gen1 info"):
        unet_from({**theirs, f"{PREFIX}input_blocks.1.1.transformer_blocks.1.norm1.weight": torch.ones(1)}, PATH)


@pytest.mark.parametrize("wrong", [{}, {"encoder.conv_in.weight": (128, 3, 3, 3)}, {"conv_in.weight": (320, 4, 3, 3)}])
def test_what_is_no_unet_is_refused(wrong: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="give a whole checkpoint"):
        unet_config_of(wrong)


@pytest.mark.slow
@pytest.mark.real
@torch.no_grad()
@pytest.mark.parametrize("name", UNETS)
def test_real_size_gives_the_output_of_diffusers(name: str, tmp_path: Path) -> None:
    compare(fixture(layout(name).only(PREFIX), small=False), tmp_path, frames=1, size=16)


def load(theirs: dict[str, Tensor]) -> SpaceTimeUNet:
    """The network of a file, on the file's own tensors."""
    tensors, config = unet_from(theirs, PATH)
    with torch.device("meta"):
        unet = SpaceTimeUNet(config)
    unet.load_state_dict(tensors, strict=True, assign=True)
    return unet.eval()


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def arguments(config: UNetConfig, *, frames: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Latents, timestep, content and, for unCLIP, the class embedding of each frame."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, config.in_channels, frames, size, size, generator=generator)
    content = torch.randn(1, frames, 7, config.cross_attention_dim, generator=generator)
    width = config.class_embedding_width
    embedding = torch.randn(1, frames, width, generator=generator) if width else None
    return x, torch.tensor([611.0]), content, embedding


def run(unet: SpaceTimeUNet, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None]) -> Tensor:
    x, timestep, content, embedding = inputs
    return unet(x, timestep, content, embedding=embedding)


def compare(theirs: dict[str, Tensor], folder: Path, *, frames: int, size: int) -> None:
    """Our network from our reading of the file against diffusers' network from its own; frames as batch there."""
    unet = load(theirs)
    config = unet.config
    inputs = arguments(config, frames=frames, size=size)
    x, timestep, content, embedding = inputs
    ours = run(unet, inputs)
    network = read_by_diffusers(theirs, config, folder)
    labels = None if embedding is None else embedding[0]
    expected = network(x[0].transpose(0, 1), timestep.expand(frames), content[0], class_labels=labels).sample
    error = relative_error(ours[0].transpose(0, 1), expected)
    assert error <= 1e-5, error
