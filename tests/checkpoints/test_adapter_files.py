"""IP-Adapter files in the public layouts: read, put into the U-Net, equal to diffusers' own loader, and written."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from checkpoints.layouts import fixture, layout, write
from diffusers.loaders.ip_adapter import IPAdapterMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from einops import rearrange
from parts import randomised, relative_error
from torch import Tensor

from gen1_core.checkpoints.adapters import (
    adapter_file,
    attention_for_unet,
    nested,
    projection_config_of,
    read_adapter,
    read_statistics,
    require_unet,
)
from gen1_core.checkpoints.files import load_module, read_file
from gen1_core.diffusion.condition import PictureTokens
from gen1_core.models.adapter import (
    Projection,
    ProjectionConfig,
    ResamplerConfig,
    block_scales,
    build_projection,
    cross_attentions,
)
from gen1_core.models.unet import SpaceTimeUNet, UNetConfig

FILES = ("ip_adapter_sd15", "ip_adapter_plus_sd15", "ip_adapter_full_face_sd15", "ip_adapter_sd15_vit_g")
each_file = pytest.mark.parametrize("name", FILES)

SD15 = UNetConfig(in_channels=4, temporal=False)
SMALL = UNetConfig(
    in_channels=4, temporal=False, block_out_channels=(32, 64, 128, 128), cross_attention_dim=192, picture_adapters=1
)
"""SD 1.5 as the fixtures scale it."""

A = Path("a.safetensors")


class Holder(IPAdapterMixin):
    """What diffusers' loader needs of a pipeline: the U-Net."""

    unet_name = "unet"

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet = unet


def reference_unet(seed: int = 0) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        block_out_channels=SMALL.block_out_channels, cross_attention_dim=192, attention_head_dim=8
    )
    randomised(unet, seed)
    return unet


def load_theirs(paths: list[Path], unet: UNet2DConditionModel) -> Holder:
    """diffusers reads the files themselves."""
    holder = Holder(unet)
    folders, names = [str(path.parent) for path in paths], [path.name for path in paths]
    holder.load_ip_adapter(folders, subfolder="", weight_name=names, image_encoder_folder=None)
    return holder


def load_ours(
    paths: list[Path], unet_weights: Mapping[str, Tensor], *, config: UNetConfig
) -> tuple[SpaceTimeUNet, list[Projection]]:
    """The same files through our reader and tables."""
    weights, projections = dict(unet_weights), []
    load = partial(load_module, device=torch.device("cpu"), dtype=torch.float32)
    for index, path in enumerate(paths):
        adapter = read_adapter(read_file(path).tensors, path=path)
        weights |= attention_for_unet(adapter, config, index=index, path=path)
        projections.append(load(partial(build_projection, adapter.config), adapter.projection, path=path))
    return load(lambda: SpaceTimeUNet(config), weights, path=A), projections


def pictures_for(config: ProjectionConfig, frames: int, *, pictures: int = 1, seed: int = 3) -> Tensor:
    """What the vision tower would give for each frame [frames pictures (tokens) d]."""
    width = (config.input_width,) if config.reads == "embedding" else (9, config.input_width)
    return torch.randn(frames, pictures, *width, generator=torch.Generator().manual_seed(seed))


def tokens_of(projection: Projection, seen: Tensor, scales: tuple[float, ...] = (1.0,)) -> PictureTokens:
    """The tokens of each frame's pictures, one after the other."""
    each = projection(rearrange(seen, "f n ... -> (f n) ..."))
    tokens = rearrange(each, "(f n) k e -> 1 f (n k) e", f=len(seen))
    return PictureTokens(tokens=tokens, null=torch.zeros_like(tokens), scales=scales)


FRAMES = 2


def latents_and_text(width: int = 192) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(1, 4, FRAMES, 8, 8, generator=generator), torch.randn(1, FRAMES, 6, width, generator=generator)


def forward_theirs(unet: UNet2DConditionModel, x: Tensor, text: Tensor, seen: list[Tensor]) -> Tensor:
    """Frames as batch."""
    out = unet(
        rearrange(x, "b c f h w -> (b f) c h w"),
        torch.tensor(321.0),
        rearrange(text, "b f n d -> (b f) n d"),
        added_cond_kwargs={"image_embeds": seen},
    ).sample
    return rearrange(out, "(b f) c h w -> b c f h w", b=1)


def forward_ours(unet: SpaceTimeUNet, x: Tensor, text: Tensor, pictures: list[PictureTokens]) -> Tensor:
    return unet(x, torch.tensor([321.0]), text, pictures=pictures)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@each_file
