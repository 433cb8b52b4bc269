"""The autoencoder's files in their three namings: the same tensors as diffusers reads, and the same pictures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.layouts import fixture, layout
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from parts import relative_error
from torch import Tensor

from gen1_core.checkpoints.keymap import names, to_theirs
from gen1_core.checkpoints.vae import autoencoder_config_of, autoencoder_from, layout_of, vae_table
from gen1_core.models.autoencoder import Autoencoder, AutoencoderConfig

PREFIX = "first_stage_model."
PATH = Path("vae.safetensors")
SINGLE = {"sd15_single_file": PREFIX, "sd21_768_single_file": PREFIX, "vae_ft_mse_single_file": ""}
FOLDERS = {"sd15_diffusers_vae": "diffusers", "sd15_diffusers_vae_old_attention": "old_diffusers"}
LEFTOVERS = {"model_ema.decay", "model_ema.num_updates"}


def random_file(name: str, *, small: bool = True) -> dict[str, Tensor]:
    """The autoencoder's keys of a public file, with their prefix."""
    tensors = fixture(layout(name).only(SINGLE.get(name, "")), small=small)
    # Attention that prefers some pixels to others: four times the usual spread.
    projections = (".q.weight", ".k.weight", "to_q.weight", "to_k.weight", ".query.weight", ".key.weight")
    return {key: 4 * value if key.endswith(projections) else value for key, value in tensors.items()}


def load(tensors: dict[str, Tensor]) -> Autoencoder:
    """The network of a file, on the file's own tensors."""
    own, config = autoencoder_from(tensors, PATH)
    with torch.device("meta"):
        autoencoder = Autoencoder(config)
    autoencoder.load_state_dict(own, strict=True, assign=True)
    return autoencoder.eval()


def read_by_diffusers(tensors: dict[str, Tensor], config: AutoencoderConfig, folder: Path) -> Any:
    """A single file through diffusers' own converter; its config would otherwise come from the network."""
    levels = len(config.block_out_channels)
    network: Any = AutoencoderKL  # its hints are narrower than what it takes
    with torch.device("meta"):
        network(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
        ).save_config(folder)
    # Its converter changes the dict it is given.
    return network.from_single_file(dict(tensors), config=str(folder)).eval()


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("name", [*SINGLE, *FOLDERS])
def test_every_key_of_a_public_file_fits_the_network(name: str) -> None:
    tensors = {key: torch.empty(shape, device="meta") for key, shape in layout(name).shapes.items()}
    renamed, config = autoencoder_from(tensors, PATH)
    assert config == AutoencoderConfig()
    with torch.device("meta"):
        wanted = Autoencoder(config).state_dict()
    assert {key: value.shape for key, value in renamed.items()} == {key: value.shape for key, value in wanted.items()}
    prefix = SINGLE.get(name, "")
    own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    own = {key: value for key, value in own.items() if key not in LEFTOVERS}
    table = vae_table(config, layout_of(own))
    assert layout_of(own) == FOLDERS.get(name, "ldm")
    assert sorted(names(table)) == sorted(own)
    written = to_theirs(renamed, table)
    assert {key: value.shape for key, value in written.items()} == {key: value.shape for key, value in own.items()}


@pytest.mark.parametrize("name", SINGLE)
def test_diffusers_reads_a_single_file_to_the_same_tensors(name: str, tmp_path: Path) -> None:
    theirs = random_file(name)
    ours, config = autoencoder_from(theirs, PATH)
    same(read_by_diffusers(theirs, config, tmp_path).state_dict(), ours)
    written = {SINGLE[name] + key: value for key, value in to_theirs(ours, vae_table(config, "ldm")).items()}
    same(written, {key: value for key, value in theirs.items() if key not in LEFTOVERS})


def test_diffusers_reads_the_old_names_to_the_same_tensors(tmp_path: Path) -> None:
    theirs = random_file("sd15_diffusers_vae_old_attention")
    ours, config = autoencoder_from(theirs, PATH)
    read_by_diffusers(random_file("vae_ft_mse_single_file"), config, tmp_path).save_pretrained(tmp_path)
    torch.save(theirs, tmp_path / "diffusion_pytorch_model.bin")
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    same(AutoencoderKL.from_pretrained(tmp_path, use_safetensors=False).state_dict(), ours)
    same(to_theirs(ours, vae_table(config, "old_diffusers")), theirs)


def compare(theirs: dict[str, Tensor], folder: Path) -> None:
    """Moments and pictures of our network against diffusers', both from the same file."""
    ours = load(theirs)
    reference = read_by_diffusers(theirs, ours.config, folder)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(1, 3, 64, 48, generator=generator) * 2 - 1
    raw = torch.randn(1, 4, 8, 6, generator=generator)
    errors = (
        relative_error(torch.cat(ours.moments(images), dim=1), reference.encode(images).latent_dist.parameters),
        relative_error(ours.decode(ours.normalised(raw)), reference.decode(raw).sample),
    )
    assert max(errors) <= 1e-5, errors


@torch.no_grad()
@pytest.mark.parametrize("name", SINGLE)
def test_a_single_file_gives_the_pictures_of_diffusers(name: str, tmp_path: Path) -> None:
    compare(random_file(name), tmp_path)


@pytest.mark.slow
@pytest.mark.real
@torch.no_grad()
def test_real_size_gives_the_pictures_of_diffusers(tmp_path: Path) -> None:
    compare(random_file("vae_ft_mse_single_file", small=False), tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("part", ["mid.attn_1.proj_out", "mid.attn_1.q", "up.1.block.0.nin_shortcut"])
def test_the_parts_count(part: str) -> None:
    theirs = random_file("vae_ft_mse_single_file")
    without = {key: value * (part not in key) for key, value in theirs.items()}
    raw = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    assert relative_error(load(without).decode(raw), load(theirs).decode(raw)) > 0.01


def test_what_training_leaves_is_dropped_and_an_unknown_key_is_not() -> None:
    theirs = random_file("vae_ft_mse_single_file")
    autoencoder_from({**theirs, "loss.discriminator.main.0.weight": torch.ones(1)}, PATH)
    with pytest.raises(ValueError, match=r"vae.safetensors holds 1 .*time_mix.*gen1 info"):
        autoencoder_from({**theirs, "decoder.time_mix": torch.ones(1)}, PATH)


@pytest.mark.parametrize("wrong", [{}, {"conv_in.weight": (320, 4, 3, 3)}, {"encoder.conv_in.weight": (128, 3, 3, 3)}])
def test_what_is_no_autoencoder_is_refused(wrong: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="give a VAE file or a checkpoint"):
        autoencoder_config_of(wrong)
