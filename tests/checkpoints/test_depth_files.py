"""Depth networks from files in the public layouts: true keys and shapes, both directions, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.layouts import fixture, layout, write
from models.dpt_references import depth_anything, depth_of, hybrid, published, randomised, tiny_dpt
from parts import relative_error
from torch import Tensor, nn
from torch.testing import assert_close

from gen1_core.checkpoints.depth import depth_config_of, depth_network, load_depth_network
from gen1_core.checkpoints.depth_names import DROPPED, DepthLayout, depth_table, layout_of
from gen1_core.checkpoints.keymap import from_theirs, to_theirs
from gen1_core.models.dpt import DPT

CPU = torch.device("cpu")

LAYOUTS: dict[str, tuple[DepthLayout, tuple[int, ...], int]] = {
    "depth_anything_v2_vits": ("depth_anything", (2, 5, 8, 11), 24_784_705),
    "depth_anything_v2_vitb": ("depth_anything", (2, 5, 8, 11), 97_470_017),
    "depth_anything_v2_vitl": ("depth_anything", (4, 11, 17, 23), 335_314_625),
    "depth_anything_v2_vits_hf": ("depth_anything_transformers", (2, 5, 8, 11), 24_784_705),
    "depth_anything_v2_vitb_hf": ("depth_anything_transformers", (2, 5, 8, 11), 97_470_017),
    "depth_anything_v2_vitl_hf": ("depth_anything_transformers", (4, 11, 17, 23), 335_314_625),
    "midas_dpt_large_384": ("midas", (5, 11, 17, 23), 343_030_465),
    "midas_dpt_hybrid_384": ("midas", (8, 11), 122_377_985),
    "dpt_large_hf": ("dpt", (5, 11, 17, 23), 343_030_465),
    "dpt_hybrid_hf": ("dpt_hybrid", (8, 11), 122_377_985),
}
"""By name in layouts.json.gz: the layout, where tokens are read, and the parameters that are used."""

UNUSED = ("pretrained.model.head.", "pretrained.mask_token", "backbone.embeddings.mask_token")

each_layout = pytest.mark.parametrize("name", list(LAYOUTS))


def load(path: Path, dtype: torch.dtype = torch.float32) -> DPT:
    return load_depth_network(path, device=CPU, dtype=dtype)


def pixels_for(network: DPT) -> Tensor:
    side = network.config.multiple
    return torch.randn(1, 3, 2 * side, 3 * side, generator=torch.Generator().manual_seed(0))


@each_layout
def test_true_shapes_make_the_published_networks(name: str) -> None:
    tensors = {key: torch.empty(shape, device="meta") for key, shape in layout(name).shapes.items()}
    kind, hooks, parameters = LAYOUTS[name]
    assert layout_of(tensors) == (kind, "")
    named = from_theirs(tensors, depth_table(kind), path=Path(name), dropped=DROPPED)
    shapes = {key: tuple(tensor.shape) for key, tensor in named.items()}
    config = depth_config_of(shapes, kind)
    with torch.device("meta"):
        network = DPT(config)
    assert {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()} == shapes
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == parameters
    assert config.hooks == hooks
    assert config.vit.image_size == (518 if config.vit.dino else 384)
    assert config.vit.heads == config.vit.width // 64
    assert config.vit.norm_eps == (1e-12 if kind.startswith("dpt") else 1e-6)


@each_layout
def test_files_load_and_save_and_load_again(name: str, tmp_path: Path) -> None:
    tensors = fixture(name)
    first = load(write(tmp_path / "first.safetensors", tensors))
    saved = to_theirs(first.state_dict(), depth_table(LAYOUTS[name][0]))
    used = {key: tensor for key, tensor in tensors.items() if not key.startswith(UNUSED)}
    assert saved.keys() == used.keys()
    for key, tensor in used.items():
        assert_close(saved[key], tensor, rtol=0, atol=0)
    second = load(write(tmp_path / "second.pt", saved))
    assert second.config == first.config
    with torch.no_grad():
        expected = first(pixels_for(first))
        assert expected.std() > 0
        assert torch.equal(second(pixels_for(second)), expected)


def test_both_layouts_of_a_network_are_one_network() -> None:
    """Depth Anything in its authors' names and in those of transformers: the same maps on the trained grid."""
    tensors = fixture("depth_anything_v2_vits_hf")
    hub = depth_network(tensors, path=Path("hub"), device=CPU, dtype=torch.float32)
    original = to_theirs(hub.state_dict(), depth_table("depth_anything"))
    ours = depth_network(original, path=Path("original"), device=CPU, dtype=torch.float32)
    assert (ours.config.vit.position_offset, hub.config.vit.position_offset) == (0.1, 0.0)
    weights = [dict(network.state_dict()) for network in (ours, hub)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    with torch.no_grad():
        found, expected = ours(pixels_for(ours)), hub(pixels_for(hub))
    assert 1e-4 < relative_error(found, expected) < 0.2  # the positions of another grid, each as published


@pytest.mark.parametrize("wrap", ["", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_training_checkpoints_load(wrap: str, prefix: str, tmp_path: Path) -> None:
    tensors = {prefix + key: tensor for key, tensor in fixture("depth_anything_v2_vits").items()}
    assert load(write(tmp_path / "last.pth", tensors, wrap=wrap)).config.vit.dino


def test_half_precision_files_are_computed_in_float32(tmp_path: Path) -> None:
    tensors = fixture("depth_anything_v2_vits")
    halves = {key: tensor.half() for key, tensor in tensors.items()}
    network = load(write(tmp_path / "depth_anything_v2_vits_fp16.safetensors", halves))
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    rounded = {key: tensor.half().float() for key, tensor in tensors.items()}
    expected = depth_network(rounded, path=tmp_path, device=CPU, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(network(pixels_for(network)), expected(pixels_for(expected)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("build", [hybrid, depth_anything])
def test_half_precision_works_too(build: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    tensors = published(randomised(build()))
    full, half = (depth_network(tensors, path=Path("x"), device=CPU, dtype=one) for one in (torch.float32, dtype))
    with torch.no_grad():
        found = half(pixels_for(half).to(dtype))
        assert found.dtype == dtype
        assert relative_error(found.float(), full(pixels_for(full))) < 0.02


def test_the_hybrid_inside_sd2_depth_loads() -> None:
    file = layout("sd2_depth_single_file")
    inside = fixture(file.only("depth_model."))
    whole = inside | fixture(file.only("first_stage_model.encoder.conv_in", "model_ema."))
    alone = {key.removeprefix("depth_model.model."): tensor for key, tensor in inside.items()}
    networks = [
        depth_network(part, path=Path("512-depth-ema"), device=CPU, dtype=torch.float32)
        for part in (whole, inside, alone)
    ]
    with torch.no_grad():
        first, *others = [network(pixels_for(network)) for network in networks]
    assert networks[0].config.vit.resnet is not None
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("build", [tiny_dpt, hybrid, depth_anything])
def test_folders_of_transformers_load(build: Any, tmp_path: Path) -> None:
    """As save_pretrained of the installed version writes them."""
    reference = randomised(build())
    reference.save_pretrained(tmp_path)
    network = load(tmp_path)
    pixels = pixels_for(network)
    with torch.no_grad():
        assert relative_error(network(pixels), depth_of(reference, pixels)) <= 1e-5


def test_state_dicts_of_every_transformers_load() -> None:
    """Version 5 renames DINOv2's attention in memory, and a state dict may be saved like that."""
    reference = randomised(depth_anything())
    pixels = torch.randn(1, 3, 70, 42)
    network = depth_network(reference.state_dict(), path=Path("memory"), device=CPU, dtype=torch.float32)
    with torch.no_grad():
        assert relative_error(network(pixels), depth_of(reference, pixels)) <= 1e-5


def test_a_folders_config_says_what_shapes_cannot(tmp_path: Path) -> None:
    reference = randomised(tiny_dpt())
    reference.save_pretrained(tmp_path)
    rewrite(tmp_path, backbone_out_indices=[1, 4, 6, 8], num_attention_heads=2, layer_norm_eps=1e-3)
    config = load(tmp_path).config
    assert (config.hooks, config.vit.heads, config.vit.norm_eps) == ((1, 4, 6, 8), 2, 1e-3)


def test_depth_anything_v1_reads_where_its_folder_says(tmp_path: Path) -> None:
    randomised(depth_anything(taps=(9, 10, 11, 12))).save_pretrained(tmp_path)
    assert load(tmp_path).config.hooks == (8, 9, 10, 11)
    settings = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    del settings["backbone_config"]["out_indices"]
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert load(tmp_path).config.hooks == (8, 9, 10, 11)  # from out_features, as older versions have it alone


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(settings | changes), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"depth_estimation_type": "metric"}, "give the relative model of the same size"),
        ({"readout_type": "ignore"}, "give Intel/dpt-large"),
        ({"add_projection": True}, "give Intel/dpt-large"),
    ],
)
def test_folders_of_other_networks_are_refused(changes: dict, advice: str, tmp_path: Path) -> None:
    randomised(tiny_dpt()).save_pretrained(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(ValueError, match=advice):
        load(tmp_path)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"give the folder with config\.json"):
        load(tmp_path)


@pytest.mark.parametrize("weights", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{broken}"])
def test_a_folder_with_broken_weights_is_refused(weights: bytes, tmp_path: Path) -> None:
    tiny_dpt().config.save_pretrained(tmp_path)
    if weights:
        (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match="both whole|download it again"):
        load(tmp_path)


def refusal(tensors: dict[str, Tensor]) -> pytest.ExceptionInfo[ValueError]:
    with pytest.raises(ValueError) as error:
        depth_network(tensors, path=Path("some.safetensors"), device=CPU, dtype=torch.float32)
    return error


def test_other_depth_networks_are_refused_by_what_they_are() -> None:
    beit = fixture("midas_dpt_large_384") | {"pretrained.model.blocks.0.attn.q_bias": torch.ones(256)}
    swin = {
        "pretrained.model.layers.0.blocks.0.attn.qkv.weight": torch.ones(1),
        "scratch.layer1_rn.weight": torch.ones(1),
    }
    for tensors in (beit, swin):
        assert refusal(tensors).match(r"on another transformer.*give MiDaS dpt_large_384")
    assert refusal({"weight": torch.ones(1)}).match(r"no depth network that is known here \(weight.*Depth Anything V2")


@pytest.mark.parametrize("name", ["depth_anything_v2_vits", "dpt_hybrid_hf"])
def test_no_key_is_lost_and_none_is_missing(name: str) -> None:
    tensors = fixture(name)
    extra = tensors | {"depth_head.motion.weight": torch.ones(1)}
    assert refusal(extra).match(r"depth_head\.motion\.weight.*gen1 info")
    for key in ("conv3.weight", "convs.3.weight", "layer4_rn.weight", "pos_embed", "blocks.4.mlp.fc1.bias"):
        without = {one: tensor for one, tensor in tensors.items() if not one.endswith(key)}
        if len(without) < len(tensors):
            assert refusal(without).match("download|use a file made for this network|give")


def test_an_unpublished_size_is_refused() -> None:
    tensors = {key: tensor for key, tensor in fixture("dpt_large_hf").items() if "layer.23." not in key}
    assert refusal(tensors).match(r"23 blocks.*give one of the public sizes")
