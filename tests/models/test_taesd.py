"""TAESD against diffusers' AutoencoderTiny, through the public files' own names."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from parts import relative_error
from torch import Tensor, nn
from torch.testing import assert_close

from gen1_core.checkpoints.control import tiny_autoencoder_from, tiny_autoencoder_table
from gen1_core.checkpoints.files import load_module
from gen1_core.checkpoints.keymap import to_theirs
from gen1_core.models.autoencoder import FrameCodec, decode_clip, encode_clip
from gen1_core.models.taesd import TinyAutoencoder, TinyAutoencoderConfig

CPU = torch.device("cpu")
SMALL = TinyAutoencoderConfig(width=8, encoder_blocks=(1, 2, 1, 2), decoder_blocks=(2, 1, 3, 1))
HALVES = ("encoder", "decoder")


def randomise(module: nn.Module) -> nn.Module:
    """No parameter keeps its first value or is zero; wide enough that rectifiers cut about half."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
        parameter.data = spread * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def reference(config: TinyAutoencoderConfig) -> AutoencoderTiny:
    widths = (config.width,) * len(config.encoder_blocks)
    theirs = AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        latent_channels=config.latent_channels,
        num_encoder_blocks=config.encoder_blocks,
        num_decoder_blocks=config.decoder_blocks,
    )
    return randomise(theirs)  # pyright: ignore[reportReturnType]


def load(files: dict[Path, dict[str, Tensor]]) -> TinyAutoencoder:
    tensors, config = tiny_autoencoder_from(files)
    path = next(iter(files))
    return load_module(lambda: TinyAutoencoder(config), tensors, device=CPU, dtype=torch.float32, path=path)


def official_halves(theirs: AutoencoderTiny) -> dict[Path, dict[str, Tensor]]:
    """The two official files: places in a list; the decoder's begin with a clamp, which diffusers leaves out."""
    files = {}
    for half in HALVES:
        shift = half == "decoder"
        names = {}
        for name, tensor in getattr(theirs, half).layers.state_dict().items():
            place, rest = name.split(".", 1)
            names[f"{int(place) + shift}.{rest}"] = tensor
        files[Path(f"taesd_{half}.pth")] = names
    return files


@pytest.fixture(params=[SMALL, TinyAutoencoderConfig()], ids=["small", "real"])
def theirs(request: pytest.FixtureRequest) -> AutoencoderTiny:
    return reference(request.param)


@torch.no_grad()
def test_both_ways_equal_diffusers(theirs: AutoencoderTiny) -> None:
    ours = load({Path("taesd.safetensors"): theirs.state_dict()})
    assert isinstance(ours, FrameCodec)
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = 3 * torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(2))
    assert relative_error(ours.encode(images), theirs.encode(images, return_dict=False)[0]) <= 1e-5
    assert relative_error(ours.decode(latents), theirs.decode(latents, return_dict=False)[0]) <= 1e-5


@torch.no_grad()
def test_the_official_files_hold_the_same_network(theirs: AutoencoderTiny) -> None:
    files = official_halves(theirs)
    ours = load(files)
    for name, tensor in theirs.state_dict().items():
        assert_close(ours.state_dict()[name], tensor, rtol=0, atol=0)
    backwards = load(dict(reversed(files.items())))
    assert_close(backwards.state_dict(), ours.state_dict(), rtol=0, atol=0)


def test_saving_gives_the_official_files_back(theirs: AutoencoderTiny) -> None:
    files = official_halves(theirs)
    tensors, config = tiny_autoencoder_from(files)
    saved = to_theirs(tensors, tiny_autoencoder_table(config))
    for half, expected in zip(HALVES, files.values(), strict=True):
        own = {name.removeprefix(f"{half}."): t for name, t in saved.items() if name.startswith(half)}
        assert own.keys() == expected.keys()
        assert all(torch.equal(own[name], expected[name]) for name in own)


def test_the_config_is_read_from_the_shapes() -> None:
    theirs = reference(SMALL)
    assert tiny_autoencoder_from({Path("a"): theirs.state_dict()})[1] == SMALL
    assert tiny_autoencoder_from(official_halves(theirs))[1] == SMALL


@torch.no_grad()
@pytest.mark.parametrize("part", ["encoder.layers.1", "encoder.layers.2", "decoder.layers.2", "decoder.layers.5"])
def test_each_kind_of_layer_counts(part: str) -> None:
    ours = load({Path("a"): reference(SMALL).state_dict()})
    images, latents = torch.rand(1, 3, 16, 16) * 2 - 1, torch.randn(1, 4, 2, 2)
    before = (ours.encode(images), ours.decode(latents))
    for parameter in ours.get_submodule(part).parameters():
        parameter.zero_()
    changed = [relative_error(*pair) for pair in zip((ours.encode(images), ours.decode(latents)), before, strict=True)]
    assert changed["decoder" in part] > 0.01


@torch.no_grad()
def test_it_stands_in_for_the_autoencoder() -> None:
    ours = load({Path("a"): reference(SMALL).state_dict()})
    frames = torch.rand(3, 3, 16, 24)
    latents = encode_clip(ours, frames, chunk=2)
    assert latents.shape == (3, 4, 2, 3)
    back = decode_clip(ours, latents, chunk=2)
    assert back.shape == frames.shape and 0 <= back.min() and back.max() <= 1
    assert_close(latents, ours.encode(frames * 2 - 1))


def test_wild_latents_are_squeezed() -> None:
    ours = load({Path("a"): reference(SMALL).state_dict()})
    with torch.no_grad():
        assert_close(ours.decode(torch.full((1, 4, 2, 2), 1e4)), ours.decode(torch.full((1, 4, 2, 2), 1e6)))


def test_sides_that_do_not_divide_are_refused() -> None:
    ours = TinyAutoencoder(SMALL)
    with pytest.raises(ValueError, match="multiple of 8"):
        ours.encode(torch.zeros(1, 3, 20, 16))


def test_halves_that_do_not_make_one_are_refused() -> None:
    encoder, decoder = official_halves(reference(SMALL)).values()
    for files in ({"a": encoder}, {"a": encoder, "b": encoder}, {"a": decoder}):
        with pytest.raises(ValueError, match="give taesd_encoder and taesd_decoder together"):
            tiny_autoencoder_from({Path(name): tensors for name, tensors in files.items()})
    with pytest.raises(ValueError, match="look what the files are"):
        tiny_autoencoder_from({Path("a"): {"other": torch.zeros(1)}})


@pytest.mark.parametrize(
    ("change", "hint"),
    [({"width": 0}, "give positive numbers"), ({"decoder_blocks": (1, 1)}, "the same number for both")],
)
def test_sizes_that_cannot_be_built_are_refused(change: dict[str, int], hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        TinyAutoencoderConfig(**change)  # pyright: ignore[reportArgumentType]
