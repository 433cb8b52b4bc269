"""Files of control networks and TAESD: every key of the public layouts, there and back, and what does not fit."""

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from checkpoints.layouts import fixture, layout, write
from diffusers import ControlNetModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from parts import relative_error
from torch import Tensor, nn
from torch.testing import assert_close

from gen1_core.checkpoints.control import (
    check_control,
    controlnet_from,
    controlnet_table,
    difference_to_full,
    t2i_adapter_from,
    t2i_adapter_table,
    tiny_autoencoder_from,
)
from gen1_core.checkpoints.files import load_module, read_file
from gen1_core.checkpoints.keymap import names, to_theirs
from gen1_core.checkpoints.ldm import unet_from
from gen1_core.models.blocks import UNetConfig
from gen1_core.models.control import ControlNet, ControlNetConfig, T2IAdapter, T2IAdapterConfig
from gen1_core.models.taesd import TinyAutoencoder, TinyAutoencoderConfig

PATH = Path("control.pth")
CPU = torch.device("cpu")
SD1 = UNetConfig(in_channels=4, temporal=False)
SD2 = replace(SD1, num_attention_heads=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True)
CONTROLNETS = ["controlnet_sd15", "controlnet_sd15_bare", "controlnet_sd15_diffusers"]
ADAPTERS = ["t2i_adapter_depth_sd15v2", "t2i_adapter_depth_sd15v2_diffusers"]
LIGHT = T2IAdapterConfig(channels=(32, 64, 128, 128), layers_per_block=4, light=True)


def on_meta(name: str) -> dict[str, Tensor]:
    """A file of the public layout without memory for its values."""
    return {key: torch.empty(shape, device="meta") for key, shape in layout(name).shapes.items()}


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def shapes_of_network(build: type[nn.Module], config: object) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return shapes(build(config).state_dict())


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def made(tensors: dict[str, Tensor], config: ControlNetConfig) -> ControlNet:
    return load_module(lambda: ControlNet(config), tensors, device=CPU, dtype=torch.float32, path=PATH)


def by_diffusers(tensors: Mapping[str, Tensor], config: ControlNetConfig) -> dict[str, Tensor]:
    """Official names as diffusers' own single-file loader converts them."""
    return convert_controlnet_checkpoint(dict(tensors), {"layers_per_block": config.trunk.layers_per_block})


@pytest.mark.parametrize("name", CONTROLNETS)
def test_every_key_of_a_public_controlnet_has_its_place(name: str) -> None:
    tensors, config = controlnet_from(on_meta(name), PATH, unet={})
    assert config == ControlNetConfig(trunk=SD1)
    assert shapes(tensors) == shapes_of_network(ControlNet, config)


@pytest.mark.parametrize("name", ["controlnet_sd15", "controlnet_sd15_bare"])
def test_official_controlnets_equal_diffusers_converter(name: str) -> None:
    file = fixture(name)
    tensors, config = controlnet_from(file, PATH, unet={})
    assert_same(tensors, by_diffusers(file, config))
    saved = to_theirs(tensors, controlnet_table(config))
    assert_same({name.removeprefix("control_model."): tensor for name, tensor in file.items()}, saved)


@torch.no_grad()
@pytest.mark.parametrize(
    "small", [True, pytest.param(False, marks=[pytest.mark.slow, pytest.mark.real])], ids=["small", "real"]
)
def test_an_official_controlnet_runs_as_in_diffusers(small: bool) -> None:
    file = fixture("controlnet_sd15", small=small)
    tensors, config = controlnet_from(file, PATH, unet={})
    trunk = config.trunk
    with torch.device("meta"):
        ours = ControlNet(config)
        theirs = ControlNetModel(
            block_out_channels=trunk.block_out_channels,
            cross_attention_dim=trunk.cross_attention_dim,
            conditioning_embedding_out_channels=config.hint_block_out_channels,
        )
    ours.load_state_dict(tensors, assign=True)
    theirs.load_state_dict(by_diffusers(file, config), assign=True)
    generator = torch.Generator().manual_seed(1)
    x, hint = torch.randn(1, 4, 1, 8, 8, generator=generator), torch.rand(1, 3, 1, 64, 64, generator=generator)
    content = torch.randn(1, 1, 7, trunk.cross_attention_dim, generator=generator)
    mine = ours.eval()(x, torch.tensor([481.0]), content, hint)
    down, middle = theirs.eval()(x[:, :, 0], torch.tensor(481), content[:, 0], hint[:, :, 0], return_dict=False)
    assert mine.middle is not None
    for each, expected in zip([*mine.down, mine.middle], [*down, middle], strict=True):
        assert relative_error(each, expected) <= 1e-5


