"""Pictures as content: IP-Adapter's and unCLIP's encoders, against the pieces of diffusers' pipelines."""

import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from parts import randomised, relative_error
from torch import Tensor

from gen1_core.checkpoints.clip import vision_from
from gen1_core.checkpoints.files import load_module
from gen1_core.content.encoder import PICTURE, beside, content_of
from gen1_core.content.picture import PictureEncoder, UnclipEncoder, image_size, noised, signal_share
from gen1_core.models.adapter import (
    ImageProjectionConfig,
    MLPProjectionConfig,
    Projection,
    ProjectionConfig,
    ResamplerConfig,
    build_projection,
)
from gen1_core.models.clip import VisionTransformer, preprocess

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion.pipeline_stable_unclip_img2img import StableUnCLIPImg2ImgPipeline
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

SIZE, WIDTH, EMBED = 16, 128, 24
KINDS: dict[str, ProjectionConfig] = {
    "plain": ImageProjectionConfig(input_width=EMBED, context_width=16),
    "full face": MLPProjectionConfig(input_width=WIDTH, context_width=16),
    "plus": ResamplerConfig(input_width=WIDTH, width=40, context_width=16, tokens=5, depth=2, heads=2, mlp_width=160),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def reference() -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=4,
        projection_dim=EMBED,
        hidden_act="gelu",
    )
    tower = CLIPVisionModelWithProjection(config)
    randomised(tower)
    return tower


@pytest.fixture(scope="module")
def visual(reference: CLIPVisionModelWithProjection) -> VisionTransformer:
    tensors, config = vision_from(reference.state_dict(), Path("vision.safetensors"))
    build = partial(VisionTransformer, config)
    return load_module(build, tensors, device=torch.device("cpu"), dtype=torch.float32, path=Path("v.safetensors"))


def projection_of(kind: str) -> Projection:
    projection = build_projection(KINDS[kind])
    randomised(projection, 3)
    return projection


def pictures(count: int, *, height: int = SIZE, width: int = SIZE) -> Tensor:
    return torch.rand(count, 3, height, width, generator=seeded(4))


@each_kind
@torch.no_grad()
def test_tokens_and_null_equal_diffusers(kind, reference, visual):
    """diffusers' pipeline encodes the same pixels; what it then projects, we project in the same network."""
    encoder = PictureEncoder(visual, projection_of(kind))
    images = pictures(2)
    tokens, null = encoder.encode(images)
    pipeline: Any = SimpleNamespace(image_encoder=reference)
    pixels, hidden = preprocess(images, SIZE), encoder.projection.config.reads == "hidden"
    for ours, theirs in zip(
        (tokens, null.expand_as(tokens)),
        StableDiffusionPipeline.encode_image(pipeline, pixels, "cpu", 1, hidden),
        strict=True,
    ):
        assert relative_error(ours, encoder.projection(theirs)) <= 1e-5
    assert relative_error(null.expand_as(tokens), tokens) > 0.01


@each_kind
@torch.no_grad()
def test_several_pictures_follow_one_another_and_frames_have_their_own(kind, visual):
    encoder = PictureEncoder(visual, projection_of(kind), scales=(0.5,), chunk=2)
    images = pictures(3, height=20, width=31)
    alone = [encoder(image[None]).pictures[0] for image in images]
    (together,), (each,) = encoder(images).pictures, encoder.per_frame(images).pictures
    assert together.scales == each.scales == (0.5,)
    torch.testing.assert_close(together.tokens, torch.cat([one.tokens for one in alone], dim=2))
    torch.testing.assert_close(together.null, torch.cat([one.null for one in alone], dim=2))
    torch.testing.assert_close(each.tokens, torch.cat([one.tokens for one in alone], dim=1))
    torch.testing.assert_close(each.null, torch.cat([one.null for one in alone], dim=1))
    assert relative_error(alone[0].tokens, alone[1].tokens) > 0.01


def test_a_picture_goes_beside_a_prompt_and_so_does_its_absence(visual):
    encoder = PictureEncoder(visual, projection_of("plus"))
    prompt = content_of(torch.ones(1, 16), kind="clip_text")
    both = beside(prompt, encoder(pictures(1)), encoder.nothing())
    assert both.kind == "clip_text" and both.tokens.shape == (1, 1, 1, 16)
    assert [picture.tokens.shape for picture in both.pictures] == [(1, 1, 5, 16), (1, 1, 1, 16)]
    assert both.pictures[1].scales == (0.0,)
    assert encoder(pictures(1)).kind == PICTURE