@torch.no_grad()
def test_the_unet_with_an_adapter_equals_diffusers(name, suffix, tmp_path):
    path = write(tmp_path / f"a{suffix}", fixture(name, seed=1), nest=True)
    unet = reference_unet()
    ours, (projection,) = load_ours([path], unet.state_dict(), config=SMALL)
    holder = load_theirs([path], unet)
    holder.set_ip_adapter_scale(0.7)
    (x, text), seen = latents_and_text(), pictures_for(projection.config, FRAMES)
    theirs = forward_theirs(unet, x, text, [seen])
    assert relative_error(forward_ours(ours, x, text, [tokens_of(projection, seen, (0.7,))]), theirs) <= 1e-5
    assert relative_error(forward_ours(ours, x, text, [tokens_of(projection, seen, (0.0,))]), theirs) > 0.01


@torch.no_grad()
def test_two_adapters_several_pictures_and_scales_by_block_equal_diffusers(tmp_path):
    paths = [write(tmp_path / f"{name}.safetensors", fixture(name, seed=1)) for name in FILES[:2]]
    unet = reference_unet()
    config = UNetConfig(**{**vars(SMALL), "picture_adapters": 2})
    ours, projections = load_ours(paths, unet.state_dict(), config=config)
    holder = load_theirs(paths, unet)
    holder.set_ip_adapter_scale(
        [{"down": {"block_1": [0.25, 1.5]}, "mid": 0.4}, {"down": 0.3, "up": {"block_1": [0.5, 0.75, 1.0]}}]
    )
    scales = [
        block_scales(config, {"down_blocks.1.attentions.0": 0.25, "down_blocks.1.attentions.1": 1.5, "mid_block": 0.4}),
        block_scales(
            config,
            {f"down_blocks.{i}": 0.3 for i in range(3)}
            | {f"up_blocks.1.attentions.{i}": 0.5 + i / 4 for i in range(3)},
        ),
    ]
    (x, text) = latents_and_text()
    seen = [pictures_for(projections[0].config, FRAMES, pictures=3), pictures_for(projections[1].config, FRAMES)]
    tokens = [tokens_of(*each) for each in zip(projections, seen, scales, strict=True)]
    theirs = forward_theirs(unet, x, text, seen)
    assert relative_error(forward_ours(ours, x, text, tokens), theirs) <= 1e-5
    for index in range(2):
        silent = [
            PictureTokens(tokens=p.tokens, null=p.null, scales=(0.0,)) if i == index else p
            for i, p in enumerate(tokens)
        ]
        assert relative_error(forward_ours(ours, x, text, silent), theirs) > 0.01


@each_file
def test_a_file_is_read_and_written_back(name, tmp_path):
    file = fixture(name, seed=2)
    adapter = read_adapter(read_file(write(tmp_path / "a.safetensors", file)).tensors, path=A)
    attention = attention_for_unet(adapter, SMALL, index=3, path=A)
    assert "mid_block.attentions.0.transformer_blocks.0.attn2.to_v_ip.3.weight" in attention
    written = adapter_file(adapter.projection, attention, config=adapter.config, unet=SMALL, index=3)
    again = read_file(write(tmp_path / "b.bin", written, nest=True)).tensors
    assert again.keys() == written.keys() == file.keys()
    for key, tensor in file.items():
        torch.testing.assert_close(again[key], tensor, rtol=0, atol=0)
    assert {part: set(tensors) for part, tensors in nested(written).items()} == {
        part: {key.split(".", 1)[1] for key in file if key.startswith(part)} for part in ("image_proj", "ip_adapter")
    }


@each_file
def test_training_checkpoints_hold_the_same(name):
    file = fixture(name)
    renamed = {
        key.replace("image_proj.", "image_proj_model.").replace("ip_adapter.", "adapter_modules."): tensor
        for key, tensor in file.items()
    }
    adapter = read_adapter({**renamed, "unet.conv_in.weight": torch.ones(1)}, path=A)
    plain = read_adapter(file, path=A)
    assert adapter.config == plain.config
    assert adapter.projection.keys() == plain.projection.keys() and adapter.attention.keys() == plain.attention.keys()


@each_file
def test_the_public_shapes_fit_stable_diffusion(name):
    shapes = layout(name).shapes
    config = projection_config_of(shapes, path=A)
    require_unet(shapes, SD15, path=A)
    assert (config.context_width, config.input_width) == (768, 1024 if name == "ip_adapter_sd15" else 1280)
    if isinstance(config, ResamplerConfig):
        assert (config.tokens, config.depth, config.heads) == (16, 4, 12)


