"""DPT against transformers: random weights in the layout of the original file, converted there and back."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import DPTConfig as HubConfig
from transformers import DPTForDepthEstimation

from gen1_core.checkpoints.files import load_module, read_file
from gen1_core.structure.midas import (
    DPT,
    DPTConfig,
    build_dpt,
    dpt_estimator,
    from_midas,
    load_dpt_transformers,
    midas_key_table,
)

CPU, EPS = torch.device("cpu"), 1e-6  # one epsilon on both sides; published are 1e-6 (timm) and 1e-12 (hub)
TINY = DPTConfig(
    image_size=64,
    width=32,
    depth=4,
    heads=4,
    hooks=(0, 1, 2, 3),
    reassembled=(8, 12, 16, 20),
    features=16,
    norm_eps=EPS,
)
BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
PLAIN = {
    "pretrained.model.cls_token": "dpt.embeddings.cls_token",
    "pretrained.model.pos_embed": "dpt.embeddings.position_embeddings",
    "pretrained.model.patch_embed.proj": "dpt.embeddings.patch_embeddings.projection",
    "pretrained.model.norm": "dpt.layernorm",
    "scratch.output_conv.0": "head.head.0",
    "scratch.output_conv.2": "head.head.2",
    "scratch.output_conv.4": "head.head.4",
}


def hub_config(config: DPTConfig) -> HubConfig:
    return HubConfig(
        hidden_size=config.width,
        intermediate_size=4 * config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        image_size=config.image_size,
        backbone_out_indices=list(config.hooks),
        neck_hidden_sizes=list(config.reassembled),
        fusion_hidden_size=config.features,
        layer_norm_eps=config.norm_eps,
    )


def hub_names(config: DPTConfig) -> dict[str, str]:
    """Module names of the original to those of transformers, but for attention's joined projection."""
    table = dict(PLAIN)
    for block in range(config.depth):
        for ours, theirs in BLOCK.items():
            table[f"pretrained.model.blocks.{block}.{ours}"] = f"dpt.encoder.layer.{block}.{theirs}"
    for level in range(4):
        post, unit = f"pretrained.act_postprocess{level + 1}", f"scratch.refinenet{level + 1}"
        stage, fuse = "neck.reassemble_stage", f"neck.fusion_stage.layers.{3 - level}"
        table |= {
            f"{post}.0.project.0": f"{stage}.readout_projects.{level}.0",
            f"{post}.3": f"{stage}.layers.{level}.projection",
            f"{post}.4": f"{stage}.layers.{level}.resize",
            f"scratch.layer{level + 1}_rn": f"neck.convs.{level}",
            f"{unit}.out_conv": f"{fuse}.projection",
        }
        for part in (1, 2):
            for conv in (1, 2):
                ours = f"{unit}.resConfUnit{part}.conv{conv}"
                table[ours] = f"{fuse}.residual_layer{part}.convolution{conv}"
    return table


def to_hub(original: dict[str, Tensor], config: DPTConfig) -> dict[str, Tensor]:
    table, converted = hub_names(config), {}
    for name, tensor in original.items():
        module, _, leaf = name.rpartition(".")
        if module.endswith("attn.qkv"):
            attention = f"dpt.encoder.layer.{module.split('.')[3]}.attention.attention"
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                converted[f"{attention}.{part}.{leaf}"] = piece
        elif not module.startswith("pretrained.model.head"):
            converted[table[name] if name in table else f"{table[module]}.{leaf}"] = tensor
    return converted


def to_original(hub: dict[str, Tensor], config: DPTConfig) -> dict[str, Tensor]:
    back, converted = {theirs: ours for ours, theirs in hub_names(config).items()}, {}
    for name, tensor in hub.items():
        module, _, leaf = name.rpartition(".")
        if module.endswith("attention.query"):
            parts = [hub[f"{module.removesuffix('query')}{part}.{leaf}"] for part in ("query", "key", "value")]
            converted[f"pretrained.model.blocks.{module.split('.')[3]}.attn.qkv.{leaf}"] = torch.cat(parts)
        elif not module.endswith(("attention.key", "attention.value")):
            converted[back[name] if name in back else f"{back[module]}.{leaf}"] = tensor
    return converted