def test_the_wrong_tower_is_refused(visual):
    with pytest.raises(ValueError, match="give the CLIP vision file of ViT-H/14"):
        PictureEncoder(visual, build_projection(ImageProjectionConfig(context_width=8)))


def test_a_tower_tells_its_size(visual):
    assert image_size(visual) == SIZE


def theirs_noised(embedding: Tensor, noise: Tensor, *, level: int, mean: Tensor, std: Tensor) -> Tensor:
    normalizer = StableUnCLIPImageNormalizer(embedding.shape[-1])
    normalizer.mean.data, normalizer.std.data = mean[None], std[None]
    pipeline: Any = SimpleNamespace(
        image_normalizer=normalizer, image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    )
    return StableUnCLIPImg2ImgPipeline.noise_image_embeddings(pipeline, embedding, level, noise)


@pytest.mark.parametrize("width", [EMBED, 768, 1024])
@pytest.mark.parametrize("level", [0, 1, 100, 500, 998, 999])
@torch.no_grad()
def test_noised_embeddings_equal_diffusers(width, level):
    embedding, noise = torch.randn(2, width, generator=seeded(1)), torch.randn(2, width, generator=seeded(2))
    statistics = {"mean": torch.randn(width, generator=seeded(3)), "std": 0.5 + torch.rand(width, generator=seeded(4))}
    ours = noised(embedding, noise, level=level, **statistics)
    assert relative_error(ours, theirs_noised(embedding, noise, level=level, **statistics)) <= 1e-5
    if level:
        plain = {"mean": torch.zeros(width), "std": torch.ones(width)}
        assert relative_error(noised(embedding, noise, level=level, **plain)[:, :width], ours[:, :width]) > 0.001


def test_the_share_of_signal_falls_to_nothing():
    shares = [signal_share(level) for level in range(0, 1000, 111)]
    assert 0.9999 < shares[0] < 1 and shares[-1] < 1e-5
    assert all(before > after for before, after in zip(shares, shares[1:], strict=False))


@torch.no_grad()
def test_unclip_tells_the_noised_embedding_of_the_picture(reference, visual):
    mean, std = torch.randn(EMBED, generator=seeded(5)), 0.5 + torch.rand(EMBED, generator=seeded(6))
    encoder = UnclipEncoder(visual, mean=mean, std=std, noise_level=300)
    images = pictures(1)
    content = encoder(images, seed=7)
    embedding = reference(preprocess(images, SIZE)).image_embeds
    wanted = theirs_noised(embedding, torch.randn(1, EMBED, generator=seeded(7)), level=300, mean=mean, std=std)
    assert content.embedding is not None and content.embedding_null is not None
    assert content.kind == PICTURE and not content.embedding_null.any()
    assert relative_error(content.embedding[0], wanted) <= 1e-5
    other = encoder(images, seed=8).embedding
    assert other is not None and relative_error(other, content.embedding) > 0.01
    nothing = encoder.nothing().embedding
    assert nothing is not None and nothing.shape == content.embedding.shape and not nothing.any()


@torch.no_grad()
def test_equal_frames_have_equal_noise(visual):
    encoder = UnclipEncoder(visual, mean=torch.zeros(EMBED), std=torch.ones(EMBED), noise_level=300)
    moving = encoder.per_frame(pictures(1).expand(3, -1, -1, -1), seed=1).embedding
    alone = encoder(pictures(1), seed=1).embedding
    assert moving is not None and alone is not None
    torch.testing.assert_close(moving, alone.expand(1, 3, -1))


def test_unclip_refuses(visual):
    mean, std = torch.zeros(EMBED), torch.ones(EMBED)
    with pytest.raises(ValueError, match="give ViT-L-14_stats.th with SD-unCLIP L"):
        UnclipEncoder(visual, mean=torch.zeros(5), std=torch.ones(5))
    with pytest.raises(ValueError, match="give 0 to 999"):
        UnclipEncoder(visual, mean=mean, std=std, noise_level=1000)
    with pytest.raises(ValueError, match=r"mix them with blend\(\)"):
        UnclipEncoder(visual, mean=mean, std=std)(pictures(2), seed=0)
