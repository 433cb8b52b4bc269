"""The prior: its schedule, its training, its guidance, and content from it."""

import logging

import pytest
import torch
from torch.nn import functional as F

from gen1_core.content.clip import EmbeddedClip
from gen1_core.content.prior import (
    content_from_images,
    content_from_text,
    content_per_frame,
    prior_loss,
    sample_prior,
    signal_and_noise,
)
from gen1_core.content.tokenizer import Tokenizer
from gen1_core.models.clip import CLIP, CLIPConfig
from gen1_core.models.prior import Prior, PriorConfig

DIM = 12


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_prior() -> Prior:
    torch.manual_seed(0)
    prior = Prior(PriorConfig(dim=DIM, width=32, depth=1, heads=4)).eval()
    for parameter in prior.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape)
    return prior


@pytest.fixture(scope="module")
def encoder() -> EmbeddedClip:
    torch.manual_seed(0)
    towers = dict(vision_width=16, vision_layers=1, vision_heads=2, text_width=16, text_layers=1, text_heads=2)
    clip = CLIP(CLIPConfig(embed_dim=DIM, image_size=16, patch_size=8, context_length=8, **towers)).eval()
    return EmbeddedClip(clip, Tokenizer.embedded(8), words=frozenset({"castle", "neon"}), chunk=2)


def test_the_schedule_goes_from_clean_to_noise():
    signal, noise = signal_and_noise(torch.linspace(0, 1, 101))
    torch.testing.assert_close(signal.square() + noise.square(), torch.ones(101))
    assert (signal[0], noise[-1]) == (1, 1)
    assert (signal.diff() < 0).all()


def test_training_learns_a_mapping():
    torch.manual_seed(0)
    prior = Prior(PriorConfig(dim=DIM, width=32, depth=1, heads=4))
    generator, rotation = seeded(1), torch.linalg.qr(torch.randn(DIM, DIM, generator=seeded(2))).Q
    optimiser = torch.optim.AdamW(prior.parameters(), 3e-3)
    text = torch.randn(32, DIM, generator=seeded(3))

    def likeness() -> float:
        with torch.no_grad():
            drawn = sample_prior(prior, text, generator=seeded(4), steps=4, scale=1.0)
        return F.cosine_similarity(drawn, text @ rotation, dim=-1).mean().item()

    before = likeness()
    for _ in range(200):
        batch = torch.randn(32, DIM, generator=generator)
        loss = prior_loss(prior, batch @ rotation, batch, generator=generator).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert before < 0.3
    assert likeness() > 0.6


def test_the_loss_drops_texts_for_the_null_text():
    prior, images, texts = random_prior(), torch.randn(5, DIM), torch.randn(5, DIM)
    others = torch.randn(5, DIM)
    kept = [prior_loss(prior, images, t, generator=seeded(0), dropout=0.0) for t in (texts, others)]
    dropped = [prior_loss(prior, images, t, generator=seeded(0), dropout=1.0) for t in (texts, others)]
    assert kept[0].shape == (5,)
    assert (kept[0] - kept[1]).abs().max() > 0.01
    torch.testing.assert_close(dropped[0], dropped[1])
    dropped[0].sum().backward()
    assert prior.null_text.grad is not None and prior.null_text.grad.abs().sum() > 0


@torch.no_grad()
def test_scale_one_is_the_conditional_prediction_alone():
    prior, text = random_prior(), torch.randn(2, DIM, generator=seeded(5))

    def draw(scale: float) -> torch.Tensor:
        return sample_prior(prior, text, generator=seeded(6), steps=5, scale=scale)

    conditional, near = draw(1.0), draw(1.0 + 1e-6)
    torch.testing.assert_close(near, conditional, atol=1e-4, rtol=1e-4)
    prior.null_text.add_(3.0)
    torch.testing.assert_close(draw(1.0), conditional)
    assert (draw(2.0) - conditional).norm() / conditional.norm() > 0.01


@torch.no_grad()
def test_scale_zero_forgets_the_text():
    prior = random_prior()
    drawn = [
        sample_prior(prior, torch.randn(1, DIM, generator=seeded(seed)), generator=seeded(0), steps=3, scale=0.0)
        for seed in (1, 2)
    ]
    torch.testing.assert_close(drawn[0], drawn[1])