def randomise(module: nn.Module) -> nn.Module:
    """Every parameter random, none zero, of a size that keeps activations about 1."""
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        spread = torch.randn_like(parameter)
        if parameter.dim() > 1 and not name.endswith(("token", "embeddings")):
            spread = spread / parameter[0].numel() ** 0.5
        parameter.data = 1 + 0.2 * spread if "norm" in name and name.endswith("weight") else spread
    module.head.head[4].bias.data += 3  # the last ReLU would hide what is below zero
    return module.eval()


@pytest.fixture(scope="module")
def hub() -> DPTForDepthEstimation:
    return randomise(DPTForDepthEstimation(hub_config(TINY)))


@pytest.fixture(scope="module")
def original(hub: DPTForDepthEstimation) -> dict[str, Tensor]:
    """A tiny dpt_large_384.pt, with the ImageNet head that the real one carries unused."""
    head = {
        "pretrained.model.head.weight": torch.randn(10, 32),
        "pretrained.model.head.bias": torch.randn(10),
    }
    return to_original(hub.state_dict(), TINY) | head


@pytest.fixture(scope="module")
def dpt(original: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> DPT:
    path = tmp_path_factory.mktemp("weights") / "dpt_tiny.pt"
    torch.save(original, path)
    tensors = from_midas(read_file(path).tensors)
    return load_module(lambda: build_dpt(TINY), tensors, device=CPU, dtype=torch.float32, path=path)


def ratio(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / (expected - expected.mean()).norm())


@torch.no_grad()
def test_dpt_equals_transformers(hub: DPTForDepthEstimation, dpt: DPT) -> None:
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    expected = hub(pixels).predicted_depth[:, None]
    assert expected.std() > 0.05 * expected.mean().abs()
    assert ratio(dpt(pixels), expected) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("part", ["reassemble.0.readout", "fuse.0.branch", "fuse.3.merged", "backbone.blocks.3"])
def test_dpt_without_a_part_differs(dpt: DPT, part: str) -> None:
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    expected = dpt(pixels)
    weights = {name: value.clone() for name, value in dpt.state_dict().items()}
    without = {name: value * (not name.startswith(part)) for name, value in weights.items()}
    try:
        dpt.load_state_dict(without)
        assert ratio(dpt(pixels), expected) > 0.01
    finally:
        dpt.load_state_dict(weights)


@torch.no_grad()
def test_dpt_equals_transformers_on_another_square(hub: DPTForDepthEstimation, dpt: DPT) -> None:
    """Positions are interpolated the same way."""
    pixels = torch.rand(1, 3, 96, 96) * 2 - 1
    assert ratio(dpt(pixels), hub(pixels).predicted_depth[:, None]) <= 1e-5


@torch.no_grad()
def test_dpt_takes_rectangles(dpt: DPT) -> None:
    assert dpt(torch.rand(1, 3, 64, 128)).shape == (1, 1, 64, 128)


def test_conversion_goes_there_and_back(hub: DPTForDepthEstimation, original: dict[str, Tensor]) -> None:
    there = to_hub(original, TINY)
    assert there.keys() == hub.state_dict().keys()
    for name, tensor in hub.state_dict().items():
        assert_close(there[name], tensor, rtol=0, atol=0)


def test_key_table_goes_both_ways(original: dict[str, Tensor]) -> None:
    back = {new: old for old, new in midas_key_table().items() if new}
    assert len(back) == len(midas_key_table()) - 1
    returned = {
        next(old + name.removeprefix(new) for new, old in back.items() if name.startswith(new))
        for name in from_midas(original)
    }
    assert returned == {name for name in original if not name.startswith("pretrained.model.head.")}


def test_names_and_shapes_of_the_real_size() -> None:
    """DPT-Large on the meta device: transformers' own keys through the converter are exactly ours."""
    with torch.device("meta"):
        hub = DPTForDepthEstimation(hub_config(DPTConfig()))
        ours = build_dpt(DPTConfig())
    converted = from_midas(to_original(hub.state_dict(), DPTConfig()))
    assert {name: value.shape for name, value in converted.items()} == {
        name: value.shape for name, value in ours.state_dict().items()
    }
    assert sum(value.numel() for value in ours.state_dict().values()) == 344055465 - 1000 * 1025


@pytest.mark.slow
def test_backbone_is_timms_vit_large() -> None:
    import timm

    with torch.device("meta"):
        timms = timm.create_model("vit_large_patch16_384", pretrained=False, num_classes=0)
        ours = build_dpt(DPTConfig())
    assert repr(ours.backbone) == repr(timms)


def test_other_weights_are_refused(original: dict[str, Tensor], tmp_path: Path) -> None:
    tensors = from_midas(original | {"pretrained.model.blocks.9.norm1.weight": torch.ones(32)})
    with pytest.raises(ValueError, match=r"blocks\.9.*use a file made for this network"):
        load_module(lambda: build_dpt(TINY), tensors, device=CPU, dtype=torch.float32, path=tmp_path / "x.pt")


@torch.no_grad()
def test_original_sees_images_as_midas_prepares_them(dpt: DPT) -> None:
    images = torch.rand(2, 3, 64, 96)
    depth = dpt_estimator(dpt)(images)
    assert_close(depth, dpt((images - 0.5) / 0.5))


@pytest.mark.parametrize("size", [(64, 64), (45, 81), (200, 120)])
def test_any_size_comes_back(dpt: DPT, size: tuple[int, int]) -> None:
    assert dpt_estimator(dpt)(torch.rand(1, 3, *size)).shape == (1, 1, *size)


@torch.no_grad()
def test_transformers_folder_is_an_estimator(hub: DPTForDepthEstimation, tmp_path: Path) -> None:
    hub.save_pretrained(tmp_path)
    estimate = load_dpt_transformers(tmp_path, device=CPU, dtype=torch.float32)
    images = torch.rand(2, 3, 64, 64)
    assert_close(estimate(images), hub((images - 0.5) / 0.5).predicted_depth[:, None], rtol=1e-5, atol=1e-5)
    assert estimate(torch.rand(1, 3, 30, 50)).shape == (1, 1, 30, 50)


def test_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"give the folder with config\.json"):
        load_dpt_transformers(tmp_path, device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("weights", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{broken}"])
def test_folder_with_broken_weights_is_refused(tmp_path: Path, weights: bytes) -> None:
    hub_config(TINY).save_pretrained(tmp_path)
    if weights:
        (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match="both whole"):
        load_dpt_transformers(tmp_path, device=CPU, dtype=torch.float32)


def test_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    hub = DPTForDepthEstimation(hub_config(TINY))
    kept = {name: value for name, value in hub.state_dict().items() if not name.startswith("neck")}
    hub.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(ValueError, match="give a DPT for depth"):
        load_dpt_transformers(tmp_path, device=CPU, dtype=torch.float32)


@pytest.mark.parametrize(
    ("fields", "advice"),
    [
        ({"hooks": (3, 2, 5, 6)}, "rising numbers"),
        ({"depth": 4}, "from 0 to 3"),
        ({"heads": 7}, "multiple of heads"),
    ],
)
def test_impossible_dpt_is_refused(fields: dict, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        DPTConfig(**fields)


@pytest.mark.parametrize("package", ["timm", "transformers"])
def test_missing_package_names_its_install_line(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"pip install {package}"):
        if package == "timm":
            build_dpt(TINY)
        else:
            load_dpt_transformers(tmp_path, device=CPU, dtype=torch.float32)
