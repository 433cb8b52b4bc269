"""LoRA files: what is read, where it goes, and what is refused. Equality is in test_lora_reference.py."""

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from checkpoints.layouts import fixture, layout, write
from checkpoints.lora_parts import as_ours, changed, copied, filled, largest_error, small_unet
from parts import relative_error
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from gen1_core.checkpoints.formats import identify_path
from gen1_core.checkpoints.lora import load_lora, lora_tensors, merge, read_lora
from gen1_core.checkpoints.lora_names import Part

PATH = Path("some.safetensors")

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def empty(shapes: Mapping[str, tuple[int, ...]], device: str) -> dict[str, Tensor]:
    """Tensors of true shapes that take no memory."""
    if device == "meta":
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def one_layer(layer: str = QUERY, width: int = 320, rank: int = 2) -> dict[str, Tensor]:
    return {
        f"unet.{layer}.lora.down.weight": torch.randn(rank, width),
        f"unet.{layer}.lora.up.weight": torch.randn(width, rank),
    }


def query_state(dtype: torch.dtype = torch.float32, width: int = 320) -> dict[str, Tensor]:
    return {f"{QUERY}.weight": torch.randn(width, width).to(dtype), "conv_out.bias": torch.randn(4).to(dtype)}


def test_a_motion_lora_skips_what_the_module_lacks_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    lora = read_lora(fixture("motion_lora_v2"), PATH)
    layer = "motion_modules.0.transformer_blocks.0.attn2.to_out.0.weight"
    with caplog.at_level(logging.WARNING):
        merge({f"down_blocks.0.{layer}": torch.zeros(32, 32)}, lora, weight=1.0, part="unet")
    assert "167 layers have no place" in caplog.text
    assert "mid_block_motion_modules_0" in caplog.text


@pytest.mark.parametrize("tucker", [False, True])
def test_a_convolution_is_changed_by_both_convolutions_in_turn(tucker: bool) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(6, 5, 3, 3), torch.randn(1, 5, 8, 8)
    up, mid = torch.randn(6, 4, 1, 1), torch.randn(4, 4, 3, 3)
    down = torch.randn(4, 5, *((1, 1) if tucker else (3, 3)))
    layer = "lora_unet_down_blocks_0_resnets_0_conv1"
    tensors = {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up, f"{layer}.alpha": torch.tensor(1.0)}
    if tucker:
        tensors[f"{layer}.lora_mid.weight"] = mid
    name = "down_blocks.0.resnets.0.conv1.weight"
    merged = merge({name: weight}, read_lora(tensors, PATH), weight=0.5, part="unet")
    inner = functional.conv2d(x, down, padding=0 if tucker else 1)
    inner = functional.conv2d(inner, mid, padding=1) if tucker else inner
    expected = functional.conv2d(x, weight, padding=1) + 0.5 / 4 * functional.conv2d(inner, up)
    assert relative_error(functional.conv2d(x, merged[name], padding=1), expected) <= 1e-5


ORIGINAL = {
    "input_blocks_0_0": "conv_in",
    "input_blocks_1_0_in_layers_2": "down_blocks_0_resnets_0_conv1",
    "input_blocks_3_0_op": "down_blocks_0_downsamplers_0_conv",
    "input_blocks_8_1_transformer_blocks_0_attn2_to_k": "down_blocks_2_attentions_1_transformer_blocks_0_attn2_to_k",
    "input_blocks_4_0_skip_connection": "down_blocks_1_resnets_0_conv_shortcut",
    "middle_block_1_proj_in": "mid_block_attentions_0_proj_in",
    "middle_block_2_emb_layers_1": "mid_block_resnets_1_time_emb_proj",
    "output_blocks_2_1_conv": "up_blocks_0_upsamplers_0_conv",
    "output_blocks_5_2_conv": "up_blocks_1_upsamplers_0_conv",
    "output_blocks_11_1_transformer_blocks_0_attn1_to_out_0": (
        "up_blocks_3_attentions_2_transformer_blocks_0_attn1_to_out_0"
    ),
    "out_2": "conv_out",
}
"""Layers of SD1.5 as the original implementation calls them, and as diffusers does."""


@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model."])
def test_names_of_the_original_implementation_mean_the_same_layers(prefix: str) -> None:
    state = filled(small_unet()).state_dict()
    by_name = {name.removesuffix(".weight").replace(".", "_"): tensor for name, tensor in state.items()}
    named: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for original, diffusers in ORIGINAL.items():
        shape = by_name[diffusers].shape
        halves = {"down": torch.randn(2, *shape[1:]), "up": torch.randn(shape[0], 2, *(1 for _ in shape[2:]))}
        for role, tensor in halves.items():
            named[0][f"{prefix}{original}.lora_{role}.weight"] = tensor
            named[1][f"lora_unet_{diffusers}.lora_{role}.weight"] = tensor
    ours, reference = (merge(state, read_lora(tensors, PATH), weight=1.0, part="unet") for tensors in named)
    assert largest_error(ours, reference) == 0
    assert len(changed(state, ours)) == len(ORIGINAL)


