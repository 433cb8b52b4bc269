"""CLIP towers through the key tables, against transformers and open_clip; and every public layout."""

from pathlib import Path
from typing import TypeVar

import open_clip
import pytest
import torch
from checkpoints.layouts import fixture, layout, write
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from parts import randomised, relative_error
from torch import Tensor, nn
from transformers import (
    CLIPConfig as TheirConfig,
)
from transformers import (
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from gen1_core.checkpoints.clip import text_table, text_tower_from, vision_from, vision_table
from gen1_core.checkpoints.files import load_module, read_file
from gen1_core.checkpoints.keymap import prefixed, same, to_theirs
from gen1_core.models.clip import CLIPConfig, TextTower, VisionTransformer

Module = TypeVar("Module", bound=nn.Module)
PATH = Path("clip.safetensors")
CPU = torch.device("cpu")

TEXT = {
    "L": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "quick_gelu"},
    "H": {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096, "hidden_act": "gelu"},
}
VISION = {
    "L": {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096, "hidden_act": "quick_gelu"},
    "H": {"hidden_size": 1280, "num_attention_heads": 16, "intermediate_size": 5120, "hidden_act": "gelu"},
    "bigG": {"hidden_size": 1664, "num_attention_heads": 16, "intermediate_size": 8192, "hidden_act": "gelu"},
}
LAYERS = {"L": (12, 24), "H": (24, 32), "bigG": (32, 48)}
WIDTHS = {"L": 768, "H": 1024, "bigG": 1280}


def text_model(kind: str, *, layers: int) -> CLIPTextModel:
    """True widths, heads and vocabulary of 99 ids, so that a test is small; the last id ends a text."""
    config = CLIPTextConfig(vocab_size=99, num_hidden_layers=layers, eos_token_id=98, bos_token_id=97, **TEXT[kind])
    return loud(CLIPTextModel(config))


def vision_model(kind: str, *, layers: int, size: int = 28) -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        num_hidden_layers=layers, patch_size=14, image_size=size, projection_dim=WIDTHS[kind], **VISION[kind]
    )
    return loud(CLIPVisionModelWithProjection(config))


def loud(module: Module) -> Module:
    """Random everywhere; attention weights above the usual, so that it is no mean over all tokens."""
    randomised(module)
    for name, parameter in module.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            parameter.data *= 2
    return module


def text_of(tensors: dict[str, Tensor]) -> TextTower:
    """Shares what needs no conversion with the reference: at real size both would not fit."""
    ours, config = text_tower_from(tensors, PATH)
    return load_module(lambda: TextTower(config), ours, device=CPU, dtype=torch.float32, path=PATH, copy=False)


def vision_of(tensors: dict[str, Tensor]) -> VisionTransformer:
    ours, config = vision_from(tensors, PATH)
    return load_module(lambda: VisionTransformer(config), ours, device=CPU, dtype=torch.float32, path=PATH, copy=False)


def tokens(rows: int = 2) -> Tensor:
    made = torch.randint(0, 97, (rows, 77), generator=torch.Generator().manual_seed(0))
    made[:, 40:] = 98
    return made


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "text_model."])
@pytest.mark.parametrize("kind", ["L", "H"])
def test_text_states_equal_transformers(kind: str, prefix: str) -> None:
    theirs = text_model(kind, layers=2)
    tensors = {prefix + name.removeprefix("text_model."): value for name, value in theirs.state_dict().items()}
    ours = text_of({**tensors, f"{prefix}embeddings.position_ids": torch.arange(77)[None]})
    seen = theirs(tokens(), output_hidden_states=True)
    assert relative_error(ours.hidden(tokens(), skip=0), seen.last_hidden_state) <= 1e-5
    norm = getattr(theirs, "text_model", theirs).final_layer_norm
    assert relative_error(ours.hidden(tokens(), skip=1), norm(seen.hidden_states[-2])) <= 1e-5
    assert relative_error(ours.hidden(tokens(), skip=1), ours.hidden(tokens(), skip=0)) > 0.01


@torch.no_grad()
@pytest.mark.parametrize("kind, layers", [("L", 2), ("H", 1), ("bigG", 1)])
def test_vision_states_equal_transformers(kind: str, layers: int) -> None:
    theirs = vision_model(kind, layers=layers)
    ours = vision_of({**theirs.state_dict(), "vision_model.embeddings.position_ids": torch.arange(5)[None]})
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    seen = theirs(pixels, output_hidden_states=True)
    assert relative_error(ours(pixels), seen.image_embeds) <= 1e-5
    assert relative_error(ours.hidden(pixels, skip=1), seen.hidden_states[-2]) <= 1e-5
    assert relative_error(ours.hidden(pixels, skip=1), ours.hidden(pixels, skip=0)) > 0.01