@torch.no_grad()
def test_sampling_finds_the_mean_that_an_exact_network_knows():
    """For clean embeddings from N(m, s^2) the posterior mean is known, so every DDIM path is."""
    mean, spread = 2.0, 0.5

    class Exact(torch.nn.Module):
        null_text = torch.zeros(DIM)

        def forward(self, noisy, timestep, text):
            signal, noise = (weight[:, None] for weight in signal_and_noise(timestep / 1000))
            gain = signal * spread**2 / (signal**2 * spread**2 + noise**2)
            return mean + gain * (noisy - signal * mean)

    text = torch.zeros(2000, DIM)
    sampled = [sample_loosely(Exact(), text, steps) for steps in (10, 200)]
    assert abs(sampled[1].mean().item() - mean) < 0.01
    assert abs(sampled[1].std().item() - spread) < 0.02
    assert abs(sampled[0].std().item() - spread) > 2 * abs(sampled[1].std().item() - spread)


def sample_loosely(network, text, steps):
    """Around the type check, which wants a Prior."""
    return getattr(sample_prior, "__wrapped__", sample_prior)(
        network, text, generator=seeded(0), steps=steps, scale=1.0
    )


def test_content_from_text_is_one_token_on_the_encoders_sphere(encoder):
    prior = random_prior()
    content = content_from_text(prior, encoder, "a neon castle", seed=3, steps=4)
    assert content.tokens.shape == content.null.shape == (1, 1, 1, DIM)
    assert not content.null.any() and content.kind == encoder.kind
    torch.testing.assert_close(content.tokens.square().mean(), torch.tensor(1.0))


def test_content_depends_on_the_prompt_and_on_the_seed_alone(encoder):
    prior = random_prior()
    first = content_from_text(prior, encoder, "a neon castle", seed=3, steps=4).tokens
    torch.rand(7)  # the global generator plays no part
    again = content_from_text(prior, encoder, "a neon castle", seed=3, steps=4).tokens
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    for other in (
        content_from_text(prior, encoder, "a neon castle", seed=4, steps=4).tokens,
        content_from_text(prior, encoder, "castle", seed=3, steps=4).tokens,
    ):
        assert (other - first).norm() / first.norm() > 0.01


def test_content_from_an_image_is_the_encoders_embedding(encoder):
    image = torch.rand(1, 3, 20, 30, generator=seeded(0))
    content = content_from_images(encoder, image)
    assert content.tokens.shape == content.null.shape == (1, 1, 1, DIM)
    assert not content.null.any() and content.kind == encoder.kind
    torch.testing.assert_close(content.tokens[0, 0], encoder.encode_images(image))


@pytest.mark.parametrize("count", [0, 2])
def test_several_images_are_no_content_by_themselves(encoder, count):
    with pytest.raises(ValueError, match=r"mix them with blend\(\)"):
        content_from_images(encoder, torch.rand(count, 3, 20, 30))


def test_content_per_frame_gives_each_frame_its_own_picture(encoder):
    images = torch.rand(3, 3, 20, 30, generator=seeded(0))
    content = content_per_frame(encoder, images)
    assert content.tokens.shape == content.null.shape == (1, 3, 1, DIM)
    assert not content.null.any() and content.kind == encoder.kind
    torch.testing.assert_close(content.tokens[0, :, 0], encoder.encode_images(images))


@pytest.mark.parametrize("prompt", ["", "  \n\t"])
def test_an_empty_prompt_is_refused(encoder, prompt):
    with pytest.raises(ValueError, match="write what the clip should look like, or give an image"):
        content_from_text(random_prior(), encoder, prompt)


def test_a_prior_of_another_width_is_refused(encoder):
    other = Prior(PriorConfig(dim=DIM + 1, width=32, depth=1, heads=4))
    with pytest.raises(ValueError, match="use the prior that was trained with this encoder"):
        content_from_text(other, encoder, "castle")


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="give at least 1 step"):
        sample_prior(random_prior(), torch.zeros(1, DIM), generator=seeded(0), steps=0)


def test_a_prompt_far_from_everything_learnt_warns(encoder, caplog):
    with caplog.at_level(logging.WARNING):
        content_from_text(random_prior(), encoder, "a neon castle with a submarine", steps=1)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        content_from_text(random_prior(), encoder, "a neon submarine", steps=1)
    assert "(submarine)" in caplog.text and "name materials, colours, light or places" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        content_from_text(random_prior(), encoder, "quarterly tax return", steps=1)
    assert "(quarterly, tax, return)" in caplog.text
