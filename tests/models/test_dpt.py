"""MiDaS and Depth Anything against transformers and timm: random weights, through our tables into our network."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from models.dpt_references import depth_anything, depth_of, dpt, hybrid, published, randomised, tiny_dpt
from parts import relative_error
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from gen1_core.checkpoints.depth import depth_network
from gen1_core.models.dpt import DPT, DPTConfig
from gen1_core.models.resnet import ResNetConfig, pad_evenly
from gen1_core.models.vit import VisionTransformer, ViTConfig, grid_positions

CPU = torch.device("cpu")
TINY: dict[str, Callable[[], nn.Module]] = {"large": tiny_dpt, "hybrid": hybrid, "depth anything": depth_anything}
SIZES = {
    "large": [(64, 64), (96, 64), (64, 160)],
    "hybrid": [(64, 64), (32, 96)],
    "depth anything": [(70, 70), (42, 98)],
}


def ours_of(reference: Any) -> DPT:
    return depth_network(published(reference), path=Path("reference"), device=CPU, dtype=torch.float32)


@pytest.fixture(scope="module", params=list(TINY))
def pair(request: pytest.FixtureRequest) -> tuple[str, Any, DPT]:
    reference = randomised(TINY[request.param]())
    return request.param, reference, ours_of(reference)


def error_of(found: Tensor, expected: Tensor) -> float:
    """Relative to what varies in depth: its mean is the last bias, and would make any error small."""
    return relative_error(found - expected.mean(), expected - expected.mean())


def compare(reference: Any, ours: DPT, *, size: tuple[int, int]) -> float:
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    expected = depth_of(reference, pixels)
    with torch.no_grad():
        found = ours(pixels)
    assert (expected > 0).float().mean() > 0.9
    assert expected.std() > 0.01 * expected.mean()
    assert relative_error(found, expected) <= 1e-5
    return error_of(found, expected)


def test_networks_equal_transformers(pair: tuple[str, Any, DPT]) -> None:
    name, reference, ours = pair
    for size in SIZES[name]:
        assert compare(reference, ours, size=size) <= 1e-5


def test_transformers_own_forward_agrees_on_squares(pair: tuple[str, Any, DPT]) -> None:
    name, reference, ours = pair
    pixels = torch.randn(2, 3, *SIZES[name][0])
    if name == "hybrid":
        reference.dpt.embeddings.image_size = (64, 64)
    with torch.no_grad():
        assert error_of(ours(pixels), reference(pixels).predicted_depth[:, None]) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("large", "reassemble.0.readout"),
        ("large", "fuse.0.branch"),
        ("large", "backbone.blocks.11.mlp"),
        ("large", "backbone.pos_embed"),
        ("hybrid", "reassemble.2.readout"),
        ("hybrid", "backbone.patch_embed.backbone.stages.0.blocks.1.norm3"),
        ("hybrid", "backbone.patch_embed.backbone.stages.2"),
        ("depth anything", "backbone.norm"),
        ("depth anything", "backbone.blocks.3.ls2"),
        ("depth anything", "backbone.pos_embed"),
        ("depth anything", "fuse.3.merged"),
    ],
)
def test_a_network_without_a_part_differs(name: str, part: str) -> None:
    ours = ours_of(randomised(TINY[name]()))
    pixels = torch.randn(1, 3, *SIZES[name][0])
    expected = ours(pixels)
    weights = ours.state_dict()
    assert any(key.startswith(part) for key in weights)
    ours.load_state_dict({key: value * (not key.startswith(part)) for key, value in weights.items()})
    assert error_of(ours(pixels), expected) > 0.01


def test_each_frame_is_alone(pair: tuple[str, Any, DPT]) -> None:
    name, _, ours = pair
    pixels = torch.randn(3, 3, *SIZES[name][0])
    with torch.no_grad():
        assert relative_error(ours(pixels)[1:2], ours(pixels[1:2])) <= 1e-5


@pytest.mark.slow
@torch.no_grad()
def test_the_transformers_are_timms() -> None:
    """The backbone of MiDaS is timm's: same names, shapes and tokens, with and without the ResNet."""
    import timm

    configs = {
        "vit_base_r50_s16_384": ViTConfig(width=768, depth=12, heads=12, resnet=ResNetConfig()),
        "vit_tiny_patch16_384": ViTConfig(width=192, depth=12, heads=3),
    }
    for name, config in configs.items():
        theirs: Any = timm.create_model(name, pretrained=False, num_classes=0)
        for part, parameter in theirs.named_parameters():
            spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1
            centre = 0.3 if part.endswith("norm3.weight") else float("norm" in part and part.endswith("weight"))
            parameter.data = centre + spread * torch.randn(parameter.shape)
        ours = VisionTransformer(config)
        ours.load_state_dict(theirs.state_dict())
        pixels = torch.randn(1, 3, 384, 384)
        tokens, _ = ours.eval()(pixels, (4, 11))
        expected = theirs.eval().forward_intermediates(
            pixels, indices=[4, 11], return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
        for found, (patches, first) in zip(tokens, expected, strict=True):
            assert relative_error(found, torch.cat([first, patches], dim=1)) <= 1e-5, name


def test_positions_of_dinov2_are_sampled_where_its_own_code_does() -> None:
    """12 columns on 8 are sampled as if they were 12.1, and the trained grid itself is left alone."""
    config = ViTConfig(image_size=112, patch_size=14, width=4, heads=1, dino=True, position_offset=0.1)
    positions = torch.randn(1, 65, 4)
    trained = rearrange(positions[:, 1:], "1 (h w) d -> 1 d h w", h=8)
    assert torch.equal(grid_positions(positions, 8, 8, config=config), positions)
    for offset in (0.1, 0.0):
        across, down = (2 * (torch.arange(count) + 0.5) / (count + offset) - 1 for count in (12, 10))
        places = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1)[None]
        expected = F.grid_sample(trained, places, mode="bicubic", padding_mode="border", align_corners=False)
        found = grid_positions(positions, 10, 12, config=replace(config, position_offset=offset))
        assert_close(rearrange(found[:, 1:], "1 (h w) d -> 1 d h w", h=10), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 3, 2), (7, 3, 2), (9, 7, 2), (8, 1, 2), (5, 3, 1)])
