"""ControlNet and T2I adapters with the U-Net they steer, against diffusers with frames as its batch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, MultiControlNetModel, UNet2DConditionModel
from diffusers import T2IAdapter as DiffusersAdapter
from einops import rearrange, repeat
from models.references import image_unet, randomise
from parts import relative_error
from torch import Tensor, nn
from torch.testing import assert_close

from gen1_core.checkpoints.control import controlnet_from, t2i_adapter_from
from gen1_core.diffusion.condition import Hint
from gen1_core.models.blocks import UNetConfig
from gen1_core.models.control import ControlNet, ControlNetConfig, T2IAdapter, T2IAdapterConfig, control_residuals
from gen1_core.models.unet import Residuals, SpaceTimeUNet

FRAMES = 3
SD1 = UNetConfig(
    in_channels=4,
    block_out_channels=(32, 64, 64),
    layers_per_block=2,
    attention=(True, True, False),
    num_attention_heads=4,
    cross_attention_dim=24,
    norm_num_groups=8,
    temporal=False,
)
SD2 = replace(SD1, layers_per_block=1, num_attention_heads=(2, 4, 8), use_linear_projection=True)
HINT_WIDTHS = (4, 8, 12, 16)
PATH = Path("control.safetensors")
REAL = UNetConfig(in_channels=4, temporal=False)
BOTH = pytest.mark.parametrize("trunk", [SD1, SD2], ids=["sd1", "sd2"])


def reference_control(trunk: UNetConfig, widths: tuple[int, ...] = HINT_WIDTHS) -> ControlNetModel:
    return ControlNetModel(
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in trunk.attention),
        block_out_channels=trunk.block_out_channels,
        layers_per_block=trunk.layers_per_block,
        attention_head_dim=trunk.num_attention_heads,
        cross_attention_dim=trunk.cross_attention_dim,
        norm_num_groups=trunk.norm_num_groups,
        use_linear_projection=trunk.use_linear_projection,
        conditioning_embedding_out_channels=widths,
    ).eval()


def reference_adapter(config: T2IAdapterConfig) -> DiffusersAdapter:
    # Its light kind names the last level only once: the last two are one width.
    channels = config.channels[:-1] if config.light else config.channels
    kind = "light_adapter" if config.light else "full_adapter"
    return DiffusersAdapter(config.in_channels, list(channels), config.layers_per_block, config.factor, kind)


def built(build: Callable[[], nn.Module], tensors: dict[str, Tensor]) -> nn.Module:
    """A network of these very tensors: real sizes take their memory once."""
    with torch.device("meta"):
        module = build()
    module.load_state_dict(tensors, strict=True, assign=True)
    return module.eval()


def unets(trunk: UNetConfig) -> tuple[SpaceTimeUNet, UNet2DConditionModel]:
    theirs = randomise(image_unet(trunk))
    ours = built(partial(SpaceTimeUNet, trunk), theirs.state_dict())
    return ours, theirs  # pyright: ignore[reportReturnType]


def controls(trunk: UNetConfig, seed: int, widths: tuple[int, ...] = HINT_WIDTHS) -> tuple[ControlNet, ControlNetModel]:
    theirs = randomise(reference_control(trunk, widths), seed)
    for parameter in theirs.get_submodule("controlnet_cond_embedding").parameters():
        parameter.data *= 2  # an activation about halves what passes, and after seven the hint must still count
    tensors, config = controlnet_from(theirs.state_dict(), PATH, unet={})
    # Shapes do not tell the number of heads.
    config = replace(config, trunk=replace(config.trunk, num_attention_heads=trunk.num_attention_heads))
    config = replace(config, trunk=replace(config.trunk, norm_num_groups=trunk.norm_num_groups))
    assert config == ControlNetConfig(trunk=trunk, hint_block_out_channels=widths)
    return built(partial(ControlNet, config), tensors), theirs  # pyright: ignore[reportReturnType]


def adapters(config: T2IAdapterConfig, seed: int = 0) -> tuple[T2IAdapter, DiffusersAdapter]:
    theirs = randomise(reference_adapter(config), seed).eval()
    tensors, found = t2i_adapter_from(theirs.state_dict(), PATH)
    assert found == config
    return built(partial(T2IAdapter, config), tensors), theirs  # pyright: ignore[reportReturnType]


def inputs(trunk: UNetConfig, *, size: int = 8, batch: int = 2, frames: int = FRAMES) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 4, frames, size, size + 8, generator=generator)
    content = torch.randn(batch, frames, 5, trunk.cross_attention_dim, generator=generator)
    return x, torch.linspace(37, 961, batch), content


def hint_for(x: Tensor, seed: int, *, channels: int = 1, strength: float = 1.0) -> Hint:
    batch, _, frames, height, width = x.shape
    # As rough as the latents: convolutions would average finer noise to the same grey everywhere.
    generator = torch.Generator().manual_seed(seed)
    cells = torch.rand(batch, channels, frames, height, width, generator=generator).round()
    image = repeat(cells, "b c f h w -> b c f (h y) (w x)", y=8, x=8)
    return Hint(image=image, strength=strength)


def flat(clip: Tensor) -> Tensor:
    return rearrange(clip, "b c f h w -> (b f) c h w")


def pictures(hint: Hint, channels: int = 3) -> Tensor:
    image = flat(hint.image)
    return image.expand(-1, channels, -1, -1) if image.shape[1] == 1 else image


def steered(
    theirs: UNet2DConditionModel,
    nets: Sequence[ControlNetModel],
    told: tuple[Tensor, Tensor, Tensor],
    hints: Sequence[Hint],
    features: Sequence[Tensor] = (),
) -> Tensor:
    """diffusers' control networks and U-Net, as its pipelines put them together."""
    x, timestep, content = told
    noisy, steps = flat(x), repeat(timestep, "b -> (b f)", f=x.shape[2])
    tokens = rearrange(content, "b f n d -> (b f) n d")
    added: dict[str, object] = {}
    if nets:
        down, middle = MultiControlNetModel(list(nets))(
            noisy,
            steps,
            tokens,
            [pictures(hint) for hint in hints],
            [hint.strength for hint in hints],
            return_dict=False,
        )
        added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    if features:
        added["down_intrablock_additional_residuals"] = [feature.clone() for feature in features]
    out = theirs(noisy, steps, tokens, **added).sample  # pyright: ignore[reportCallIssue]
    return rearrange(out, "(b f) c h w -> b c f h w", f=x.shape[2])


