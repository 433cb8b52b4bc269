"""CLIP against open_clip, with every parameter random and non-zero."""

from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from PIL import Image

from gen1_core.models.clip import CLIP, CLIPConfig, Transformer, preprocess


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)


def ratio(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


CONFIG = CLIPConfig(
    embed_dim=24,
    image_size=32,
    patch_size=8,
    vision_width=32,
    vision_layers=2,
    vision_heads=4,
    text_width=16,
    text_layers=2,
    text_heads=2,
    context_length=12,
    vocab_size=40,
    mlp_ratio=2.0,
)


def pair(*, quick_gelu: bool) -> tuple[CLIP, open_clip.CLIP]:
    reference = open_clip.CLIP(
        embed_dim=24,
        vision_cfg=CLIPVisionCfg(image_size=32, patch_size=8, width=32, layers=2, head_width=8, mlp_ratio=2.0),
        text_cfg=CLIPTextCfg(context_length=12, vocab_size=40, width=16, heads=2, layers=2, mlp_ratio=2.0),
        quick_gelu=quick_gelu,
    ).eval()
    randomise(reference)
    ours = CLIP(replace(CONFIG, quick_gelu=quick_gelu)).eval()
    ours.load_state_dict(reference.state_dict(), strict=True)
    return ours, reference


def some_tokens() -> torch.Tensor:
    tokens = torch.randint(0, 38, (5, 12), generator=torch.Generator().manual_seed(1))
    for row, end in enumerate((1, 4, 6, 9, 11)):
        tokens[row, end] = 39
        tokens[row, end + 1 :] = 0
    return tokens


@pytest.mark.parametrize("quick_gelu", [False, True])
@torch.no_grad()
def test_towers_equal_open_clip(quick_gelu):
    ours, reference = pair(quick_gelu=quick_gelu)
    pixels, tokens = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2)), some_tokens()
    assert ratio(ours.encode_image(pixels), reference.encode_image(pixels)) <= 1e-5
    assert ratio(ours.encode_text(tokens), reference.encode_text(tokens)) <= 1e-5


@torch.no_grad()
def test_the_kind_of_gelu_matters():
    quick, exact = pair(quick_gelu=True)[0], pair(quick_gelu=False)[0]
    pixels, tokens = torch.randn(3, 3, 32, 32), some_tokens()
    assert ratio(quick.encode_image(pixels), exact.encode_image(pixels)) > 1e-3
    assert ratio(quick.encode_text(tokens), exact.encode_text(tokens)) > 1e-3


@pytest.mark.parametrize("name", ["positional_embedding", "ln_final.weight", "transformer.resblocks.1.mlp.c_fc.bias"])
@torch.no_grad()
def test_every_part_of_the_text_tower_counts(name):
    ours, reference = pair(quick_gelu=False)
    ours.get_parameter(name).zero_()
    assert ratio(ours.encode_text(some_tokens()), reference.encode_text(some_tokens())) > 0.01


@pytest.mark.parametrize("name", ["class_embedding", "positional_embedding", "ln_pre.weight", "conv1.weight"])
@torch.no_grad()
def test_every_part_of_the_image_tower_counts(name):
    ours, reference = pair(quick_gelu=False)
    ours.visual.get_parameter(name).zero_()
    pixels = torch.randn(3, 3, 32, 32)
    assert ratio(ours.encode_image(pixels), reference.encode_image(pixels)) > 0.01


@torch.no_grad()
def test_the_text_transformer_is_causal():
    transformer = Transformer(16, 2, 2, mlp_ratio=2.0, quick_gelu=False)
    randomise(transformer)
    x = torch.randn(2, 6, 16)
    changed = x.clone()
    changed[:, 4:] += 1
    causal, causal_changed = transformer(x, causal=True), transformer(changed, causal=True)
    torch.testing.assert_close(causal_changed[:, :4], causal[:, :4])
    assert ratio(transformer(x), causal) > 0.01


@torch.no_grad()
def test_padding_after_the_end_token_changes_nothing():
    ours, _ = pair(quick_gelu=False)
    zeros = some_tokens()
    ends = zeros.argmax(dim=-1)
    padded = torch.where(torch.arange(12) > ends[:, None], 39, zeros)
    torch.testing.assert_close(ours.encode_text(padded), ours.encode_text(zeros))
    short = zeros[:2, :5]
    torch.testing.assert_close(ours.encode_text(short), ours.encode_text(zeros[:2]))


@pytest.mark.parametrize("height, width", [(48, 48), (97, 61), (50, 133), (32, 32), (20, 41)])
def test_preprocess_equals_open_clip(height, width):
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    picture = coarse.resize((width, height), Image.Resampling.BICUBIC)
    transform = open_clip.image_transform(32, is_train=False)
    assert callable(transform)
    expected = transform(picture)
    images = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    # Pillow rounds to bytes after each of its two passes: two steps of 1/255, divided by a std of 0.26
    torch.testing.assert_close(preprocess(images, 32)[0], expected, rtol=0, atol=2 / 255 / 0.26)


def test_preprocess_stays_in_range_and_normalises():
    checker = torch.zeros(1, 3, 64, 64)
    checker[..., ::2, :32] = 1
    seen = preprocess(checker, 32, mean=(0.0, 0.0, 0.0), std=(0.5, 0.5, 0.5))
    assert seen.min() >= 0 and seen.max() <= 2


def test_default_sizes_fit_the_embedded_budget():
    clip = CLIP(CLIPConfig())
    assert sum(parameter.numel() for parameter in clip.parameters()) * 2 < 7.5e6


@pytest.mark.parametrize(
    "sizes, advice",
    [
        (dict(vision_width=50), "make vision_width a multiple"),
        (dict(text_heads=0), "make text_width a multiple"),
        (dict(image_size=130), "make image_size a multiple"),
        (dict(context_length=2), "set it to 3 or more"),
    ],
)
def test_config_refuses(sizes, advice):
    with pytest.raises(ValueError, match=advice):
        CLIPConfig(**sizes)
