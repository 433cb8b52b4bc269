"""The autoencoder against diffusers, its scale and its clip functions."""

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from gen1_core.models.autoencoder import Autoencoder, AutoencoderConfig, decode_clip, encode_clip

SIZES = [
    AutoencoderConfig(block_out_channels=(24, 48, 96, 96), layers_per_block=1, norm_num_groups=8),
    AutoencoderConfig(
        block_out_channels=(8, 16),
        layers_per_block=2,
        latent_channels=3,
        norm_num_groups=4,
        latent_scale=0.7,
        latent_mean=(0.1, -0.2, 0.3),
    ),
]


def reference(config: AutoencoderConfig) -> AutoencoderKL:
    levels = len(config.block_out_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
    ).eval()


def randomise(module: nn.Module) -> None:
    """No parameter keeps its first value or is zero: a fresh zero layer would prove nothing."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        # Linear layers are attention's: four times the usual spread makes it prefer some pixels to others.
        gain = {1: 0.5, 2: 4.0, 4: 2.0}[parameter.ndim]
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        nn.init.normal_(parameter, std=gain * fan_in**-0.5)


def distance(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.fixture(params=SIZES, ids=["tiny", "two levels"])
def pair(request: pytest.FixtureRequest) -> tuple[Autoencoder, AutoencoderKL]:
    theirs = reference(request.param)
    randomise(theirs)
    ours = Autoencoder(request.param).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@torch.no_grad()
def test_moments_and_images_equal_diffusers(pair: tuple[Autoencoder, AutoencoderKL]) -> None:
    ours, theirs = pair
    images = torch.rand(2, 3, 40, 56) * 2 - 1
    moments = torch.cat(ours.moments(images), dim=1)
    assert distance(moments, theirs.encode(images).latent_dist.parameters) <= 1e-5
    raw = torch.randn(2, ours.config.latent_channels, 5, 7)
    assert distance(ours.decode(ours.normalised(raw)), theirs.decode(raw).sample) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("part", ["attentions.0.to_out.0", "attentions.0.to_q"])
def test_the_attention_counts(pair: tuple[Autoencoder, AutoencoderKL], part: str) -> None:
    ours, _ = pair
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    latents = torch.randn(1, ours.config.latent_channels, 4, 4)
    mean, decoded = ours.moments(images)[0], ours.decode(latents)
    for half in (ours.encoder, ours.decoder):
        for parameter in half.mid_block.get_submodule(part).parameters():
            parameter.zero_()
    assert distance(ours.moments(images)[0], mean) > 0.01
    assert distance(ours.decode(latents), decoded) > 0.01


def test_full_size_has_the_parameters_of_stable_diffusion() -> None:
    config = AutoencoderConfig()
    with torch.device("meta"):
        ours, theirs = Autoencoder(config), reference(config)
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    assert shapes == {name: value.shape for name, value in theirs.state_dict().items()}
    assert sum(parameter.numel() for parameter in ours.parameters()) == 83_653_863


@torch.no_grad()
def test_latents_are_scaled_and_centred(pair: tuple[Autoencoder, AutoencoderKL]) -> None:
    ours, _ = pair
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    mean = ours.moments(images)[0]
    centre = torch.tensor(ours.config.latent_mean)[:, None, None]
    torch.testing.assert_close(ours.encode(images), (mean - centre) * ours.config.latent_scale)
    torch.testing.assert_close(ours.denormalised(ours.normalised(mean)), mean)


@torch.no_grad()
def test_training_pass_samples_the_posterior(pair: tuple[Autoencoder, AutoencoderKL]) -> None:
    ours, theirs = pair
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    posterior = theirs.encode(images).latent_dist
    noise = torch.randn_like(posterior.mean)
    decoded, mean, logvar = ours(images, noise)
    expected = theirs.decode(posterior.mean + posterior.std * noise).sample
    torch.testing.assert_close(decoded, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cat([mean, logvar], dim=1), posterior.parameters, rtol=1e-4, atol=1e-4)
    assert distance(ours(images, -noise)[0], decoded) > 0.01
    latents = ours.normalised(mean + torch.exp(0.5 * logvar) * noise) + 0.3 * noise
    torch.testing.assert_close(ours(images, noise, torch.full((1,), 0.3))[0], ours.decode(latents))


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
def test_chunks_change_nothing(chunk: int) -> None:
    ours = Autoencoder(SIZES[1]).eval()
    images = torch.rand(5, 3, 16, 24)
    latents = encode_clip(ours, images, chunk=chunk)
    torch.testing.assert_close(latents, ours.encode(images * 2 - 1), rtol=1e-4, atol=1e-5)
    decoded = decode_clip(ours, latents, chunk=chunk)
    torch.testing.assert_close(decoded, ((ours.decode(latents) + 1) / 2).clamp(0, 1), rtol=1e-4, atol=1e-5)
    assert decoded.shape == images.shape


@torch.no_grad()
def test_decoded_clip_is_clipped() -> None:
    ours = Autoencoder(SIZES[1]).eval()
    ours.decoder.conv_out.bias.fill_(9.0)
    latents = torch.randn(1, 3, 4, 4)
    assert ours.decode(latents).max() > 1
    torch.testing.assert_close(decode_clip(ours, latents, chunk=1), torch.ones(1, 3, 8, 8))


@torch.no_grad()
def test_bfloat16_in_bfloat16_out() -> None:
    ours = Autoencoder(SIZES[0]).eval()
    images = torch.rand(1, 3, 32, 32)
    exact = encode_clip(ours, images, chunk=1)
    rough = encode_clip(ours.to(torch.bfloat16), images.to(torch.bfloat16), chunk=1)
    assert rough.dtype == torch.bfloat16
    assert distance(rough.float(), exact) < 0.05


def test_layers_come_from_the_given_namespace() -> None:
    class Marked:
        """What a layer of the namespace is known by."""

    class Ops:
        Linear = type("Linear", (nn.Linear, Marked), {})
        Conv2d = type("Conv2d", (nn.Conv2d, Marked), {})
        GroupNorm = type("GroupNorm", (nn.GroupNorm, Marked), {})
        LayerNorm = type("LayerNorm", (nn.LayerNorm, Marked), {})
        Embedding = type("Embedding", (nn.Embedding, Marked), {})

    for module in Autoencoder(SIZES[0], ops=Ops).modules():
        assert isinstance(module, Marked) or not list(module.parameters(recurse=False)), module


def test_sizes_between_latent_pixels_are_refused() -> None:
    ours = Autoencoder(SIZES[0])
    with pytest.raises(ValueError, match="pad or resize both sides to a multiple of 8"):
        ours.encode(torch.zeros(1, 3, 32, 36))


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ({"block_out_channels": ()}, "give one positive width per level"),
        ({"layers_per_block": 0}, "at least one layer"),
        ({"block_out_channels": (24, 50)}, "choose a common divisor"),
        ({"latent_mean": (0.0,)}, "give one per channel"),
        ({"latent_scale": 0.0}, "give a positive number"),
    ],
)
def test_config_refuses_what_cannot_be_built(wrong: dict, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        AutoencoderConfig(**wrong)