def run(
    unet: SpaceTimeUNet,
    nets: Sequence[ControlNet | T2IAdapter],
    told: tuple[Tensor, Tensor, Tensor],
    hints: Sequence[Hint],
) -> Tensor:
    return unet(*told, residuals=control_residuals(nets, *told, hints))


@torch.no_grad()
@BOTH
@pytest.mark.parametrize("size", [8, 9], ids=["even", "odd"])
def test_a_controlnet_equals_diffusers(trunk: UNetConfig, size: int) -> None:
    unet, their_unet = unets(trunk)
    net, their_net = controls(trunk, 1)
    told = inputs(trunk, size=size)
    hint = hint_for(told[0], 2, strength=0.7)
    ours = run(unet, [net], told, [hint])
    assert relative_error(ours, steered(their_unet, [their_net], told, [hint])) <= 1e-5
    assert relative_error(unet(*told), ours) > 0.01
    assert relative_error(run(unet, [net], told, [hint_for(told[0], 3, strength=0.7)]), ours) > 0.01


@torch.no_grad()
@BOTH
def test_each_residual_equals_diffusers(trunk: UNetConfig) -> None:
    net, theirs = controls(trunk, 1)
    x, timestep, content = inputs(trunk)
    hint = hint_for(x, 2, channels=3)
    ours = net(x, timestep, content[:, :1], hint.image, strength=0.5)
    down, middle = theirs(
        flat(x),
        repeat(timestep, "b -> (b f)", f=FRAMES),
        repeat(content[:, 0], "b n d -> (b f) n d", f=FRAMES),
        pictures(hint),
        0.5,
        return_dict=False,
    )
    for mine, expected in zip([*ours.down, ours.middle], [*down, middle], strict=True):
        assert mine is not None and relative_error(mine, expected) <= 1e-5