def test_numbers_go_down_up_and_to_the_middle():
    names = [name.split(".transformer_blocks")[0] for name, _ in cross_attentions(SD15)]
    assert len(names) == 16 and names[0] == "down_blocks.0.attentions.0" and names[-1] == "mid_block.attentions.0"
    assert names[6] == "up_blocks.1.attentions.0" and cross_attentions(SD15)[6][1] == 1280
    numbers = {
        name.removesuffix(".attn2"): module.number
        for name, module in SpaceTimeUNet(SMALL).named_modules()
        if name.endswith(".attn2")
    }
    assert [numbers[name.removesuffix(".attn2")] for name, _ in cross_attentions(SMALL)] == list(range(16))


def sdxl(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    numbers = range(1, 140, 2)
    attention = {f"ip_adapter.{n}.to_{x}_ip.weight": (1280, 2048) for n in numbers for x in "kv"}
    return {**{key: shape for key, shape in shapes.items() if key.startswith("image_proj")}, **attention}


def test_an_adapter_for_another_model_is_refused():
    shapes = layout("ip_adapter_sd15").shapes
    with pytest.raises(ValueError, match=r"for SDXL \(70 cross-attentions.*such as ip-adapter_sd15.safetensors"):
        require_unet(sdxl(shapes), SD15, path=A)
    sd2 = UNetConfig(in_channels=4, temporal=False, cross_attention_dim=1024)
    with pytest.raises(ValueError, match="for SD 1.5.*use an SD 1.5 checkpoint, or an SD-unCLIP one"):
        require_unet(shapes, sd2, path=A)
    narrow = {**shapes, "ip_adapter.13.to_k_ip.weight": (640, 768)}
    with pytest.raises(ValueError, match=r"number 13 of shape \[640, 768\] instead of \[1280, 768\]"):
        require_unet(narrow, SD15, path=A)
    with pytest.raises(ValueError, match="give a whole IP-Adapter file"):
        require_unet({key: shape for key, shape in shapes.items() if "ip_adapter" not in key}, SD15, path=A)


@pytest.mark.parametrize(
    "extra",
    [
        {"image_proj.proj.0.weight": (1024, 512), "image_proj.norm.weight": (768,)},
        {"ip_adapter.0.to_q_lora.down.weight": (128, 320)},
        {"image_proj.perceiver_resampler.proj_in.weight": (768, 1280)},
    ],
)
def test_face_id_is_refused(extra):
    with pytest.raises(ValueError, match="use ip-adapter-plus-face_sd15 or ip-adapter-full-face_sd15"):
        projection_config_of(extra, path=A)


def test_what_belongs_to_no_half_is_refused():
    with pytest.raises(ValueError, match="look what the file is with `gen1 info`"):
        read_adapter({**fixture("ip_adapter_sd15"), "surprise": torch.ones(1)}, path=A)
    with pytest.raises(ValueError, match="lacks image_proj.norm.weight.*download the file again"):
        projection_config_of(layout("ip_adapter_sd15").only("ip_adapter").shapes, path=A)


def test_a_scale_for_no_block_is_refused():
    with pytest.raises(ValueError, match="name one of down_blocks.0, down_blocks.1"):
        block_scales(SD15, {"down_blocks.3": 1.0})
    assert block_scales(SD15, {"up_blocks.1": 1.0, "up_blocks.1.attentions.2": 0.5}, others=0.25) == (
        *(0.25,) * 6,
        1.0,
        1.0,
        0.5,
        *(0.25,) * 7,
    )


def test_statistics_are_read_from_both_layouts(tmp_path):
    mean, std = torch.randn(8), 1 + torch.rand(8)
    torch.save((mean, std), tmp_path / "ViT-L-14_stats.th")
    files = [tmp_path / "ViT-L-14_stats.th"]
    files.append(write(tmp_path / "a.safetensors", {"mean": mean[None], "std": std[None]}))
    files.append(write(tmp_path / "a.bin", {"mean": mean[None], "std": std[None]}))
    for file in files:
        for got, wanted in zip(read_statistics(file), (mean, std), strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("content", [{"mean": torch.ones(3)}, [torch.ones(3)] * 3, b"nothing"])
def test_other_files_are_no_statistics(content, tmp_path):
    path = tmp_path / "a.th"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match="give ViT-L-14_stats.th"):
        read_statistics(path)
    with pytest.raises(ValueError, match="give ViT-L-14_stats.th"):
        read_statistics(tmp_path / "nowhere.th")