@pytest.mark.parametrize("name", CONTROLNETS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_controlnet_files_are_loaded_saved_and_loaded_again(name: str, suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"first{suffix}", fixture(name))
    tensors, config = controlnet_from(read_file(path).tensors, path, unet={})
    first = made(tensors, config).state_dict()
    again = write(tmp_path / "again.safetensors", to_theirs(first, controlnet_table(config)))
    tensors, found = controlnet_from(read_file(again).tensors, again, unet={})
    assert found == config
    assert_same(made(tensors, found).state_dict(), first)


def test_a_controlnet_for_sd2_is_read() -> None:
    config = ControlNetConfig(trunk=SD2)
    with torch.device("meta"):
        official = to_theirs(ControlNet(config).state_dict(), controlnet_table(config))
    assert controlnet_from(official, PATH, unet={})[1] == config


def test_a_whole_checkpoint_around_a_controlnet_is_left_out() -> None:
    control = fixture("controlnet_sd15")
    around = fixture(layout("sd15_single_file").only("first_stage_model.encoder.conv", "model.diffusion_model.out."))
    file = {**around, **control, "betas": torch.zeros(1)}
    assert_same(controlnet_from(file, PATH, unet={})[0], controlnet_from(control, PATH, unet={})[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_difference_is_added_to_the_unet(dtype: torch.dtype) -> None:
    unet, _ = unet_from(fixture(layout("sd15_single_file").only("model.diffusion_model."), seed=1), PATH)
    whole = fixture("controlnet_sd15")
    config = controlnet_from(whole, PATH, unet={})[1]
    expected = controlnet_from(whole, PATH, unet={})[0]
    short = {name: tensor - unet.get(name, torch.zeros(())) for name, tensor in expected.items()}
    parts = to_theirs({name: tensor.to(dtype) for name, tensor in short.items()}, controlnet_table(config))
    file = {**{f"control_model.{name}": tensor for name, tensor in parts.items()}, "difference": torch.zeros(0)}
    before = {name: tensor.clone() for name, tensor in file.items()}
    tensors, found = controlnet_from(file, PATH, unet=unet)
    assert found == config
    tolerance = {torch.float32: 1e-6, torch.float16: 4e-3}[dtype]
    for name, tensor in tensors.items():
        assert tensor.dtype == dtype
        assert_close(tensor.float(), expected[name], rtol=tolerance, atol=tolerance)
    assert_same(file, before)
    shared = [name for name in expected if name in unet]
    assert len(shared) == 4 + 2 + len([n for n in unet if n.startswith(("down_blocks", "mid_block"))])
    assert all((short[name] - expected[name]).norm() > 0.01 * expected[name].norm() for name in shared)


def test_a_difference_without_its_unet_is_refused() -> None:
    file = {**fixture("controlnet_sd15"), "difference": torch.zeros(0)}
    with pytest.raises(ValueError, match="give the image checkpoint that it was made for"):
        controlnet_from(file, PATH, unet={})
    named, _ = controlnet_from(fixture("controlnet_sd15"), PATH, unet={})
    with pytest.raises(ValueError, match=r"conv_in.weight is .* with 4 input channels"):
        difference_to_full(named, {"conv_in.weight": torch.zeros(32, 12, 3, 3)}, path=PATH)


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_key_of_a_public_t2i_adapter_has_its_place(name: str) -> None:
    tensors, config = t2i_adapter_from(on_meta(name), PATH)
    assert config == T2IAdapterConfig()
    assert shapes(tensors) == shapes_of_network(T2IAdapter, config)


def test_both_layouts_of_a_t2i_adapter_are_one(tmp_path: Path) -> None:
    file = fixture("t2i_adapter_depth_sd15v2")
    path = write(tmp_path / "adapter.pth", file)
    tensors, config = t2i_adapter_from(read_file(path).tensors, path)
    assert tensors.keys() == layout("t2i_adapter_depth_sd15v2_diffusers").shapes.keys()
    # Where each layer of the original goes, as the layout of diffusers numbers them.
    assert torch.equal(tensors["adapter.body.2.resnets.1.block2.bias"], file["body.5.block2.bias"])
    assert torch.equal(tensors["adapter.body.1.in_conv.weight"], file["body.2.in_conv.weight"])
    again = write(tmp_path / "again.safetensors", tensors)
    assert_same(t2i_adapter_from(read_file(again).tensors, again)[0], tensors)
    assert_same(to_theirs(tensors, t2i_adapter_table(config)), file)


@pytest.fixture(scope="module")
def original_adapters(comfyui: Path) -> ModuleType:
    """TencentARC's own classes, as ComfyUI keeps them."""
    spec = importlib.util.spec_from_file_location("t2i_adapter", comfyui / "comfy" / "t2i_adapter" / "adapter.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
@pytest.mark.comfy
@pytest.mark.parametrize("light", [False, True], ids=["full", "light"])
def test_an_official_t2i_adapter_runs_as_the_original(light: bool, original_adapters: ModuleType) -> None:
    widths, generator = [32, 64, 128, 128], torch.Generator().manual_seed(0)
    theirs = (
        original_adapters.Adapter_light(channels=widths, nums_rb=4, cin=192)
        if light
        else original_adapters.Adapter(channels=widths, nums_rb=2, cin=192, ksize=1, sk=True, use_conv=False, xl=False)
    )
    for parameter in theirs.parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
        parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    tensors, config = t2i_adapter_from(theirs.state_dict(), PATH)
    assert config.light == light and config.channels == tuple(widths)
    ours = load_module(lambda: T2IAdapter(config), tensors, device=CPU, dtype=torch.float32, path=PATH)
    hint = torch.rand(2, 3, 1, 64, 128, generator=generator)
    expected = [each for each in reversed(theirs(hint[:, :, 0])["input"]) if each is not None]
    for each, feature in zip(ours(hint).features, expected, strict=True):
        assert relative_error(each, feature) <= 1e-5
    assert_same(to_theirs(tensors, t2i_adapter_table(config)), theirs.state_dict())


def test_every_key_of_the_public_taesd_files_has_its_place() -> None:
    halves = {Path(name): on_meta(name) for name in ("taesd_encoder", "taesd_decoder")}
    for files in (halves, {PATH: on_meta("taesd_diffusers")}):
        tensors, config = tiny_autoencoder_from(files)
        assert config == TinyAutoencoderConfig()
        assert shapes(tensors) == shapes_of_network(TinyAutoencoder, config)


def test_taesd_halves_are_loaded_from_their_files(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.pth", fixture(name)) for name in ("taesd_decoder", "taesd_encoder")]
    tensors, _ = tiny_autoencoder_from({path: read_file(path).tensors for path in paths})
    assert torch.equal(tensors["decoder.layers.18.bias"], fixture("taesd_decoder")["19.bias"])
    assert torch.equal(tensors["encoder.layers.14.bias"], fixture("taesd_encoder")["14.bias"])


def test_a_control_network_for_another_model_is_refused() -> None:
    check_control(ControlNetConfig(trunk=SD1), SD1, path=PATH)
    check_control(ControlNetConfig(trunk=SD1), replace(SD1, in_channels=5, picture_adapters=1), path=PATH)
    check_control(T2IAdapterConfig(), SD1, path=PATH)
    for config, unet in (
        (ControlNetConfig(trunk=SD2), SD1),
        (T2IAdapterConfig(channels=(320, 640, 1280)), SD1),
    ):
        with pytest.raises(ValueError, match=r"give one made for SD 1.5"):
            check_control(config, unet, path=PATH)
    with pytest.raises(ValueError, match=r"give one made for SD 2.x"):
        check_control(ControlNetConfig(trunk=SD1), SD2, path=PATH)


def test_what_is_no_t2i_adapter_is_refused() -> None:
    for tensors in ({"conv_in.weight": torch.zeros(320, 768, 3, 3)}, {"body.0.weight": torch.zeros(3)}):
        with pytest.raises(ValueError, match=r"give one for SD 1.x"):
            t2i_adapter_from(tensors, PATH)
    with pytest.raises(ValueError, match="gen1 info"):
        t2i_adapter_from({**fixture("t2i_adapter_depth_sd15v2"), "body.0.skep.weight": torch.zeros(3)}, PATH)


def test_what_is_no_controlnet_is_refused() -> None:
    for tensors in ({"a": torch.zeros(1)}, {**fixture("controlnet_sd15_bare"), "odd": torch.zeros(1)}):
        with pytest.raises(ValueError, match="gen1 info"):
            controlnet_from(tensors, PATH, unet={})


def test_every_official_name_is_in_the_table_once() -> None:
    for table in (controlnet_table(ControlNetConfig(trunk=SD1)), t2i_adapter_table(LIGHT)):
        assert len(set(names(table))) == len(list(names(table)))