@pytest.mark.parametrize(
    ("name", "unet", "text"),
    [
        ("lora_kohya_sd15", 192, 72),
        ("lora_kohya_sd15_conv", 278, 72),
        ("lora_diffusers_sd15", 128, 48),
        ("lora_peft_sd15", 128, 48),
        ("lcm_lora_sd15", 278, 0),
        ("v3_sd15_adapter", 128, 0),
    ],
)
def test_every_layer_of_the_public_files_has_its_place_in_sd15(
    name: str, unet: int, text: int, caplog: pytest.LogCaptureFixture
) -> None:
    lora = read_lora(empty(layout(name).shapes, "cpu"), PATH)
    assert (len(lora.unet), len(lora.text), lora.base) == (unet, text, "SD1.5")
    with caplog.at_level(logging.WARNING):
        merge(empty(layout("sd15_diffusers_unet").shapes, "meta"), lora, weight=1.0, part="unet")
        tower = as_ours(empty(layout("sd15_diffusers_text_encoder").shapes, "meta"))
        merge(tower, lora, weight=1.0, part="text")
    assert caplog.text == ""


def test_a_motion_lora_fits_the_second_motion_module(caplog: pytest.LogCaptureFixture) -> None:
    lora = read_lora(empty(layout("motion_lora_v2").shapes, "cpu"), PATH)
    assert (len(lora.unet), len(lora.text), lora.base) == (168, 0, "an AnimateDiff motion module")
    merge(empty(layout("motion_adapter_v1_5_2_diffusers").shapes, "meta"), lora, weight=1.0, part="unet")
    assert caplog.text == ""


def of_sdxl() -> dict[str, Tensor]:
    """A few layers of kohya's SDXL names, one of which has a namesake of the same shape in SD1.5."""
    block = "lora_unet_input_blocks_4_1_transformer_blocks"
    shapes = {f"{block}_0_attn1_to_q": 640, f"{block}_0_attn2_to_k": 2048, f"{block}_1_attn1_to_q": 640}
    shapes["lora_te1_text_model_encoder_layers_0_self_attn_q_proj"] = 768
    tensors = {}
    for layer, width in shapes.items():
        tensors[f"{layer}.lora_down.weight"] = torch.ones(2, width)
        tensors[f"{layer}.lora_up.weight"] = torch.ones(640 if "unet" in layer else 768, 2)
    return tensors


@pytest.mark.parametrize("part", ["unet", "text"])
def test_a_lora_of_sdxl_is_refused_by_both_parts_of_sd15(part: Part) -> None:
    lora = read_lora(of_sdxl(), PATH)
    state = {
        "unet": empty(layout("sd15_diffusers_unet").shapes, "meta"),
        "text": as_ours(empty(layout("sd15_diffusers_text_encoder").shapes, "meta")),
    }[part]
    with pytest.raises(ValueError, match="LoRA for SDXL.*give a checkpoint of SDXL, or a LoRA made for this one"):
        merge(state, lora, weight=1.0, part=part)


def test_a_lora_of_sd15_is_refused_by_sd2() -> None:
    lora = read_lora(fixture("lora_diffusers_sd15", small=False), PATH)
    unet = empty(layout("sd15_diffusers_unet").shapes, "meta")
    for name, tensor in unet.items():
        if "attn2.to_k" in name or "attn2.to_v" in name:
            unet[name] = torch.empty(tensor.shape[0], 1024, device="meta")
    with pytest.raises(ValueError, match="LoRA for SD1.5; give a checkpoint of SD1.5"):
        merge(unet, lora, weight=1.0, part="unet")


def test_a_motion_lora_asks_for_a_motion_module() -> None:
    lora = read_lora(fixture("motion_lora_v2"), PATH)
    with pytest.raises(ValueError, match="0 of its 168 layers.*give --motion with a motion module"):
        merge(query_state(), lora, weight=1.0, part="unet")


