"""IP-Adapter's projections against diffusers' classes, from files in the public layout, all parameters non-zero."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from parts import relative_error
from torch import Tensor

from gen1_core.checkpoints.adapters import projection_config_of, projection_table, read_adapter
from gen1_core.checkpoints.files import load_module
from gen1_core.checkpoints.keymap import to_theirs
from gen1_core.models.adapter import (
    ImageProjectionConfig,
    MLPProjectionConfig,
    Projection,
    ProjectionConfig,
    ResamplerConfig,
    build_projection,
    require_tower,
)

SMALL = {
    "plain": ImageProjectionConfig(input_width=24, context_width=16),
    "full face": MLPProjectionConfig(input_width=24, context_width=16),
    "plus": ResamplerConfig(input_width=24, width=40, context_width=16, tokens=5, heads=2, mlp_width=160),
}
REAL = {
    "ip-adapter_sd15": ImageProjectionConfig(),
    "ip-adapter_sd15_vit-G": ImageProjectionConfig(input_width=1280),
    "ip-adapter-full-face_sd15": MLPProjectionConfig(),
    "ip-adapter-plus_sd15": ResamplerConfig(),
}

each_kind = pytest.mark.parametrize("kind", SMALL)


def public_shapes(config: ProjectionConfig) -> dict[str, tuple[int, ...]]:
    """The keys of the public files, written down by hand and not by our modules."""
    d, e = config.input_width, config.context_width
    if isinstance(config, ImageProjectionConfig):
        return {"proj.weight": (4 * e, d), "proj.bias": (4 * e,), "norm.weight": (e,), "norm.bias": (e,)}
    if isinstance(config, MLPProjectionConfig):
        linear = {"proj.0.weight": (d, d), "proj.0.bias": (d,), "proj.2.weight": (e, d), "proj.2.bias": (e,)}
        return {**linear, "proj.3.weight": (e,), "proj.3.bias": (e,)}
    w, inner = config.width, 64 * config.heads
    shapes: dict[str, tuple[int, ...]] = {"latents": (1, config.tokens, w)}
    shapes |= {"proj_in.weight": (w, d), "proj_in.bias": (w,), "proj_out.weight": (e, w), "proj_out.bias": (e,)}
    shapes |= {"norm_out.weight": (e,), "norm_out.bias": (e,)}
    for layer in range(config.depth):
        norms = {f"0.{name}": (w,) for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")}
        attention = {"0.to_q.weight": (inner, w), "0.to_kv.weight": (2 * inner, w), "0.to_out.weight": (w, inner)}
        network = {"1.0.weight": (w,), "1.0.bias": (w,), "1.1.weight": (4 * w, w), "1.3.weight": (w, 4 * w)}
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in {**norms, **attention, **network}.items()}
    return shapes


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Every value random, none zero; what scales a norm lies around one."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        norm = len(shape) == 1 and name.endswith("weight")
        tensors[name] = 1 + 0.2 * noise if norm else noise * (shape[-1] ** -0.5 if len(shape) > 1 else 0.2)
    return tensors


def ours_from(file: Mapping[str, Tensor]) -> Projection:
    adapter = read_adapter({f"image_proj.{name}": tensor for name, tensor in file.items()}, path=Path("a.bin"))
    return load_module(
        lambda: build_projection(adapter.config),
        adapter.projection,
        device=torch.device("cpu"),
        dtype=torch.float32,
        path=Path("a.bin"),
    )


def theirs_from(file: Mapping[str, Tensor]) -> torch.nn.Module:
    """diffusers' own conversion of the public names, on the smallest U-Net there is to hold it."""
    unet = UNet2DConditionModel(
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        layers_per_block=1,
        norm_num_groups=4,
    )
    return unet._convert_ip_adapter_image_proj_to_diffusers(dict(file), low_cpu_mem_usage=False).eval()


def seen_by(config: ProjectionConfig, tokens: int = 7) -> Tensor:
    shape = (2, config.input_width) if config.reads == "embedding" else (2, tokens, config.input_width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@each_kind
@torch.no_grad()
def test_projections_equal_diffusers(kind):
    file, seen = random_tensors(public_shapes(SMALL[kind])), seen_by(SMALL[kind])
    assert relative_error(ours_from(file)(seen), theirs_from(file)(seen)) <= 1e-5


@each_kind
@torch.no_grad()
def test_every_parameter_counts(kind):
    file, seen = random_tensors(public_shapes(SMALL[kind])), seen_by(SMALL[kind])
    whole = ours_from(file)(seen)
    for name in file:
        without = ours_from({**file, name: torch.zeros_like(file[name])})(seen)
        assert relative_error(without, whole) > 0.01, name


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("name", REAL)
@torch.no_grad()
def test_real_projections_equal_diffusers(name):
    file, seen = random_tensors(public_shapes(REAL[name])), seen_by(REAL[name], tokens=257)
    assert relative_error(ours_from(file)(seen), theirs_from(file)(seen)) <= 1e-5


@pytest.mark.parametrize("config", [*SMALL.values(), *REAL.values()])
def test_shapes_tell_the_config(config):
    shapes = {f"image_proj.{name}": shape for name, shape in public_shapes(config).items()}
    assert projection_config_of(shapes, path=Path("a.bin")) == config


@each_kind
def test_the_file_is_written_as_it_was_read(kind):
    file = random_tensors(public_shapes(SMALL[kind]))
    written = to_theirs(ours_from(file).state_dict(), projection_table(SMALL[kind]))
    assert written.keys() == {f"image_proj.{name}" for name in file}
    for name, tensor in file.items():
        torch.testing.assert_close(written[f"image_proj.{name}"], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("kind, sizes", [("plain", (1024, 1280)), ("plus", (1024, 1280)), ("full face", (1024, 1280))])
def test_the_right_tower_fits(kind, sizes):
    config = {"plain": ImageProjectionConfig(), "plus": ResamplerConfig(), "full face": MLPProjectionConfig()}[kind]
    require_tower(config, embedding_width=sizes[0], hidden_width=sizes[1])
    with pytest.raises(ValueError, match="the CLIP vision file is ViT-L/14.*give the CLIP vision file of ViT-H/14"):
        require_tower(config, embedding_width=768, hidden_width=1024)


def test_an_unknown_tower_is_described_by_its_width():
    with pytest.raises(ValueError, match="give a CLIP vision file whose embeddings are 24 wide"):
        require_tower(SMALL["plain"], embedding_width=32, hidden_width=48)


@pytest.mark.parametrize("config", [ImageProjectionConfig, MLPProjectionConfig, ResamplerConfig])
def test_sizes_below_one_are_refused(config):
    with pytest.raises(ValueError, match="give sizes of at least 1"):
        config(context_width=0)