@torch.no_grad()
def test_both_towers_of_one_transformers_file() -> None:
    theirs = CLIPModel(
        TheirConfig(
            text_config=dict(vocab_size=99, num_hidden_layers=1, **TEXT["L"]),
            vision_config=dict(num_hidden_layers=1, patch_size=14, image_size=28, **VISION["L"]),
            projection_dim=768,
        )
    )
    loud(theirs)
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(2))
    embedding = theirs.visual_projection(theirs.vision_model(pixels).pooler_output)
    assert relative_error(vision_of(theirs.state_dict())(pixels), embedding) <= 1e-5
    states = theirs.text_model(tokens()).last_hidden_state
    assert relative_error(text_of(theirs.state_dict()).hidden(tokens(), skip=0), states) <= 1e-5


@torch.no_grad()
def test_both_towers_of_one_open_clip_file() -> None:
    theirs = open_clip.CLIP(
        embed_dim=1024,
        vision_cfg=CLIPVisionCfg(image_size=28, patch_size=14, width=1280, layers=1, head_width=80),
        text_cfg=CLIPTextCfg(context_length=77, vocab_size=99, width=1024, heads=16, layers=2),
    ).eval()
    equal_to_open_clip(loud(theirs), torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(3)))


def equal_to_open_clip(theirs: open_clip.CLIP, pixels: Tensor) -> None:
    state = theirs.state_dict()
    assert relative_error(vision_of(state)(pixels), theirs.encode_image(pixels)) <= 1e-5
    read = text_of(state).hidden(tokens(), skip=0)
    projected = read[torch.arange(2), tokens().argmax(-1)] @ state["text_projection"]
    assert relative_error(projected, theirs.encode_text(tokens())) <= 1e-5


TEXT_FILES = {
    "sd15_diffusers_text_encoder": (768, 12),
    "clip_vit_large_patch14": (768, 12),
    "openai_vit_l_14": (768, 12),
    "sd15_single_file": (768, 12),
    "open_clip_vit_h_14": (1024, 24),
    "sd21_768_single_file": (1024, 24),
    "sd2_depth_single_file": (1024, 24),
    "sd21_unclip_h": (1024, 24),
    "sd21_unclip_l": (1024, 24),
}
VISION_FILES = {
    "clip_vit_l_14_vision": (1024, 768),
    "clip_vit_large_patch14": (1024, 768),
    "openai_vit_l_14": (1024, 768),
    "sd21_unclip_l": (1024, 768),
    "clip_vit_h_14_vision": (1280, 1024),
    "open_clip_vit_h_14": (1280, 1024),
    "sd21_unclip_h": (1280, 1024),
    "clip_vit_bigg_14_vision": (1664, 1280),
}


@pytest.mark.parametrize("name", TEXT_FILES)
def test_every_text_layout_fits_at_its_real_size(name: str) -> None:
    theirs = {key: torch.empty(shape, device="meta") for key, shape in layout(name).shapes.items()}
    ours, config = text_tower_from(theirs, PATH)
    with torch.device("meta"):
        wanted = TextTower(config).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in wanted.items()}
    assert (config.text_width, config.text_layers) == TEXT_FILES[name]
    assert (config.context_length, config.vocab_size, config.text_heads) == (77, 49408, config.text_width // 64)
    assert config.quick_gelu == (config.text_width == 768)


@pytest.mark.parametrize("name", VISION_FILES)
def test_every_vision_layout_fits_at_its_real_size(name: str) -> None:
    theirs = {key: torch.empty(shape, device="meta") for key, shape in layout(name).shapes.items()}
    ours, config = vision_from(theirs, PATH)
    with torch.device("meta"):
        wanted = VisionTransformer(config).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in wanted.items()}
    assert config.image_size == 224 and config.vision_heads == 16
    assert (config.vision_width, config.embed_dim) == VISION_FILES[name]
    assert config.quick_gelu == (config.vision_width == 1024)


@torch.no_grad()
@pytest.mark.parametrize("name", ["sd15_diffusers_text_encoder", "clip_vit_large_patch14", "open_clip_vit_h_14"])
def test_a_text_file_loads_and_saves_and_loads_again(name: str, tmp_path: Path) -> None:
    first = text_of(read_file(write(tmp_path / "one.safetensors", fixture(name))).tensors)
    table = prefixed(text_table(first.config.text_layers), theirs="text_model.")
    again = text_of(read_file(write(tmp_path / "two.safetensors", to_theirs(first.state_dict(), table))).tensors)
    torch.testing.assert_close(again.state_dict(), first.state_dict(), rtol=0, atol=0)
    ids = torch.arange(5)[None]
    assert torch.isfinite(again.hidden(ids, skip=0)).all()