def test_a_lora_without_a_text_encoder_leaves_it_as_it_is() -> None:
    state = {"transformer.resblocks.0.attn.in_proj_weight": torch.ones(6, 2)}
    assert merge(state, read_lora(one_layer(), PATH), weight=1.0, part="text") == state


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_the_dtype_stays_and_what_was_given_does_too(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    state, tensors = query_state(dtype), one_layer()
    before = copied(state)
    merged = merge(state, read_lora(tensors, PATH), weight=2.0, part="unet")
    down, up = tensors.values()
    expected = (before[f"{QUERY}.weight"].float() + 2 * up @ down).to(dtype)
    assert merged[f"{QUERY}.weight"].dtype == dtype
    torch.testing.assert_close(merged[f"{QUERY}.weight"].float(), expected.float())
    assert merged["conv_out.bias"] is state["conv_out.bias"]
    assert all(torch.equal(state[name].float(), before[name].float()) for name in state)


def test_a_weight_of_zero_changes_nothing_and_its_negative_takes_it_back() -> None:
    torch.manual_seed(0)
    state, lora = query_state(), read_lora(one_layer(), PATH)
    assert largest_error(merge(state, lora, weight=0.0, part="unet"), state) == 0
    there = merge(state, lora, weight=0.8, part="unet")
    assert largest_error(merge(there, lora, weight=-0.8, part="unet"), state) <= 1e-6


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"1\.0 for all of it"):
        merge(query_state(), read_lora(one_layer(), PATH), weight=weight, part="unet")


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.dora_scale", "DoRA"),
        (f"unet.{QUERY}.lora_magnitude_vector", "DoRA"),
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "LoHa"),
        ("lora_unet_mid_block_attentions_0_proj_in.lokr_w1", "LoKr"),
        ("oft_unet_mid_block_attentions_0_proj_in.oft_blocks", "OFT"),
        ("lora_unet_mid_block_attentions_0_proj_in.on_input", "IA3"),
        ("text_encoder.text_model.embeddings.token_embedding.lora_embedding_A", "embedding"),
        ("lora_controlnet", "Control-LoRA"),
        ("lllite_unet_input_blocks_4_1.down.0.weight", "LLLite"),
    ],
)
def test_other_kinds_of_change_are_named(key: str, kind: str) -> None:
    with pytest.raises(ValueError, match=f"{kind}.*look for a plain LoRA"):
        read_lora({**one_layer(), key: torch.ones(2)}, PATH)


@pytest.mark.parametrize("tensors", [{}, {"decoder.conv_in.weight": torch.ones(2, 2)}])
def test_what_is_no_lora_is_refused(tensors: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="0 layers of a LoRA.*look what the file is with `gen1 info`"):
        read_lora(tensors, PATH)


def test_a_key_that_nobody_knows_is_named() -> None:
    with pytest.raises(ValueError, match=r"1 other tensors \(surprise\).*gen1 info"):
        read_lora({**one_layer(), "surprise": torch.ones(1)}, PATH)


def test_an_embedding_that_travels_with_a_lora_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        lora = read_lora({**one_layer(), "bundle_emb.style.string_to_param.*": torch.ones(2, 768)}, PATH)
    assert len(lora.unet) == 1
    assert "bundle_emb.style" in caplog.text


def test_half_a_pair_is_refused() -> None:
    tensors = one_layer()
    tensors.popitem()
    with pytest.raises(ValueError, match="only down of .*download it again"):
        read_lora(tensors, PATH)


def test_ranks_that_do_not_meet_are_refused() -> None:
    tensors = one_layer()
    tensors[f"unet.{QUERY}.lora.up.weight"] = torch.ones(320, 3)
    with pytest.raises(ValueError, match=r"ranks \(3, 2\).*download it again"):
        read_lora(tensors, PATH)


def test_one_layer_under_two_names_is_refused() -> None:
    with pytest.raises(ValueError, match="two changes of .*save it again with one program"):
        read_lora({**one_layer(), **{f"base_model.model.{key}": tensor for key, tensor in one_layer().items()}}, PATH)


def test_settings_that_are_not_json_are_named(tmp_path: Path) -> None:
    save_file(one_layer(), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="adapter_config.json.*download it again"):
        load_lora(tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize("prefix", ["text_encoder.", "text_encoder.text_model.", "base_model.model.text_model."])
@pytest.mark.parametrize("letter", ["q", "k", "v"])
def test_query_key_and_value_change_their_own_rows(prefix: str, letter: str) -> None:
    layer = f"{prefix}encoder.layers.3.self_attn.{letter}_proj"
    tensors = {f"{layer}.lora_A.weight": torch.ones(1, 2), f"{layer}.lora_B.weight": torch.ones(2, 1)}
    name = "transformer.resblocks.3.attn.in_proj_weight"
    merged = merge({name: torch.zeros(6, 2)}, read_lora(tensors, PATH), weight=1.0, part="text")
    rows = ["qkv".index(letter) * 2 + row for row in range(2)]
    assert merged[name].sum(dim=1).nonzero().flatten().tolist() == rows


@pytest.mark.parametrize(
    "name",
    [
        "lora_kohya_sd15",
        "lora_kohya_sd15_conv",
        "lora_diffusers_sd15",
        "lora_peft_sd15",
        "lcm_lora_sd15",
        "motion_lora_v2",
    ],
)
def test_a_file_loads_and_saves_and_loads_again(name: str, tmp_path: Path) -> None:
    first = load_lora(write(tmp_path / "first.safetensors", fixture(name)))
    saved = tmp_path / "again.safetensors"
    write(saved, {key: tensor.contiguous() for key, tensor in lora_tensors(first).items()})
    assert identify_path(saved).kind == "lora"
    again = load_lora(saved)
    for one, other in ((first.unet, again.unet), (first.text, again.text)):
        assert one.keys() == other.keys()
        for layer, pair in one.items():
            torch.testing.assert_close(
                other[layer].change(torch.device("cpu")), pair.change(torch.device("cpu")), rtol=1e-6, atol=0
            )