@torch.no_grad()
def test_several_controlnets_equal_diffusers() -> None:
    unet, their_unet = unets(SD1)
    pairs = [controls(SD1, seed) for seed in (1, 2)]
    told = inputs(SD1)
    hints = [hint_for(told[0], 3, strength=0.9), hint_for(told[0], 4, channels=3, strength=0.4)]
    ours = run(unet, [net for net, _ in pairs], told, hints)
    assert relative_error(ours, steered(their_unet, [theirs for _, theirs in pairs], told, hints)) <= 1e-5
    for index in range(2):
        alone = run(unet, [pairs[index][0]], told, [hints[index]])
        assert relative_error(alone, ours) > 0.01


ADAPTERS = pytest.mark.parametrize(
    "config",
    [
        T2IAdapterConfig(channels=SD1.block_out_channels),
        T2IAdapterConfig(channels=SD1.block_out_channels, in_channels=1, layers_per_block=3),
        T2IAdapterConfig(channels=SD1.block_out_channels, layers_per_block=4, light=True),
    ],
    ids=["full", "one channel", "light"],
)


@torch.no_grad()
@ADAPTERS
@pytest.mark.parametrize("size", [8, 9], ids=["even", "odd"])
def test_a_t2i_adapter_equals_diffusers(config: T2IAdapterConfig, size: int) -> None:
    unet, their_unet = unets(SD1)
    adapter, theirs = adapters(config, 1)
    told = inputs(SD1, size=size)
    hint = hint_for(told[0], 2, strength=0.6)
    ours = run(unet, [adapter], told, [hint])
    features = [0.6 * feature for feature in theirs(pictures(hint, config.in_channels))]
    assert relative_error(ours, steered(their_unet, [], told, [], features)) <= 1e-5
    assert relative_error(unet(*told), ours) > 0.01


@torch.no_grad()
def test_a_controlnet_and_an_adapter_together_equal_diffusers() -> None:
    unet, their_unet = unets(SD1)
    net, their_net = controls(SD1, 1)
    adapter, their_adapter = adapters(T2IAdapterConfig(channels=SD1.block_out_channels), 2)
    told = inputs(SD1)
    hints = [hint_for(told[0], 3), hint_for(told[0], 4, strength=0.8)]
    ours = run(unet, [net, adapter], told, hints)
    features = [0.8 * feature for feature in their_adapter(pictures(hints[1]))]
    assert relative_error(ours, steered(their_unet, [their_net], told, hints[:1], features)) <= 1e-5
    assert relative_error(run(unet, [net], told, hints[:1]), ours) > 0.01
    assert relative_error(run(unet, [adapter], told, hints[1:]), ours) > 0.01


@torch.no_grad()
def test_several_adapters_add_up() -> None:
    pairs = [adapters(T2IAdapterConfig(channels=SD1.block_out_channels), seed) for seed in (1, 2)]
    told = inputs(SD1)
    hints = [hint_for(told[0], 3, strength=0.3), hint_for(told[0], 4, strength=0.7)]
    ours = control_residuals([adapter for adapter, _ in pairs], *told, hints).features
    expected = [
        0.3 * first + 0.7 * second
        for first, second in zip(
            *(theirs(pictures(h)) for (_, theirs), h in zip(pairs, hints, strict=True)), strict=True
        )
    ]
    assert all(relative_error(*each) <= 1e-5 for each in zip(ours, expected, strict=True))


@torch.no_grad()
@pytest.mark.parametrize(
    "part", ["controlnet_cond_embedding", "down_blocks.1.attentions.0", "mid_block", "controlnet_mid_block"]
)
def test_each_part_of_a_controlnet_counts(part: str) -> None:
    net, _ = controls(SD1, 1)
    told = inputs(SD1)
    hint = hint_for(told[0], 2)
    before = control_residuals([net], *told, [hint])
    for parameter in net.get_submodule(part).parameters():
        parameter.zero_()
    after = control_residuals([net], *told, [hint])
    assert before.middle is not None and after.middle is not None
    assert relative_error(after.middle, before.middle) > 0.01