def test_padding_gives_the_rounded_up_size(size: int, kernel: int, stride: int) -> None:
    padded = pad_evenly(torch.ones(1, 1, size, size), kernel=kernel, stride=stride)
    assert (padded.shape[-1] - kernel) // stride + 1 == -(-size // stride)
    before = int((padded[0, 0, padded.shape[-2] // 2] == 0).long().argmin())
    assert before == (padded.shape[-1] - size) // 2


HYBRID = ViTConfig(width=768, depth=12, heads=12, resnet=ResNetConfig())


@pytest.mark.parametrize(
    ("build", "advice"),
    [
        (lambda: DPTConfig(hooks=(3, 2, 5, 6)), "rising numbers"),
        (lambda: DPTConfig(vit=ViTConfig(depth=4)), "from 0 to 3"),
        (lambda: DPTConfig(vit=HYBRID, hooks=(2, 5, 8, 11)), "give 2 rising numbers"),
        (lambda: DPTConfig(vit=HYBRID, hooks=(8, 11), reassembled=(96, 192, 384, 768)), r"start it with \(256, 512\)"),
        (lambda: ViTConfig(heads=7), "multiple of heads"),
        (lambda: ViTConfig(patch_size=14), "multiple of patch_size"),
        (lambda: ResNetConfig(blocks=(3, 4)), "one number per stage"),
        (lambda: ResNetConfig(stem=24), "multiples of 32"),
    ],
)
def test_impossible_sizes_are_refused(build: Callable[[], Any], advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        build()


REAL: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "Depth Anything V2 small": (
        lambda: depth_anything(width=384, side=518, neck=(48, 96, 192, 384), features=64),
        (518, 700),
    ),
    "Depth Anything V2 large": (
        lambda: depth_anything(
            width=1024, depth=24, side=518, taps=(5, 12, 18, 24), neck=(256, 512, 1024, 1024), features=256
        ),
        (252, 336),
    ),
    "DPT-Large": (
        lambda: dpt(width=1024, depth=24, side=384, hooks=(5, 11, 17, 23), neck=(256, 512, 1024, 1024)),
        (384, 512),
    ),
    "DPT-Hybrid": (
        lambda: hybrid(
            width=768,
            side=384,
            stem=64,
            stages=(256, 512, 1024),
            blocks=(3, 4, 9),
            neck=(256, 512, 768, 768),
            features=256,
        ),
        (384, 512),
    ),
}


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("name", list(REAL))
def test_real_sizes_equal_transformers(name: str, record_property: Callable[[str, object], None]) -> None:
    build, size = REAL[name]
    reference = randomised(build())
    error = compare(reference, ours_of(reference), size=size)
    record_property("relative error", error)
    assert error <= 1e-5
