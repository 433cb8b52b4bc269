"""The space-time U-Net: its spatial path against diffusers, its temporal path against its own image path."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from einops import rearrange, reduce, repeat
from torch import Tensor, nn
from torch.nn import functional

from gen1_core.models import attention
from gen1_core.models.attention import attend
from gen1_core.models.layers import TemporalConv, sinusoids
from gen1_core.models.unet import SpaceTimeUNet, UNetConfig

TINY = UNetConfig(
    block_out_channels=(48, 96, 128),
    layers_per_block=1,
    attention=(True, True, True),
    num_attention_heads=(2, 3, 4),
    cross_attention_dim=128,
    norm_num_groups=16,
)
MIXED = UNetConfig(
    block_out_channels=(16, 32, 32, 48),
    layers_per_block=2,
    attention=(True, False, True, False),
    num_attention_heads=2,
    cross_attention_dim=24,
    norm_num_groups=8,
    frames=4,
)
SMALL = UNetConfig(
    in_channels=5,
    block_out_channels=(16, 32),
    layers_per_block=1,
    attention=(True, True),
    num_attention_heads=2,
    cross_attention_dim=16,
    norm_num_groups=4,
    frames=4,
)


def reference(config: UNetConfig, **more: Any) -> UNet2DConditionModel:
    down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in config.attention]
    up = ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(config.attention)]
    return UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        attention_head_dim=config.num_attention_heads,
        cross_attention_dim=config.cross_attention_dim,
        norm_num_groups=config.norm_num_groups,
        **more,
    ).eval()


def randomise(module: nn.Module) -> nn.Module:
    """No parameter keeps its first value or is zero: a fresh zero layer would prove nothing."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        # Twice the spread that keeps the variance, so that attention prefers some tokens to others.
        spread = 2 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5
        nn.init.normal_(parameter, std=spread)
    return module.eval()


def is_temporal(name: str) -> bool:
    return "temporal" in name


def distance(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def inputs(config: UNetConfig, *, frames: int, batch: int = 2, size: int = 8, tokens: int = 1) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, config.in_channels, frames, size, size, generator=generator)
    timestep = torch.linspace(37, 961, batch)
    content = torch.randn(batch, 1, tokens, config.cross_attention_dim, generator=generator)
    return x, timestep, content


def from_diffusers(config: UNetConfig) -> tuple[SpaceTimeUNet, UNet2DConditionModel]:
    """A pair with the same spatial weights; temporal weights of ours stay as they were initialised."""
    theirs = reference(config)
    randomise(theirs)
    ours = SpaceTimeUNet(config).eval()
    temporal = {name: value for name, value in ours.state_dict().items() if is_temporal(name)}
    ours.load_state_dict({**theirs.state_dict(), **temporal}, strict=True)
    return ours, theirs