@torch.no_grad()
@pytest.mark.parametrize("name", ["clip_vit_h_14_vision", "clip_vit_bigg_14_vision", "clip_vit_l_14_vision"])
def test_a_vision_file_loads_and_saves_and_loads_again(name: str, tmp_path: Path) -> None:
    """From transformers' names to open_clip's and back."""
    theirs = fixture(name)
    tensors, config = vision_from(read_file(write(tmp_path / "one.safetensors", theirs)).tensors, PATH)
    ours = vision_table(config.vision_layers)
    opened = to_theirs(tensors, prefixed([same(own, own) for row in ours for own in row.ours], theirs="visual."))
    again, other = vision_from(read_file(write(tmp_path / "two.safetensors", opened)).tensors, PATH)
    back = to_theirs(again, ours)
    assert other == config
    assert set(theirs) - set(back) <= {"vision_model.embeddings.position_ids"}
    assert all(torch.equal(back[key], theirs[key]) for key in back)


def test_a_vision_file_without_the_name_of_the_tower() -> None:
    """As transformers 5 names CLIPVisionModel."""
    theirs = vision_model("H", layers=1).state_dict()
    bare = {name.removeprefix("vision_model."): tensor for name, tensor in theirs.items()}
    torch.testing.assert_close(vision_from(bare, PATH), vision_from(theirs, PATH), rtol=0, atol=0)
    with pytest.raises(ValueError, match="give the file of CLIPVisionModelWithProjection"):
        vision_from({name: tensor for name, tensor in bare.items() if "projection" not in name}, PATH)


def test_saved_in_transformers_names_it_is_the_file_again() -> None:
    text, vision = text_model("L", layers=2).state_dict(), vision_model("H", layers=1).state_dict()
    ours, config = text_tower_from(text, PATH)
    back = to_theirs(ours, text_table(config.text_layers))
    bare = {name.removeprefix("text_model."): value for name, value in text.items()}
    assert back.keys() == bare.keys() and all(torch.equal(back[name], bare[name]) for name in bare)
    ours, config = vision_from(vision, PATH)
    back = to_theirs(ours, vision_table(config.vision_layers))
    assert back.keys() == vision.keys() and all(torch.equal(back[name], vision[name]) for name in vision)


def test_a_text_model_with_projection_keeps_none() -> None:
    config = CLIPTextConfig(vocab_size=99, num_hidden_layers=1, **TEXT["L"])
    ours, _ = text_tower_from(CLIPTextModelWithProjection(config).state_dict(), PATH)
    assert "text_projection" not in ours and len(ours) == 4 + 12


def test_what_is_no_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="CLIPVisionModelWithProjection"):
        vision_from(text_model("L", layers=1).state_dict(), PATH)
    with pytest.raises(ValueError, match="text_encoder/model.safetensors"):
        text_tower_from(vision_model("L", layers=1).state_dict(), PATH)
    with pytest.raises(ValueError, match="gen1 info"):
        text_tower_from({**text_model("L", layers=1).state_dict(), "extra.weight": torch.zeros(1)}, PATH)


def test_a_layer_left_out_must_be_there() -> None:
    with pytest.raises(ValueError, match="give 0 for all"):
        TextTower(CLIPConfig(text_layers=1)).hidden(torch.zeros(1, 4, dtype=torch.long), skip=2)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("kind", ["L", "H", "bigG"])
def test_vision_towers_of_real_size_equal_transformers(kind: str) -> None:
    config = CLIPVisionConfig(
        num_hidden_layers=LAYERS[kind][1], patch_size=14, image_size=224, projection_dim=WIDTHS[kind], **VISION[kind]
    )
    theirs = loud(CLIPVisionModelWithProjection(config))
    ours = vision_of(theirs.state_dict())
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(4))
    seen = theirs(pixels, output_hidden_states=True)
    assert relative_error(ours(pixels), seen.image_embeds) <= 1e-5
    assert relative_error(ours.hidden(pixels, skip=1), seen.hidden_states[-2]) <= 1e-5


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("kind", ["L", "H"])
def test_text_towers_of_real_size_equal_transformers(kind: str) -> None:
    config = CLIPTextConfig(num_hidden_layers=LAYERS[kind][0], projection_dim=WIDTHS[kind], **TEXT[kind])
    theirs = loud(CLIPTextModel(config))
    seen = theirs(tokens(), output_hidden_states=True)
    assert relative_error(text_of(theirs.state_dict()).hidden(tokens(), skip=0), seen.last_hidden_state) <= 1e-5


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("name", ["ViT-L-14-quickgelu", "ViT-H-14"])
def test_towers_of_real_size_equal_open_clip(name: str) -> None:
    """OpenAI's weights have the quick GELU, as has this config of ViT-L."""
    config = open_clip.get_model_config(name)
    assert config is not None
    theirs = loud(open_clip.CLIP(**config).eval())
    equal_to_open_clip(theirs, torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(5)))