@torch.no_grad()
def test_strength_scales_and_zero_does_no_work() -> None:
    net, _ = controls(SD1, 1)
    told = inputs(SD1)
    whole, half = (control_residuals([net], *told, [hint_for(told[0], 2, strength=s)]) for s in (1.0, 0.5))
    assert_close(half.down, tuple(0.5 * each for each in whole.down))
    calls = []
    net.register_forward_pre_hook(lambda *_: calls.append(1))
    assert control_residuals([net], *told, [hint_for(told[0], 2, strength=0.0)]) == Residuals()
    assert control_residuals([net], *told, []) == Residuals() and not calls


def test_a_new_controlnet_adds_nothing() -> None:
    net = ControlNet(ControlNetConfig(trunk=SD1, hint_block_out_channels=HINT_WIDTHS))
    told = inputs(SD1)
    residuals = control_residuals([net], *told, [hint_for(told[0], 2)])
    assert residuals.middle is not None and not any(each.any() for each in [*residuals.down, residuals.middle])


@torch.no_grad()
def test_frames_do_not_see_each_other() -> None:
    net, _ = controls(SD1, 1)
    x, timestep, content = inputs(SD1, batch=1)
    hint = hint_for(x, 2)
    whole = control_residuals([net], x, timestep, content, [hint])
    part = control_residuals([net], x[:, :, 1:2], timestep, content[:, 1:2], [Hint(image=hint.image[:, :, 1:2])])
    for first, second in zip(whole.down, part.down, strict=True):
        assert relative_error(first[1:2], second) <= 1e-5


def test_hints_that_do_not_fit_are_refused() -> None:
    net = ControlNet(ControlNetConfig(trunk=SD1, hint_block_out_channels=HINT_WIDTHS))
    told = inputs(SD1)
    with pytest.raises(ValueError, match="resize the hint"):
        control_residuals([net], *told, [Hint(image=torch.rand(2, 1, FRAMES, 64, 64))])
    with pytest.raises(ValueError, match="one hint for each network"):
        control_residuals([net, net], *told, [hint_for(told[0], 2)])


@pytest.mark.parametrize(
    ("build", "advice"),
    [
        (lambda: ControlNetConfig(trunk=replace(SD1, temporal=True)), "temporal=False"),
        (lambda: ControlNetConfig(trunk=replace(SD1, picture_adapters=1)), "nothing added"),
        (lambda: ControlNetConfig(hint_block_out_channels=()), "at least one width"),
        (lambda: T2IAdapterConfig(channels=()), "at least one width"),
        (lambda: T2IAdapterConfig(channels=(6,), light=True), "multiples of 4"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(build: Callable[[], object], advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        build()


@pytest.fixture(scope="module")
def real_unets() -> tuple[SpaceTimeUNet, UNet2DConditionModel]:
    return unets(REAL)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.real
def test_controlnets_of_the_real_size_equal_diffusers(
    real_unets: tuple[SpaceTimeUNet, UNet2DConditionModel],
) -> None:
    unet, their_unet = real_unets
    pairs = [controls(REAL, seed, ControlNetConfig().hint_block_out_channels) for seed in (1, 2)]
    told = inputs(REAL, batch=1, frames=2)
    hints = [hint_for(told[0], 3), hint_for(told[0], 4, strength=0.5)]
    for count in (1, 2):
        ours = run(unet, [net for net, _ in pairs[:count]], told, hints[:count])
        expected = steered(their_unet, [theirs for _, theirs in pairs[:count]], told, hints[:count])
        assert relative_error(ours, expected) <= 1e-5
        assert relative_error(run(unet, [], told, []), ours) > 0.01


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("light", [False, True], ids=["full", "light"])
def test_t2i_adapters_of_the_real_size_equal_diffusers(
    real_unets: tuple[SpaceTimeUNet, UNet2DConditionModel], light: bool
) -> None:
    unet, their_unet = real_unets
    adapter, theirs = adapters(T2IAdapterConfig(light=light, layers_per_block=4 if light else 2), 1)
    told = inputs(REAL, batch=1, frames=2)
    hint = hint_for(told[0], 2)
    ours = run(unet, [adapter], told, [hint])
    assert relative_error(ours, steered(their_unet, [], told, [], theirs(pictures(hint)))) <= 1e-5
    assert relative_error(run(unet, [], told, []), ours) > 0.01