def run_diffusers(
    theirs: UNet2DConditionModel, x: Tensor, timestep: Tensor, content: Tensor, *, projected: Tensor | None = None
) -> Tensor:
    frames = x.shape[2]
    labels = None if projected is None else repeat(projected, "b g d -> (b g f) d", f=frames // content.shape[1])
    out = theirs(
        rearrange(x, "b c f h w -> (b f) c h w"),
        repeat(timestep, "b -> (b f)", f=frames),
        repeat(content, "b g n d -> (b g f) n d", f=frames // content.shape[1]),
        class_labels=labels,
    ).sample
    return rearrange(out, "(b f) c h w -> b c f h w", f=frames)


@torch.no_grad()
@pytest.mark.parametrize("config", [TINY, MIXED], ids=["tiny", "mixed"])
@pytest.mark.parametrize(("size", "tokens"), [(8, 1), (9, 5)], ids=["even", "odd size, 5 tokens"])
def test_spatial_path_equals_diffusers(config: UNetConfig, size: int, tokens: int) -> None:
    ours, theirs = from_diffusers(config)
    x, timestep, content = inputs(config, frames=3, size=size, tokens=tokens)
    expected = run_diffusers(theirs, x, timestep, content)
    assert distance(ours(x, timestep, content, image=True), expected) <= 1e-5
    per_frame = torch.randn(2, 3, tokens, config.cross_attention_dim)
    expected = run_diffusers(theirs, x, timestep, per_frame)
    assert distance(ours(x, timestep, per_frame, image=True), expected) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    "part",
    [
        "time_embedding.linear_2",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
        "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2",
        "down_blocks.0.resnets.0.time_emb_proj",
        "mid_block.attentions.0.proj_out",
        "up_blocks.1.resnets.1.conv_shortcut",
    ],
)
def test_every_spatial_part_counts(part: str) -> None:
    model = randomise(SpaceTimeUNet(SMALL))
    x, timestep, content = inputs(SMALL, frames=2, tokens=3)
    before = model(x, timestep, content, image=True)
    for parameter in model.get_submodule(part).parameters():
        parameter.zero_()
    assert distance(model(x, timestep, content, image=True), before) > 0.01


def test_full_size_has_the_parameters_of_stable_diffusion() -> None:
    config = UNetConfig(in_channels=4)
    with torch.device("meta"):
        ours, theirs = SpaceTimeUNet(config), reference(config)
    spatial = {name: value.shape for name, value in ours.state_dict().items() if not is_temporal(name)}
    assert spatial == {name: value.shape for name, value in theirs.state_dict().items()}
    assert sum(shape.numel() for shape in spatial.values()) == 859_520_964


def test_temporal_layers_follow_every_spatial_one() -> None:
    """The paper: a convolution after each of the two 2D ones, a transformer after each spatial one."""
    names = {name for name, _ in SpaceTimeUNet(MIXED).named_modules()}
    for name in names:
        if name.endswith((".conv1", ".conv2")):
            assert name.replace(".conv", ".temporal_conv") in names
        if name.endswith(".proj_in") and not is_temporal(name):
            assert name.replace(".attentions.", ".temporal_attentions.") in names
    without = SpaceTimeUNet(replace(MIXED, temporal=False)).state_dict()
    assert [name for name in without if is_temporal(name)] == []


@torch.no_grad()
@pytest.mark.parametrize("config", [TINY, MIXED], ids=["tiny", "mixed"])
def test_a_new_video_model_is_the_image_model(config: UNetConfig) -> None:
    model, _ = from_diffusers(config)
    x, timestep, content = inputs(config, frames=4)
    torch.testing.assert_close(model(x, timestep, content), model(x, timestep, content, image=True), rtol=0, atol=0)


def test_only_output_projections_start_at_zero() -> None:
    model = SpaceTimeUNet(SMALL)
    zero = {name for name, value in model.named_parameters() if is_temporal(name) and not value.any()}
    for name, value in model.named_parameters():
        if is_temporal(name) and value.ndim > 1:
            assert (name in zero) == (".proj_out." in name or ".temporal_conv" in name), name


def test_every_temporal_layer_learns_from_the_second_step_on() -> None:
    torch.manual_seed(0)
    model = SpaceTimeUNet(SMALL)
    x, timestep, content = inputs(SMALL, frames=4)
    temporal = {name: value for name, value in model.named_parameters() if is_temporal(name)}
    optimizer = torch.optim.SGD(temporal.values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (model(x, timestep, content) - 1).square().mean().backward()
        optimizer.step()
    assert [name for name, value in temporal.items() if value.grad is None or not value.grad.any()] == []


@torch.no_grad()
@pytest.mark.parametrize("config", [TINY, MIXED], ids=["tiny", "mixed"])
def test_trained_temporal_layers_change_the_video(config: UNetConfig) -> None:
    model = randomise(SpaceTimeUNet(config))
    x, timestep, content = inputs(config, frames=4)
    image = model(x, timestep, content, image=True)
    assert distance(model(x, timestep, content), image) > 0.01


@torch.no_grad()
@pytest.mark.parametrize("part", ["temporal_conv1", "temporal_conv2", "temporal_attentions"])
def test_every_kind_of_temporal_layer_counts(part: str) -> None:
    model = randomise(SpaceTimeUNet(SMALL))
    x, timestep, content = inputs(SMALL, frames=4)
    before = model(x, timestep, content)
    for name, parameter in model.named_parameters():
        if part in name and (".proj_out." in name or ".conv." in name):
            parameter.zero_()
    assert distance(model(x, timestep, content), before) > 0.01


@torch.no_grad()
def test_one_frame_is_an_image() -> None:
    model = randomise(SpaceTimeUNet(SMALL))
    x, timestep, content = inputs(SMALL, frames=1)
    torch.testing.assert_close(model(x, timestep, content), model(x, timestep, content, image=True), rtol=0, atol=0)


@torch.no_grad()
def test_image_mode_is_frame_by_frame() -> None:
    """At the same batch it is the same to the last bit: other frames in the clip change nothing."""
    model = randomise(SpaceTimeUNet(SMALL))
    x, timestep, content = inputs(SMALL, frames=4)
    whole = model(x, timestep, content, image=True)
    for frame in range(4):
        others = torch.randn_like(x)
        others[:, :, frame] = x[:, :, frame]
        alone = model(others, timestep, content, image=True)
        torch.testing.assert_close(alone[:, :, frame], whole[:, :, frame], rtol=0, atol=0)
        single = model(x[:, :, frame : frame + 1], timestep, content, image=True)
        assert distance(single[:, :, 0], whole[:, :, frame]) <= 1e-5


@torch.no_grad()
def test_without_temporal_layers_a_clip_is_frame_by_frame() -> None:
    model = randomise(SpaceTimeUNet(replace(SMALL, temporal=False, frames=2)))
    x, timestep, content = inputs(SMALL, frames=3)
    torch.testing.assert_close(model(x, timestep, content), model(x, timestep, content, image=True), rtol=0, atol=0)


@torch.no_grad()
def test_in_video_mode_every_frame_affects_every_other() -> None:
    model = randomise(SpaceTimeUNet(SMALL))
    x, timestep, content = inputs(SMALL, frames=4, batch=1)
    whole = model(x, timestep, content)
    for frame in range(4):
        changed = x.clone()
        changed[:, :, frame] = -x[:, :, frame]
        out = model(changed, timestep, content)
        assert all(distance(out[:, :, other], whole[:, :, other]) > 1e-3 for other in range(4))


@torch.no_grad()
def test_clips_of_a_batch_do_not_mix() -> None:
    model = randomise(SpaceTimeUNet(SMALL))
    x, timestep, content = inputs(SMALL, frames=4, batch=3)
    whole = model(x, timestep, content)
    for clip in range(3):
        alone = model(x[clip : clip + 1], timestep[clip : clip + 1], content[clip : clip + 1])
        assert distance(alone[0], whole[clip]) <= 1e-5


@torch.no_grad()
def test_frame_positions_tell_the_order() -> None:
    """Without positions and convolutions, reversing the frames would only reverse the output."""
    model = randomise(SpaceTimeUNet(SMALL))
    for name, parameter in model.named_parameters():
        if ".temporal_conv" in name:
            parameter.zero_()
    x, timestep, content = inputs(SMALL, frames=4)
    there, back = model(x, timestep, content), model(x.flip(2), timestep, content).flip(2)
    assert distance(back, there) > 0.01
    for name, parameter in model.named_parameters():
        if ".position." in name:
            parameter.zero_()
    there, back = model(x, timestep, content), model(x.flip(2), timestep, content).flip(2)
    assert distance(back, there) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("image", [True, False])
def test_content_of_each_frame(image: bool) -> None:
    model = randomise(SpaceTimeUNet(SMALL))
    x, timestep, content = inputs(SMALL, frames=4, tokens=2)
    one = model(x, timestep, content, image=image)
    same = model(x, timestep, repeat(content, "b 1 n d -> b f n d", f=4), image=image)
    assert distance(same, one) <= 1e-5
    changing = torch.randn(2, 4, 2, SMALL.cross_attention_dim)
    changing[:, 0] = content[:, 0]
    out = model(x, timestep, changing, image=image)
    assert all(distance(out[:, :, frame], one[:, :, frame]) > 0.01 for frame in range(1, 4))
    if image:
        assert distance(out[:, :, 0], one[:, :, 0]) <= 1e-5


@torch.no_grad()
def test_scale_and_shift_equal_diffusers() -> None:
    config = replace(MIXED, scale_shift=True)
    theirs = randomise(reference(config, resnet_time_scale_shift="scale_shift"))
    ours = SpaceTimeUNet(config).eval()
    ours.load_state_dict({**ours.state_dict(), **theirs.state_dict()})
    x, timestep, content = inputs(config, frames=3, tokens=2)
    assert distance(ours(x, timestep, content, image=True), run_diffusers(theirs, x, timestep, content)) <= 1e-5
    torch.testing.assert_close(ours(x, timestep, content), ours(x, timestep, content, image=True), rtol=0, atol=0)


@torch.no_grad()
def test_content_embedding_equals_diffusers_projected_class() -> None:
    config = replace(MIXED, content_embedding=True)
    theirs = reference(config, class_embed_type="projection", projection_class_embeddings_input_dim=24)
    randomise(theirs)
    weights = {name.replace("class_embedding", "content_embedding"): w for name, w in theirs.state_dict().items()}
    ours = SpaceTimeUNet(config).eval()
    silent = SpaceTimeUNet(MIXED).eval()
    without = {name: weight for name, weight in weights.items() if not name.startswith("content_embedding")}
    ours.load_state_dict({**ours.state_dict(), **without})
    silent.load_state_dict({**silent.state_dict(), **without})
    x, timestep, content = inputs(config, frames=3, size=8, tokens=2)
    assert torch.equal(ours(x, timestep, content), silent(x, timestep, content)), "a new one has to change nothing"
    ours.load_state_dict({**ours.state_dict(), **weights})
    for told in (content, torch.randn(2, 3, 2, 24)):
        expected = run_diffusers(theirs, x, timestep, told, projected=reduce(told, "b g n d -> b g d", "mean"))
        assert distance(ours(x, timestep, told, image=True), expected) <= 1e-5
    assert distance(ours(x, timestep, content, image=True), silent(x, timestep, content, image=True)) > 0.1


@torch.no_grad()
def test_temporal_convolution_is_one_dimensional() -> None:
    """It equals torch's Conv1d on rows of (b h w), the form in which the paper writes it."""
    layer = TemporalConv(6)
    randomise(layer)
    x = torch.randn(2 * 5, 6, 3, 4)
    rows = rearrange(x, "(b f) c h w -> (b h w) c f", f=5)
    weight = rearrange(layer.conv.weight, "o i k 1 -> o i k")
    expected = rows + functional.conv1d(rows, weight, layer.conv.bias, padding=1)
    expected = rearrange(expected, "(b h w) c f -> (b f) c h w", h=3, w=4)
    torch.testing.assert_close(layer(x, 5), expected)


def test_long_batches_of_attention_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, 7, 4, 6)
    whole = attend(q, k, v, heads=2)
    monkeypatch.setattr(attention, "ROWS_AT_ONCE", 3)
    torch.testing.assert_close(attend(q, k, v, heads=2), whole)


def test_time_embedding_is_float32_until_the_end() -> None:
    near = sinusoids(torch.tensor([998.0, 999.0]), 32)
    assert near.dtype == torch.float32
    assert (near[0] - near[1]).abs().max() > 0.1


@torch.no_grad()
def test_bfloat16_in_bfloat16_out() -> None:
    torch.manual_seed(0)
    model = SpaceTimeUNet(SMALL).eval()
    x, timestep, content = inputs(SMALL, frames=4)
    exact = model(x, timestep, content)
    rough = model.to(torch.bfloat16)(x.to(torch.bfloat16), timestep, content.to(torch.bfloat16))
    assert rough.dtype == torch.bfloat16
    assert distance(rough.float(), exact) < 0.05


def test_layers_come_from_the_given_namespace() -> None:
    class Marked:
        """What a layer of the namespace is known by."""

    names = ("Linear", "Conv2d", "GroupNorm", "LayerNorm", "Embedding")
    ops = SimpleNamespace(**{name: type(name, (getattr(nn, name), Marked), {}) for name in names})
    for module in SpaceTimeUNet(SMALL, ops=ops).modules():
        assert isinstance(module, Marked) or not list(module.parameters(recurse=False)), module


def test_forward_keeps_nothing() -> None:
    model = SpaceTimeUNet(SMALL)
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    x, timestep, content = inputs(SMALL, frames=4)
    first = model(x, timestep, content)
    torch.testing.assert_close(model(x, timestep, content), first, rtol=0, atol=0)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before


def test_clip_longer_than_the_positions_is_refused() -> None:
    model = SpaceTimeUNet(SMALL)
    x, timestep, content = inputs(SMALL, frames=5)
    with pytest.raises(ValueError, match="go through windows of at most that length"):
        model(x, timestep, content)
    assert model(x, timestep, content, image=True).shape[2] == 5


def test_content_of_another_clip_is_refused() -> None:
    model = SpaceTimeUNet(SMALL)
    x, timestep, content = inputs(SMALL, frames=4)
    with pytest.raises(ValueError, match="one frame of content, or one for each frame"):
        model(x, timestep, repeat(content, "b 1 n d -> b f n d", f=3))


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ({"block_out_channels": ()}, "give one width per level"),
        ({"layers_per_block": 0}, "at least one layer"),
        ({"frames": 0}, "one frame"),
        ({"attention": (True,)}, "give one entry per level"),
        ({"num_attention_heads": (8, 8)}, "give one entry per level"),
        ({"num_attention_heads": 7}, "choose divisors of every width"),
        ({"norm_num_groups": 7}, "choose divisors of every width"),
    ],
)
def test_config_refuses_what_cannot_be_built(wrong: dict, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        UNetConfig(**wrong)


@pytest.mark.gpu
@torch.no_grad()
def test_gpu_equals_cpu() -> None:
    model = randomise(SpaceTimeUNet(TINY))
    x, timestep, content = inputs(TINY, frames=8, size=16)
    expected = model(x, timestep, content)
    model, x, timestep, content = model.cuda(), x.cuda(), timestep.cuda(), content.cuda()
    assert distance(model(x, timestep, content).cpu(), expected) <= 1e-4


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_pixels_than_a_grid_axis_holds(dtype: torch.dtype) -> None:
    """70,000 rows of temporal attention: the fused kernels alone end at 65,535."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 70_000, 8, 64)
    out = attend(*(x.cuda().to(dtype) for x in (q, k, v)), heads=2).cpu().float()
    bound = 1e-5 if dtype == torch.float32 else 1e-2
    assert distance(out, attend(q, k, v, heads=2)) <= bound
