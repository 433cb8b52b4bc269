"""The autoencoder of linear patches: principal components against a singular value decomposition."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from gen1_core.models.autoencoder import Autoencoder, AutoencoderConfig
from gen1_core.training.autoencoder import AutoencoderPlan, decoder_task, draw_batch
from gen1_core.training.bank import Bank
from gen1_core.training.draws import WHOLE
from gen1_core.training.loop import generator_at
from gen1_core.training.patches import DEPTH_SHARE, draw_patches, principal_autoencoder
from gen1_core.training.stages import Fit, Rate

CPU = torch.device("cpu")
CONFIG = AutoencoderConfig(
    block_out_channels=(8, 8, 8),
    layers_per_block=1,
    latent_channels=5,
    norm_num_groups=4,
    latent_mean=(0.0,) * 5,
    patch_encoder=True,
)


def bank() -> Bank:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(3, 2, 2, 3, 6, 6, generator=generator)
    smooth = functional.interpolate(rearrange(coarse, "m k f c h w -> (m k f) c h w"), (32, 32), mode="bilinear")
    rgb = rearrange(smooth, "(m k f) c h w -> m k f c h w", m=3, k=2)
    noisy = (rgb + 0.1 * torch.rand(rgb.shape, generator=generator)).clamp(0, 1)
    return Bank(
        rgb=(noisy * 255).to(torch.uint8),
        depth=torch.randint(0, 256, (3, 2, 1, 32, 32), generator=generator, dtype=torch.uint8),
        captions=[],
        looks=[],
        families=[],
    )


def model_and_patches() -> tuple[Autoencoder, Tensor]:
    made = bank()
    return principal_autoencoder(CONFIG, made, frames=20, seed=0), draw_patches(CONFIG, made, frames=20, seed=0)


@torch.no_grad()
def test_reconstruction_is_the_best_of_its_rank() -> None:
    model, patches = model_and_patches()
    mean = patches.mean(dim=0)
    u, s, v = torch.linalg.svd((patches - mean).double(), full_matrices=False)
    best = (u[:, :5] * s[:5]) @ v[:5] + mean
    pictures = functional.pixel_shuffle(rearrange(patches, "(n h w) d -> n d h w", h=8, w=8), 4)
    restored = functional.pixel_unshuffle(model.decode(model.encode(pictures)), 4)
    assert (rearrange(restored, "n d h w -> (n h w) d") - best).abs().max() < 1e-4
    assert (patches - best).abs().max() > 0.1, "five components must not be all of the picture"


@torch.no_grad()
def test_channels_are_uncorrelated_and_fall_by_the_root_of_the_spread() -> None:
    model, patches = model_and_patches()
    pictures = functional.pixel_shuffle(rearrange(patches, "(n h w) d -> n d h w", h=8, w=8), 4)
    latents = rearrange(model.moments(pictures)[0], "n c h w -> c (n h w)")
    covariance = torch.cov(latents)
    spread = torch.linalg.svdvals((patches - patches.mean(dim=0)).double())[:5] / (len(patches) - 1) ** 0.5
    torch.testing.assert_close(covariance.diagonal().double(), spread, rtol=1e-3, atol=0)
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-3 * covariance.max()


def test_depth_maps_are_among_the_patches() -> None:
    patches = draw_patches(CONFIG, bank(), frames=20, seed=0)
    colours = rearrange(patches, "m (c p) -> m c p", c=3)
    grey = (colours[:, 0] == colours[:, 1]).all(dim=1).float().mean()
    assert grey == pytest.approx(DEPTH_SHARE)


def test_the_decoder_learns_and_the_latents_stay() -> None:
    model, patches = model_and_patches()
    pictures = functional.pixel_shuffle(rearrange(patches, "(n h w) d -> n d h w", h=8, w=8), 4)[:4]
    before = model.encode(pictures).detach()
    model.encoder.requires_grad_(False)
    optimiser = torch.optim.AdamW(model.decoder.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = functional.mse_loss(model.decode(before), pictures)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0] and torch.equal(model.encode(pictures), before)


@torch.no_grad()
def test_a_decoder_is_shown_latents_with_noise(tmp_path: Path) -> None:
    model, _ = model_and_patches()
    fit = Fit(steps=10, batch=8, rate=Rate(peak=1e-3))
    losses = {}
    for most in (0.0, 0.5):
        plan = AutoencoderPlan(fit=fit, crop=16, full_share=0.0, latent_noise=most)
        images, noise, level = draw_batch(bank(), plan, CONFIG, 3, generator_at(0, "d", 3), WHOLE, CPU)
        assert level.shape == (8,) and 0 <= level.min() and level.max() <= most
        assert len(level.unique()) == (8 if most else 1)
        output = model.decode(model.encode(images) + level[:, None, None, None] * noise)
        task = decoder_task(model, plan, bank(), bank(), folder=tmp_path, device=CPU)
        losses[most] = float(task.losses(3, generator_at(0, "d", 3))["l1"])
        assert losses[most] == pytest.approx(float(functional.l1_loss(output, images)))
    assert losses[0.5] > losses[0.0]


def test_files_of_another_encoder_do_not_fit() -> None:
    model, _ = model_and_patches()
    with pytest.raises(RuntimeError, match="encoder"):
        Autoencoder(replace(CONFIG, patch_encoder=False)).load_state_dict(model.state_dict())
